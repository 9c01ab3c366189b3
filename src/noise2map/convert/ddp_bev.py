"""Official bird's-eye-view checkpoints (DDP's ``bev`` folder): key names and the configuration behind the shapes."""

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor

from noise2map.convert.ddp_keys import dropped_because, rename

# The geometry constants that the official model stores among its parameters.
_GEOMETRY = re.compile(r"encoders\.camera\.vtransform\.(dx|bx|nx|frustum)")

_CAMERA_BACKBONE = "encoders.camera.backbone."

_HEAD = "heads.map."

_PREFIXES = {
    "encoders.camera.neck.": "encoder.camera.neck.",
    "encoders.camera.vtransform.": "encoder.camera.lift.",
    "encoders.lidar.backbone.": "encoder.lidar.",
    "fuser.": "encoder.fuser.",
    "decoder.": "encoder.decoder.",
}

_DEPTH_STEP_M = 0.5

_IMAGE_STRIDE = 8

# Published: 5 noise samples with cameras alone, 4 with LiDAR.
_ENSEMBLE_SIZES = {"resnet": 5, "second": 4}

Shape = Callable[[str], tuple[int, ...]]


def is_bev(tensors: dict[str, Tensor]) -> bool:
    """True if a state dict is that of an official bird's-eye-view model."""
    return f"{_HEAD}conv_seg.weight" in tensors


def rename_bev(key: str) -> str | None:
    """Our name of an official key, or `None` if it has none."""
    if key.startswith(_CAMERA_BACKBONE):
        name = rename("backbone." + key.removeprefix(_CAMERA_BACKBONE))
        return None if name is None else name.replace("encoder.backbone.", "encoder.camera.backbone.", 1)
    for official, ours in _PREFIXES.items():
        if key.startswith(official):
            return ours + key.removeprefix(official)
    return rename(segmentation_key(key))


def segmentation_key(key: str) -> str:
    """The name that the same part has in the official segmentation model."""
    if key.startswith(_CAMERA_BACKBONE):
        return "backbone." + key.removeprefix(_CAMERA_BACKBONE)
    return "decode_head." + key.removeprefix(_HEAD) if key.startswith(_HEAD) else key


def bev_dropped_because(key: str, time_conditioning: bool) -> str | None:
    """Why an official key is not needed, or `None` if it is."""
    if _GEOMETRY.fullmatch(key):
        return "computed from the configuration"
    return dropped_because(segmentation_key(key), time_conditioning)


def bev_sizes(tensors: dict[str, Tensor], shape: Shape) -> dict[str, Any]:
    """Fields of `Noise2MapBevConfig` that the shapes tell, apart from those of backbone and map decoder."""
    sensors = [name for name in ("camera", "lidar") if any(key.startswith(f"encoders.{name}.") for key in tensors)]
    sizes: dict[str, Any] = {
        "sensors": sensors,
        "num_labels": shape(f"{_HEAD}conv_seg.weight")[0],
        "map_scale": 0.01,
        "num_inference_steps": 3,
        "average": "steps",
    }
    if "camera" in sensors:
        sizes |= _camera_sizes(tensors, shape)
    if "lidar" in sensors:
        encoder = "encoders.lidar.backbone"
        widths = [shape(f"{encoder}.encoder_layers.encoder_layer{i}.0.conv1.weight")[-1] for i in range(1, 5)]
        sizes |= {"point_features": shape(f"{encoder}.conv_input.0.weight")[3], "lidar_channels": widths}
    if "fuser.0.weight" in tensors:
        sizes["fuser_channels"] = shape("fuser.0.weight")[0]
    sizes |= _decoder_sizes(tensors, shape)
    sizes["ensemble_size"] = _ENSEMBLE_SIZES[sizes["bev_decoder"]]
    if sizes["num_labels"] == 6:
        del sizes["num_labels"]  # the default, with the layers' names
    return sizes


def _camera_sizes(tensors: dict[str, Tensor], shape: Shape) -> dict[str, Any]:
    transform = "encoders.camera.vtransform"
    neck = shape("encoders.camera.neck.lateral_convs.0.conv.weight")[0]
    context = shape(f"{transform}.downsample.0.weight")[0]
    depths = shape(f"{transform}.depthnet.weight")[0] - context
    sizes: dict[str, Any] = {
        "camera_neck_channels": neck,
        "context_channels": context,
        "depth_bounds": [1.0, 1.0 + depths * _DEPTH_STEP_M, _DEPTH_STEP_M],
    }
    if f"{transform}.frustum" in tensors:
        _, height, width, _ = shape(f"{transform}.frustum")
        sizes["image_size"] = [height * _IMAGE_STRIDE, width * _IMAGE_STRIDE]
    return sizes


def _decoder_sizes(tensors: dict[str, Tensor], shape: Shape) -> dict[str, Any]:
    if "decoder.backbone.blocks.0.0.weight" in tensors:
        stages = _indices(tensors, r"decoder\.backbone\.blocks\.(\d+)\.")
        layers = _indices(tensors, r"decoder\.backbone\.blocks\.0\.(\d+)\.running_mean")
        return {
            "bev_decoder": "second",
            "bev_decoder_channels": [shape(f"decoder.backbone.blocks.{i}.0.weight")[0] for i in stages],
            "bev_decoder_blocks": len(layers) - 1,
            "bev_neck_channels": shape("decoder.neck.deblocks.0.0.weight")[0],
        }
    stages = _indices(tensors, r"decoder\.backbone\.(\d+)\.")
    return {
        "bev_decoder": "resnet",
        "bev_decoder_channels": [shape(f"decoder.backbone.{i}.0.conv1.weight")[0] for i in stages],
        "bev_decoder_blocks": len(_indices(tensors, r"decoder\.backbone\.0\.(\d+)\.")),
        "bev_neck_channels": shape("decoder.neck.fuse.0.weight")[0],
    }


def _indices(tensors: dict[str, Tensor], pattern: str) -> list[int]:
    return sorted({int(match.group(1)) for key in tensors if (match := re.match(pattern, key))})
