"""The forward process and conversions between the three things a denoiser may predict.

With ``x_t = alpha x_0 + sigma eps`` and ``alpha² + sigma² = 1``: ``v = alpha eps - sigma x_0`` (Salimans & Ho 2022).
Levels broadcast: a level of shape ``(B,)`` is applied to a map of shape ``(B, ...)``.
"""

import torch
from torch import Tensor

# sigma is divided by at least this much, so that a clean map (sigma = 0) gives a finite, if meaningless, eps.
_MIN_SIGMA = 1e-8


def expand_like(level: Tensor, x: Tensor) -> Tensor:
    """Appends axes to a level of shape ``(B,)`` or ``()`` until it broadcasts against ``x`` of shape ``(B, ...)``."""
    return level.reshape(level.shape + (1,) * (x.ndim - level.ndim))


def add_noise(x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Forward process ``x_t = alpha x_0 + sigma eps`` (DDP, Eq. 1).

    Args:
        x0: clean maps ``(B, ...)``.
        noise: standard normal noise, same shape.
        alpha: signal level, ``(B,)`` or scalar.
        sigma: noise level, ``(B,)`` or scalar.

    Returns:
        Noisy maps ``(B, ...)``.

    Raises:
        ValueError: if ``noise`` has another shape than ``x0``.
    """
    if noise.shape != x0.shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}; expected the map's {tuple(x0.shape)}")
    return expand_like(alpha, x0) * x0 + expand_like(sigma, x0) * noise


def eps_from_x0(x_t: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Noise that explains ``x_t`` given ``x_0``: ``(x_t - alpha x_0) / sigma``."""
    return (x_t - expand_like(alpha, x_t) * x0) / expand_like(sigma, x_t).clamp(min=_MIN_SIGMA)


def x0_from_eps(x_t: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Clean map given the noise: ``(x_t - sigma eps) / alpha``."""
    return (x_t - expand_like(sigma, x_t) * eps) / expand_like(alpha, x_t).clamp(min=_MIN_SIGMA)


def v_from_x0_eps(x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Velocity ``v = alpha eps - sigma x_0``."""
    return expand_like(alpha, x0) * eps - expand_like(sigma, x0) * x0


def x0_from_v(x_t: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Clean map given the velocity: ``alpha x_t - sigma v``."""
    return expand_like(alpha, x_t) * x_t - expand_like(sigma, x_t) * v


def to_x0(prediction: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor, prediction_type: str) -> Tensor:
    """Clean map from what the network predicts.

    Args:
        prediction: network output ``(B, ...)``.
        x_t: its noisy input ``(B, ...)``.
        alpha: signal level, ``(B,)`` or scalar.
        sigma: noise level, ``(B,)`` or scalar.
        prediction_type: ``"sample"`` (x0), ``"epsilon"`` or ``"v_prediction"`` (diffusers' names).

    Raises:
        ValueError: for another ``prediction_type``.
    """
    if prediction_type == "sample":
        return prediction
    if prediction_type == "epsilon":
        return x0_from_eps(x_t, prediction, alpha, sigma)
    if prediction_type == "v_prediction":
        return x0_from_v(x_t, prediction, alpha, sigma)
    raise ValueError(f"prediction_type is {prediction_type!r}; expected 'sample', 'epsilon' or 'v_prediction'")


def prediction_target(x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor, prediction_type: str) -> Tensor:
    """Training target of a prediction type for ``x_t = alpha x_0 + sigma eps``; :func:`to_x0` of it is ``x0``.

    Args:
        x0: clean maps ``(B, ...)``.
        noise: the noise in ``x_t``, same shape.
        alpha: signal level, ``(B,)`` or scalar.
        sigma: noise level, ``(B,)`` or scalar.
        prediction_type: as of :func:`to_x0`.

    Raises:
        ValueError: for another ``prediction_type``.
    """
    if prediction_type == "sample":
        return x0
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return v_from_x0_eps(x0, noise, alpha, sigma)
    raise ValueError(f"prediction_type is {prediction_type!r}; expected 'sample', 'epsilon' or 'v_prediction'")


def uniform_times(batch_size: int, generator: torch.Generator | None = None, high: float = 0.999) -> Tensor:
    """Training times, uniform in ``[0, high)``, ``(B,)`` float32 on the CPU (DDP samples ``t`` uniformly)."""
    return torch.rand(batch_size, generator=generator) * high
