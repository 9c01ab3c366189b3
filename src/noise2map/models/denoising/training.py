"""Training losses: the published one, and those that make a decoder read its map or draw samples."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from noise2map.diffusion.ensemble import Generators, check_noise, draw_noise, fold, generator_list, unfold
from noise2map.diffusion.fields import multi_resolution_noise
from noise2map.diffusion.process import add_noise, uniform_times
from noise2map.models.checks import check_times

_MEMBERS = 2  # of a scoring rule; more cost more and change little
_PURE_NOISE_SHARE = 0.25  # of the images whose samples are scored at t = 1, where every run begins
_UNIFORM_SHARE = 0.1  # of the times, so that no level is never seen
_EARLIEST, _LATEST = 0.02, 0.99


def training_loss(
    model: Any, features: Tensor, labels: Tensor, noise: Tensor | None, timesteps: Tensor | None, generator: Generators
) -> tuple[Tensor, Tensor]:
    """The loss of a batch.

    Args:
        model: a `MapModel`.
        features: from its encoder, ``(B, C, h, w)``.
        labels: true maps.
        noise: ``(B, C, h, w)`` that corrupts the maps; drawn if not given.
        timesteps: times ``(B,)``; drawn if not given.
        generator: one, or a list with one for each image.

    Returns:
        A scalar and the prediction ``(B, K, h, w)`` of the call that answers for the map: the only one, or the one at ``t = 1``.
    """
    batch_size, _, height, width = features.shape
    shape = (batch_size, model.codec.channels, height, width)
    if not model.config.diffusion:
        context = model.decoder.prepare(features)
        blank = features.new_zeros(shape, dtype=torch.float32)
        prediction = model.predict_at(context, blank, torch.ones(batch_size))
        return model.loss(prediction, labels) + model.auxiliary_loss(features, labels), prediction
    generators = generator_list(generator, batch_size)
    if timesteps is None:
        timesteps = draw_times(model.config, generators)
    timesteps = check_times(timesteps, batch_size)
    if noise is None:
        noise = draw_noise(shape[1:], generators, features.device)
    noise = check_noise(noise, shape).to(features.device)
    if model.config.matched_filter or model.config.noise_channels:
        return _two_calls(model, features, labels, noise, timesteps, generators)
    return _published(model, features, labels, noise, timesteps)


def draw_times(config: Any, generators: Sequence[torch.Generator | None]) -> Tensor:
    """Times ``(B,)`` of corrupted maps, one from each generator, as `Noise2MapConfig.time_sampling` says."""
    times = torch.cat([uniform_times(1, one) for one in generators])
    if config.time_sampling == "uniform":
        return times
    normal = torch.cat([torch.randn(1, generator=one) for one in generators])
    drawn = (config.time_mean + config.time_std * normal).sigmoid()
    # The uniform draw decides who keeps it, and is stretched again over the whole range.
    kept = times < _UNIFORM_SHARE
    return torch.where(kept, times / _UNIFORM_SHARE, drawn).clamp(_EARLIEST, _LATEST)


def _corrupted(model: Any, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    levels = model.schedule.alpha_sigma(timesteps)
    return add_noise(x0, noise.to(x0.dtype), *(level.to(x0.device, x0.dtype) for level in levels))


def _published(model: Any, features: Tensor, labels: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """One corrupted map for each image, one decoder call (DDP, Alg. 1)."""
    size = (features.shape[-2], features.shape[-1])
    context = model.decoder.prepare(features)
    if model.config.self_aligned:
        # The decoder sees its own guess from pure noise instead of the truth, as it will when sampling (Sec. 3.4).
        with torch.no_grad():
            guess, _ = model.predict_both(context, noise, torch.ones(len(features)))
        x0 = model.prediction_encoder()(guess)
    else:
        x0 = model.encode_labels(labels, size)
    prediction = model.predict_at(context, _corrupted(model, x0, noise, timesteps), timesteps)
    if model.config.objective == "l2":
        truth = model.encode_labels(labels, size).detach()
        loss = functional.mse_loss(model.expected_signal(prediction), truth) / model.codec.scale**2
    else:
        loss = model.loss(prediction, labels)
    return loss + model.auxiliary_loss(features, labels), prediction


def _two_calls(
    model: Any,
    features: Tensor,
    labels: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    generators: Sequence[torch.Generator | None],
) -> tuple[Tensor, Tensor]:
    """A call on the empty map, which the encoder learns from, and one on the corrupted map, which it does not.

    The first is what a run of one step says. With a matched filter the second learns what the neighbours in the noisy map add;
    with noise channels it draws two samples, which are scored together. A map that is enlarged is compared at both sizes: its cells
    are what a run feeds back.
    """
    size = (features.shape[-2], features.shape[-1])
    context = model.decoder.prepare(features)
    prediction = model.predict_at(context, torch.zeros_like(noise), torch.ones(len(features)))
    loss = model.loss(prediction, labels) + model.auxiliary_loss(features, labels)
    # Answers at low noise are easy: their gradients would pull the encoder away from what the first call needs.
    if features.requires_grad:
        context = model.decoder.prepare(features.detach())
    x0 = model.encode_labels(labels, size)
    if not model.config.noise_channels:
        corrupted = model.predict_both(context, _corrupted(model, x0, noise, timesteps), timesteps)
        return loss + _mean_loss(lambda one: model.corrupted_loss(one, labels), corrupted), prediction
    pure = torch.cat([torch.rand(1, generator=one) for one in generators]) < _PURE_NOISE_SHARE
    timesteps = torch.where(pure, torch.ones_like(timesteps), timesteps)
    x_t = _corrupted(model, x0, noise, timesteps).repeat_interleave(_MEMBERS, 0)
    latent = fold(multi_resolution_noise(model.config.noise_channels, _MEMBERS, size, generators, features.device))
    members = model.predict_both(context, x_t, timesteps.repeat_interleave(_MEMBERS), latent)
    return loss + _mean_loss(lambda one: model.sample_loss(unfold(one, _MEMBERS), labels), members), prediction


def _mean_loss(loss: Callable[[Tensor], Tensor], predictions: tuple[Tensor, Tensor]) -> Tensor:
    """Mean of the losses of cells and map, which without upsampling are the same."""
    cells, prediction = predictions
    return loss(cells) if prediction is cells else 0.5 * (loss(cells) + loss(prediction))
