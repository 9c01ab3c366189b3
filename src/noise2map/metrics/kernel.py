"""Kernel distance of two sets of features: the unbiased squared maximum mean discrepancy (KID)."""

import torch
from torch import Tensor

_BLOCK = 1024


def kernel_distance(
    features_a: Tensor,
    features_b: Tensor,
    weights_a: Tensor | None = None,
    weights_b: Tensor | None = None,
    *,
    within_b: Tensor | None = None,
    degree: int = 3,
    gamma: float | None = None,
    coef: float = 1.0,
) -> Tensor:
    """Unbiased squared MMD with the polynomial kernel `(gamma <a, b> + coef)^degree`: KID (Binkowski et al. 2018).

    All pairs are used instead of the mean over random subsets that is usual: the same expectation, less noise, no seed. The
    value may be negative. A pair of a sample with itself is left out, also where a resample holds it several times, so a
    weighted value is unbiased as well.

    Args:
        features_a: `(N, D)`.
        features_b: `(M, D)`.
        weights_a: How often each sample counts, `(R, N)`: R values are computed from one pass. Once by default.
        weights_b: Likewise `(R, M)`.
        within_b: What :func:`mean_kernel` gave for the second set, to save time where several sets meet the same one.
        degree: Of the kernel.
        gamma: Of the kernel; `1 / D` by default.
        coef: Of the kernel.

    Returns:
        `(R,)` float64, or a scalar without weights.

    Raises:
        ValueError: If the sizes differ or a set has fewer than two samples.
    """
    if features_a.ndim != 2 or features_b.ndim != 2 or features_a.shape[1] != features_b.shape[1]:
        raise ValueError(f"features must be (N, D) and (M, D), got {tuple(features_a.shape)} and {tuple(features_b.shape)}")
    if min(len(features_a), len(features_b)) < 2:
        raise ValueError(f"a kernel distance needs at least 2 samples on both sides, got {len(features_a)} and {len(features_b)}")
    plain = weights_a is None and weights_b is None
    a, b = features_a.double(), features_b.double()
    rows = 1 if plain else len(weights_a if weights_a is not None else weights_b)  # type: ignore[arg-type]
    u = a.new_ones(rows, len(a)) if weights_a is None else weights_a.to(a)
    v = b.new_ones(rows, len(b)) if weights_b is None else weights_b.to(b)
    kernel = (degree, 1 / a.shape[1] if gamma is None else gamma, coef)
    within = _mean_kernel(b, b, v, v, kernel, within=True) if within_b is None else within_b
    value = _mean_kernel(a, a, u, u, kernel, within=True) + within - 2 * _mean_kernel(a, b, u, v, kernel)
    return value[0] if plain else value


def mean_kernel(features: Tensor, weights: Tensor) -> Tensor:
    """Mean of the default kernel over all pairs of different samples of `(N, D)`, for each row of weights `(R, N)`: `(R,)`."""
    values = features.double()
    return _mean_kernel(values, values, weights.to(values), weights.to(values), (3, 1 / values.shape[1], 1.0), within=True)


def _mean_kernel(x: Tensor, y: Tensor, u: Tensor, v: Tensor, kernel: tuple[int, float, float], *, within: bool = False) -> Tensor:
    """Weighted means of the kernel over all pairs, `(R,)`; within one set, over pairs of different samples.

    Block by block, never all pairs at once.
    """
    degree, gamma, coef = kernel
    total = u.new_zeros(len(u))
    for start in range(0, len(x), _BLOCK):
        part = slice(start, start + _BLOCK)
        values = (gamma * (x[part] @ y.T) + coef).pow(degree)
        if within:
            values[torch.arange(len(values)), torch.arange(start, start + len(values))] = 0
        total += ((u[:, part] @ values) * v).sum(1)
    pairs = u.sum(1) * v.sum(1)
    return total / (pairs - (u * v).sum(1) if within else pairs)
