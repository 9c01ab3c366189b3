"""Decoder calls of a run: what the decoder is shown of a noisy map, and what becomes of its answer."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from noise2map.diffusion.process import expand_like
from noise2map.models.denoising.refinement import SparseRefinement

Latent = Callable[[int], Tensor]


def decoder_input(model: Any, x_t: Tensor, t: Tensor, latent: Tensor | None = None) -> Tensor:
    """What the decoder is shown of noisy maps.

    The published models see the noisy map as it is. Those with a matched filter or noise channels see it divided by its standard
    deviation (Karras et al. 2022, ``c_in``), an empty map at ``t = 1``, where nothing can be read, its means over squares of cells
    (``config.map_pyramid_levels``), and the noise channels.

    Args:
        model: a `MapModel`.
        x_t: noisy maps ``(N, C, h, w)``.
        t: times ``(N,)`` or ``(1,)``, float32 on the CPU.
        latent: noise ``(N, config.noise_channels, h, w)`` that makes the answer a sample; zeros if not given.

    Returns:
        ``(N, input_channels(config, C), h, w)``.
    """
    config = model.config
    if not config.matched_filter and not config.noise_channels:
        return x_t
    alpha, sigma = model.schedule.alpha_sigma(t)
    signal = (alpha * model.codec.scale * model.codec.relative_std).square()
    shown = []
    for level in range(config.map_pyramid_levels + 1):
        side = 2**level + 1 if level else 1
        # A mean of side² cells has a side-th of their noise: enlarged by side, its noise is as loud as that of single cells.
        gain = torch.where(t >= 1, torch.zeros_like(t), side * (side**2 * signal + sigma.square()).rsqrt())
        means = functional.avg_pool2d(x_t, side, 1, side // 2, count_include_pad=False) if level else x_t
        shown.append(means * expand_like(gain.to(x_t.device, x_t.dtype), x_t))
    if config.noise_channels:
        if latent is None:
            latent = x_t.new_zeros(x_t.shape[0], config.noise_channels, *x_t.shape[2:])
        shown.append(latent.to(x_t.device, x_t.dtype))
    return torch.cat(shown, 1)


def input_channels(config: Any, map_channels: int) -> int:
    """Channels of `decoder_input` for maps of so many."""
    return map_channels * (1 + config.map_pyramid_levels) + config.noise_channels


def evidence_levels(model: Any, t: Tensor) -> tuple[Tensor, Tensor]:
    """Levels ``(N,)`` of the noisy map's evidence at times ``(N,)``; no signal at all at ``t = 1``."""
    alpha, sigma = model.schedule.alpha_sigma(t)
    return torch.where(t >= 1, torch.zeros_like(alpha), alpha), sigma


def read_tokens(model: Any, tokens: Tensor, size: tuple[int, int], x_t: Tensor, t: Tensor, sampled: bool) -> tuple[Tensor, Tensor]:
    """Head, evidence of the noisy map and upsampling of one call.

    Args:
        model: a `MapModel`.
        tokens: of its decoder, ``(N, h*w, C)``.
        size: ``(h, w)``.
        x_t: noisy maps that the decoder was given.
        t: their times.
        sampled: leave out the parameters of a distribution: only a call without noise channels learns one.

    Returns:
        Prediction of the cells, and of the map; the same without upsampling.
    """
    prediction = model.head(tokens, size)
    if model.config.matched_filter:
        evidence = model.evidence(x_t, *(level.to(x_t.device, x_t.dtype) for level in evidence_levels(model, t)))
        prediction = prediction if evidence is None else prediction + evidence
    if sampled:
        prediction = model.map_of(prediction)
    if model.upsampling is None:
        return prediction, prediction
    return prediction, model.enlarge(prediction, model.upsampling(tokens, size))


