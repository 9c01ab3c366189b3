"""Gaussians fitted to features batch by batch, and the Fréchet distance between two of them."""

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
        centred = values - mean
        return cls(len(values), mean, centred.T @ centred)

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
        """Whether there are too few samples for a covariance of full rank."""
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
