"""Depth whose logarithm follows a Laplace distribution, or a mixture of several."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Halvings of the interval in which a quantile is looked for: the widest, some twenty in log depth, ends below float32's resolution.
_HALVINGS = 32


@dataclass
class LogLaplace:
    """A distribution of depth at every pixel: the logarithm is a mixture of n Laplace distributions (Laplace 1774).

    A scale ``b`` is in units of log depth, so of ratios: half of all truths lie within a factor ``2^b`` of the median, nine out of
    ten within ``10^b``.

    Attributes:
        weights: shares of the components ``(B, n, h, w)``, positive, sum 1.
        medians_m: their medians, metres ``(B, n, h, w)``, positive.
        scales: their scales ``(B, n, h, w)``, positive.
    """

    weights: Tensor
    medians_m: Tensor
    scales: Tensor

    @classmethod
    def from_prediction(cls, prediction: Tensor) -> "LogLaplace":
        """Reads what `channels` made: ``(B, 2, h, w)`` of one component, ``(B, 2 + 3 n, h, w)`` of several."""
        if prediction.shape[1] == 2:
            median, scale = prediction.split(1, dim=1)
            return cls(torch.ones_like(median), median, scale)
        return cls(*prediction[:, 2:].chunk(3, dim=1))

    def channels(self) -> Tensor:
        """Median (metres) and scale, and where there are several components their weights, medians and scales.

        Of several, median and scale are numbers about the whole: the former is found numerically, the latter is the expected
        distance of log depth from it, which of a single component is its scale. Neither has a gradient then.
        """
        if self.medians_m.shape[1] == 1:
            return torch.cat([self.medians_m, self.scales], dim=1)
        with torch.no_grad():
            median = self.quantile(0.5)
            scale = self.expected_distance(median)
        return torch.cat([median[:, None], scale[:, None], self.weights, self.medians_m, self.scales], dim=1)

    def negative_log_likelihood(self, depth_m: Tensor) -> Tensor:
        """Of log depth, in nats: depth in metres ``(B, h, w)``, positive -> ``(B, h, w)``."""
        distance = (depth_m.log()[:, None] - self.medians_m.log()).abs()
        return -torch.logsumexp(self.weights.log() - torch.log(2 * self.scales) - distance / self.scales, dim=1)

    def expected_distance(self, depth_m: Tensor) -> Tensor:
        """Expected absolute difference of log depth from that of some depth, metres ``(B, h, w)`` -> ``(B, h, w)``."""
        distance = (depth_m.log()[:, None] - self.medians_m.log()).abs()
        return (self.weights * (distance + self.scales * torch.exp(-distance / self.scales))).sum(1)

    def cumulative(self, depth_m: Tensor) -> Tensor:
        """Probability of less than a depth, metres ``(B, h, w)`` -> ``(B, h, w)``."""
        z = (depth_m.log()[:, None] - self.medians_m.log()) / self.scales
        tail = 0.5 * torch.exp(-z.abs())
        return (self.weights * torch.where(z < 0, tail, 1 - tail)).sum(1)

    def quantile(self, share: float) -> Tensor:
        """Depth in metres ``(B, h, w)`` below which a share of the probability lies.

        In closed form for one component. The quantile of a mixture lies between those of its components; there it is found by
        halving.

        Raises:
            ValueError: if the share is not between 0 and 1.
        """
        if not 0 < share < 1:
            raise ValueError(f"share is {share!r}; expected a number between 0 and 1")
        reach = math.log(2 * share) if share < 0.5 else -math.log(2 * (1 - share))
        of_each = self.medians_m.log() + self.scales * reach
        low, high = of_each.amin(1), of_each.amax(1)
        for _ in range(_HALVINGS if of_each.shape[1] > 1 else 0):
            middle = 0.5 * (low + high)
            above = self.cumulative(middle.exp()) < share
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return (0.5 * (low + high)).exp()

    def interval(self, level: float) -> tuple[Tensor, Tensor]:
        """Central interval: the depths in metres ``(B, h, w)`` between which ``level`` of the probability lies.

        Raises:
            ValueError: if the level is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"level is {level!r}; expected a probability between 0 and 1, such as 0.9")
        return self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)
