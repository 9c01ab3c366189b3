"""What a task adds for the formulations that go beyond the published one."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from noise2map.models.denoising.refinement import neighbour_range
from noise2map.models.distributions.calibration import Calibration


class FormulationHooks:
    """Hooks of a map model; the defaults are of a task that does not support the formulation.

    Attributes:
        calibrated_parts: What a `Calibration` may hold for the task, beside a temperature.
    """

    task: Any
    loss: Any
    config: Any
    calibrated_parts: ClassVar[tuple[str, ...]] = ()

    @property
    def calibration(self) -> Calibration | None:
        """The calibration of the configuration, as it is now; `None` where there is none."""
        return Calibration.read(self.config.calibration, self.calibrated_parts)

    def calibrate(
        self, prediction: Tensor, kinds: dict[str, Tensor], calibration: Calibration, log_probabilities: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Corrects what a run says by a calibration.

        Args:
            prediction: map and parameters ``(B, K', h, w)``.
            kinds: uncertainties of the run.
            calibration: what was fitted.
            log_probabilities: the prediction holds logarithms of averaged probabilities.

        Returns:
            Both anew; kinds that follow from the corrected numbers follow them.
        """
        return prediction, kinds

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

    def cell_uncertainty(self, prediction: Tensor) -> Tensor:
        """What one decoder call ``(N, K', h, w)`` leaves open, ``(N, h, w)``: where sparse refinement goes on."""
        return neighbour_range(prediction)

    def draw_samples(
        self, prediction: Tensor, count: int, smoothness: float, generators: Sequence[torch.Generator | None]
    ) -> Tensor:
        """Maps ``(B, R, K, h, w)`` drawn from the marginals of a prediction by a smooth field (``sampling="field"``).

        Raises:
            ValueError: if the prediction has no marginals.
        """
        raise ValueError(f"sampling='field' needs probabilities or a scale of each pixel; {self.task} here has a single value")
