"""A short fingerprint of a U-Net's weights, which survives a change of precision but not another training."""

from collections.abc import Sequence

import torch
from diffusers import UNet2DModel

_VALUES = 32


def unet_signature(unet: UNet2DModel) -> list[float]:
    """Weights of the first and the last convolution, evenly spaced: 64 numbers."""
    parts = []
    for layer in (unet.conv_in, unet.conv_out):
        flat = layer.weight.detach().flatten().float().cpu()
        parts.append(flat[torch.linspace(0, flat.numel() - 1, _VALUES).long()])
    return [round(value, 6) for value in torch.cat(parts).tolist()]


def signature_distance(first: Sequence[float], second: Sequence[float]) -> float:
    """Length of the difference, relative to the length of the first: 0 for the same weights, about 1.4 for unrelated ones.

    Raises:
        ValueError: if the lengths differ.
    """
    a, b = torch.tensor(list(first)), torch.tensor(list(second))
    if a.shape != b.shape:
        raise ValueError(f"signatures have {a.numel()} and {b.numel()} numbers; expected the same")
    return ((a - b).norm() / a.norm().clamp(min=1e-12)).item()
