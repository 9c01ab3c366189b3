"""A run of decoder calls: its time grid, its noise and its solver."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from noise2map.diffusion.ensemble import draw_noise, fold
from noise2map.diffusion.fields import multi_resolution_noise
from noise2map.diffusion.sampling import Step, ddim_steps, ddpm_steps, dpmpp_2m_steps, karras_pairs, time_pairs
from noise2map.models.decoding import DecodingOptions
from noise2map.models.denoising.denoiser import Denoiser

# Noise-to-signal ratios of the Karras grid, in units of the map's scale: from where a region of 20 x 20 cells can just be read
# to where every cell can.
KARRAS_LARGEST, KARRAS_SMALLEST = 10.0, 0.1


def time_grid(model: Any, options: DecodingOptions) -> list[tuple[float, float]]:
    """Times ``(t, t_next)`` of the decoder calls.

    Args:
        model: a `MapModel`.
        options: with every value chosen.
    """
    config = model.config
    count = options.num_inference_steps
    if count == "auto":
        count = config.auto_max_steps
    if not config.diffusion:
        count = 1
    assert isinstance(count, int)
    if config.time_grid == "karras":
        return karras_pairs(count, model.schedule, KARRAS_LARGEST * config.map_scale, KARRAS_SMALLEST * config.map_scale)
    return time_pairs(count, config.time_difference)


def can_be_read(model: Any, t: float) -> bool:
    """Whether the log signal-to-noise ratio of the encoded map at a time is above ``config.auto_log_snr``; true if that is None."""
    least = model.config.auto_log_snr
    return least is None or float(model.schedule.log_snr(torch.tensor(t))) + 2 * math.log(model.codec.scale) > least


def denoising_steps(
    model: Any,
    features: Tensor,
    x_T: Tensor,
    options: DecodingOptions,
    generators: Sequence[torch.Generator | None],
    active: Tensor,
    step_noise: Callable[[int, Tensor], Tensor] | None = None,
) -> Iterator[Step]:
    """The steps of a run, one decoder call each.

    Args:
        model: a `MapModel`.
        features: from its encoder, ``(B, C, h, w)``.
        x_T: start noise ``(B*R, C, h, w)``.
        options: with every value chosen.
        generators: one for each image; further noise is drawn from them after the start noise.
        active: images that still run ``(B,)``, boolean; may be changed between steps.
        step_noise: fresh noise of a step, ``(index, x_t) -> Tensor`` like ``x_t``; drawn if not given.

    Yields:
        `Step` objects.
    """
    pairs, samples, config = time_grid(model, options), options.ensemble_size, model.config
    size = (features.shape[-2], features.shape[-1])
    assert isinstance(samples, int)

    def draw_latent(index: int) -> Tensor:
        return fold(multi_resolution_noise(config.noise_channels, samples, size, generators, x_T.device))

    latent = draw_latent if config.noise_channels and options.sampling == "diffusion" else None
    denoise = Denoiser(model, features, pairs, samples, active, latent)
    if step_noise is None:
        shape = (samples, *x_T.shape[1:])
        step_noise = lambda index, x: tokens_in_memory(draw_noise(shape, generators, x.device)).to(x.dtype)  # noqa: E731
    if options.sampler == "ddpm":
        return ddpm_steps(denoise, x_T, model.schedule, pairs, step_noise)
    if options.sampler == "dpmpp_2m":
        return dpmpp_2m_steps(denoise, x_T, model.schedule, pairs)
    return ddim_steps(denoise, x_T, model.schedule, pairs, config.churn, step_noise)


def tokens_in_memory(noise: Tensor) -> Tensor:
    """Noise ``(B, R, C, h, w)`` -> ``(B*R, C, h, w)``, the channels of a pixel next to each other in memory.

    So are the encoded predictions and the decoder's tokens: the update of a step reads all of them in one order, and the
    decoder need not transpose the map.
    """
    return fold(noise).contiguous(memory_format=torch.channels_last)
