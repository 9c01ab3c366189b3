"""Scores of uncertainty against errors: ranking, risk-coverage, correlation."""

from typing import Any, Literal

import torch
from torch import Tensor

from noise2map.metrics.histograms import (
    COARSE_BITS,
    average_precision,
    bin_index,
    correlation,
    histogram_rows,
    num_bins,
    rank_correlation,
    risk_coverage_area,
    roc_auc,
)
from noise2map.metrics.per_image import PerImageMetric

UNCERTAINTY_SCORES = (
    "auroc",  # higher is better, 0.5 is chance
    "aupr",  # higher is better, the error rate is chance
    "aurc",  # lower is better
    "excess_aurc",  # lower is better, 0 is the oracle
    "ause",  # lower is better, 0 is the oracle
    "prr",  # higher is better, 1 is the oracle, 0 is chance
    "pearson",
    "spearman",
    "uce",  # lower is better; binary errors only
    "mean_uncertainty",
    "mean_error",
    "error_rate",
)

UCE_BINS = 15

_TOLERANCE = 1e-4  # rounding may lift a normalised entropy slightly above 1

_COARSE = num_bins(COARSE_BITS)


def check_unit_interval(values: Tensor, name: str) -> Tensor:
    """Return `values` clamped to [0, 1]; refuse NaN and anything outside by more than rounding."""
    if values.numel() and not bool(((values >= -_TOLERANCE) & (values <= 1 + _TOLERANCE)).all()):
        known = values[~values.isnan()]
        extent = f"values from {known.min():.4g} to {known.max():.4g}" if known.numel() else "only NaN"
        raise ValueError(f"{name} must be in [0, 1] without NaN, got {extent}, {values.numel() - known.numel()} NaN")
    return values.clamp(0, 1)


def flat_maps(maps: dict[str, Tensor], valid: Tensor | None) -> tuple[dict[str, Tensor], Tensor | None]:
    """Flatten several maps `(B, H, W)` of one shape, and their mask, to `(B, P)`; invalid values become 0.

    Raises:
        ValueError: If the maps differ in shape or are not `(B, H, W)`.
    """
    shapes = {name: tuple(values.shape) for name, values in maps.items()}
    if valid is not None:
        shapes["valid"] = tuple(valid.shape)
    first = next(iter(shapes.values()))
    if len(first) != 3 or any(shape != first for shape in shapes.values()):
        raise ValueError(f"need maps of one shape (B, H, W), got {shapes}")
    if valid is None or bool(valid.all()):
        return {name: values.flatten(1) for name, values in maps.items()}, None
    mask = valid.flatten(1).bool()
    return {name: torch.where(mask, values.flatten(1), 0) for name, values in maps.items()}, mask


def _histograms(maps: dict[str, Tensor], valid: Tensor | None, binary: bool) -> dict[str, Tensor]:
    """Everything that the scores need of each image, additive over images: `(B, ...)` float64 tensors.

    Args:
        maps: `uncertainty`, `error` and `wrong`, each `(B, P)`, 0 where not valid.
        valid: Which pixels count `(B, P)`; all where it is not given.
        binary: Whether the error is 0 or 1.
    """
    uncertainty, wrong = maps["uncertainty"].float(), maps["wrong"].long()
    u, e = uncertainty.double(), maps["error"].double()
    bins, rows = num_bins(), len(u)
    index = bin_index(uncertainty)
    pair = histogram_rows(2 * index + wrong, 2 * bins, valid=valid).view(rows, bins, 2)
    total = pair.sum((1, 2))
    products = [(x * y).sum(1) for x, y in ((u, u), (e, e), (u, e))]
    histograms = {
        "counts": pair.sum(2),
        "wrong_counts": pair[..., 1],
        "moments": torch.stack([total, u.sum(1), e.sum(1), *products], dim=-1),
    }
    if binary:
        level = (uncertainty * UCE_BINS).long().clamp_max(UCE_BINS - 1)
        level_pair = histogram_rows(2 * level + wrong, 2 * UCE_BINS, valid=valid).view(rows, UCE_BINS, 2)
        columns = [level_pair.sum(2), histogram_rows(level, UCE_BINS, u, valid), level_pair[..., 1]]
        return histograms | {"calibration": torch.stack(columns, dim=1)}  # (B, 3, bins)
    squashed = e / (1 + e)  # monotone, into [0, 1)
    error_index = bin_index(squashed)
    joint = bin_index(uncertainty, COARSE_BITS) * _COARSE + bin_index(squashed, COARSE_BITS)
    return histograms | {
        "error_sums": histogram_rows(index, bins, e, valid),
        "oracle_counts": histogram_rows(error_index, bins, valid=valid),
        "oracle_error_sums": histogram_rows(error_index, bins, e, valid),
        "joint": histogram_rows(joint, _COARSE**2, valid=valid).view(rows, _COARSE, _COARSE),
    }


