"""Batches of uint8 images, on any device, as the normalized input of a vision model."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.image_processing_base import ImageProcessingMixin

from noise2map.models.image_processing import MIN_SIDE

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalized_pixels(images: Tensor, short_side: int | None, size: tuple[int, int] | None, mean: Any, std: Any) -> Tensor:
    """Images `(B, 3, H, W)` uint8 resized and normalized, float32.

    Args:
        images: The images.
        short_side: Height or width, whichever is smaller, after resizing; the ratio is kept.
        size: Height and width instead.
        mean: Of each channel, of values in [0, 1].
        std: Likewise.
    """
    height, width = images.shape[-2:]
    if size is None:
        scale = max(short_side or 0, MIN_SIDE) / min(height, width)
        size = (round(height * scale), round(width * scale))
    values = images.float() / 255
    if size != (height, width):
        values = functional.interpolate(values, size=size, mode="bilinear", align_corners=False, antialias=True)
    mean, std = (torch.tensor(x, device=images.device)[:, None, None] for x in (mean, std))
    return (values - mean) / std


def short_side_of(processor: Any) -> int:
    """The shorter side at which a processor of this library shows images to its model."""
    size = dict(processor.size)
    return int(size.get("shortest_edge") or min(size["height"], size["width"]))


def processor_settings(source: str) -> dict[str, Any]:
    """Content of `preprocessor_config.json` of a folder or hub id; empty where there is none."""
    try:
        return ImageProcessingMixin.get_image_processor_dict(source)[0]
    except OSError:
        return {}


def input_size_of(settings: dict[str, Any], side: Any) -> tuple[int, int]:
    """Height and width that a model expects: of its processor (the crop first), else of its configuration, else 224."""
    for key in ("crop_size", "size"):
        size = settings.get(key)
        if isinstance(size, int):
            return size, size
        if isinstance(size, dict) and "height" in size:
            return int(size["height"]), int(size["width"])
        if isinstance(size, dict) and "shortest_edge" in size:
            return int(size["shortest_edge"]), int(size["shortest_edge"])
    if isinstance(side, (list, tuple)):
        return int(side[0]), int(side[1])
    return (int(side), int(side)) if side else (224, 224)
