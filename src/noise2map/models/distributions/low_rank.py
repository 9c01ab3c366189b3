"""Logits of whole maps from one normal distribution of low rank (Monteiro et al. 2020, Stochastic Segmentation Networks)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from noise2map.diffusion.ensemble import draw_noise
from noise2map.models.aggregation import ProbabilityAggregator, Sigmoid, Softmax

_DRAWS = 64


@dataclass
class LowRankNormal:
    """Normal distribution of all logits of a map: covariance ``P P' + D`` (eq. 5).

    Attributes:
        mean: ``(B, K, h, w)``.
        factors: P, ``(B, r, K, h, w)``: r patterns of logits that come and go over the whole map together.
        deviation: square root of D, ``(B, K, h, w)``, positive: what each logit has for itself.
    """

    mean: Tensor
    factors: Tensor
    deviation: Tensor

    @classmethod
    def from_prediction(cls, prediction: Tensor, classes: int) -> Self:
        """From the channels ``(B, K (2 + r), h, w)`` of a head: means, logarithms of deviations, factors."""
        mean, log_deviation, factors = prediction.split([classes, classes, prediction.shape[1] - 2 * classes], 1)
        return cls(mean, factors.unflatten(1, (-1, classes)), log_deviation.clamp(-10, 3).exp())

    @classmethod
    def marginals_of(cls, prediction: Tensor, classes: int) -> Tensor:
        """`marginal_logits` ``(..., K, h, w)`` of what a head gave ``(..., K', h, w)``; with K' = K these are logits already."""
        if prediction.shape[-3] == classes:
            return prediction
        flat = prediction.flatten(0, -4)
        return cls.from_prediction(flat, classes).marginal_logits().unflatten(0, prediction.shape[:-3])

    def marginal_logits(self) -> Tensor:
        """Logarithms ``(B, K, h, w)`` of each pixel's mean probabilities, over draws that are always the same."""
        generator = torch.Generator().manual_seed(0)
        common = torch.randn(_DRAWS, self.factors.shape[1], generator=generator).to(self.mean)
        own = torch.randn(_DRAWS, self.mean.shape[1], 1, 1, generator=generator).to(self.mean)
        total = torch.zeros_like(self.mean)
        for z, e in zip(common, own):
            offset = torch.einsum("r,brkhw->bkhw", z, self.factors) + self.deviation * e
            total = total + self._chance(self.mean + offset) + self._chance(self.mean - offset)
        return self._logits(total / (2 * _DRAWS))

    def _chance(self, logits: Tensor) -> Tensor:
        return logits.softmax(1)

    def _logits(self, chance: Tensor) -> Tensor:
        return chance.clamp(min=torch.finfo(chance.dtype).tiny).log()

    def sample(self, count: int, generators: Sequence[torch.Generator | None]) -> Tensor:
        """Logits of ``count`` maps, ``(B, R, K, h, w)``.

        Args:
            count: R.
            generators: one for each of the B images.
        """
        common = draw_noise((count, self.factors.shape[1]), generators, self.mean.device).to(self.mean)
        own = draw_noise((count, *self.mean.shape[1:]), generators, self.mean.device).to(self.mean)
        return self.mean[:, None] + torch.einsum("bmr,brkhw->bmkhw", common, self.factors) + self.deviation[:, None] * own

    def negative_log_likelihood(self, labels: Tensor, ignore_index: int, count: int) -> Tensor:
        """Mean over labelled cells of the negative log-likelihood of whole maps, by Monte Carlo (eq. 7).

        Args:
            labels: class ids ``(B, h, w)``.
            ignore_index: label without loss.
            count: maps that are drawn, 20 in the paper; noise comes from torch's own generator.

        Returns:
            Scalar; zero (with a graph) if nothing is labelled.
        """
        log_p = self.sample(count, [None] * len(self.mean)).log_softmax(2)
        known = labels != ignore_index
        ids = torch.where(known, labels, 0)[:, None, None].expand(-1, count, 1, -1, -1)
        of_maps = (log_p.gather(2, ids).squeeze(2) * known[:, None]).flatten(2).sum(2)
        return -(of_maps.logsumexp(1) - math.log(count)).sum() / known.sum().clamp(min=1)


class LowRankLayers(LowRankNormal):
    """The same of K layers that may overlap: each logit is that of one yes-or-no question, its link the sigmoid."""

    def _chance(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def _logits(self, chance: Tensor) -> Tensor:
        return torch.logit(chance, eps=1e-7)

    def negative_log_likelihood(self, labels: Tensor, ignore_index: int, count: int) -> Tensor:
        """See `LowRankNormal.negative_log_likelihood`; summed over layers, as their cross entropies are.

        Args:
            labels: layers ``(B, K, h, w)``: 1 where a layer is, 0 where it is not.
            ignore_index: label without loss.
            count: maps that are drawn.

        Returns:
            Scalar; zero (with a graph) if nothing is labelled.
        """
        known, sign = labels != ignore_index, torch.where(labels == 1, 1.0, -1.0)
        log_p = functional.logsigmoid(self.sample(count, [None] * len(self.mean)) * sign[:, None])
        of_maps = (log_p * known[:, None]).flatten(2).sum(2)
        return -(of_maps.logsumexp(1) - math.log(count)).sum() * labels.shape[1] / known.sum().clamp(min=1)


class LowRankAggregator(ProbabilityAggregator):
    """Uncertainties from the marginals of the one call that there is; the result keeps the whole distribution.

    Args:
        marginals: from predictions of the head ``(N, K', h, w)`` to logits ``(N, K, h, w)``.
        batch_size: B.
        ensemble_size: R.
        average: ``"last"`` or ``"steps"``.
        link: what makes probabilities of logits; `Softmax` if not given.
    """

    def __init__(
        self,
        marginals: Callable[[Tensor], Tensor],
        batch_size: int,
        ensemble_size: int,
        average: str,
        link: Softmax | Sigmoid | None = None,
    ) -> None:
        super().__init__(link or Softmax(), batch_size, ensemble_size, average)
        self.marginals = marginals
        self.whole: Tensor | None = None

    def update(self, prediction: Tensor, active: Tensor) -> Tensor:
        """See `Aggregator.update`."""
        self.whole = prediction
        return super().update(self.marginals(prediction), active)

    def result(self) -> tuple[Tensor, dict[str, Tensor]]:
        """What the head gave ``(B, K', h, w)``, or with several samples or an average of steps logits; uncertainties."""
        logits, kinds = super().result()
        assert self.whole is not None
        return (self.whole if self.average == "last" and self.ensemble_size == 1 else logits), kinds