def _scores(histograms: dict[str, Tensor], binary: bool) -> Tensor:
    """Histograms `(..., bins)` to scores `(..., 12)` in the order of `UNCERTAINTY_SCORES`."""
    counts, wrong = histograms["counts"], histograms["wrong_counts"]
    right = counts - wrong
    total, error_total = histograms["moments"][..., 0], histograms["moments"][..., 2]
    if binary:
        # The oracle keeps every right pixel before any wrong one.
        zero = torch.zeros_like(total)
        oracle = risk_coverage_area(torch.stack([total - error_total, error_total], -1), torch.stack([zero, error_total], -1))
        risk = risk_coverage_area(counts, wrong)
        spearman = rank_correlation(torch.stack([right, wrong], dim=-1))
        _, level_uncertainty, level_errors = histograms["calibration"].unbind(-2)
        uce = (level_uncertainty - level_errors).abs().sum(-1) / total
    else:
        oracle = risk_coverage_area(histograms["oracle_counts"], histograms["oracle_error_sums"])
        risk = risk_coverage_area(counts, histograms["error_sums"])
        spearman = rank_correlation(histograms["joint"])
        uce = torch.full_like(total, torch.nan)
    mean_error = error_total / total
    excess = (risk - oracle).clamp_min(0)
    room = mean_error - oracle  # none where every pixel has the same error: then no order is better than another
    room = torch.where(room > 1e-9 * mean_error, room, torch.nan)
    columns = [
        roc_auc(wrong, right),
        average_precision(wrong, right),
        risk,
        excess,
        excess / mean_error,
        1 - excess / room,
        correlation(*histograms["moments"].unbind(-1)),
        spearman,
        uce,
        histograms["moments"][..., 1] / total,
        mean_error,
        wrong.sum(-1) / total,
    ]
    return torch.stack(columns, dim=-1)


