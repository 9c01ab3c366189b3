"""A run of decoder calls: its time grid, its noise, its solver, and its end."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from noise2map.diffusion.ensemble import check_noise, draw_noise, fold
from noise2map.diffusion.fields import multi_resolution_noise
from noise2map.diffusion.process import add_noise
from noise2map.diffusion.sampling import Step, ddim_steps, ddpm_steps, dpmpp_2m_steps, karras_pairs, time_pairs
from noise2map.models.aggregation import Aggregator
from noise2map.models.decoding import DecodingOptions
from noise2map.models.denoising.denoiser import Denoiser, Latent
from noise2map.models.upsampling import FACTOR

# Noise-to-signal ratios of the Karras grid, in units of the map's scale: from where a region of 20 x 20 cells can just be read
# to where every cell can.
KARRAS_LARGEST, KARRAS_SMALLEST = 10.0, 0.1


@dataclass(frozen=True)
class WarmStart:
    """A known map from which a run begins, noisy, instead of from pure noise: that of the frame before, say.

    Attributes:
        signal: clean maps ``(B, R, C, h, w)``, such as the last `Step.x0` of another run, unfolded.
        level: time of the first call, between 0 and 1: the larger, the less is left of the map.

    Raises:
        ValueError: if the level is not between 0 and 1.
    """

    signal: Tensor
    level: float

    def __post_init__(self) -> None:
        check_warm_level(self.level)

    def moved(self, offset_px: Tensor, visible: Tensor) -> "WarmStart":
        """The map where its surfaces are in another image, which a known or estimated backward flow tells.

        A cell takes the nearest one of its place before (codes of classes have no mean). Where nothing is known it is 0: the run
        has noise alone to begin from there.

        Args:
            offset_px: columns and rows from a pixel of the other image to its place in the map's own, ``(B, H, W, 2)``, pixels.
            visible: whether that place showed the same surface, boolean ``(B, H, W)``.

        Raises:
            ValueError: if flow and map do not belong together.
        """
        batch, height, width = len(self.signal), *self.signal.shape[-2:]
        if offset_px.ndim != 4 or offset_px.shape[0] != batch or offset_px.shape[3] != 2 or visible.shape != offset_px.shape[:3]:
            raise ValueError(
                f"flow of shape {tuple(offset_px.shape)} with visible {tuple(visible.shape)}; expected ({batch}, H, W, 2) and "
                f"({batch}, H, W)"
            )
        per_cell = offset_px.shape[1] / height, offset_px.shape[2] / width
        middle = [((torch.arange(side) + 0.5) * pixels).long() for side, pixels in zip((height, width), per_cell)]
        offset, seen = (values[:, middle[0]][:, :, middle[1]].to(self.signal.device) for values in (offset_px, visible))
        device = self.signal.device
        rows = torch.arange(height, device=device)[:, None] + (offset[..., 1] / per_cell[0]).round().long()
        columns = torch.arange(width, device=device) + (offset[..., 0] / per_cell[1]).round().long()
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        places = (rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)).flatten(1)[:, None, None]
        found = self.signal.flatten(-2).gather(-1, places.expand(*self.signal.shape[:3], -1)).view_as(self.signal)
        return WarmStart(found * (seen & inside)[:, None, None], self.level)

    def noisy(self, model: Any, options: DecodingOptions, noise: Tensor) -> Tensor:
        """The map at the level, with noise ``(B*R, C, h, w)``.

        Raises:
            ValueError: if the model makes no run of steps, or the map has another shape.
        """
        if not model.config.diffusion or options.sampling != "diffusion":
            kind = options.sampling if model.config.diffusion else "no diffusion"
            raise ValueError(f"warm_start needs a run of steps from noise (sampling='diffusion'); got {kind!r}")
        signal = fold(self.signal).to(noise)
        if signal.shape != noise.shape:
            raise ValueError(
                f"the map of warm_start has shape {tuple(signal.shape)}; expected that of the noise, {tuple(noise.shape)}"
            )
        alpha, sigma = model.schedule.alpha_sigma(torch.tensor(self.level))
        return add_noise(signal, noise, alpha.to(noise), sigma.to(noise))


def check_warm_level(level: float) -> None:
    """Refuses a level at which no run can begin from a map.

    Raises:
        ValueError: if it is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"warm_start is {level!r}; expected a noise level between 0 and 1")


