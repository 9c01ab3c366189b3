"""Aggregation of the stream of denoising steps into one map and its uncertainty."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from noise2map.diffusion.ensemble import unfold


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
