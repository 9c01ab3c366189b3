"""Proper scoring rules of sets of samples: the lower, the better, and lowest on average for the truth."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

Square = Callable[[Tensor, Tensor], Tensor]
"""From two maps ``(B, ...)`` to their squared distance at every pixel ``(B, H, W)``."""

_LEAST_SHARE = 0.5  # of a cell or patch that must be valid for it to count


def fair_crps(samples: Tensor, truth: Tensor, dim: int = 1) -> Tensor:
    """Continuous ranked probability score of R samples, unbiased in R ("fair": Ferro 2014).

    ``mean |x_r - y| - sum |x_r - x_q| / (2 R (R - 1))``: what an endless set of samples of the same distribution would score on
    average, so that sets of different sizes can be compared. One sample is scored as a point: ``|x - y|``.

    Args:
        samples: ``(..., R, ...)``.
        truth: The shape of ``samples`` without ``dim``.
        dim: Where the R samples are.

    Returns:
        The score at every place, in the unit of the samples.

    Raises:
        ValueError: If the shapes do not fit.
    """
    count = samples.shape[dim]
    if samples.select(dim, 0).shape != truth.shape:
        raise ValueError(
            f"samples {tuple(samples.shape)} without dimension {dim} must have the shape of the truth, {tuple(truth.shape)}"
        )
    error = (samples - truth.unsqueeze(dim)).abs().mean(dim)
    if count == 1:
        return error
    # sum over pairs of |x_r - x_q| = sum over ranks i = 1..R of (2 i - R - 1) x_(i), counted once
    ordered = samples.movedim(dim, -1).sort(-1).values
    weights = 2 * torch.arange(1, count + 1, dtype=samples.dtype, device=samples.device) - count - 1
    return error - (ordered * weights).sum(-1) / (count * (count - 1))


def pooled(maps: Tensor, valid: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Means over square cells.

    Args:
        maps: ``(B, C, H, W)``; what invalid pixels hold does not matter.
        valid: Which pixels count ``(B, H, W)``, bool.
        size: Side of a cell, pixels; cells that the border cuts are left out.

    Returns:
        Means over the valid pixels ``(B, C, h, w)``, and the cells of which half the pixels are valid ``(B, h, w)``.
    """
    if min(maps.shape[-2:]) < size:
        return maps[..., :0, :0], valid[..., :0, :0]
    share = functional.avg_pool2d(valid[:, None].to(maps.dtype), size)
    known = functional.avg_pool2d(torch.where(valid[:, None], maps, 0), size)
    return known / share.clamp_min(torch.finfo(maps.dtype).tiny), share[:, 0] >= _LEAST_SHARE


def patch_distances(square: Tensor, valid: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Root mean squared distance of two maps over the valid pixels of each patch.

    Args:
        square: Squared distance at every pixel ``(B, H, W)``.
        valid: Which pixels count ``(B, H, W)``, bool.
        size: Side of a patch, pixels.

    Returns:
        Distances ``(B, h, w)`` and the patches that count, see `pooled`.
    """
    mean, counted = pooled(square[:, None], valid, size)
    return mean[:, 0].clamp_min(0).sqrt(), counted


def patch_energy_score(samples: Tensor, truth: Tensor, valid: Tensor, square: Square, size: int) -> tuple[Tensor, Tensor]:
    """Energy score of square patches (Gneiting and Raftery 2007), unbiased in R: whether a sample is right *as a whole*.

    ``mean |x_r - y| - sum over pairs of |x_r - x_q| / (R (R - 1))``, where ``|.|`` is the root mean square over the pixels of a
    patch: the CRPS of a patch as one vector. A patch of independent noise scores worse than a coherent one with the same pixels.

    Args:
        samples: ``(B, R, ...)``.
        truth: ``(B, ...)``.
        valid: Which pixels count ``(B, H, W)``, bool.
        square: Squared distance of two maps at every pixel.
        size: Side of a patch, pixels; patches do not overlap.

    Returns:
        Scores ``(B, h, w)`` and the patches that count, of which half the pixels are valid.
    """
    count = samples.shape[1]
    total, counted = patch_distances(square(samples[:, 0], truth), valid, size)
    for r in range(1, count):
        total = total + patch_distances(square(samples[:, r], truth), valid, size)[0]
    score = total / count
    for r in range(count):
        for q in range(r):
            score = score - patch_distances(square(samples[:, r], samples[:, q]), valid, size)[0] / (count * (count - 1))
    return score, counted


def variogram_score(
    samples: Tensor, truth: Tensor, valid: Tensor, steps: Sequence[int] = (1, 2, 4, 8, 16), order: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Variogram score (Scheuerer and Hamill 2015) over pairs of pixels some steps apart: whether jumps are as large as they are.

    Of each pair ``(|y_i - y_j|^p - mean_r |x_ri - x_rj|^p)^2``, with all pairs that lie ``steps`` pixels apart in a row or a
    column.

    Args:
        samples: ``(B, R, H, W)``.
        truth: ``(B, H, W)``.
        valid: Which pixels count ``(B, H, W)``, bool; a pair counts when both do.
        steps: Distances of the pairs, pixels.
        order: The power ``p``.

    Returns:
        The sum over pairs ``(B,)`` and their number ``(B,)``, float64.
    """
    total = torch.zeros(len(truth), dtype=torch.float64, device=truth.device)
    number = total.clone()
    truth, samples = torch.where(valid, truth, 0), torch.where(valid[:, None], samples, 0)
    for step in steps:
        for axis in (-1, -2):
            length = truth.shape[axis] - step
            if length < 1:
                continue
            far, near = (lambda x, a=axis, n=length, s=step: x.narrow(a, s, n)), (lambda x, a=axis, n=length: x.narrow(a, 0, n))
            both = far(valid) & near(valid)
            true = (far(truth) - near(truth)).abs().pow(order)
            said = (far(samples) - near(samples)).abs().pow(order).mean(1)
            total += torch.where(both, (true - said).square(), 0).double().sum((1, 2))
            number += both.sum((1, 2))
    return total, number
