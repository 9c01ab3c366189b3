"""Base of the scores of sets of samples."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from noise2map.metrics.samples.row_sums import RowSums, Terms, over_pixels
from noise2map.metrics.samples.scoring_rules import patch_energy_score

PATCH = 24  # pixels: six cells of a map at a quarter of the size


class SampleScores(RowSums):
    """Scores of R samples for each image.

    Every map lies in a space with a squared distance at each pixel. From it, whatever the task:

    - `energy`: energy score of square patches, see `patch_energy_score`; one sample is scored as a point.
    - `spread_skill`: ``sqrt((1 + 1 / R) mean variance) / RMSE of the mean``: 1 calibrated, below 1 too sure.
    - `mse_slope`, `mse_intercept`: the squared error of the mean of r samples is, averaged over all choices of r of the R, exactly
      ``intercept + slope / r``. The slope is the variance of the samples, the intercept the error of an endless mean; calibrated
      samples have both equal.

    Sums run over the pixels of all images; scores that papers average over images are said to be so. Spread, slope and intercept
    need two samples, else they are NaN.

    Args:
        num_samples: R.
        patch: Side of a patch of the energy score, pixels.
        keep_per_image: Keep a row of sums for each image.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If a number is below 1.
    """

    names: tuple[str, ...] = ("energy", "spread_skill", "mse_slope", "mse_intercept")

    def __init__(
        self, terms: tuple[str, ...], num_samples: int, patch: int = PATCH, keep_per_image: bool = True, **kwargs: Any
    ) -> None:
        for name, value in (("num_samples", num_samples), ("patch", patch)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        super().__init__(("energy", "error", "spread", *terms), keep_per_image, **kwargs)
        self.num_samples, self.patch = num_samples, patch

    @abstractmethod
    def square(self, a: Tensor, b: Tensor) -> Tensor:
        """Squared distance of two maps ``(B, ...)`` at every pixel ``(B, H, W)``."""

    def _check(self, samples: Tensor, truth: Tensor) -> None:
        expected = (len(truth), self.num_samples, *truth.shape[1:])
        if tuple(samples.shape) != expected:
            raise ValueError(
                f"samples have shape {tuple(samples.shape)}; expected {expected}, R = {self.num_samples} of each image"
            )

    def _add(self, samples: Tensor, truth: Tensor, valid: Tensor, terms: Terms) -> None:
        """Adds a batch: terms by name, each a sum ``(B,)`` and its weight ``(B,)``; those of all tasks follow from the maps.

        Args:
            samples: Maps ``(B, R, ...)``, finite where valid.
            truth: Map ``(B, ...)``.
            valid: Which pixels count ``(B, H, W)``, bool.
            terms: The task's own.
        """
        count = self.num_samples
        number = valid.sum((1, 2)).double()

        def summed(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(valid, self.square(a, b), 0).double().sum((1, 2))

        error = torch.stack([summed(samples[:, r], truth) for r in range(count)]).mean(0)
        pairs = [summed(samples[:, r], samples[:, q]) for r in range(count) for q in range(r)]
        energy, counted = patch_energy_score(samples, truth, valid, self.square, self.patch)
        none = torch.zeros_like(number)
        spread = (torch.stack(pairs).mean(0), number) if pairs else (none, none)
        self._add_terms({"energy": over_pixels(energy, counted), "error": (error, number), "spread": spread} | terms)

    def _scores(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        variance = means["spread"] / 2
        inverse = 1 / self.num_samples
        of_mean = means["error"] - (1 - inverse) * variance  # mean squared error of the mean of all R
        return {
            "energy": means["energy"],
            "spread_skill": ((1 + inverse) * variance / of_mean).sqrt(),
            "mse_slope": variance,
            "mse_intercept": of_mean - inverse * variance,
        } | self._own_scores(means)

    @abstractmethod
    def _own_scores(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """The task's own scores from the means of its terms."""
