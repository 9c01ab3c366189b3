"""Intervals: bootstrap over images or groups of them, Student's t over training seeds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Statistic = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Interval:
    """An estimate and its percentile-bootstrap interval.

    Attributes:
        estimate: The statistic of all images.
        low: Lower end.
        high: Upper end.
        confidence: Nominal coverage, e.g. 0.95.
        images: Number of images.
        clusters: Number of groups of images that were resampled as wholes; None where images were.
    """

    estimate: float
    low: float
    high: float
    confidence: float
    images: int
    clusters: int | None = None

    def excludes_zero(self) -> bool:
        """True if the interval lies on one side of zero; False where it is not defined."""
        return self.low > 0 or self.high < 0


def nan_mean(rows: Tensor) -> Tensor:
    """Mean over images `(N,)` without the undefined ones: the default statistic."""
    return rows.nanmean(0)


def _groups(clusters: Sequence[object] | None, images: int) -> list[Tensor] | None:
    """Places of the images of each cluster."""
    if clusters is None:
        return None
    names = clusters.tolist() if hasattr(clusters, "tolist") else clusters  # elements of a tensor are equal to none but themselves
    if len(names) != images:
        raise ValueError(f"got the clusters of {len(names)} images; expected one for each of the {images} rows")
    members: dict[object, list[int]] = {}
    for index, name in enumerate(names):
        members.setdefault(name, []).append(index)
    return [torch.tensor(one) for one in members.values()]


def _resampled(
    rows: list[Tensor], statistic: Callable[[list[Tensor]], Tensor], n: int, seed: int, groups: list[Tensor] | None
) -> Tensor:
    """The statistic `(S,)` of `n` samples of the images, or of whole groups, drawn with replacement: `(n, S)` float64."""
    generator = torch.Generator().manual_seed(seed)
    units = len(rows[0]) if groups is None else len(groups)
    values = []
    for _ in range(n):
        index = torch.randint(units, (units,), generator=generator)
        if groups is not None:
            index = torch.cat([groups[one] for one in index.tolist()])
        values.append(statistic([r[index] for r in rows]))
    return torch.stack(values).double()


def _intervals(estimates: Tensor, values: Tensor, confidence: float, images: int, groups: list[Tensor] | None) -> list[Interval]:
    """Percentiles of the resampled values; NaN for fewer than two images or groups, where nothing can be said."""
    clusters = None if groups is None else len(groups)
    tail = (1 - confidence) / 2
    wanted = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    intervals = []
    for estimate, column in zip(estimates.tolist(), values.unbind(-1)):
        known = column[~column.isnan()]
        low = high = float("nan")
        if (images if clusters is None else clusters) > 1 and len(known):
            low, high = torch.quantile(known, wanted).tolist()
        intervals.append(Interval(estimate, low, high, confidence, images, clusters))
    return intervals


def _check(rows: Tensor, n: int, confidence: float) -> Tensor:
    if rows.ndim == 0 or len(rows) == 0:
        raise ValueError(f"need at least one image to bootstrap, got rows of shape {tuple(rows.shape)}")
    if n < 1 or not 0 < confidence < 1:
        raise ValueError(f"need n >= 1 and 0 < confidence < 1, got n={n} and confidence={confidence}")
    return rows.detach().cpu()


def bootstrap_intervals(
    per_image_rows: Tensor,
    statistic: Statistic = nan_mean,
    n: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    clusters: Sequence[object] | None = None,
) -> list[Interval]:
    """Percentile-bootstrap intervals of several statistics at once.

    Images, not pixels, are drawn with replacement: pixels of one image are far from independent. Nor are images of one place; give
    their places as `clusters`, and whole places are drawn.

    Args:
        per_image_rows: One row an image `(N, ...)`: scores `(N, S)`, or the counts `(N, 3, K)` of
            `SegmentationScores.per_image`.
        statistic: Maps rows `(N, ...)` to a tensor `(S,)`.
        n: Number of resamples.
        seed: Seed of the resampling; equal seeds draw equal images, so intervals can be compared.
        confidence: Nominal coverage.
        clusters: The group of each image, such as its place: groups are drawn, with all their images.

    Returns:
        `S` intervals; their ends are NaN for a single image or group.

    Raises:
        ValueError: If there is no image, `n < 1`, `confidence` is not inside (0, 1), or there is not one group for each image.
    """
    rows = _check(per_image_rows, n, confidence)
    groups = _groups(clusters, len(rows))
    values = _resampled([rows], lambda sample: statistic(sample[0]), n, seed, groups)
    return _intervals(statistic(rows), values, confidence, len(rows), groups)


def bootstrap_interval(
    per_image_rows: Tensor,
    statistic: Statistic = nan_mean,
    n: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    clusters: Sequence[object] | None = None,
) -> Interval:
    """The interval of one statistic: :func:`bootstrap_intervals` for a `statistic` that gives a scalar tensor.

    Args:
        per_image_rows: Scores `(N,)`, or the counts `(N, 3, K)` with `statistic=mean_iou`.
        statistic: Maps rows `(N, ...)` to a scalar tensor.
        n: Number of resamples.
        seed: Seed of the resampling.
        confidence: Nominal coverage.
        clusters: The group of each image, see :func:`bootstrap_intervals`.

    Returns:
        The interval.

    Raises:
        ValueError: As in :func:`bootstrap_intervals`.
    """
    return bootstrap_intervals(per_image_rows, lambda rows: statistic(rows).reshape(1), n, seed, confidence, clusters)[0]


def paired_bootstrap_intervals(
    rows_a: Tensor,
    rows_b: Tensor,
    statistic: Statistic = nan_mean,
    n: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    clusters: Sequence[object] | None = None,
    other_statistic: Statistic | None = None,
) -> list[Interval]:
    """Intervals of `statistic(a) - statistic(b)` for two models scored on the same images in the same order.

    The same images are drawn for both, so what is hard for both cancels and the interval is much tighter than the
    two separate ones suggest.

    Args:
        rows_a: Rows of the first model `(N, ...)`.
        rows_b: Rows of the second model, same shape.
        statistic: Maps rows `(N, ...)` to a tensor `(S,)`.
        n: Number of resamples.
        seed: Seed of the resampling.
        confidence: Nominal coverage.
        clusters: The group of each image, see :func:`bootstrap_intervals`.
        other_statistic: That of the second model's rows, where they are laid out otherwise.

    Returns:
        `S` intervals of the difference; positive means that the first model's value is larger.

    Raises:
        ValueError: If the shapes differ, or as in :func:`bootstrap_intervals`.
    """
    if len(rows_a) != len(rows_b) or (other_statistic is None and rows_a.shape != rows_b.shape):
        raise ValueError(f"paired rows must have one shape, got {tuple(rows_a.shape)} and {tuple(rows_b.shape)}")
    a, b = _check(rows_a, n, confidence), _check(rows_b, n, confidence)
    groups = _groups(clusters, len(a))

    def difference(sample: list[Tensor]) -> Tensor:
        return statistic(sample[0]) - (other_statistic or statistic)(sample[1])

    return _intervals(difference([a, b]), _resampled([a, b], difference, n, seed, groups), confidence, len(a), groups)


def paired_bootstrap_interval(
    rows_a: Tensor,
    rows_b: Tensor,
    statistic: Statistic = nan_mean,
    n: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    clusters: Sequence[object] | None = None,
) -> Interval:
    """The interval of one difference: :func:`paired_bootstrap_intervals` for a `statistic` that gives a scalar.

    Args:
        rows_a: Rows of the first model `(N, ...)`.
        rows_b: Rows of the second model, same shape.
        statistic: Maps rows `(N, ...)` to a scalar tensor.
        n: Number of resamples.
        seed: Seed of the resampling.
        confidence: Nominal coverage.
        clusters: The group of each image, see :func:`bootstrap_intervals`.

    Returns:
        The interval of the difference.

    Raises:
        ValueError: As in :func:`paired_bootstrap_intervals`.
    """
    return paired_bootstrap_intervals(rows_a, rows_b, lambda r: statistic(r).reshape(1), n, seed, confidence, clusters)[0]


# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom. A bootstrap of three numbers says nothing; this does.
_T_975 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip


def centered_interval(
    estimate: float, values: Tensor, samples: int, confidence: float = 0.95, lowest: float = -math.inf
) -> Interval:
    """Interval of an estimate from resampled values `(n,)`, moved so that their mean lies on the estimate.

    The Fréchet distance of N samples is too large by about c / N, and resampling adds the same once more: percentiles as they
    are would lie above what they are to enclose. What is left is the spread of the distance *at this number of samples*.

    Args:
        estimate: From all samples.
        values: From resamples.
        samples: How many there are.
        confidence: Of the interval.
        lowest: What no value can lie below, such as 0 for a distance: the interval does not reach further.

    Raises:
        ValueError: If `confidence` is not inside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be inside (0, 1), got {confidence}")
    tail = (1 - confidence) / 2
    spread = torch.quantile(values.double() - values.double().mean(), torch.tensor([tail, 1 - tail]).double().to(values.device))
    low, high = (estimate + spread).tolist()
    return Interval(estimate, max(low, min(lowest, estimate)), high, confidence, samples)


def seed_interval(values: Tensor) -> Interval:
    """Mean of the results `(K,)` of K training seeds with its 95 % interval by Student's t.

    Args:
        values: One result of each seed; of paired differences, their differences.

    Returns:
        The interval; its ends are NaN for one seed.

    Raises:
        ValueError: If there is no value, or one is not finite.
    """
    if values.ndim != 1 or not len(values) or not bool(torch.isfinite(values).all()):
        raise ValueError(f"need at least one finite result of a seed, got {values.tolist()}")
    mean, count = float(values.double().mean()), len(values)
    if count == 1:
        return Interval(mean, float("nan"), float("nan"), 0.95, 1)
    half = _T_975[min(count - 1, len(_T_975)) - 1] * float(values.double().std()) / count**0.5
    return Interval(mean, mean - half, mean + half, 0.95, count)
