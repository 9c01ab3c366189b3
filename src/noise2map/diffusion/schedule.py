"""Noise schedules: time -> log-SNR -> (alpha, sigma), and tables from betas for discrete U-Nets.

Continuous time ``t`` runs from 0 (clean map) to 1 (noise). A schedule says how much signal is left:
``alpha(t)² = sigmoid(log_snr(t))``, ``sigma(t)² = 1 - alpha(t)²``, so that ``y_t = alpha y_0 + sigma eps`` keeps unit
variance for unit-variance data (DDP, Eq. 1).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


class Schedule(ABC):
    """A variance-preserving noise schedule on ``t`` in [0, 1]."""

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """Log signal-to-noise ratio ``log(alpha² / sigma²)``, elementwise, same shape as ``t``."""

    @abstractmethod
    def time_of(self, log_snr: Tensor) -> Tensor:
        """Time at which the log signal-to-noise ratio has this value, elementwise, kept within [0, 1]; inverse of `log_snr`."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise levels ``(alpha, sigma)``, elementwise, same shape as ``t``."""
        log_snr = self.log_snr(t)
        return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()


@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """Cosine schedule ``alpha(t) = cos(pi/2 (t + s) / (1 + d))`` (DDP's default).

    The operations are kept in the order of the public implementation: near ``t = 1`` the cosine is about 8e-5 and
    float32 rounding of its argument moves log-SNR by 3e-3, which moves the first step's logits by 1e-2.

    Args:
        shift: offset ``s`` of time.
        stretch: stretch ``d`` of time; both keep the cosine away from 0 and 1.
        min_inverse_snr: lower clamp of ``sigma² / alpha²``. The segmentation model clamps at 1e-5; the depth model does
            not clamp (0), which matters only for the last update, at ``t = 0``.
    """

    shift: float = 2e-4
    stretch: float = 2.5e-4
    min_inverse_snr: float = 1e-5

    def _cosine(self, t: Tensor) -> Tensor:
        return torch.cos((t + self.shift) / (1 + self.stretch) * math.pi * 0.5)

    def log_snr(self, t: Tensor) -> Tensor:
        """Log signal-to-noise ratio, elementwise, same shape as ``t``."""
        inverse_snr = self._cosine(t) ** -2 - 1
        # Without a clamp rounding may still give 0 at t = 0; the smallest float keeps the logarithm finite.
        floor = max(self.min_inverse_snr, torch.finfo(inverse_snr.dtype).tiny)
        return -torch.log(inverse_snr.clamp(min=floor))

    def time_of(self, log_snr: Tensor) -> Tensor:
        """See `Schedule.time_of`."""
        t = torch.acos(log_snr.sigmoid().sqrt()) * (2 / math.pi) * (1 + self.stretch) - self.shift
        return t.clamp(0, 1)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise levels ``(alpha, sigma)``, elementwise, same shape as ``t``."""
        if self.min_inverse_snr > 0:
            return super().alpha_sigma(t)
        gamma = torch.cos(((t + self.shift) / (1 + self.stretch)) * math.pi / 2) ** 2
        return gamma.sqrt(), (1 - gamma).sqrt()


@dataclass(frozen=True)
class LinearSchedule(Schedule):
    """Continuous limit of linearly growing betas: ``log_snr(t) = -log(expm1(1e-4 + 10 t²))``."""

    offset: float = 1e-4
    slope: float = 10.0

    def log_snr(self, t: Tensor) -> Tensor:
        """Log signal-to-noise ratio, elementwise, same shape as ``t``."""
        return -torch.log(torch.special.expm1(self.offset + self.slope * t**2))

    def time_of(self, log_snr: Tensor) -> Tensor:
        """See `Schedule.time_of`."""
        total = functional.softplus(-log_snr)  # log1p(exp(-log_snr))
        return ((total - self.offset).clamp(min=0) / self.slope).sqrt().clamp(0, 1)


def make_schedule(name: str, min_inverse_snr: float = 1e-5) -> Schedule:
    """Builds a schedule by name.

    Args:
        name: ``"cosine"`` or ``"linear"``.
        min_inverse_snr: see `CosineSchedule`; ignored by the linear schedule.

    Raises:
        ValueError: for another name.
    """
    if name == "cosine":
        return CosineSchedule(min_inverse_snr=min_inverse_snr)
    if name == "linear":
        return LinearSchedule()
    raise ValueError(f"noise_schedule is {name!r}; expected 'cosine' or 'linear'")


@dataclass(frozen=True)
class DiscreteTables:
    """Tables of a discrete-time U-Net's sampler, one value for each of ``T`` time steps, float64 ``(T,)``.

    ``alphas_cumprod[i]`` is the squared signal level after step ``i``; ``posterior_*`` are mean coefficients and variance
    of ``q(x_{i-1} | x_i, x_0)`` (Ho et al. 2020, Eq. 7).
    """

    betas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor
    posterior_variance: Tensor
    posterior_log_variance: Tensor
    posterior_mean_x0: Tensor
    posterior_mean_xt: Tensor

    @property
    def log_snr(self) -> Tensor:
        """Log signal-to-noise ratio of each time step, ``(T,)``."""
        return torch.log(self.alphas_cumprod) - torch.log1p(-self.alphas_cumprod)

    def last_step(self, min_log_snr: float) -> int:
        """The last time step whose log signal-to-noise ratio is not below a value.

        Raises:
            ValueError: if there is none.
        """
        count = int((self.log_snr >= min_log_snr).sum())
        if not count:
            raise ValueError(f"min_log_snr is {min_log_snr:g}; expected at most {self.log_snr[0]:.3g}, that of step 0")
        return count - 1

    def alpha_sigma(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise levels of integer time steps, same shape as ``timesteps``, float64."""
        cumulative = self.alphas_cumprod.to(timesteps.device)[timesteps]
        return cumulative.sqrt(), (1 - cumulative).sqrt()


def tables_from_betas(betas: Tensor) -> DiscreteTables:
    """Tables of a discrete diffusion process.

    Args:
        betas: ``(T,)`` noise variances, each in (0, 1].

    Raises:
        ValueError: if ``betas`` is not one-dimensional or leaves (0, 1].
    """
    betas = torch.as_tensor(betas, dtype=torch.float64)
    if betas.ndim != 1 or betas.numel() < 2:
        raise ValueError(f"betas has shape {tuple(betas.shape)}; expected (T,) with T >= 2")
    if not bool(((betas > 0) & (betas <= 1)).all()):
        raise ValueError(f"betas lie in [{betas.min():.3g}, {betas.max():.3g}]; expected (0, 1]")
    alphas = 1 - betas
    cumulative = alphas.cumprod(0)
    previous = torch.cat([cumulative.new_ones(1), cumulative[:-1]])
    variance = betas * (1 - previous) / (1 - cumulative)
    return DiscreteTables(
        betas=betas,
        alphas_cumprod=cumulative,
        alphas_cumprod_prev=previous,
        posterior_variance=variance,
        # The first step's variance is zero; its logarithm is replaced by the second's.
        posterior_log_variance=torch.cat([variance[1:2], variance[1:]]).log(),
        posterior_mean_x0=betas * previous.sqrt() / (1 - cumulative),
        posterior_mean_xt=(1 - previous) * alphas.sqrt() / (1 - cumulative),
    )
