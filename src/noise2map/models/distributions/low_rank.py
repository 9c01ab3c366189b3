"""Logits of whole maps from one normal distribution of low rank (Monteiro et al. 2020, Stochastic Segmentation Networks)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from noise2map.diffusion.ensemble import draw_noise
from noise2map.models.distributions.whole_maps import WholeMaps

LIKELIHOOD_MAPS = 20
"""Maps that are drawn for the likelihood in training (Monteiro et al. 2020, section 3)."""

_DRAWS = 64


@dataclass
class LowRankNormal(WholeMaps):
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
        """See `WholeMaps.sample`."""
        common = draw_noise((count, self.factors.shape[1]), generators, self.mean.device).to(self.mean)
        own = draw_noise((count, *self.mean.shape[1:]), generators, self.mean.device).to(self.mean)
        return self.mean[:, None] + torch.einsum("bmr,brkhw->bmkhw", common, self.factors) + self.deviation[:, None] * own

    def loss(self, labels: Tensor, ignore_index: int) -> Tensor:
        """See `WholeMaps.loss`; the negative log-likelihood."""
        return self.negative_log_likelihood(labels, ignore_index, LIKELIHOOD_MAPS)

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
