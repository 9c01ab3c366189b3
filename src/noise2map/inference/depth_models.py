"""Depth models by name, ours or of transformers, as one callable: images -> depth at their size."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoImageProcessor, AutoModelForDepthEstimation

from noise2map.inference.loading import is_map_model, load_model, pick_device
from noise2map.inference.pixels import IMAGENET_MEAN, IMAGENET_STD, input_size_of, processor_settings
from noise2map.models import MapModel
from noise2map.models.resizing import normalized_pixels
from noise2map.runs.files import weights_checksum
from noise2map.tasks import task_of
from noise2map.zoo import label_of, resolve_model

DEFAULT_DEPTH_MODEL = "freedoom-depth-laplace-tiny"
# Of transformers, whose configuration does not say it. What DPT and MiDaS give has neither scale nor shift.
_METRIC = {"chmv2": True, "depth_pro": True, "glpn": True, "tipsv2_dpt": True, "zoedepth": True, "dpt": False}
_NEAREST_M = 1e-3
_FLOOR = 0.05


class DepthModel(nn.Module):
    """Maps images `(B, 3, H, W)` uint8 to depth `(B, H, W)`.

    Attributes:
        name: What it is, weights included.
        metric: Whether depth is in metres; else the model gives inverse depth up to scale and shift.
        depth_range: Nearest and farthest depth in metres.
    """

    name: str
    metric: bool
    depth_range: tuple[float, float]

    def predict(self, images: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` uint8 -> `(B, H, W)` float32: metres, or inverse depth up to scale and shift."""
        raise NotImplementedError(f"{type(self).__name__} has no predict")

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` uint8 -> depth `(B, H, W)`: metres, or without a unit, see `depth_of_disparity`."""
        found = self.predict(images)
        return found.clamp(*self.depth_range) if self.metric else depth_of_disparity(found)

    @torch.no_grad()
    def label(self, images: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` uint8 -> what depth predictors are trained on, `(B, H, W)`.

        Metres; or relative depth in [0, 1], 0 for near, between the 2nd and the 98th percentile of each image.
        """
        found = self.predict(images)
        if self.metric:
            return found.clamp(min=_NEAREST_M)
        # By numpy: torch's takes no more than 16 million values.
        quantiles = np.quantile(found.float().flatten(1).cpu().numpy(), [0.02, 0.98], axis=1)
        low, high = torch.from_numpy(quantiles).to(found)[..., None, None]
        return 1 - ((found - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)

    def label_image(self, image: Image.Image) -> np.ndarray:
        """An RGB image -> `(H, W)` float32, see `label`."""
        pixels = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)[None]
        return self.label(pixels.to(next(self.parameters()).device))[0].float().cpu().numpy()


def load_depth_model(spec: str = DEFAULT_DEPTH_MODEL, device: str | torch.device = "auto", steps: int = 1) -> DepthModel:
    """A depth model by name.

    Args:
        spec: A shipped depth checkpoint, a folder of one, or a depth model of transformers by folder or hub id.
        device: Where to.
        steps: Decoder calls of a checkpoint of this library.

    Raises:
        ImportError: If its image processor needs a package that is not installed.
        OSError: If there is no such model, or it cannot be read.
        ValueError: If it is a model for something else, or whether it gives metres is not known.
    """
    device = pick_device(device) if isinstance(device, str) else device
    model: DepthModel
    if is_map_model(spec):
        ours, processor = load_model(spec, device)
        if not task_of(ours).in_metres:
            raise ValueError(f"{spec!r} is a {type(ours).__name__}; expected a model for depth")
        model = MapModelDepth(ours, processor, label_of(spec), steps)
    else:
        model = TransformersDepth.from_pretrained(spec)
    return model.to(device).eval().requires_grad_(False)


class MapModelDepth(DepthModel):
    """Depth in metres by a checkpoint of this library, from the same start noise for every image."""

    metric = True

    def __init__(self, model: MapModel, processor: Any, label: str, steps: int = 1) -> None:
        super().__init__()
        self.model, self.processor, self.steps = model, processor, steps
        self.depth_range = (model.config.min_depth, model.config.max_depth)
        self.name = f"{label}@{weights_checksum(model)}" + (f" ({steps} steps)" if steps > 1 else "")

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` uint8 -> metres `(B, H, W)`."""
        pixels = self.processor.normalized_batch(images)
        noise = [torch.Generator().manual_seed(0) for _ in images]
        out = self.model(pixel_values=pixels, num_inference_steps=self.steps, ensemble_size=1, generator=noise)
        return resize_depth(out.predicted_depth, images)


