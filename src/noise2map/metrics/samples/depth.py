"""Scores of sets of depth maps."""

from typing import Any

import torch
from torch import Tensor

from noise2map.metrics.depth import depth_valid
from noise2map.metrics.samples.base import PATCH, SampleScores
from noise2map.metrics.samples.boundaries import boundary_f1, flying_pixels
from noise2map.metrics.samples.ranks import central_coverage, rank_histogram
from noise2map.metrics.samples.row_sums import Terms, image_mean, over_pixels
from noise2map.metrics.samples.scoring_rules import fair_crps, pooled, variogram_score

POOLS = (2, 4, 8)
LEVELS = (0.5, 0.9)
_SINGLE = ("abs_rel_sample", "abs_rel_best", "abs_rel_median")


class DepthSampleScores(SampleScores):
    """Scores of R depth maps of each image. Differences are those of log depth: ratio units.

    Beside the scores of `SampleScores`:

    - `crps`, `crps_pool2`, `crps_pool4`, `crps_pool8`: fair CRPS of pixels, and of means over cells of 2, 4 and 8 pixels.
    - `variogram`: variogram score of order 1/2, of pixels up to 16 apart.
    - `coverage_50`, `coverage_90`: share of truths in the central intervals, see `central_coverage`.
    - `abs_rel_sample`, `abs_rel_best`, `abs_rel_median`: AbsRel of a sample, of the best of R, of the pixels' median, over images.
    - `boundary_f1`: of a sample, over images; see :func:`noise2map.metrics.samples.boundaries.boundary_f1`.
    - `flying_pixels`: share of pixels at depth edges that a sample leaves between the two sides.

    Args:
        num_samples: R.
        min_depth: Lower bound of the true depth, metres (> 0); samples are clamped to the bounds.
        max_depth: Upper bound, metres.
        patch: Side of a patch of the energy score, pixels.
        keep_per_image: Keep a row of sums for each image.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If the bounds are not `0 < min_depth < max_depth` or a number is below 1.
    """

    names = (
        *SampleScores.names,
        "crps",
        *(f"crps_pool{size}" for size in POOLS),
        "variogram",
        *(f"coverage_{round(100 * level)}" for level in LEVELS),
        *_SINGLE,
        "boundary_f1",
        "flying_pixels",
    )

    def __init__(
        self,
        num_samples: int,
        min_depth: float,
        max_depth: float,
        patch: int = PATCH,
        keep_per_image: bool = True,
        **kwargs: Any,
    ) -> None:
        if not 0 < min_depth < max_depth:
            raise ValueError(f"need 0 < min_depth < max_depth (metres), got {min_depth} and {max_depth}")
        self.min_depth, self.max_depth = min_depth, max_depth
        self._ranks = tuple(f"rank{k}" for k in range(num_samples + 1))
        terms = ("crps", *(f"crps_pool{size}" for size in POOLS), "variogram", *_SINGLE, "boundary_f1", "flying_pixels")
        super().__init__((*terms, *self._ranks), num_samples, patch, keep_per_image, **kwargs)

    def square(self, a: Tensor, b: Tensor) -> Tensor:
        """See `SampleScores.square`; of log depth."""
        return (a - b).square()

    def update(self, samples_m: Tensor, depth_m: Tensor, valid: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            samples_m: ``(B, R, H, W)``, metres; finite wherever the truth is valid.
            depth_m: True depth ``(B, H, W)``, metres, 0 where unknown.
            valid: Further mask ``(B, H, W)``, bool.

        Raises:
            ValueError: If shapes differ or a sample that counts is NaN or infinite.
        """
        self._check(samples_m, depth_m)
        mask = depth_valid(depth_m, self.min_depth, self.max_depth, valid)
        bad = int((mask[:, None] & ~torch.isfinite(samples_m)).sum())
        if bad:
            raise ValueError(f"sampled depth is NaN or infinite at {bad} valid pixels")
        truth_m = torch.where(mask, depth_m, 1).float()
        samples_m = torch.where(mask[:, None], samples_m, 1).float().clamp(self.min_depth, self.max_depth)
        samples, truth = samples_m.log(), truth_m.log()
        terms = self._crps(samples, truth, mask) | self._single(samples_m, truth_m, mask)
        terms["variogram"] = variogram_score(samples, truth, mask)
        ranks = rank_histogram(samples, truth, mask)
        terms |= {name: (ranks[:, k], ranks.sum(1)) for k, name in enumerate(self._ranks)}
        self._add(samples, truth, mask, terms)

    def _crps(self, samples: Tensor, truth: Tensor, mask: Tensor) -> Terms:
        terms = {"crps": over_pixels(fair_crps(samples, truth), mask)}
        for size in POOLS:
            means, counted = pooled(torch.cat([samples, truth[:, None]], 1), mask, size)
            terms[f"crps_pool{size}"] = over_pixels(fair_crps(means[:, :-1], means[:, -1]), counted)
        return terms

    def _single(self, samples_m: Tensor, truth_m: Tensor, mask: Tensor) -> Terms:
        count, number = samples_m.shape[1], mask.sum((1, 2))

        def abs_rel(prediction_m: Tensor) -> Tensor:
            return torch.where(mask, (prediction_m - truth_m).abs() / truth_m, 0).double().sum((1, 2)) / number.clamp_min(1)

        each = torch.stack([abs_rel(samples_m[:, r]) for r in range(count)])  # (R, B)
        sharp = torch.stack([boundary_f1(samples_m[:, r], truth_m, mask) for r in range(count)]).mean(0)
        flying = torch.zeros(len(truth_m), dtype=torch.float64, device=truth_m.device)
        for r in range(count):
            hang, edge = flying_pixels(samples_m[:, r], truth_m, mask)
            flying += hang.sum((1, 2)) / count
        return {
            "abs_rel_sample": image_mean(each.mean(0), number),
            "abs_rel_best": image_mean(each.min(0).values, number),
            "abs_rel_median": image_mean(abs_rel(_median(samples_m)), number),
            "boundary_f1": image_mean(sharp, number),
            "flying_pixels": (flying, edge.sum((1, 2)).double()),
        }

    def _own_scores(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {name: means[name] for name in self.names if name in means}
        ranks = torch.stack([means[name] for name in self._ranks], -1)
        return found | {f"coverage_{round(100 * level)}": self._coverage(ranks, level) for level in LEVELS}

    def _coverage(self, ranks: Tensor, level: float) -> Tensor:
        # One sample has no spread; its two ranks would be read as the halves of one.
        return central_coverage(ranks, level) if self.num_samples > 1 else torch.full_like(ranks[..., 0], torch.nan)

    def ranks(self) -> Tensor:
        """Share of the pixels whose truth has each rank, ``(R + 1,)``: flat where samples are calibrated; see `rank_histogram`."""
        share = self.totals[..., 0] / self.totals[..., 1]
        return share[-(self.num_samples + 1) :]


def _median(samples: Tensor) -> Tensor:
    """Middle of the samples ``(B, R, ...)``, the mean of the two middle ones where their number is even."""
    ordered, count = samples.sort(1).values, samples.shape[1]
    return (ordered[:, (count - 1) // 2] + ordered[:, count // 2]) / 2
