"""Ranking scores from fixed-size histograms: memory does not grow with the dataset.

Values in [0, 1] fall into 6146 bins whose *relative* width is at most 1/256, down to 2^-24: an uncertainty that lives
between 0.0001 and 0.001 (the variance of a confident model) is ranked as finely as one that fills the unit interval.
Values in one bin are ties, and every score here treats ties exactly, as if their order were drawn at random; so a score
equals the score of the binned values, and the exact one wherever the values are few (a count of flips).

All functions take float64 tensors whose last axis is the bins, in ascending order, and reduce that axis.
"""

import torch
from torch import Tensor

OCTAVES = 24  # values below 2**-24 share bin 0
FINE_BITS = 8  # 256 bins an octave
COARSE_BITS = 3  # 8 bins an octave, for joint histograms


def num_bins(bits: int = FINE_BITS) -> int:
    """Number of bins: one below 2^-24, `2**bits` an octave, and one for exactly 1."""
    return (OCTAVES << bits) + 2


def bin_index(values: Tensor, bits: int = FINE_BITS) -> Tensor:
    """Bin of each value in [0, 1], int64, monotone in the value.

    The leading bits of a positive float32, read as an integer, are a piecewise-linear logarithm.
    """
    leading = values.float().contiguous().view(torch.int32) >> (23 - bits)
    lowest = (127 - OCTAVES) << bits  # leading bits of 2**-24
    return (leading - lowest + 1).clamp_(0, num_bins(bits) - 1).long()


def histogram_rows(index: Tensor, bins: int, weights: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
    """One histogram for each row of a batch.

    Args:
        index: Bin of each value `(B, P)`, in `[0, bins)`.
        bins: Number of bins.
        weights: Weight of each value `(B, P)`; values are counted where it is not given.
        valid: Which values count `(B, P)`, bool; all where it is not given.

    Returns:
        `(B, bins)` float64.
    """
    rows = len(index)
    flat = index + bins * torch.arange(rows, device=index.device)[:, None]
    if valid is not None:
        flat = torch.where(valid, flat, rows * bins)  # one bin more, thrown away
    weights = None if weights is None else weights.double().flatten()
    counted = torch.bincount(flat.flatten(), weights=weights, minlength=rows * bins + 1)
    return counted[: rows * bins].view(rows, bins).double()


def roc_auc(positives: Tensor, negatives: Tensor) -> Tensor:
    """Probability that a positive scores higher than a negative (ties count one half); NaN without both."""
    negatives_below = negatives.cumsum(-1) - negatives
    wins = (positives * (negatives_below + negatives / 2)).sum(-1)
    return wins / (positives.sum(-1) * negatives.sum(-1))


def average_precision(positives: Tensor, negatives: Tensor) -> Tensor:
    """Area under precision and recall as the step sum over thresholds; NaN without positives."""
    found = positives.flip(-1).cumsum(-1)
    flagged = found + negatives.flip(-1).cumsum(-1)
    precision = found / flagged.clamp_min(1)
    return (precision * positives.flip(-1)).sum(-1) / positives.sum(-1)


def risk_coverage_area(counts: Tensor, error_sums: Tensor) -> Tensor:
    r"""Area under the risk-coverage curve.

    `risk(c)` is the mean error of the fraction `c` of pixels that rank lowest; the area is its integral over `c`
    from 0 to 1. Within a bin the error sum grows linearly with coverage (ties in random order), so each bin's
    integral is exact: with `c0, E0` the coverage and error sum (per pixel) below the bin and `e` its mean error,
    the integral of `(E0 + e (c - c0)) / c` is `(E0 - e c0) ln(c1 / c0) + e (c1 - c0)`.

    Args:
        counts: Pixels of each bin `(..., bins)`.
        error_sums: Sum of their errors `(..., bins)`.

    Returns:
        `(...)`, in the unit of the error; NaN without pixels.
    """
    total = counts.sum(-1, keepdim=True)
    upper, error_upper = counts.cumsum(-1), error_sums.cumsum(-1)
    lower, error_lower = upper - counts, error_upper - error_sums
    mean_error = error_sums / counts.clamp_min(1)
    log_ratio = torch.where(lower > 0, (upper / lower.clamp_min(1)).log(), 0.0)
    area = (error_lower - mean_error * lower) * log_ratio + mean_error * counts
    return (area / total).sum(-1)


def mid_ranks(counts: Tensor) -> Tensor:
    """Mean rank of the values of each bin, 0-based: ties share the middle of their range."""
    return counts.cumsum(-1) - counts / 2 - 0.5


def correlation(count: Tensor, x: Tensor, y: Tensor, xx: Tensor, yy: Tensor, xy: Tensor) -> Tensor:
    """Pearson correlation from the sums of 1, x, y, x², y² and xy; NaN where one of them does not vary."""
    covariance = xy - x * y / count
    variance_x = xx - x.square() / count
    variance_y = yy - y.square() / count
    # Rounding leaves a variance of about 1e-16 times the sum of squares where the values are all the same.
    constant = (variance_x <= 1e-12 * xx) | (variance_y <= 1e-12 * yy)
    value = covariance / (variance_x * variance_y).clamp_min(1e-300).sqrt()
    return torch.where(constant, torch.nan, value.clamp(-1, 1))


def rank_correlation(joint: Tensor) -> Tensor:
    """Spearman correlation of a joint histogram `(..., bins_x, bins_y)`, ties at their mean rank."""
    count_x, count_y = joint.sum(-1), joint.sum(-2)
    total = count_x.sum(-1)
    # Ranks are centered first: their sums of squares grow with the third power of the number of pixels.
    rank_x = mid_ranks(count_x) - (total[..., None] - 1) / 2
    rank_y = mid_ranks(count_y) - (total[..., None] - 1) / 2
    covariance = (rank_x * (joint @ rank_y[..., None])[..., 0]).sum(-1)
    variance_x = (count_x * rank_x.square()).sum(-1)
    variance_y = (count_y * rank_y.square()).sum(-1)
    scale = (variance_x * variance_y).sqrt()
    return torch.where(scale > 0, (covariance / scale).clamp(-1, 1), torch.nan)