class Denoiser:
    """Callable for the samplers, ``(x_t, t) -> (x0, prediction)``; what does not change over a run is computed once.

    Args:
        model: a `MapModel`.
        features: from `MapModel.encode_image`, ``(B, C, h, w)``.
        pairs: the run's times ``(t, t_next)``; the calls take them in turn, and begin again after the last.
        ensemble_size: noise samples R of each image: ``x_t`` is ``(B*R, C, h, w)``.
        active: images that still run ``(B,)``, boolean, on the CPU; may be changed between calls. The others keep the
            prediction of the call before. By default all run.
        latent: ``latent(index)`` gives the noise channels ``(B*R, n, h, w)`` of a call; zeros if not given.
        refine_share: share of the tokens that calls after the first compute, see `SparseRefinement`; 1 for all.
        refine_threshold: uncertainty from which on they compute a token, in place of the share; `None` or 0 for all.
    """

    def __init__(
        self,
        model: Any,
        features: Tensor,
        pairs: Sequence[tuple[float, float]],
        ensemble_size: int = 1,
        active: Tensor | None = None,
        latent: Latent | None = None,
        refine_share: float = 1.0,
        refine_threshold: float | None = None,
    ) -> None:
        self.model, self.ensemble_size, self.latent = model, ensemble_size, latent
        self.active = torch.ones(features.shape[0], dtype=torch.bool) if active is None else active
        self.context = model.decoder.prepare(features)
        self.times = torch.tensor([t for t, _ in pairs], dtype=torch.float32)
        self.modulations = model.decoder.modulations(model.time_input(self.times).to(features.device))  # (T, L, 2 C)
        self.encode = model.prediction_encoder()
        self._position = itertools.cycle(range(len(pairs)))
        sparse = refine_share < 1 or bool(refine_threshold)
        self.refinement = SparseRefinement(model, refine_share, refine_threshold) if sparse else None
        self._newest: tuple[Tensor, Tensor] | None = None  # predictions of all images, stopped ones included: of cells and map

    def __call__(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The next call of the run; the second argument is not looked at, as the times are known."""
        index = next(self._position)
        latent = None if self.latent is None else self.latent(index)
        if self.refinement is not None:
            found = self._refine(self.refinement, x_t, index, latent)
        elif bool(self.active.all()):
            found = self._predict(self.context, x_t, index, latent)
        else:
            assert self._newest is not None
            rows = self.active.nonzero().squeeze(1).to(x_t.device)
            folded = self.active.repeat_interleave(self.ensemble_size).to(x_t.device)
            chosen = None if latent is None else latent[folded.to(latent.device)]
            cells, prediction = self._predict(self.context.select(rows), x_t[folded], index, chosen)
            merged = _with_rows(self._newest[0], folded, cells)
            found = merged, merged if prediction is cells else _with_rows(self._newest[1], folded, prediction)
        self._newest = found
        cells, prediction = found
        return self.encode(cells), prediction

    def _refine(self, refinement: SparseRefinement, x_t: Tensor, index: int, latent: Tensor | None) -> tuple[Tensor, Tensor]:
        modulation, t = self.modulations[index : index + 1], self.times[index : index + 1]
        shown = decoder_input(self.model, x_t, t, latent)
        if index == 0:
            tokens = refinement.first(self.context, shown, modulation)
        else:
            running = self.active.repeat_interleave(self.ensemble_size).to(x_t.device)
            tokens = refinement.later(self.context, shown, modulation, running)
        found = read_tokens(self.model, tokens, self.context.size, x_t, t, latent is not None)
        if index == 0:
            refinement.choose(found[0])
        return found

    def _predict(self, context: Any, x_t: Tensor, index: int, latent: Tensor | None) -> tuple[Tensor, Tensor]:
        modulation = self.modulations[index : index + 1]
        return self.model.predict_with(context, x_t, self.times[index : index + 1], modulation, latent)


def _with_rows(values: Tensor, rows: Tensor, part: Tensor) -> Tensor:
    """A copy of values ``(N, ...)`` in which the rows ``(N,)``, boolean, are those of ``part``."""
    values = values.clone()
    values[rows] = part
    return values
