"""Scores of sets of normal maps."""

from typing import Any

import torch
from torch import Tensor

from noise2map.metrics.normals import angular_error, normals_valid
from noise2map.metrics.samples.base import PATCH, SampleScores
from noise2map.metrics.samples.row_sums import image_mean

_TERMS = ("mean_angle_sample", "mean_angle_best")


class NormalsSampleScores(SampleScores):
    """Scores of R maps of unit vectors of each image; distances are chords, 0 to 2.

    Beside the scores of `SampleScores`, over images: `mean_angle_sample` and `mean_angle_best`, the mean angular error in degrees
    of a sample and of the best of R.

    Args:
        num_samples: R.
        patch: Side of a patch of the energy score, pixels.
        keep_per_image: Keep a row of sums for each image.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If a number is below 1.
    """

    names = (*SampleScores.names, *_TERMS)

    def __init__(self, num_samples: int, patch: int = PATCH, keep_per_image: bool = True, **kwargs: Any) -> None:
        super().__init__(_TERMS, num_samples, patch, keep_per_image, **kwargs)

    def square(self, a: Tensor, b: Tensor) -> Tensor:
        """See `SampleScores.square`."""
        return (a - b).square().sum(-3)

    def update(self, samples: Tensor, normals: Tensor, valid: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            samples: Unit vectors ``(B, R, 3, H, W)``.
            normals: True unit vectors ``(B, 3, H, W)``, zero where unknown.
            valid: Further mask ``(B, H, W)``, bool.

        Raises:
            ValueError: If the shapes do not fit or a sample that counts is NaN or infinite.
        """
        self._check(samples, normals)
        mask = normals_valid(normals)
        mask = mask if valid is None else mask & valid
        if not bool(torch.isfinite(samples).all(2)[mask[:, None].expand(-1, self.num_samples, -1, -1)].all()):
            raise ValueError("sampled normals are NaN or infinite at valid pixels")
        number = mask.sum((1, 2))
        angles = [
            torch.where(mask, angular_error(one, normals), 0).double().sum((1, 2)) / number.clamp_min(1)
            for one in samples.unbind(1)
        ]
        each = torch.stack(angles)  # (R, B)
        terms = {
            "mean_angle_sample": image_mean(each.mean(0), number),
            "mean_angle_best": image_mean(each.min(0).values, number),
        }
        self._add(samples, normals, mask, terms)

    def _own_scores(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: means[name] for name in _TERMS}
