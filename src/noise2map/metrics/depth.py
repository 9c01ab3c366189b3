"""Monocular depth scores, averaged over images (the published protocol) or pooled over pixels."""

from typing import Any, Literal

import torch
from torch import Tensor

from noise2map.metrics.per_image import PerImageMetric

DEPTH_SCORES = ("delta1", "delta2", "delta3", "abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog")
DELTA_THRESHOLD = 1.25  # a pixel is "wrong" when max(prediction/truth, truth/prediction) reaches this


def depth_valid(depth_m: Tensor, min_depth: float, max_depth: float, valid: Tensor | None = None) -> Tensor:
    """Pixels that count: true depth finite and strictly between the bounds, and in `valid` where it is given."""
    mask = torch.isfinite(depth_m) & (depth_m > min_depth) & (depth_m < max_depth)
    return mask if valid is None else mask & valid.bool()


def absolute_relative_error(prediction_m: Tensor, depth_m: Tensor) -> Tensor:
    """`|prediction - truth| / truth` per pixel; meaningless where the truth is invalid."""
    return (prediction_m - depth_m).abs() / depth_m


def depth_is_wrong(prediction_m: Tensor, depth_m: Tensor) -> Tensor:
    """Error mask `max(prediction/truth, truth/prediction) >= 1.25`, the complement of delta1, per pixel."""
    return torch.maximum(prediction_m / depth_m, depth_m / prediction_m) >= DELTA_THRESHOLD


def _sums(prediction_m: Tensor, depth_m: Tensor) -> Tensor:
    """Sums of one image's valid pixels `(P,)` from which every score follows: `(10,)` float64."""
    prediction, depth = prediction_m.double(), depth_m.double()
    ratio = torch.maximum(prediction / depth, depth / prediction)
    difference = prediction - depth
    log_ratio = prediction.log() - depth.log()
    terms = [
        torch.ones_like(depth),
        *((ratio < DELTA_THRESHOLD**k).double() for k in (1, 2, 3)),
        difference.abs() / depth,
        difference.square() / depth,
        difference.square(),
        log_ratio.square(),
        (prediction.log10() - depth.log10()).abs(),
        log_ratio,
    ]
    return torch.stack([term.sum() for term in terms])


def _scores(sums: Tensor) -> Tensor:
    """`(..., 10)` sums to `(..., 9)` scores in the order of `DEPTH_SCORES`; NaN where no pixel was valid."""
    means = sums[..., 1:] / sums[..., :1]
    delta1, delta2, delta3, abs_rel, sq_rel, square, log_square, log10, log_mean = means.unbind(-1)
    # The variance is never negative; rounding may make it so for a prediction that is off by a constant factor.
    silog = (log_square - log_mean.square()).clamp_min(0).sqrt() * 100
    return torch.stack([delta1, delta2, delta3, abs_rel, sq_rel, square.sqrt(), log_square.sqrt(), log10, silog], dim=-1)


class DepthScores(PerImageMetric):
    """delta1-3, AbsRel, SqRel, RMSE, RMSElog, log10 and SILog of metric depth maps.

    A pixel counts when its true depth is strictly between `min_depth` and `max_depth` and its mask is set; the
    prediction is clamped to the same range, as the published evaluations do. An image without a valid pixel is
    left out of the mean.

    Args:
        min_depth: Lower bound of the true depth, metres (> 0).
        max_depth: Upper bound of the true depth, metres.
        average: `"image"`: score every image, then average the images (the published protocol); `"pixel"`: pool
            the pixels of all images and score once.
        keep_per_image: Keep nine numbers an image for :meth:`per_image`.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If the bounds are not `0 < min_depth < max_depth` or `average` is unknown.
    """

    full_state_update = False
    pixel_sums: Tensor
    image_score_sums: Tensor
    image_count: Tensor

    def __init__(
        self,
        min_depth: float,
        max_depth: float,
        average: Literal["image", "pixel"] = "image",
        keep_per_image: bool = True,
        **kwargs: Any,
    ) -> None:
        if not 0 < min_depth < max_depth:
            raise ValueError(f"need 0 < min_depth < max_depth (metres), got {min_depth} and {max_depth}")
        if average not in ("image", "pixel"):
            raise ValueError(f"average must be 'image' or 'pixel', got {average!r}")
        super().__init__((len(DEPTH_SCORES),), torch.float64, keep_per_image, **kwargs)
        self.min_depth = min_depth
        self.max_depth = max_depth
        self.average = average
        scores = len(DEPTH_SCORES)
        self.add_state("pixel_sums", torch.zeros(scores + 1, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("image_score_sums", torch.zeros(scores, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("image_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction_m: Tensor, depth_m: Tensor, valid: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            prediction_m: Predicted depth `(B, H, W)`, metres; finite wherever the truth is valid.
            depth_m: True depth `(B, H, W)`, metres, 0 where unknown.
            valid: Further mask `(B, H, W)`, bool.

        Raises:
            ValueError: If shapes differ or a prediction that counts is NaN or infinite.
        """
        if prediction_m.shape != depth_m.shape or depth_m.ndim != 3:
            raise ValueError(
                "predicted and true depth must have the same shape (B, H, W), "
                f"got {tuple(prediction_m.shape)} and {tuple(depth_m.shape)}"
            )
        mask = depth_valid(depth_m, self.min_depth, self.max_depth, valid)
        bad = int((mask & ~torch.isfinite(prediction_m)).sum())
        if bad:
            raise ValueError(f"predicted depth is NaN or infinite at {bad} valid pixels")
        clamped = prediction_m.clamp(self.min_depth, self.max_depth)
        sums = torch.stack([_sums(p[m], d[m]) for p, d, m in zip(clamped, depth_m, mask)])  # (B, 10)
        rows = _scores(sums)
        self.pixel_sums += sums.sum(0)
        self.image_score_sums += rows.nansum(0)
        self.image_count += (sums[:, 0] > 0).sum()
        self._keep(rows)

    def compute(self) -> dict[str, Tensor]:
        """Scores by the names of `DEPTH_SCORES`, scalars in float64 (SILog times 100; RMSE in metres)."""
        pooled = self.average == "pixel"
        values = _scores(self.pixel_sums) if pooled else self.image_score_sums / self.image_count
        return dict(zip(DEPTH_SCORES, values))

    def per_image(self) -> Tensor:
        """Scores of every image, `(N, 9)` in the order of `DEPTH_SCORES`; a row is NaN if no pixel was valid."""
        return super().per_image()
