"""Distances between sets of features, and their resampled values."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from noise2map.metrics.feature_distances import distance_of_roots, kernel_distance, mean_kernel

KINDS = ("frechet", "kernel")


def feature_distance(kind: str, generated: Tensor, reference: Tensor) -> Tensor:
    """Fréchet or kernel distance of features `(N, D)` from `(M, D)`: a scalar in float64.

    Raises:
        ValueError: If the kind is unknown or there are fewer than two samples on a side.
    """
    _check_kind(kind)
    if kind == "kernel":
        return kernel_distance(generated, reference)
    return distance_of_roots(*_gaussian(generated), *_gaussian(reference))


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")


def _gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(D,)` and a root `(D, r)` of the covariance: by QR, which is quicker than eigenvalues and squares nothing."""
    if len(features) < 2:
        raise ValueError(f"a covariance needs at least 2 samples, got {len(features)}")
    values = features.double()
    mean = values.mean(0)
    upper = torch.linalg.qr(values - mean, mode="r").R
    return mean, upper.T / (len(features) - 1) ** 0.5


def resampled_distances(
    kind: str,
    generated: Sequence[Tensor],
    reference: Tensor,
    n: int = 200,
    seed: int = 0,
    on_resample: Callable[[], object] = lambda: None,
) -> Tensor:
    """Distances of several sets from one reference, for samples drawn with replacement.

    Sets of equal length are drawn alike: row i of one belongs to row i of the other (the same seed, or the same frame), so
    their differences can be taken. All meet the same draw of the reference.

    Args:
        kind: `"frechet"` or `"kernel"`.
        generated: Features `(N_s, D)` of S sets.
        reference: Features `(M, D)`.
        n: Number of resamples.
        seed: Of the resampling.
        on_resample: Called after each.

    Returns:
        `(n, S)` float64.

    Raises:
        ValueError: As of :func:`feature_distance`, or if `n < 1`.
    """
    _check_kind(kind)
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if kind == "kernel":
        return _resampled_kernel(generated, reference, n, seed, on_resample)
    values = reference.new_zeros((n, len(generated)), dtype=torch.float64)
    for number in range(n):
        base = _gaussian(reference[_draw(len(reference), seed, number, "reference")])
        for column, features in enumerate(generated):
            drawn = features[_draw(len(features), seed, number)]
            values[number, column] = distance_of_roots(*_gaussian(drawn), *base)
        on_resample()
    return values


FEWEST_SAMPLES = 4
"""On each side, of `extrapolated_distance`."""

_SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def extrapolated_distance(generated: Tensor, reference: Tensor, draws: int = 4, seed: int = 0) -> float:
    """Fréchet distance of infinitely many samples: of parts of both sets, carried on to none of 1 / N.

    The distance of N samples is too large by about c / N (Chong & Forsyth 2020, "Effectively unbiased FID"). Here both sets are cut
    to the same share, so that both numbers grow together, and a line is fitted against one over the share.

    Args:
        generated: Features `(N, D)`.
        reference: Features `(M, D)`.
        draws: Parts of each size that are averaged, without replacement.
        seed: Of the parts.

    Returns:
        The distance; below 0 where it is smaller than the error of the extrapolation.

    Raises:
        ValueError: If there are fewer than four samples on a side.
    """
    if min(len(generated), len(reference)) < FEWEST_SAMPLES:
        counts = f"{len(generated)} and {len(reference)}"
        raise ValueError(f"got {counts} samples; expected at least {FEWEST_SAMPLES}, to fit a line over their number")
    generator = torch.Generator().manual_seed(seed)

    def part(features: Tensor, share: float) -> Tensor:
        return features[torch.randperm(len(features), generator=generator)[: round(share * len(features))]]

    rows = []
    for share in _SHARES:
        found = [
            feature_distance("frechet", part(generated, share), part(reference, share)) for _ in range(draws if share < 1 else 1)
        ]
        rows.append((1 / share, float(torch.stack(found).mean())))
    x, y = torch.tensor(rows, dtype=torch.float64).unbind(1)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return float(y.mean() - slope * x.mean())


def _draw(count: int, seed: int, number: int, what: str = "") -> Tensor:
    """Indices of one resample: they depend on the seed, its number and the count alone."""
    mixed = (seed * 1_000_003 + number) * 2 + bool(what)
    return torch.randint(count, (count,), generator=torch.Generator().manual_seed(mixed))


def _weights(count: int, seed: int, n: int, what: str = "") -> Tensor:
    return torch.stack([torch.bincount(_draw(count, seed, number, what), minlength=count) for number in range(n)]).double()


def _resampled_kernel(
    generated: Sequence[Tensor], reference: Tensor, n: int, seed: int, on_resample: Callable[[], object]
) -> Tensor:
    base = _weights(len(reference), seed, n, "reference").to(reference.device)
    within = mean_kernel(reference, base)
    columns = []
    for features in generated:
        weights = _weights(len(features), seed, n).to(features.device)
        columns.append(kernel_distance(features, reference, weights, base, within_b=within))
    for _ in range(n):
        on_resample()
    return torch.stack(columns, dim=1)
