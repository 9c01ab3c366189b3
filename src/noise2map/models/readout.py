"""Consumers of the stream of steps: they turn what the decoder said at each step into one map and its uncertainty.

Each image has its own number of steps (``num_inference_steps="auto"``), so every sum carries a mask of the images still running.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from noise2map.diffusion.ensemble import entropy, unfold

# Two depths count as different when they are more than this fraction apart.
DEPTH_FLIP_TOLERANCE = 0.05


class Readout(ABC):
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

    def update(self, readout: Tensor, active: Tensor) -> Tensor:
        """Takes the predictions of one step.

        Args:
            readout: ``(B*R, K, h, w)``; rows of images that are not active are ignored.
            active: images still running ``(B,)``, boolean.

        Returns:
            Fraction of pixels that changed since the step before, ``(B,)``; 1 at the first step.
        """
        value = unfold(readout, self.ensemble_size)
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


class SegmentationReadout(Readout):
    """Class maps. Result: logits, or the log of averaged probabilities with ``average="steps"``."""

    def _flips(self, before: Tensor, after: Tensor) -> Tensor:
        return before.argmax(2) != after.argmax(2)

    def _accumulate(self, value: Tensor, rows: Tensor) -> None:
        if self.average == "last" and self.ensemble_size > 1:
            return  # the members are the last step's samples
        probabilities = value.softmax(2)
        self._add("p", probabilities.mean(1), rows)
        self._add("p2", probabilities.square().mean(1), rows)
        self._add("h", entropy(probabilities, dim=2).mean(1), rows)

    def result(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits ``(B, K, h, w)`` and uncertainties; see the module's names in `Noise2MapConfig.uncertainty`."""
        assert self.last is not None
        if "p" in self._sums:
            mean, square, member_entropy = self._per_step("p"), self._per_step("p2"), self._per_step("h")
        else:
            members = self.last.softmax(2)
            mean, square, member_entropy = members.mean(1), members.square().mean(1), entropy(members, dim=2).mean(1)
        if self.average == "steps":
            logits = mean.clamp(min=torch.finfo(mean.dtype).tiny).log()
        else:
            logits = self.last.mean(1)
        kinds = self._step_flip()
        kinds["entropy"] = entropy(logits.softmax(1))
        if self.ensemble_size > 1 or int(self.num_steps.max()) > 1:
            kinds["sample_variance"] = (square - mean.square()).clamp(min=0).sum(1).clamp(max=1)
            kinds["mutual_information"] = (entropy(mean) - member_entropy).clamp(0, 1)
        return logits, kinds


class MultiLabelReadout(Readout):
    """Non-exclusive layers, each with its own probability and its own uncertainty.

    Probabilities are what is averaged, over samples and (with ``average="steps"``) over steps, as in the published model.
    """

    threshold = 0.5  # a layer is present above it

    def _flips(self, before: Tensor, after: Tensor) -> Tensor:
        return (before.sigmoid() > self.threshold) != (after.sigmoid() > self.threshold)  # what the codec would feed back

    def _accumulate(self, value: Tensor, rows: Tensor) -> None:
        if self.average == "last" and self.ensemble_size > 1:
            return  # the members are the last step's samples
        probabilities = value.sigmoid()
        self._add("p", probabilities.mean(1), rows)
        self._add("p2", probabilities.square().mean(1), rows)
        self._add("h", _binary_entropy(probabilities).mean(1), rows)

    def result(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, or with ``average="steps"`` the log of averaged probabilities, and uncertainties, all ``(B, K, h, w)``."""
        assert self.last is not None
        if "p" in self._sums:
            mean, square, member_entropy = self._per_step("p"), self._per_step("p2"), self._per_step("h")
        else:
            members = self.last.sigmoid()
            mean, square, member_entropy = members.mean(1), members.square().mean(1), _binary_entropy(members).mean(1)
        if self.average == "steps":
            prediction, probabilities = mean.clamp(min=torch.finfo(mean.dtype).tiny).log(), mean
        else:
            probabilities = self.last.sigmoid().mean(1)
            prediction = self.last[:, 0] if self.ensemble_size == 1 else torch.logit(probabilities, eps=1e-7)
        kinds = self._step_flip()
        kinds["entropy"] = _binary_entropy(probabilities)
        if self.ensemble_size > 1 or int(self.num_steps.max()) > 1:
            # A probability's variance is at most 1/4.
            kinds["sample_variance"] = (4 * (square - mean.square())).clamp(0, 1)
            kinds["mutual_information"] = (_binary_entropy(mean) - member_entropy).clamp(0, 1)
        return prediction, kinds


def _binary_entropy(probabilities: Tensor) -> Tensor:
    """Entropy of a yes or no in bits, so that it lies in [0, 1]."""
    other = 1 - probabilities
    return -(torch.xlogy(probabilities, probabilities) + torch.xlogy(other, other)) / math.log(2)


class DepthReadout(Readout):
    """Depth maps in metres; the spread is relative to the depth."""

    def _flips(self, before: Tensor, after: Tensor) -> Tensor:
        ratio = (after / before).squeeze(2)
        return (ratio > 1 + DEPTH_FLIP_TOLERANCE) | (ratio < 1 / (1 + DEPTH_FLIP_TOLERANCE))

    def _accumulate(self, value: Tensor, rows: Tensor) -> None:
        if self.average == "last" and self.ensemble_size > 1:
            return
        value = value.double()  # a difference of squares follows
        self._add("d", value.mean(1), rows)
        self._add("d2", value.square().mean(1), rows)

    def result(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Metres ``(B, 1, h, w)``; step-flip (changes of more than 5 %) and the relative standard deviation, clamped to 1."""
        assert self.last is not None
        if "d" in self._sums:
            mean, square = self._per_step("d"), self._per_step("d2")
        else:
            members = self.last.double()
            mean, square = members.mean(1), members.square().mean(1)
        depth_m = mean.to(self.last.dtype) if self.average == "steps" else self.last.mean(1)
        kinds = self._step_flip()
        if self.ensemble_size > 1 or int(self.num_steps.max()) > 1:
            spread = (square - mean.square()).clamp(min=0).sqrt() / mean
            kinds["sample_variance"] = spread.squeeze(1).clamp(max=1).to(self.last.dtype)
        return depth_m, kinds
