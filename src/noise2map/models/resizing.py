"""Bilinear resizing of predictions, the one rule of training, sampling and scoring."""

import torch
from torch import Tensor
from torch.nn import functional


def resize_map(x: Tensor, *sizes: tuple[int, int]) -> Tensor:
    """Bilinear resize of ``(B, K, h, w)`` to one size after the other, pixel areas aligned, as in the published code."""
    for size in sizes:
        if x.shape[-2:] != size:
            x = functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
    return x


def resize_logits(logits: Tensor, *sizes: tuple[int, int], log_probabilities: bool = False) -> Tensor:
    """Class scores ``(B, K, h, w)`` at another size; logarithms of averaged probabilities are resized as probabilities."""
    if not log_probabilities:
        return resize_map(logits, *sizes)
    return resize_map(logits.exp(), *sizes).clamp(min=torch.finfo(logits.dtype).tiny).log()