class TransformersDepth(DepthModel):
    """Depth by a model of transformers, through its own image processor there and back.

    The way back is part of some models: Depth Pro gives the inverse of its depth, ZoeDepth depth of a padded image. A model
    without a processor gets images of its own size, and what it gives is resized.

    Args:
        model: Gives `predicted_depth`.
        label: Short name.
        processor: Its image processor, if there is one.
        input_size: Height and width of its input in px, where there is no processor.
    """

    depth_range = (0.1, 100.0)

    def __init__(self, model: nn.Module, label: str, processor: Any = None, input_size: tuple[int, int] = (224, 224)) -> None:
        super().__init__()
        self.model = model.eval()
        self.processor, self.input_size = processor, input_size
        self.metric = gives_metres(model.config)
        if processor is None and model.config.model_type == "depth_pro":
            raise ValueError(f"depth model {label!r} has no image processor, which makes depth of what it predicts")
        self.name = f"{label}@{weights_checksum(model)}"

    @classmethod
    def from_pretrained(cls, name: str) -> "TransformersDepth":
        """Load a model by folder or hub id.

        Raises:
            ImportError: If its image processor needs a package that is not installed.
            OSError: If it is not there or cannot be read.
            ValueError: If it is no depth model, or whether it gives metres is not known.
        """
        path = Path(name).expanduser()
        if not path.is_dir() and "/" not in name:
            resolve_model(name)  # says what is shipped
        source = str(path) if path.is_dir() else name
        try:
            model = AutoModelForDepthEstimation.from_pretrained(source)
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"depth model {name!r} could not be loaded: {error}") from error
        settings = processor_settings(source)
        processor = AutoImageProcessor.from_pretrained(source) if settings else None
        return cls(model, label_of(name), processor, input_size_of(settings, getattr(model.config, "image_size", None)))

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` uint8 -> `(B, H, W)` float32: metres, or inverse depth up to scale and shift."""
        if self.processor is None:
            pixels = normalized_pixels(images, self.input_size, IMAGENET_MEAN, IMAGENET_STD)
            return resize_depth(self.model(pixel_values=pixels).predicted_depth.float(), images)
        pixels = self.processor(images=list(images.cpu()), return_tensors="pt")["pixel_values"].to(images.device)
        out = self.model(pixel_values=pixels)
        if not hasattr(self.processor, "post_process_depth_estimation"):
            return resize_depth(out.predicted_depth.float(), images)
        size = (images.shape[-2], images.shape[-1])
        padded = {"source_sizes": [size] * len(images)} if self.model.config.model_type == "zoedepth" else {}
        found = self.processor.post_process_depth_estimation(out, target_sizes=[size] * len(images), **padded)
        return torch.stack([one["predicted_depth"].float().reshape(size) for one in found])


def gives_metres(config: Any) -> bool:
    """True if a depth model of transformers gives metres; else it gives inverse depth up to scale and shift.

    Raises:
        ValueError: If neither its configuration nor its type says so.
    """
    stated = getattr(config, "depth_estimation_type", None)
    if stated is not None:
        return stated == "metric"
    if config.model_type not in _METRIC:
        raise ValueError(
            f"whether depth models of type {config.model_type!r} give metres is not known; expected one of {', '.join(_METRIC)}, "
            "or a configuration with depth_estimation_type"
        )
    return _METRIC[config.model_type]


def depth_of_disparity(disparity: Tensor) -> Tensor:
    """Inverse depth up to scale and shift `(B, H, W)` -> depth without unit, 1/1.05 (nearest) to 20 (farthest).

    The inverse of the result is linear in what was given: rendered disparity is exactly the model's.
    """
    low, high = disparity.amin((1, 2), keepdim=True), disparity.amax((1, 2), keepdim=True)
    return 1 / ((disparity - low) / (high - low).clamp_min(1e-12) + _FLOOR)


def resize_depth(depth: Tensor, images: Tensor) -> Tensor:
    """Depth `(B, h, w)` at the size of images `(B, 3, H, W)`, bilinear."""
    return functional.interpolate(depth[:, None], size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
