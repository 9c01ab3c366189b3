"""Ranks of the truth among samples: flat where samples are calibrated."""

import torch
from torch import Tensor


def rank_histogram(samples: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """How often the truth has which rank among R samples (Talagrand diagram).

    Ties share a pixel evenly among the ranks that they leave open: the expected value of drawing one at random.

    Args:
        samples: ``(B, R, H, W)``.
        truth: ``(B, H, W)``.
        valid: Which pixels count ``(B, H, W)``, bool.

    Returns:
        Counts ``(B, R + 1)``, float64: rank 0 where the truth is below all samples.
    """
    count = samples.shape[1]
    below = (samples < truth[:, None]).sum(1).flatten(1)
    upto = (samples <= truth[:, None]).sum(1).flatten(1)
    mass = valid.flatten(1).double() / (upto - below + 1)
    change = torch.zeros(len(truth), count + 2, dtype=torch.float64, device=truth.device)
    change.scatter_add_(1, below, mass)
    change.scatter_add_(1, upto + 1, -mass)
    return change.cumsum(1)[:, :-1]


def central_coverage(histogram: Tensor, level: float) -> Tensor:
    """Share of truths in the central interval of probability ``level``, read off a rank histogram.

    Each rank stands for an equal share ``1 / (R + 1)`` of probability, over which its truths are spread evenly. Calibrated samples
    therefore cover exactly ``level`` whatever R is, where quantiles of few samples do not.

    Args:
        histogram: Counts ``(..., R + 1)``.
        level: Nominal probability.

    Returns:
        Shares ``(...)``; NaN without pixels.

    Raises:
        ValueError: If the level is not inside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; expected a probability inside (0, 1)")
    bins = histogram.shape[-1]
    border = torch.arange(bins + 1, dtype=histogram.dtype, device=histogram.device) / bins
    low, high = (1 - level) / 2, (1 + level) / 2
    inside = (border[1:].clamp(low, high) - border[:-1].clamp(low, high)) * bins
    return (histogram * inside).sum(-1) / histogram.sum(-1)
