"""Conformal prediction: thresholds that hold the truth with a probability, whatever the model (Vovk et al. 2005)."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_SECTIONS = 40


def conformal_threshold(scores: Tensor, level: float, groups: Tensor | None = None) -> float:
    """Threshold below which the score of a new pixel lies with a probability of at least ``level``.

    Split conformal prediction: of n exchangeable scores the ``ceil((n + 1) level)``-th smallest. Pixels of one image are not
    exchangeable with those of another; with ``groups`` only the images are: a pixel drawn from a new image is covered
    (hierarchical conformal prediction: Lee, Barber & Willett 2023). Each of k groups then weighs ``1 / (k + 1)``, whatever
    the number of its pixels, and the new one lies at infinity.

    Args:
        scores: How badly each truth fits, any order, ``(P,)``; larger is worse.
        level: Between 0 and 1.
        groups: Number of the group of each pixel ``(P,)``, integers of at least 0; each pixel by itself where it is not given.

    Returns:
        The threshold; infinity where so few scores or groups cannot reach the level.

    Raises:
        ValueError: If there is no score, one is NaN, shapes differ or the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level!r}; expected a probability between 0 and 1, such as 0.9")
    if scores.ndim != 1 or not len(scores) or bool(scores.isnan().any()):
        raise ValueError(f"need scores (P,) without NaN, at least one; got shape {tuple(scores.shape)}")
    if groups is None:
        place = math.ceil((len(scores) + 1) * level - 1e-9)
        return math.inf if place > len(scores) else float(scores.sort().values[place - 1])
    if groups.shape != scores.shape:
        raise ValueError(f"need a group for each score, got shapes {tuple(groups.shape)} and {tuple(scores.shape)}")
    counts = torch.bincount(groups)
    weights = 1 / (counts[groups].double() * (int((counts > 0).sum()) + 1))
    ordered, order = scores.sort()
    reached = weights[order].cumsum(0) >= level - 1e-9
    return float(ordered[reached.int().argmax()]) if bool(reached.any()) else math.inf


def naive_sets(probabilities: Tensor, level: float, dim: int = 1) -> Tensor:
    """Sets of classes that need no calibration: the likeliest ones until their probabilities add up to a level.

    Args:
        probabilities: They add up to 1 over ``dim``.
        level: Between 0 and 1.
        dim: Dimension of the classes.

    Returns:
        Membership, bool, of the shape of the probabilities.
    """
    ordered, order = probabilities.sort(dim=dim, descending=True)
    before = ordered.cumsum(dim) - ordered
    return torch.zeros_like(probabilities, dtype=torch.bool).scatter(dim, order, before < level)


def fit_scale_factor(nll: Callable[[float], float], lowest: float = 0.02, highest: float = 50.0) -> float:
    """Factor of all scales that minimises a negative log-likelihood, by golden section over its logarithm.

    Args:
        nll: Mean negative log-likelihood for a factor; it has one minimum over the logarithm, as for all scale families with a
            log-concave density.
        lowest: Least factor.
        highest: Greatest factor.
    """
    ratio = (math.sqrt(5) - 1) / 2
    low, high = math.log(lowest), math.log(highest)
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    at_a, at_b = nll(math.exp(a)), nll(math.exp(b))
    for _ in range(_SECTIONS):
        if at_a <= at_b:
            high, b, at_b = b, a, at_a
            a = high - ratio * (high - low)
            at_a = nll(math.exp(a))
        else:
            low, a, at_a = a, b, at_b
            b = low + ratio * (high - low)
            at_b = nll(math.exp(b))
    return math.exp(0.5 * (low + high))


def level_error(covered: Sequence[float], levels: Sequence[float]) -> float:
    """Mean difference between the share of truths in an interval and its level (Kuleshov et al. 2018), of any number of levels."""
    return sum(abs(share - level) for share, level in zip(covered, levels, strict=True)) / len(levels)
