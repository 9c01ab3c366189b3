"""Fields of noise: at several resolutions for decoders that draw samples, and smooth ones that turn marginals into whole maps.

A marginal says how likely each class (or depth) is in each pixel, and nothing of how pixels hang together. Drawing every pixel
with the same, or slowly changing, luck gives maps that are coherent and still have exactly that marginal (a Gaussian copula).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from noise2map.diffusion.ensemble import draw_noise

# A field is a sum of this many, each twice as wide as the one before, of equal variance: rooms have walls and door frames.
_OCTAVES = 3
_SMALLEST = 1e-6  # probabilities and quantiles are kept this far from 0 and 1


def multi_resolution_noise(
    channels: int,
    samples: int,
    size: tuple[int, int],
    generators: Sequence[torch.Generator | None],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal noise, channel ``i`` constant over blocks of ``4^i`` cells.

    Args:
        channels: number of channels n.
        samples: samples R of each image.
        size: ``(h, w)``.
        generators: one for each of the B images.
        device: where the noise is needed.

    Returns:
        ``(B, R, n, h, w)`` float32.
    """
    parts = []
    for channel in range(channels):
        coarse = draw_noise((samples, 1, *blocks_of(channel, size)), generators, device)
        parts.append(cells_of_blocks(coarse, channel, (0, 0), size))
    return torch.cat(parts, 2)


def blocks_of(channel: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the blocks of `multi_resolution_noise` that cover ``(h, w)`` cells."""
    return math.ceil(size[0] / 4**channel), math.ceil(size[1] / 4**channel)


def cells_of_blocks(blocks: Tensor, channel: int, first: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The cells of blocks ``(..., h', w')``, from a row and a column on: ``(..., h, w)``."""
    fine = blocks.repeat_interleave(4**channel, -2).repeat_interleave(4**channel, -1)
    return fine[..., first[0] : first[0] + size[0], first[1] : first[1] + size[1]]


def smooth_field(
    shape: Sequence[int], size: tuple[int, int], smoothness: float, generators: Sequence[torch.Generator | None]
) -> Tensor:
    """Stationary Gaussian fields of mean 0 and variance 1.

    Args:
        shape: leading shape of each image's fields, e.g. ``(R, K)``.
        size: ``(h, w)``.
        smoothness: width of the narrowest of three superposed Gaussian kernels, in cells (standard deviation); the others have
            twice and four times that. 0 gives independent cells, infinity one value for the whole map.
        generators: one for each of the B images.

    Returns:
        ``(B, *shape, h, w)`` float32 on the CPU.

    Raises:
        ValueError: if the smoothness is negative or no number.
    """
    if not smoothness >= 0:
        raise ValueError(f"smoothness is {smoothness!r} cells; expected a number of at least 0")
    if math.isinf(smoothness):
        return draw_noise((*shape, 1, 1), generators).expand(-1, *shape, *size)
    if smoothness == 0:
        return draw_noise((*shape, *size), generators)
    total = torch.zeros(())
    for octave in range(_OCTAVES):
        total = total + _blurred_noise(shape, size, smoothness * 2**octave, generators)
    return total / math.sqrt(_OCTAVES)


def _blurred_noise(
    shape: Sequence[int], size: tuple[int, int], width: float, generators: Sequence[torch.Generator | None]
) -> Tensor:
    # Wide fields are drawn on a coarser grid: a kernel is never wider than a few of its cells. The grid reaches beyond the map, so
    # that the field is the same kind everywhere.
    stride = max(1, int(width / 2))
    reach = math.ceil(3 * width / stride)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets * stride / width).square())
    kernel = kernel / kernel.square().sum().sqrt()  # of unit norm: the blurred noise has unit variance
    cells = [math.ceil(side / stride) + 1 for side in size]
    noise = draw_noise((*shape, cells[0] + 2 * reach, cells[1] + 2 * reach), generators)
    flat = noise.flatten(0, -3).unsqueeze(1)
    flat = functional.conv2d(functional.conv2d(flat, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    if stride > 1:
        correlation = math.exp(-((stride / width) ** 2) / 4)  # of neighbours on the coarse grid
        for side in (size[1], size[0]):  # along x, then along y
            flat = _interpolated(flat, stride, correlation, side).transpose(-1, -2)
    return flat[..., : size[0], : size[1]].reshape(*noise.shape[:-2], *size)


def _interpolated(coarse: Tensor, stride: int, correlation: float, count: int) -> Tensor:
    """``(..., n)`` -> the first ``count`` of ``(n - 1) stride`` between, linearly, divided so that the variance stays 1."""
    place = torch.arange(count)
    left, share = place // stride, (place % stride).to(coarse.dtype) / stride
    variance = 1 - 2 * share * (1 - share) * (1 - correlation)
    return (coarse[..., left] * (1 - share) + coarse[..., left + 1] * share) * variance.rsqrt()


def uniform_field(field: Tensor) -> Tensor:
    """Standard normal values -> uniform in (0, 1), the same rank, any shape."""
    return torch.special.ndtr(field).clamp(_SMALLEST, 1 - _SMALLEST)


def draw_classes(
    log_probabilities: Tensor, samples: int, smoothness: float, generators: Sequence[torch.Generator | None]
) -> Tensor:
    """Draws class maps with a given marginal by Gumbel noise that is smooth over the map (Gumbel-max trick).

    Args:
        log_probabilities: ``(B, K, h, w)``, normalised or not.
        samples: maps R of each image.
        smoothness: see `smooth_field`.
        generators: one for each of the B images.

    Returns:
        Class ids ``(B, R, h, w)`` int64. In each cell, class k comes up with its probability, whatever the smoothness.
    """
    _, classes, height, width = log_probabilities.shape
    field = smooth_field((samples, classes), (height, width), smoothness, generators)
    gumbel = -torch.log(-torch.log(uniform_field(field).double()))
    return (log_probabilities.double().unsqueeze(1) + gumbel.to(log_probabilities.device)).argmax(2)


def draw_layers(probabilities: Tensor, samples: int, smoothness: float, generators: Sequence[torch.Generator | None]) -> Tensor:
    """Draws maps of non-exclusive layers: a layer is present where a smooth uniform field lies below its probability.

    Args:
        probabilities: ``(B, K, h, w)``.
        samples: maps R of each image.
        smoothness: see `smooth_field`.
        generators: one for each of the B images.

    Returns:
        ``(B, R, K, h, w)`` bool.
    """
    _, layers, height, width = probabilities.shape
    field = smooth_field((samples, layers), (height, width), smoothness, generators)
    return uniform_field(field).to(probabilities.device) < probabilities.unsqueeze(1)


def draw_laplace(
    median: Tensor, scale: Tensor, samples: int, smoothness: float, generators: Sequence[torch.Generator | None]
) -> Tensor:
    """Draws maps whose cells follow Laplace distributions, with quantiles that are smooth over the map.

    Args:
        median: ``(B, h, w)``.
        scale: ``(B, h, w)``, positive.
        samples: maps R of each image.
        smoothness: see `smooth_field`.
        generators: one for each of the B images.

    Returns:
        ``(B, R, h, w)``, of the median's type.
    """
    field = smooth_field((samples,), (median.shape[-2], median.shape[-1]), smoothness, generators)
    quantile = uniform_field(field).to(median.device, torch.promote_types(median.dtype, torch.float32))  # 1 has no logarithm left
    deviation = torch.where(quantile < 0.5, (2 * quantile).log(), -(2 - 2 * quantile).log())
    return median.unsqueeze(1) + scale.unsqueeze(1) * deviation.to(median.dtype)
