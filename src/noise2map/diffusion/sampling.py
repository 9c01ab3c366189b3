"""Samplers as generators over a callable.

``denoise(x_t, t) -> (x0, prediction)`` is all a sampler knows of the model: ``x0`` is the predicted clean signal, in the space
of ``x_t``; ``prediction`` is whatever the model said before it was encoded again (logits, metres) and is passed through.
Averaging, uncertainty, early stopping and animation consume the stream of `Step`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from noise2map.diffusion.process import add_noise, eps_from_x0
from noise2map.diffusion.schedule import Schedule

Denoise = Callable[[Tensor, Tensor], tuple[Tensor, Any]]
NoiseSource = Callable[[int, Tensor], Tensor]


@dataclass
class Step:
    """One denoising step.

    Attributes:
        index: 0-based position in the run.
        t: time given to the denoiser, in [0, 1].
        t_next: noise level the map moves to, in [0, 1].
        x_t: noisy map that entered the step, ``(N, C, h, w)``.
        x0: predicted clean map, same shape.
        prediction: what the model predicted (logits ``(N, K, h, w)`` or depth in metres ``(N, 1, h, w)``).
    """

    index: int
    t: float
    t_next: float
    x_t: Tensor
    x0: Tensor
    prediction: Any

    @property
    def readout(self) -> Any:
        """`prediction` by its former name."""
        return self.prediction


def time_pairs(num_steps: int, time_difference: float = 1.0) -> list[tuple[float, float]]:
    """Asymmetric time grid of DDP: step ``i`` is told ``t = 1 - i/N`` and moves to ``1 - (i + 1 + td)/N``.

    With ``time_difference`` ``td = 1``, the published default, each update skips one level:
    ``time_pairs(3) == [(1, 1/3), (2/3, 0), (1/3, 0)]``; with 0 the grid is the usual one.

    Args:
        num_steps: number of decoder calls, at least 1.
        time_difference: ``td``, at least 0.

    Returns:
        ``num_steps`` pairs ``(t, t_next)``.

    Raises:
        ValueError: if ``num_steps`` is not a positive integer or ``time_difference`` is negative.
    """
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"number of steps is {num_steps!r}; expected an integer of at least 1")
    if not time_difference >= 0:
        raise ValueError(f"time_difference is {time_difference!r}; expected a number of at least 0")
    n = num_steps
    return [(1 - i / n, max(1 - (i + 1 + time_difference) / n, 0.0)) for i in range(n)]


def karras_pairs(
    num_steps: int, schedule: Schedule, largest: float, smallest: float, rho: float = 7.0
) -> list[tuple[float, float]]:
    """Time grid whose noise-to-signal ratios follow Karras et al. 2022, Eq. 5: dense where little noise is left.

    The first step is told ``t = 1``, where nothing can be read; the others have the ratios ``sigma / alpha`` of the grid from
    ``largest`` to ``smallest``, and each moves to the level of the next.

    Args:
        num_steps: number of decoder calls, at least 1.
        schedule: noise schedule.
        largest: noise-to-signal ratio of the second step.
        smallest: that of the last step, positive.
        rho: curvature of the grid; 1 is evenly spaced.

    Returns:
        ``num_steps`` pairs ``(t, t_next)``; the last moves to 0.

    Raises:
        ValueError: if the number of steps or a ratio cannot work.
    """
    time_pairs(num_steps)  # refuses an impossible number
    if not 0 < smallest < largest:
        raise ValueError(f"ratios of noise to signal are {largest!r} to {smallest!r}; expected falling positive numbers")
    share = torch.linspace(0, 1, max(num_steps - 1, 1), dtype=torch.float64)
    ratio = (largest ** (1 / rho) + share * (smallest ** (1 / rho) - largest ** (1 / rho))) ** rho
    times = [1.0, *schedule.time_of(-2 * ratio.log()).tolist()][:num_steps]
    return list(zip(times, [*times[1:], 0.0]))


def _levels(schedule: Schedule, t: float, like: Tensor) -> tuple[Tensor, Tensor]:
    # Levels are computed on the CPU in float32 whatever the map's type: bf16 would destroy the grid near t = 1.
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    alpha, sigma = schedule.alpha_sigma(torch.tensor(t, dtype=dtype))
    return alpha.to(like.device), sigma.to(like.device)


def ddim_steps(
    denoise: Denoise,
    x_T: Tensor,
    schedule: Schedule,
    pairs: Sequence[tuple[float, float]],
    churn: float = 0.0,
    noise: NoiseSource | None = None,
) -> Iterator[Step]:
    """Deterministic sampling (DDIM, Song et al. 2021, Eq. 12 with eta = 0; DDP, Alg. 2), or with fresh noise between the steps.

    Args:
        denoise: ``(x_t, t) -> (x0, prediction)``; ``t`` is a float32 tensor of shape ``(N,)``.
        x_T: start noise ``(N, C, h, w)``.
        schedule: noise schedule.
        pairs: time grid, see `time_pairs`.
        churn: share of fresh noise in the noise of the next step, 0 to 1: ``sqrt(1 - churn²) eps + churn fresh``. With 1 the
            predicted map is corrupted anew, which is right if the prediction is a sample of the clean map.
        noise: ``noise(index, x_t)`` gives the fresh noise of a step; by default the global generator's.

    Yields:
        One `Step` for each pair, before the next one is computed.

    Raises:
        ValueError: if ``churn`` is no share.
    """
    if not 0 <= churn <= 1:
        raise ValueError(f"churn is {churn!r}; expected a share from 0 to 1")
    draw = noise if noise is not None else (lambda index, x: torch.randn_like(x))
    x_t = x_T
    for index, (t, t_next) in enumerate(pairs):
        x0, prediction = denoise(x_t, torch.full((x_t.shape[0],), t, dtype=torch.float32, device=x_t.device))
        yield Step(index, t, t_next, x_t, x0, prediction)
        if index + 1 == len(pairs):
            return
        eps = eps_from_x0(x_t, x0, *_levels(schedule, t, x_t))
        if churn > 0:
            eps = math.sqrt(1 - churn**2) * eps + churn * draw(index, x_t)
        x_t = add_noise(x0, eps, *_levels(schedule, t_next, x_t))


def dpmpp_2m_steps(denoise: Denoise, x_T: Tensor, schedule: Schedule, pairs: Sequence[tuple[float, float]]) -> Iterator[Step]:
    """Second-order multistep solver of the deterministic process (DPM-Solver++(2M), Lu et al. 2022, Alg. 2).

    The first update, and the last one if it ends at the clean map, are of first order, as those of `ddim_steps` are.

    Args:
        denoise: ``(x_t, t) -> (x0, prediction)``.
        x_T: start noise ``(N, C, h, w)``.
        schedule: noise schedule.
        pairs: time grid without skipped levels (``time_difference`` 0, or `karras_pairs`).

    Yields:
        One `Step` for each pair, before the next one is computed.

    Raises:
        ValueError: if a step does not begin where the one before ended.
    """
    for (_, end), (start, _) in pairwise(pairs):
        if abs(end - start) > 1e-6:
            raise ValueError(f"a step ends at t = {end:.4g} and the next begins at {start:.4g}; dpmpp_2m needs time_difference 0")
    x_t, previous, width_before = x_T, None, 0.0
    for index, (t, t_next) in enumerate(pairs):
        x0, prediction = denoise(x_t, torch.full((x_t.shape[0],), t, dtype=torch.float32, device=x_t.device))
        yield Step(index, t, t_next, x_t, x0, prediction)
        if index + 1 == len(pairs):
            return
        now, following = torch.tensor(t, dtype=torch.float64), torch.tensor(t_next, dtype=torch.float64)
        width = float(schedule.log_snr(following) - schedule.log_snr(now)) / 2  # of the step in log(alpha / sigma)
        mean = x0
        if previous is not None and t_next > 0 and width_before > 0:  # below the schedule's floor steps have no width
            correction = width / width_before / 2
            mean = (1 + correction) * x0 - correction * previous
        _, sigma = _levels(schedule, t, x_t)
        alpha_next, sigma_next = _levels(schedule, t_next, x_t)
        x_t = sigma_next / sigma * x_t - alpha_next * math.expm1(-width) * mean
        previous, width_before = x0, width


def ddpm_steps(
    denoise: Denoise,
    x_T: Tensor,
    schedule: Schedule,
    pairs: Sequence[tuple[float, float]],
    noise: NoiseSource | None = None,
) -> Iterator[Step]:
    """Ancestral sampling from ``q(x_next | x_t, x0)`` (DDPM, Ho et al. 2020, in continuous time: Kingma et al. 2021).

    With ``c = 1 - SNR(t) / SNR(t_next)`` the posterior has mean ``alpha_next (x_t (1 - c) / alpha + c x0)`` and variance
    ``sigma_next² c``. No noise is added where ``t_next`` is 0.

    Args:
        denoise: ``(x_t, t) -> (x0, prediction)``.
        x_T: start noise ``(N, C, h, w)``.
        schedule: noise schedule.
        pairs: time grid, see `time_pairs`.
        noise: ``noise(index, x_t)`` gives the standard normal noise of a step; by default the global generator's.

    Yields:
        One `Step` for each pair, before the next one is computed.
    """
    draw = noise if noise is not None else (lambda index, x: torch.randn_like(x))
    x_t = x_T
    for index, (t, t_next) in enumerate(pairs):
        x0, prediction = denoise(x_t, torch.full((x_t.shape[0],), t, dtype=torch.float32, device=x_t.device))
        yield Step(index, t, t_next, x_t, x0, prediction)
        if index + 1 == len(pairs):
            return
        mean, std = ddpm_posterior(x_t, x0, schedule, t, t_next)
        x_t = mean + std * draw(index, x_t) if t_next > 0 else mean


def ddpm_posterior(x_t: Tensor, x0: Tensor, schedule: Schedule, t: float, t_next: float) -> tuple[Tensor, Tensor]:
    """Mean ``(N, C, h, w)`` and standard deviation (scalar) of ``q(x_next | x_t, x0)``, see `ddpm_steps`."""
    dtype = torch.float64 if x_t.dtype == torch.float64 else torch.float32
    now, following = torch.tensor(t, dtype=dtype), torch.tensor(t_next, dtype=dtype)
    c = -torch.expm1(schedule.log_snr(now) - schedule.log_snr(following)).to(x_t.device)
    alpha, _ = _levels(schedule, t, x_t)
    alpha_next, sigma_next = _levels(schedule, t_next, x_t)
    mean = alpha_next * (x_t * (1 - c) / alpha + c * x0)
    return mean, (sigma_next**2 * c).clamp(min=1e-20).sqrt()
