"""The two guidance losses of DAG as pure functions, one value for each image (arXiv 2212.08861, Sec. 3.3).

The sum over pixels is the squared norm that the paper prints; the mean does not change with the resolution. A guidance scale
is meaningful for one of them only. There is no reduction over the batch: the gradient of an image must not depend on how many
others there are.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from noise2map.diffusion.process import add_noise

REDUCTIONS = ("sum", "mean")


def consistency_loss(strong: Tensor, weak: Tensor, reduction: str = "sum") -> Tensor:
    """Depth consistency ``L_dc = || stopgrad(d_strong) - d_weak ||²``.

    The weak reading is drawn towards the strong one, never the other way round: no gradient flows through ``strong``.

    Args:
        strong: depth signal of the strong branch, ``(B, 1, h, w)``.
        weak: depth signal of the weak branch, same shape.
        reduction: over pixels, ``"sum"`` or ``"mean"``.

    Returns:
        ``(B,)``.

    Raises:
        ValueError: if the shapes differ or the reduction is unknown.
    """
    if strong.shape != weak.shape:
        raise ValueError(f"strong depth has shape {tuple(strong.shape)} and weak depth {tuple(weak.shape)}; expected the same")
    return reduce_pixels((strong.detach() - weak).square(), reduction)


def prior_loss(
    depth: Tensor,
    denoise: Callable[[Tensor, Tensor], Tensor],
    timesteps: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    noise: Tensor,
    reduction: str = "sum",
) -> Tensor:
    """Depth prior ``L_dp = || eta - eps_phi(alpha d + sigma eta, tau) ||²``: how surprising a diffusion model of depth maps
    finds the depth.

    Args:
        depth: depth signal in ``[-1, 1]``, ``(B, 1, h, w)``, at the prior's resolution.
        denoise: the prior, ``(noisy (B, 1, h, w), timesteps (B,)) -> noise (B, 1, h, w)``.
        timesteps: ``tau`` of each image, integers ``(B,)``.
        alpha: the prior's signal level at ``tau``, ``(B,)``.
        sigma: its noise level, ``(B,)``.
        noise: ``eta``, standard normal ``(B, 1, h, w)``.
        reduction: over pixels, ``"sum"`` or ``"mean"``.

    Returns:
        ``(B,)``.

    Raises:
        ValueError: if the shapes differ or the reduction is unknown.
    """
    predicted = denoise(add_noise(depth, noise, alpha, sigma), timesteps)
    if predicted.shape != noise.shape:
        raise ValueError(f"the prior predicts noise of shape {tuple(predicted.shape)}; expected {tuple(noise.shape)}")
    return reduce_pixels((noise - predicted).square(), reduction)


def reduce_pixels(values: Tensor, reduction: str) -> Tensor:
    """Sum or mean of ``(B, ...)`` over all axes but the first, ``(B,)``, in float32 at least.

    Raises:
        ValueError: for another reduction.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; expected 'sum' or 'mean'")
    flat = values.flatten(1).to(torch.promote_types(values.dtype, torch.float32))
    return flat.sum(1) if reduction == "sum" else flat.mean(1)
