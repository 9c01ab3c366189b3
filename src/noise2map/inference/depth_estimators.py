"""Depth of any batch of images by a plug-in estimator: a checkpoint of this library, or a depth model of transformers."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForDepthEstimation
from transformers.image_processing_base import ImageProcessingMixin

from noise2map.inference.feature_extractors import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    fingerprint,
    input_size_of,
    is_map_model,
    label_of,
    normalised,
    short_side_of,
)
from noise2map.inference.loading import load_model, pick_device
from noise2map.models import MapModel, Noise2MapForDepthEstimation
from noise2map.zoo import resolve_model

DEFAULT_ESTIMATOR = "freedoom-depth-tiny"
_FLOOR = 0.05


class DepthEstimator(nn.Module):
    """Maps images `(B, 3, H, W)` uint8 to depth `(B, H, W)`.

    Attributes:
        name: What it is, weights included.
        metric: Whether depth is in metres; else it has no unit.
        depth_range: Nearest and farthest depth in metres.
    """

    name: str
    metric: bool
    depth_range: tuple[float, float]


def make_estimator(spec: str = DEFAULT_ESTIMATOR, device: str | torch.device = "auto", steps: int = 1) -> DepthEstimator:
    """A depth estimator by name.

    Args:
        spec: A shipped depth checkpoint, a folder of one, or a depth model of transformers by folder or hub id.
        device: Where to.
        steps: Decoder calls of a checkpoint of this library.

    Raises:
        OSError: If there is no such model, or it cannot be read.
        ValueError: If it is a model for something else.
    """
    device = pick_device(device) if isinstance(device, str) else device
    estimator: DepthEstimator
    if is_map_model(spec):
        model, processor = load_model(spec, device)
        if not isinstance(model, Noise2MapForDepthEstimation):
            raise ValueError(f"{spec!r} is a {type(model).__name__}; expected a model for depth")
        estimator = MapModelDepth(model, processor, label_of(spec), steps)
    else:
        estimator = BackboneDepth.from_pretrained(spec)
    return estimator.to(device).eval().requires_grad_(False)


class MapModelDepth(DepthEstimator):
    """Depth in metres by a checkpoint of this library, from the same start noise for every image."""

    metric = True

    def __init__(self, model: MapModel, processor: Any, label: str, steps: int = 1) -> None:
        super().__init__()
        self.model, self.steps = model, steps
        self.short_side = short_side_of(processor)
        self.mean, self.std = processor.image_mean, processor.image_std
        self.depth_range = (model.config.min_depth, model.config.max_depth)
        self.name = f"{label}@{fingerprint(model)}" + (f" ({steps} steps)" if steps > 1 else "")

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` uint8 -> metres `(B, H, W)`."""
        pixels = normalised(images, self.short_side, None, self.mean, self.std)
        noise = [torch.Generator().manual_seed(0) for _ in images]
        out = self.model(pixel_values=pixels, num_inference_steps=self.steps, ensemble_size=1, generator=noise)
        return _at_size(out.predicted_depth, images)


class BackboneDepth(DepthEstimator):
    """Depth by a model of transformers.

    Models of relative depth (MiDaS, DPT, Depth Anything) give inverse depth up to scale and shift. It is turned into a depth
    without unit whose inverse is linear in what the model gave: pictures of disparity are exactly those of the model.

    Args:
        model: Gives `predicted_depth`.
        label: Short name.
        size: Height and width of its input, pixels.
        mean: Of the normalisation.
        std: Of the normalisation.
        relative: Whether it gives inverse depth.
    """

    depth_range = (0.1, 100.0)

    def __init__(self, model: nn.Module, label: str, size: tuple[int, int], mean: Any, std: Any, relative: bool) -> None:
        super().__init__()
        self.model = model.eval()
        self.input_size, self.mean, self.std, self.metric = size, mean, std, not relative
        self.name = f"{label}@{fingerprint(model)}"

    @classmethod
    def from_pretrained(cls, name: str) -> "BackboneDepth":
        """Load a model by folder or hub id.

        Raises:
            OSError: If it is not there or cannot be read.
        """
        path = Path(name).expanduser()
        if not path.is_dir() and "/" not in name:
            resolve_model(name)  # says what is shipped
        source = str(path) if path.is_dir() else name
        model = AutoModelForDepthEstimation.from_pretrained(source)
        try:
            settings, _ = ImageProcessingMixin.get_image_processor_dict(source)
        except OSError:
            settings = {}
        mean, std = settings.get("image_mean", IMAGENET_MEAN), settings.get("image_std", IMAGENET_STD)
        size = input_size_of(settings, getattr(model.config, "image_size", None))
        return cls(model, label_of(name), size, mean, std, gives_inverse_depth(model.config))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` uint8 -> depth `(B, H, W)`, metres or without unit."""
        out = self.model(pixel_values=normalised(images, None, self.input_size, self.mean, self.std))
        found = _at_size(out.predicted_depth.float(), images)
        if self.metric:
            return found.clamp(*self.depth_range)
        return depth_of_disparity(found)


def gives_inverse_depth(config: Any) -> bool:
    """Whether a depth model of transformers gives inverse depth without a unit."""
    return getattr(config, "depth_estimation_type", "relative" if config.model_type == "dpt" else "metric") == "relative"


def depth_of_disparity(disparity: Tensor) -> Tensor:
    """Inverse depth up to scale and shift `(B, H, W)` -> depth without unit, 1/1.05 (nearest) to 20 (farthest).

    The inverse of the result is linear in what was given.
    """
    low, high = disparity.amin((1, 2), keepdim=True), disparity.amax((1, 2), keepdim=True)
    return 1 / ((disparity - low) / (high - low).clamp_min(1e-12) + _FLOOR)


def _at_size(depth: Tensor, images: Tensor) -> Tensor:
    return functional.interpolate(depth[:, None], size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