class UncertaintyScores(PerImageMetric):
    """Score per-pixel uncertainty against per-pixel error, streamed through fixed-size histograms.

    With `error="binary"` (segmentation) a pixel's error is 1 where its class is wrong. With `error="continuous"`
    (depth) it is the absolute relative error, and `wrong` says which pixels count as errors for AUROC and AUPR
    (delta > 1.25). Scores, in the order of `UNCERTAINTY_SCORES`:

    - `auroc`, `aupr`: the uncertainty as a detector of wrong pixels (AUPR as average precision).
    - `aurc`: area under risk against coverage: the mean error of the most certain fraction `c`, integrated over `c`.
    - `excess_aurc`: `aurc` minus that of the oracle, which ranks by the error itself.
    - `ause`: area between the sparsification curves of the uncertainty and of the oracle, each divided by the mean
      error: equal to `excess_aurc / mean_error`.
    - `prr`: prediction rejection ratio `1 - excess_aurc / (mean_error - aurc_oracle)`: 1 oracle, 0 random order.
    - `pearson`, `spearman`: correlation with the error.
    - `uce`: expected gap between error rate and mean uncertainty over 15 equal bins of uncertainty, i.e. the ECE of
      the uncertainty read as a probability of error; NaN for continuous errors, where that reading makes no sense.
    - `mean_uncertainty`, `mean_error`, `error_rate`: what the others are to be read against.

    `compute` gives them pooled over all pixels, and their means over images under `<name>_image`. A score that is
    not defined (no wrong pixel, constant uncertainty) is NaN, and an image where it is not defined does not enter
    its mean.

    Args:
        error: Kind of error, `"binary"` or `"continuous"`.
        keep_per_image: Keep twelve numbers an image for :meth:`per_image`.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If `error` is unknown.
    """

    full_state_update = False
    image_sums: Tensor
    image_numbers: Tensor

    def __init__(self, error: Literal["binary", "continuous"] = "binary", keep_per_image: bool = True, **kwargs: Any) -> None:
        if error not in ("binary", "continuous"):
            raise ValueError(f"error must be 'binary' or 'continuous', got {error!r}")
        super().__init__((len(UNCERTAINTY_SCORES),), torch.float64, keep_per_image, **kwargs)
        self.binary = error == "binary"
        # An empty batch of pixels has histograms of the right shapes.
        none = torch.zeros(1, 0)
        empty = _histograms({"uncertainty": none, "error": none, "wrong": none}, None, self.binary)
        self.histogram_names = tuple(empty)
        for name, histogram in empty.items():
            self.add_state(name, histogram[0], dist_reduce_fx="sum")
        for name in ("image_sums", "image_numbers"):
            zeros = torch.zeros(len(UNCERTAINTY_SCORES), dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, uncertainty: Tensor, error: Tensor, wrong: Tensor | None = None, valid: Tensor | None = None) -> None:
        """Add a batch of maps `(B, H, W)`.

        Args:
            uncertainty: In [0, 1]; higher means less certain.
            error: Binary kind: bool, or 0 and 1. Continuous kind: finite and at least 0.
            wrong: Which pixels are wrong, bool; needed for the continuous kind, the error itself for the binary kind.
            valid: Which pixels count, bool; all where it is not given.

        Raises:
            ValueError: If shapes differ, a value is outside its range, or `wrong` is missing.
        """
        if self.binary:
            wrong = error if wrong is None else wrong
        elif wrong is None:
            raise ValueError("continuous errors need `wrong`, the pixels that count as errors for AUROC and AUPR")
        maps, mask = flat_maps({"uncertainty": uncertainty, "error": error, "wrong": wrong}, valid)
        maps["uncertainty"] = check_unit_interval(maps["uncertainty"], "uncertainty")
        error = maps["error"]
        if self.binary and not bool(((error == 0) | (error == 1)).all()):
            raise ValueError("a binary error must be 0 or 1 at every valid pixel")
        if not self.binary and not bool((torch.isfinite(error) & (error >= 0)).all()):
            raise ValueError("errors must be finite and at least 0 at every valid pixel")
        histograms = _histograms(maps, mask, self.binary)
        for name, histogram in histograms.items():
            getattr(self, name).add_(histogram.sum(0))
        rows = _scores(histograms, self.binary)
        self.image_sums += rows.nansum(0)
        self.image_numbers += (~rows.isnan()).sum(0)
        self._keep(rows)

    def compute(self) -> dict[str, Tensor]:
        """Scores by name, scalars in float64: pooled, and `<name>_image` averaged over images."""
        pooled = _scores({name: getattr(self, name) for name in self.histogram_names}, self.binary)
        image = self.image_sums / self.image_numbers
        scores = dict(zip(UNCERTAINTY_SCORES, pooled))
        return scores | {f"{name}_image": value for name, value in zip(UNCERTAINTY_SCORES, image)}

    def per_image(self) -> Tensor:
        """Scores of every image, `(N, 12)` in the order of `UNCERTAINTY_SCORES`, NaN where not defined."""
        return super().per_image()

    def risk_coverage_curve(self, points: int = 101) -> tuple[Tensor, Tensor]:
        """Pooled risk against coverage, for plots.

        Args:
            points: Number of coverages.

        Returns:
            Coverage `(points,)` from `1 / points` to 1, and the mean error of that most certain fraction `(points,)`.
        """
        counts = self.counts
        errors = self.wrong_counts if self.binary else self.error_sums
        assert isinstance(counts, Tensor) and isinstance(errors, Tensor)
        coverage = torch.arange(1, points + 1, dtype=torch.float64, device=counts.device) / points
        wanted = coverage * counts.sum()
        upper = counts.cumsum(0)
        index = torch.searchsorted(upper, wanted.clamp_max(upper[-1]))
        share = (wanted - (upper - counts)[index]) / counts[index].clamp_min(1)
        error = (errors.cumsum(0) - errors)[index] + share * errors[index]
        return coverage, error / wanted