def time_grid(model: Any, options: DecodingOptions, level: float = 1.0) -> list[tuple[float, float]]:
    """Times ``(t, t_next)`` of the decoder calls.

    Args:
        model: a `MapModel`.
        options: with every value chosen.
        level: time of the first call; a run that begins below 1 makes as many calls as a whole one.
    """
    config = model.config
    count = options.num_inference_steps
    if count == "auto":
        count = config.auto_max_steps
    if not config.diffusion:
        count = 1
    assert isinstance(count, int)
    if config.time_grid == "karras":
        largest, smallest = KARRAS_LARGEST * config.map_scale, KARRAS_SMALLEST * config.map_scale
        if level < 1:  # all calls on the grid, none at t = 1
            alpha, sigma = model.schedule.alpha_sigma(torch.tensor(level))
            first = float(sigma / alpha)
            return karras_pairs(count + 1, model.schedule, first, min(smallest, first / 2))[1:]
        return karras_pairs(count, model.schedule, largest, smallest)
    return [(t * level, t_next * level) for t, t_next in time_pairs(count, config.time_difference)]


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
    latent_noise: Latent | None = None,
    warm_start: WarmStart | None = None,
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
        latent_noise: noise channels of a call, ``index -> (B*R, n, h, w)``, for a model that has some; drawn if not given.
        warm_start: where the run begins instead; ``x_T`` is the noise of that map.

    Yields:
        `Step` objects.

    Raises:
        ValueError: if the run cannot begin there.
    """
    pairs = time_grid(model, options, 1.0 if warm_start is None else warm_start.level)
    samples, config = options.ensemble_size, model.config
    size = (features.shape[-2], features.shape[-1])
    assert isinstance(samples, int)
    if warm_start is not None:
        x_T = warm_start.noisy(model, options, x_T)

    def draw_latent(index: int) -> Tensor:
        return fold(multi_resolution_noise(config.noise_channels, samples, size, generators, x_T.device))

    latent = (latent_noise or draw_latent) if config.noise_channels and options.sampling == "diffusion" else None
    denoise = Denoiser(model, features, pairs, samples, active, latent, options.refined_share, options.refine_threshold)
    if step_noise is None:
        shape = (samples, *x_T.shape[1:])
        step_noise = lambda index, x: tokens_in_memory(draw_noise(shape, generators, x.device)).to(x.dtype)  # noqa: E731
    if options.sampler == "ddpm":
        return ddpm_steps(denoise, x_T, model.schedule, pairs, step_noise)
    if options.sampler == "dpmpp_2m":
        return dpmpp_2m_steps(denoise, x_T, model.schedule, pairs)
    return ddim_steps(denoise, x_T, model.schedule, pairs, config.churn, step_noise)


def aggregate_steps(
    model: Any,
    aggregator: Aggregator,
    features: Tensor,
    x_T: Tensor,
    options: DecodingOptions,
    generators: Sequence[torch.Generator | None],
    step_noise: Callable[[int, Tensor], Tensor] | None = None,
    latent_noise: Latent | None = None,
    warm_start: WarmStart | None = None,
    *,
    keep: bool = False,
) -> list[Step]:
    """A whole run; with ``"auto"`` each image takes part until its map stands still.

    Args:
        model: a `MapModel`.
        aggregator: takes the predictions.
        features: see `denoising_steps`, likewise the next six.
        x_T: start noise ``(B*R, C, h, w)``.
        options: with every value chosen.
        generators: one for each image.
        step_noise: fresh noise of a step.
        latent_noise: noise channels of a call.
        warm_start: where the run begins instead.
        keep: whether to return the steps.

    Returns:
        The steps with their maps, without other parameters of a distribution; none unless they are to be kept.

    Raises:
        ValueError: if the run cannot begin there.
    """
    active, kept = torch.ones(len(features), dtype=torch.bool), list[Step]()
    for step in denoising_steps(model, features, x_T, options, generators, active, step_noise, latent_noise, warm_start):
        fraction = aggregator.update(step.prediction, active)
        if keep:
            kept.append(replace(step, prediction=model.map_of(step.prediction)))
        if options.num_inference_steps == "auto" and can_be_read(model, step.t):
            active &= fraction >= model.config.auto_threshold
            if not bool(active.any()):
                break
    return kept


def sampled_field(
    model: Any, features: Tensor, prediction: Tensor, options: DecodingOptions, generators: Sequence[torch.Generator | None]
) -> Tensor:
    """Maps drawn from the marginals of one call; with several steps these are noised to a level and denoised by the others.

    A field knows how likely everything is in each cell, and of what hangs together only that it is smooth; the decoder knows rooms.
    From a high level it keeps what a draw decided and mends its outlines (SDEdit, Meng et al. 2022, from draws of its own).

    Args:
        model: a `MapModel`.
        features: see `denoising_steps`.
        prediction: of the one call, ``(B, K', h, w)``.
        options: of ``sampling="field"``, with every value chosen.
        generators: one for each image; the field's noise is drawn from them, then that of the level.

    Returns:
        ``(B, R, K, h, w)``.
    """
    count, steps, width = options.ensemble_size, options.num_inference_steps, options.field_smoothness
    assert isinstance(count, int) and isinstance(steps, int) and width is not None
    pixels_per_cell = 1 if model.upsampling is None else FACTOR
    drawn: Tensor = model.draw_samples(prediction, count, width * pixels_per_cell, generators)
    if steps == 1:
        return drawn
    middle = pixels_per_cell // 2
    cells = drawn[..., middle::pixels_per_cell, middle::pixels_per_cell]
    signal = model.prediction_encoder()(fold(cells).to(features.device))
    start = WarmStart(signal.unflatten(0, (len(features), count)), model.config.field_level)
    run = replace(options, sampling="diffusion", field_smoothness=None, num_inference_steps=steps - 1, average="last")
    run = replace(run, refine="all", refine_share=None, refine_threshold=None)
    noise = start_noise(model, features, count, None, generators)
    active = torch.ones(len(features), dtype=torch.bool)
    *_, last = denoising_steps(model, features, noise, run, generators, active, warm_start=start)
    samples: Tensor = model.map_of(last.prediction)
    return samples.unflatten(0, (len(features), count))


def start_noise(
    model: Any, features: Tensor, samples: int, noise: Tensor | None, generators: Sequence[torch.Generator | None]
) -> Tensor:
    """Start noise of a run, ``(B*R, C, h, w)``; zeros for a model without diffusion.

    Args:
        model: a `MapModel`.
        features: from its encoder, ``(B, C, h, w)``.
        samples: R of them for each image.
        noise: ``(B, R, C, h, w)``; drawn if not given.
        generators: one for each image.

    Raises:
        ValueError: if features or noise have another shape.
    """
    if features.ndim != 4 or features.shape[1] != model.decoder.feature_channels:
        expected = f"(B, {model.decoder.feature_channels}, h, w), from encode_image"
        raise ValueError(f"features have shape {tuple(features.shape)}; expected {expected}")
    shape = (len(features), samples, model.codec.channels, features.shape[2], features.shape[3])
    if not model.config.diffusion:
        noise = features.new_zeros(shape, dtype=torch.float32)
    elif noise is None:
        noise = draw_noise(shape[1:], generators, features.device)
    return tokens_in_memory(check_noise(noise, shape).to(features.device, torch.promote_types(features.dtype, torch.float32)))


def tokens_in_memory(noise: Tensor) -> Tensor:
    """Noise ``(B, R, C, h, w)`` -> ``(B*R, C, h, w)``, the channels of a pixel next to each other in memory.

    So are the encoded predictions and the decoder's tokens: the update of a step reads all of them in one order, and the
    decoder need not transpose the map.
    """
    return fold(noise).contiguous(memory_format=torch.channels_last)
