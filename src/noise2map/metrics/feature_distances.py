"""Distances of two sets of features: Fréchet (FID) and kernel (KID)."""

from dataclasses import dataclass

import torch
from torch import Tensor

_NEGATIVE = 1e-6  # negative eigenvalues up to this share of the largest are rounding


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean and scatter of the features seen, in float64.

    Attributes:
        count: Number of samples.
        mean: Their mean `(D,)`.
        scatter: Sum over samples of the outer products of their deviations from the mean, `(D, D)`.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "FeatureStatistics":
        """Statistics of features `(N, D)`, N >= 0.

        Raises:
            ValueError: If the features are not a matrix, or one of them is NaN or infinite.
        """
        if features.ndim != 2:
            raise ValueError(f"features must be (N, D), got shape {tuple(features.shape)}")
        if not bool(torch.isfinite(features).all()):
            bad = int((~torch.isfinite(features)).any(1).sum())
            raise ValueError(f"features of {bad} of {len(features)} samples are NaN or infinite")
        values = features.double()
        if not len(values):
            size = features.shape[1]
            return cls(0, values.new_zeros(size), values.new_zeros(size, size))
        mean = values.mean(0)
        centered = values - mean
        return cls(len(values), mean, centered.T @ centered)

    def merged(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """Statistics of both sets together.

        Means are shifted by their difference (Chan et al. 1979): sums of squares would lose what matters where the mean is
        large and the spread small.
        """
        total = self.count + other.count
        if not total:
            return self
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / total)
        scatter = self.scatter + other.scatter + torch.outer(shift, shift) * (self.count * other.count / total)
        return FeatureStatistics(total, mean, scatter)

    def covariance(self) -> Tensor:
        """Unbiased covariance `(D, D)`.

        Raises:
            ValueError: If there are fewer than two samples.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {self.count}")
        return self.scatter / (self.count - 1)

    @property
    def singular(self) -> bool:
        """True if there are too few samples for a covariance of full rank."""
        return self.count <= len(self.mean)


def covariance_root(covariance: Tensor) -> Tensor:
    """A matrix `R` with `R R^T` equal to the covariance, also where that is singular.

    Args:
        covariance: Symmetric positive semi-definite `(D, D)`.

    Raises:
        ValueError: If it is not square, not symmetric or has an eigenvalue that is negative beyond rounding.
    """
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ValueError(f"a covariance must be (D, D), got shape {tuple(covariance.shape)}")
    size = float(covariance.abs().max()) if covariance.numel() else 0.0
    if float((covariance - covariance.T).abs().max()) > 1e-6 * size:
        raise ValueError("a covariance must be symmetric")
    values, vectors = torch.linalg.eigh(covariance.double())
    if float(values.min()) < -_NEGATIVE * max(float(values.max()), size):
        raise ValueError(f"a covariance must be positive semi-definite, got eigenvalues from {values.min():g} to {values.max():g}")
    # What rounding made of zero would leave its square root, a hundred million times as large.
    rounding = len(values) * torch.finfo(values.dtype).eps * float(values.max())
    return vectors * torch.where(values > rounding, values, 0).sqrt()


def frechet_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> Tensor:
    """Squared Fréchet (2-Wasserstein) distance of two Gaussians, which FID is (Heusel et al. 2017).

    `|mean_a - mean_b|² + tr(A) + tr(B) - 2 tr((A B)^(1/2))`. The last trace is the sum of the singular values of
    `R_a^T R_b` for any roots `R R^T` of the two covariances. Unlike the square root of the product `A B`, which is not
    symmetric, this never leaves the real numbers, and it needs no small number added where a covariance is singular.

    Args:
        mean_a: `(D,)`.
        covariance_a: `(D, D)`.
        mean_b: `(D,)`.
        covariance_b: `(D, D)`.

    Returns:
        Scalar, float64, at least 0.

    Raises:
        ValueError: If the sizes differ or a covariance is not one.
    """
    if mean_a.shape != mean_b.shape or covariance_a.shape != covariance_b.shape or covariance_a.shape[-1:] != mean_a.shape:
        shapes = [tuple(x.shape) for x in (mean_a, covariance_a, mean_b, covariance_b)]
        raise ValueError(f"means must be (D,) and covariances (D, D) of one D, got shapes {shapes}")
    return distance_of_roots(mean_a, covariance_root(covariance_a), mean_b, covariance_root(covariance_b))


def distance_of_roots(mean_a: Tensor, root_a: Tensor, mean_b: Tensor, root_b: Tensor) -> Tensor:
    """:func:`frechet_distance` of Gaussians given by roots `(D, r)` of their covariances; scalar, float64."""
    shift = (mean_a.double() - mean_b.double()).square().sum()
    traces = root_a.square().sum() + root_b.square().sum()
    return (shift + traces - 2 * torch.linalg.svdvals(root_a.T @ root_b).sum()).clamp_min(0)


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
