"""Aggregation of the stream of denoising steps into one map and its uncertainty."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from noise2map.diffusion.ensemble import entropy, unfold

CLASS_UNCERTAINTIES = ("entropy", "step_flip", "sample_variance", "mutual_information", "least_confidence")
"""Kinds of uncertainty of a map of classes or layers."""

NUMBER_UNCERTAINTIES = ("sample_variance", "step_flip", "scale")
"""Likewise of depth and directions."""


class RunningMoments:
    """Mean and variance over the samples of several steps, image by image.

    Groups are merged as by Chan, Golub & LeVeque (1979): accurate where the spread is a millionth of the mean, which differences of
    squares are not, and in any precision.
    """

    def __init__(self) -> None:
        self._steps: Tensor | None = None  # steps that each image took, (B, 1, 1, 1)
        self.mean: Tensor
        self.variance: Tensor

    def add(self, values: Tensor, rows: Tensor) -> None:
        """Adds the samples of one step ``(B, R, K, h, w)``, of the images ``rows``, boolean, ``(B, ...)``."""
        rows = rows.view(-1, 1, 1, 1).to(values.dtype)
        mean = values.mean(1)
        # `Tensor.var` is slow along an axis in front of others: 0.4 s for 150 classes of 128 x 128 cells, a twelfth of a step.
        variance = torch.zeros_like(mean) if values.shape[1] == 1 else (values - mean.unsqueeze(1)).square().mean(1)
        if self._steps is None:
            self._steps, self.mean, self.variance = torch.ones_like(rows), mean, variance
            return
        share = rows / (self._steps + 1)
        difference = mean - self.mean
        spread = difference.square() * (self._steps / (self._steps + 1))
        self.mean = self.mean + share * difference
        self.variance = self.variance + share * (variance - self.variance + spread)
        self._steps = self._steps + rows


class Aggregator(ABC):
    """Collects a run of B images with R samples each.

    Args:
        batch_size: B.
        ensemble_size: R.
        average: ``"last"`` or ``"steps"``.
    """

    def __init__(self, batch_size: int, ensemble_size: int, average: str) -> None:
        self.ensemble_size, self.average = ensemble_size, average
        self.num_steps = torch.zeros(batch_size, dtype=torch.long)
        self.last: Tensor | None = None  # newest prediction of every image (B, R, K, h, w)
        self._sums: dict[str, Tensor] = {}

    def update(self, prediction: Tensor, active: Tensor) -> Tensor:
        """Takes the predictions of one step.

        Args:
            prediction: ``(B*R, K, h, w)``; rows of images that are not active are ignored.
            active: images still running ``(B,)``, boolean.

        Returns:
            Fraction of pixels that changed since the step before, ``(B,)``; 1 at the first step.
        """
        value = unfold(prediction, self.ensemble_size)
        fraction = torch.ones(value.shape[0])
        rows = active.to(value.device).view(-1, 1, 1, 1, 1)
        if self.last is not None:
            flips = self._flips(self.last, value)  # (B, R, h, w)
            fraction = flips.flatten(1).float().mean(1).cpu()
            self._add("flips", flips.float().mean(1), rows)
            value = torch.where(rows, value, self.last)
        self.last = value
        self.num_steps += active.to(self.num_steps.device).long()
        self._accumulate(value, rows)
        return fraction

    def _add(self, name: str, value: Tensor, rows: Tensor) -> None:
        value = value * rows.view(-1, *[1] * (value.ndim - 1))
        self._sums[name] = value if name not in self._sums else self._sums[name] + value

    def _per_step(self, name: str, offset: int = 0) -> Tensor:
        total = self._sums[name]
        count = (self.num_steps - offset).clamp(min=1).to(total.device, total.dtype)
        return total / count.view(-1, *[1] * (total.ndim - 1))

    def _step_flip(self) -> dict[str, Tensor]:
        # The paper's uncertainty: how often the prediction changed, 0 (never) to 1 (at every step).
        return {"step_flip": self._per_step("flips", offset=1)} if "flips" in self._sums else {}

    @abstractmethod
    def _flips(self, before: Tensor, after: Tensor) -> Tensor:
        """Where predictions ``(B, R, K, h, w)`` differ, ``(B, R, h, w)``, or ``(B, R, K, h, w)`` if each layer can."""

    @abstractmethod
    def _accumulate(self, value: Tensor, rows: Tensor) -> None:
        """Adds one step's predictions to the sums."""

    @abstractmethod
    def result(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The map ``(B, K, h, w)`` and its uncertainties ``(B, h, w)``, or ``(B, K, h, w)`` if each layer has its own."""


class Link(ABC):
    """From logits to probabilities, and what follows from how the K channels hang together."""

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Of logits ``(B, R, K, h, w)``."""

    @abstractmethod
    def differ(self, before: Tensor, after: Tensor) -> Tensor:
        """Where logits ``(B, R, K, h, w)`` give another map; without K where the channels exclude each other."""

    @abstractmethod
    def entropy(self, probabilities: Tensor) -> Tensor:
        """In [0, 1], of ``(..., K, h, w)``; without K where the channels exclude each other."""

    @abstractmethod
    def doubt(self, probabilities: Tensor) -> Tensor:
        """Least confidence in [0, 1], of ``(..., K, h, w)``; without K where the channels exclude each other."""

    @abstractmethod
    def variance(self, variances: Tensor) -> Tensor:
        """In [0, 1], of the variance of every channel's probability ``(B, K, h, w)``."""

    @abstractmethod
    def of_samples(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and probabilities ``(B, K, h, w)`` of the samples of one step ``(B, R, K, h, w)``."""

    @abstractmethod
    def of_mean(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithm and value of averaged probabilities ``(B, K, h, w)``."""


class Softmax(Link):
    """Classes that exclude each other: one uncertainty for a pixel."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """See `Link.probabilities`."""
        return logits.softmax(2)

    def differ(self, before: Tensor, after: Tensor) -> Tensor:
        """See `Link.differ`; where another class is the most probable."""
        return before.argmax(2) != after.argmax(2)

    def entropy(self, probabilities: Tensor) -> Tensor:
        """See `Link.entropy`."""
        return entropy(probabilities, dim=-3)

    def doubt(self, probabilities: Tensor) -> Tensor:
        """See `Link.doubt`; one minus the largest probability."""
        return 1 - probabilities.amax(-3)

    def variance(self, variances: Tensor) -> Tensor:
        """See `Link.variance`; summed over classes."""
        return variances.clamp(min=0).sum(1).clamp(max=1)

    def of_samples(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """See `Link.of_samples`; samples are averaged as logits, as in the published model."""
        mean = logits.mean(1)
        return mean, mean.softmax(1)

    def of_mean(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """See `Link.of_mean`."""
        logits = _log(mean)
        return logits, logits.softmax(1)


class Sigmoid(Link):
    """Layers that do not exclude each other, each with its own uncertainty."""

    threshold = 0.5  # a layer is present above it: what the codec would feed back

    def probabilities(self, logits: Tensor) -> Tensor:
        """See `Link.probabilities`."""
        return logits.sigmoid()

    def differ(self, before: Tensor, after: Tensor) -> Tensor:
        """See `Link.differ`; which layers came or went."""
        return (before.sigmoid() > self.threshold) != (after.sigmoid() > self.threshold)

    def entropy(self, probabilities: Tensor) -> Tensor:
        """See `Link.entropy`; of a yes or no, in bits."""
        other = 1 - probabilities
        return -(torch.xlogy(probabilities, probabilities) + torch.xlogy(other, other)) / math.log(2)

    def doubt(self, probabilities: Tensor) -> Tensor:
        """See `Link.doubt`; twice the probability of the less likely state."""
        return 2 * torch.minimum(probabilities, 1 - probabilities)

    def variance(self, variances: Tensor) -> Tensor:
        """See `Link.variance`; a probability's variance is at most 1/4."""
        return (4 * variances).clamp(0, 1)

    def of_samples(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """See `Link.of_samples`; samples are averaged as probabilities, as in the published model."""
        probabilities = logits.sigmoid().mean(1)
        return logits[:, 0] if logits.shape[1] == 1 else torch.logit(probabilities, eps=1e-7), probabilities

    def of_mean(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """See `Link.of_mean`."""
        return _log(mean), mean


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()


class ProbabilityAggregator(Aggregator):
    """Maps of probabilities. Result: logits, or the log of averaged probabilities with ``average="steps"``.

    Args:
        link: from logits to probabilities.
        batch_size: B.
        ensemble_size: R.
        average: ``"last"`` or ``"steps"``.
    """

    def __init__(self, link: Link, batch_size: int, ensemble_size: int, average: str) -> None:
        super().__init__(batch_size, ensemble_size, average)
        self.link = link
        self._probabilities, self._entropies = RunningMoments(), RunningMoments()

    def _flips(self, before: Tensor, after: Tensor) -> Tensor:
        return self.link.differ(before, after)

    def _accumulate(self, value: Tensor, rows: Tensor) -> None:
        if self.average == "last" and self.ensemble_size > 1:
            return  # the members are the last step's samples
        self._add_members(value, rows)

    def _add_members(self, logits: Tensor, rows: Tensor) -> None:
        p = self.link.probabilities(logits)
        h = self.link.entropy(p)
        self._probabilities.add(p, rows)
        self._entropies.add(h if h.ndim == p.ndim else h.unsqueeze(2), rows)

    def result(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits ``(B, K, h, w)`` and uncertainties, of the kinds that `Noise2MapConfig.uncertainty` names."""
        assert self.last is not None
        if self.average == "last" and self.ensemble_size > 1:
            self._add_members(self.last, torch.ones(self.last.shape[0], dtype=torch.bool, device=self.last.device))
        mean = self._probabilities.mean
        logits, probabilities = self.link.of_mean(mean) if self.average == "steps" else self.link.of_samples(self.last)
        kinds = self._step_flip()
        kinds["entropy"] = self.link.entropy(probabilities)
        kinds["least_confidence"] = self.link.doubt(probabilities)
        if self.ensemble_size > 1 or int(self.num_steps.max()) > 1:
            kinds["sample_variance"] = self.link.variance(self._probabilities.variance)
            of_mean = self.link.entropy(mean)
            kinds["mutual_information"] = (of_mean - self._entropies.mean.view_as(of_mean)).clamp(0, 1)
        return logits, kinds
