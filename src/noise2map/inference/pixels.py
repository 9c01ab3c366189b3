"""Batches of uint8 images, on any device, as the normalized input of a vision model."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.image_processing_base import ImageProcessingMixin

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalized_pixels(images: Tensor, size: tuple[int, int], mean: Any, std: Any) -> Tensor:
    """Images `(B, 3, H, W)` uint8 resized and normalized, float32.

    Args:
        images: The images.
        size: Height and width after resizing.
        mean: Of each channel, of values in [0, 1].
        std: Likewise.
    """
    values = images.float() / 255
    if tuple(size) != tuple(images.shape[-2:]):
        values = functional.interpolate(values, size=size, mode="bilinear", align_corners=False, antialias=True)
    mean, std = (torch.tensor(x, device=images.device)[:, None, None] for x in (mean, std))
    return (values - mean) / std


def processed_pixels(images: Tensor, processor: Any) -> Tensor:
    """Images `(B, 3, H, W)` uint8 as a processor of this library shows them to its model, on their own device."""
    columns, rows = processor.processed_size(images.shape[-1], images.shape[-2])
    return normalized_pixels(images, (rows, columns), processor.image_mean, processor.image_std)


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
