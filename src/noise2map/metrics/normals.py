"""Scores of surface normals: angular errors, averaged over images or pooled over pixels."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from noise2map.metrics.per_image import PerImageMetric

NORMALS_SCORES = ("mean_angle", "median_angle", "within_11.25", "within_22.5", "within_30")
ANGLE_THRESHOLDS = (11.25, 22.5, 30.0)
"""Degrees; a pixel is "wrong" when its error reaches the first."""
_BINS_PER_DEGREE = 100
_BINS = 180 * _BINS_PER_DEGREE + 1


def normals_valid(normals: Tensor) -> Tensor:
    """Pixels that count ``(B, H, W)``: true normals ``(B, 3, H, W)`` that are not zero."""
    return normals.norm(dim=1) > 0.5


def angular_error(prediction: Tensor, normals: Tensor) -> Tensor:
    """Angle between vectors ``(B, 3, H, W)`` in degrees ``(B, H, W)`` float64; lengths do not matter.

    By the arc tangent of cross and dot product, which is exact for small angles, where the arc cosine is not.
    """
    a, b = prediction.double(), normals.double()
    cross = torch.linalg.cross(a, b, dim=1).norm(dim=1)
    return torch.rad2deg(torch.atan2(cross, (a * b).sum(1)))


class NormalsScores(PerImageMetric):
    """Mean and median angular error in degrees, and the shares of pixels within 11.25, 22.5 and 30 degrees.

    A pixel counts where the true normal is known (not the zero vector). An image without such a pixel is left out of the mean.

    Args:
        average: ``"image"``: score every image, then average the images; ``"pixel"``: pool the pixels of all images, as some
            papers do (the median then to a hundredth of a degree).
        keep_per_image: Keep five numbers an image for :meth:`per_image`.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If ``average`` is unknown.
    """

    full_state_update = False
    counts: Tensor
    angle_sum: Tensor
    within: Tensor
    image_score_sums: Tensor
    image_count: Tensor

    def __init__(self, average: Literal["image", "pixel"] = "image", keep_per_image: bool = True, **kwargs: Any) -> None:
        if average not in ("image", "pixel"):
            raise ValueError(f"average must be 'image' or 'pixel', got {average!r}")
        super().__init__((len(NORMALS_SCORES),), torch.float64, keep_per_image, **kwargs)
        self.average = average
        self.add_state("counts", torch.zeros(_BINS, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("angle_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("within", torch.zeros(len(ANGLE_THRESHOLDS), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("image_score_sums", torch.zeros(len(NORMALS_SCORES), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("image_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, normals: Tensor) -> None:
        """Add a batch.

        Args:
            prediction: Predicted normals ``(B, 3, H, W)``; finite and not zero wherever the truth is known.
            normals: True unit vectors ``(B, 3, H, W)``, zero where unknown.

        Raises:
            ValueError: If shapes differ, or a prediction that counts is NaN, infinite or zero.
        """
        if prediction.shape != normals.shape or normals.ndim != 4 or normals.shape[1] != 3:
            raise ValueError(
                "predicted and true normals must have the same shape (B, 3, H, W), "
                f"got {tuple(prediction.shape)} and {tuple(normals.shape)}"
            )
        valid = normals_valid(normals)
        length = prediction.float().norm(dim=1)
        bad = int((valid & ~(torch.isfinite(length) & (length > 0))).sum())
        if bad:
            raise ValueError(f"predicted normals are NaN, infinite or zero at {bad} valid pixels")
        error = angular_error(prediction, normals)
        rows = torch.stack([_scores(one[mask]) for one, mask in zip(error, valid)])  # (B, 5)
        known = error[valid]
        self.counts += torch.bincount((known * _BINS_PER_DEGREE).round().long(), minlength=_BINS)
        self.angle_sum += known.sum()
        self.within += torch.stack([(known < limit).sum() for limit in ANGLE_THRESHOLDS])
        self.image_score_sums += rows.nansum(0)
        self.image_count += (~rows[:, 0].isnan()).sum()
        self._keep(rows)

    def compute(self) -> dict[str, Tensor]:
        """Scores by the names of `NORMALS_SCORES`, scalars in float64: two angles in degrees, three shares."""
        if self.average == "image":
            return dict(zip(NORMALS_SCORES, self.image_score_sums / self.image_count))
        total = self.counts.sum()
        median = torch.searchsorted(self.counts.cumsum(0), (total + 1) // 2).double() / _BINS_PER_DEGREE
        values = [self.angle_sum / total, median if total else torch.full_like(median, math.nan), *(self.within.double() / total)]
        return dict(zip(NORMALS_SCORES, values))

    def per_image(self) -> Tensor:
        """Scores of every image, ``(N, 5)`` in the order of `NORMALS_SCORES`; a row is NaN if no pixel was known."""
        return super().per_image()


def _scores(error: Tensor) -> Tensor:
    """Angles of one image's known pixels ``(P,)`` -> its scores ``(5,)``; NaN where there is none."""
    if not len(error):
        return error.new_full((len(NORMALS_SCORES),), math.nan)
    # The lower of two middle values, as torch has it.
    return torch.stack([error.mean(), error.median(), *((error < limit).double().mean() for limit in ANGLE_THRESHOLDS)])
