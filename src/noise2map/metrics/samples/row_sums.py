"""Metrics whose scores follow from sums over images, one row of sums for each."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from noise2map.metrics.per_image import PerImageMetric

Terms = dict[str, tuple[Tensor, Tensor]]
"""By name a sum over pixels of each image ``(B,)`` and its weight ``(B,)``."""


class RowSums(PerImageMetric):
    """Scores as ratios of sums: they add up over images, and intervals can resample images or whole places.

    Args:
        terms: Names of the sums.
        keep_per_image: Keep a row of sums for each image.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.
    """

    full_state_update = False
    totals: Tensor
    names: tuple[str, ...]

    def __init__(self, terms: tuple[str, ...], keep_per_image: bool = True, **kwargs: Any) -> None:
        self.terms = terms
        super().__init__((len(terms), 2), torch.float64, keep_per_image, **kwargs)
        self.add_state("totals", torch.zeros(len(terms), 2, dtype=torch.float64), dist_reduce_fx="sum")

    def _add_terms(self, terms: Terms) -> None:
        rows = torch.stack([torch.stack([part.double() for part in terms[name]], -1) for name in self.terms], 1)  # (B, T, 2)
        self.totals += rows.sum(0)
        self._keep(rows)

    def scores_of(self, sums: Tensor) -> dict[str, Tensor]:
        """Sums ``(..., T, 2)`` to scores ``(...)`` by name, NaN where not defined."""
        return self._scores(dict(zip(self.terms, (sums[..., 0] / sums[..., 1]).unbind(-1))))

    @abstractmethod
    def _scores(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scores from the means of the terms."""

    def statistic(self, rows: Tensor) -> Tensor:
        """Rows ``(N, T, 2)`` of `per_image` to scores ``(S,)`` in the order of `names`, for `bootstrap_intervals`."""
        found = self.scores_of(rows.sum(0))
        return torch.stack([found[name] for name in self.names])

    def compute(self) -> dict[str, Tensor]:
        """Scores by the names of `names`, scalars in float64."""
        return self.scores_of(self.totals)

    def per_image(self) -> Tensor:
        """Sums and weights of every image, ``(N, T, 2)``; see `statistic`."""
        return super().per_image()


def over_pixels(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """A term that is averaged over the pixels that count: values and mask ``(B, H, W)``."""
    return torch.where(mask, values, 0).double().sum((1, 2)), mask.sum((1, 2)).double()


def image_mean(values: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """A term that is averaged over images: values ``(B,)``, of those where ``counts`` is above 0 and the value is defined."""
    here = (counts > 0) & ~values.isnan()
    return torch.where(here, values, 0).double(), here.double()
