"""Scores of a predicted distribution: mixtures of Laplace distributions, of which one is the usual case. No sample is drawn."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from noise2map.metrics.samples.row_sums import RowSums, over_pixels

LEVELS = (0.5, 0.9)
_NAMES = ("crps", "nll", *(f"coverage_{round(100 * level)}" for level in LEVELS))


def _expected_distance(apart: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``E |X - Y|`` of two independent Laplace variables with medians ``apart`` and scales ``a`` and ``b``."""
    apart = apart.abs()
    close = (a - b).abs() < 1e-4 * (a + b)  # there the general form is 0 / 0; the limit is right to the square of that
    other = torch.where(close, 2 * a, b)
    general = (a**3 * torch.exp(-apart / a) - other**3 * torch.exp(-apart / other)) / (a.square() - other.square())
    middle = (a + b) / 2
    return apart + torch.where(close, 0.5 * (3 * middle + apart) * torch.exp(-apart / middle), general)


def laplace_crps(truth: Tensor, weights: Tensor, medians: Tensor, scales: Tensor) -> Tensor:
    """CRPS ``E |X - y| - E |X - X'| / 2`` of a mixture of n Laplace distributions in closed form.

    One component: ``|e| + b exp(-|e| / b) - 3 b / 4`` (Jordan et al. 2019).

    Args:
        truth: ``(B, ...)``.
        weights: Shares of the components ``(B, n, ...)``, sum 1.
        medians: Their medians, in the unit of the truth.
        scales: Their scales, above 0.

    Returns:
        ``(B, ...)``, in the unit of the truth.
    """
    error = (truth[:, None] - medians).abs()
    score = (weights * (error + scales * torch.exp(-error / scales))).sum(1)
    count = medians.shape[1]
    for i in range(count):
        for j in range(count):
            apart = _expected_distance(medians[:, i] - medians[:, j], scales[:, i], scales[:, j])
            score = score - 0.5 * weights[:, i] * weights[:, j] * apart
    return score


def laplace_cumulative(truth: Tensor, weights: Tensor, medians: Tensor, scales: Tensor) -> Tensor:
    """Probability of less than the truth ``(B, ...)``; arguments as in `laplace_crps`."""
    z = (truth[:, None] - medians) / scales
    tail = 0.5 * torch.exp(-z.abs())
    return (weights * torch.where(z < 0, tail, 1 - tail)).sum(1)


def laplace_nll(truth: Tensor, weights: Tensor, medians: Tensor, scales: Tensor) -> Tensor:
    """Negative log-likelihood in nats ``(B, ...)``; arguments as in `laplace_crps`."""
    z = (truth[:, None] - medians).abs() / scales
    return -torch.logsumexp(weights.log() - (2 * scales).log() - z, 1)


class ScaleScores(RowSums):
    """Scores of a Laplace distribution, or a mixture, at every pixel; pooled over pixels.

    `crps` (unit of the truth), `nll` (nats), `coverage_50` and `coverage_90`: share of truths in the central intervals of 50 and
    90 %.

    Args:
        keep_per_image: Keep a row of sums for each image.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.
    """

    names = _NAMES

    def __init__(self, keep_per_image: bool = True, **kwargs: Any) -> None:
        super().__init__(_NAMES, keep_per_image, **kwargs)

    def update(
        self,
        truth: Tensor,
        weights: Tensor,
        medians: Tensor,
        scales: Tensor,
        valid: Tensor,
        stated: Sequence[float] = LEVELS,
    ) -> None:
        """Add a batch.

        Args:
            truth: ``(B, H, W)``.
            weights: Shares of the components ``(B, n, H, W)``, sum 1.
            medians: Their medians, in the unit of the truth.
            scales: Their scales, above 0.
            valid: Which pixels count ``(B, H, W)``, bool.
            stated: Levels of the distribution's own intervals that are to hold 50 and 90 %, where it is calibrated.

        Raises:
            ValueError: If shapes differ, or a scale that counts is not above 0.
        """
        if weights.shape != medians.shape or scales.shape != medians.shape or medians[:, 0].shape != truth.shape:
            shapes = [tuple(one.shape) for one in (truth, weights, medians, scales)]
            raise ValueError(f"need truth (B, H, W), and weights, medians, scales (B, n, H, W); got {shapes}")
        if bool((valid[:, None] & ~(scales > 0)).any()):
            raise ValueError("scales must be above 0 at every valid pixel")
        truth = torch.where(valid, truth, 0).double()
        parts = [torch.where(valid[:, None], one, 1).double() for one in (weights, medians, scales)]
        below = laplace_cumulative(truth, *parts)
        terms = {"crps": over_pixels(laplace_crps(truth, *parts), valid), "nll": over_pixels(laplace_nll(truth, *parts), valid)}
        for level, name in zip(stated, _NAMES[2:], strict=True):
            terms[name] = over_pixels(((below - 0.5).abs() <= level / 2).double(), valid)
        self._add_terms(terms)

    def _scores(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        return means


class ConeScores(RowSums):
    """Scores of a distribution of directions at every pixel; pooled over pixels.

    `nll` (nats), `coverage_50` and `coverage_90`: share of truths in the cones about the mean direction of 50 and 90 %.

    Args:
        keep_per_image: Keep a row of sums for each image.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.
    """

    names = _NAMES[1:]

    def __init__(self, keep_per_image: bool = True, **kwargs: Any) -> None:
        super().__init__(self.names, keep_per_image, **kwargs)

    def update(self, likelihood: Tensor, within: Tensor, valid: Tensor, stated: Sequence[float] = LEVELS) -> None:
        """Add a batch.

        Args:
            likelihood: Negative log-likelihood of the truth ``(B, H, W)``, nats.
            within: Probability of a smaller angle than the truth's ``(B, H, W)``, in [0, 1].
            valid: Which pixels count ``(B, H, W)``, bool.
            stated: Levels of the distribution's own cones that are to hold 50 and 90 %, where it is calibrated.

        Raises:
            ValueError: If shapes differ.
        """
        if likelihood.shape != within.shape or valid.shape != within.shape:
            shapes = [tuple(one.shape) for one in (likelihood, within, valid)]
            raise ValueError(f"need maps of one shape (B, H, W), got {shapes}")
        terms = {"nll": over_pixels(likelihood, valid)}
        for level, name in zip(stated, self.names[1:], strict=True):
            terms[name] = over_pixels((within <= level).double(), valid)
        self._add_terms(terms)

    def _scores(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        return means
