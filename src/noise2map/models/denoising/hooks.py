"""What a task adds for the formulations that go beyond the published one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class FormulationHooks:
    """Hooks of a map model; the defaults are of a task that does not support the formulation."""

    task: Any
    loss: Any

    def corrupted_loss(self, prediction: Tensor, labels: Tensor) -> Tensor:
        """Loss of the prediction ``(B, K, h, w)`` for a map corrupted at its own resolution (matched filter), a scalar."""
        return self.loss(prediction, labels)

    def sample_loss(self, members: Tensor, labels: Tensor) -> Tensor:
        """Proper score of samples ``(B, m, K, h, w)`` of each map (noise channels), a scalar."""
        raise NotImplementedError(f"{type(self).__name__} has no scoring rule for samples")

    def evidence(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor | None:
        """What a noisy map says by itself, in the units of the prediction: the matched filter (`Noise2MapConfig.matched_filter`).

        Args:
            x_t: noisy maps ``(N, C, h, w)``.
            alpha: signal levels ``(N,)`` or ``(1,)``.
            sigma: noise levels, likewise.

        Returns:
            ``(N, K, h, w)``, added to the head's answer; `None` where there is no filter.
        """
        return None

    def draw_samples(
        self, prediction: Tensor, count: int, smoothness: float, generators: Sequence[torch.Generator | None]
    ) -> Tensor:
        """Maps ``(B, R, K, h, w)`` drawn from the marginals of a prediction by a smooth field (``sampling="field"``).

        Raises:
            ValueError: if the prediction has no marginals.
        """
        raise ValueError(f"sampling='field' needs probabilities or a scale of each pixel; {self.task} here has a single value")
