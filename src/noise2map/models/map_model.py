"""The body that all map models share: encode once, denoise a map in a few steps, train by corrupting and decoding."""

import itertools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from noise2map.codecs import MapCodec
from noise2map.diffusion.ensemble import Generators, check_noise, draw_noise, fold, generator_list
from noise2map.diffusion.process import add_noise, uniform_times
from noise2map.diffusion.sampling import Step, ddim_steps, ddpm_steps, time_pairs
from noise2map.diffusion.schedule import make_schedule
from noise2map.models.aggregation import Aggregator
from noise2map.models.configuration import Noise2MapConfig
from noise2map.models.decoding import DecodingOptions
from noise2map.models.encoder import ImageEncoder
from noise2map.models.initialization import Noise2MapPreTrainedModel
from noise2map.models.labels import check_times
from noise2map.models.map_decoder import DecoderContext, MapDecoder
from noise2map.models.resizing import resize_map

# Keywords that transformers' engines pass to any model.
_FOREIGN_KEYWORDS = ("return_dict", "output_attentions", "output_hidden_states", "num_items_in_batch")


class MapModel(Noise2MapPreTrainedModel):
    """Encoder, map decoder, sampling and training.

    A task is a subclass: its codec and head, the class attributes, and the hooks below (`check_labels`, `encode_labels`, `loss`,
    `auxiliary_loss`, `expected_signal`, `prediction_encoder`, `make_aggregator`, `make_output`).

    Attributes:
        task: name of the task, which says how its maps are scored, stored and drawn.
        default_uncertainty: kind that is returned as ``uncertainty`` where the configuration names none.
        objectives: values of ``config.objective`` that the task knows.
    """

    task: ClassVar[str]
    default_uncertainty: str
    objectives: ClassVar[tuple[str, ...]] = ("task", "l2")
    codec: MapCodec
    head: nn.Module
    # The loss is a mean over the batch: Trainer must divide it by its accumulation steps.
    accepts_loss_kwargs = False

    def __init__(
        self,
        config: Noise2MapConfig,
        codec: MapCodec,
        head: nn.Module,
        encoder: nn.Module | None = None,
        decoder: MapDecoder | None = None,
    ) -> None:
        config.check()  # fields may have been set after the configuration was made, as from_pretrained does
        config.check_objective(self.task, self.objectives)
        super().__init__(config)
        self.schedule = make_schedule(config.noise_schedule, config.min_inverse_snr)
        self.encoder = ImageEncoder(config) if encoder is None else encoder
        self.codec = codec
        self.decoder = MapDecoder(config, codec.channels) if decoder is None else decoder
        self.head = head
        if not config.diffusion:
            codec.requires_grad_(False)  # nothing is encoded: a learnt table would get no gradient

    # ---- the hooks that a task fills in --------------------------------------------------------------------------------

    @abstractmethod
    def check_labels(self, labels: Tensor, pixel_values: Tensor) -> None:
        """Refuses impossible labels before any work.

        Raises:
            ValueError: for labels of another shape than the images ask for, or with impossible values.
        """

    @abstractmethod
    def encode_labels(self, labels: Tensor, size: tuple[int, int]) -> Tensor:
        """Checked labels ``(B, H, W)`` -> signal ``(B, C, h, w)`` of ``size``, the clean map that training corrupts."""

    @abstractmethod
    def loss(self, prediction: Tensor, labels: Tensor) -> Tensor:
        """Loss of a prediction ``(B, K, h, w)`` against the labels, a scalar."""

    def auxiliary_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Auxiliary loss added to either objective, a scalar; nothing where there is no auxiliary head."""
        return features.new_zeros(())

    @abstractmethod
    def expected_signal(self, prediction: Tensor) -> Tensor:
        """Prediction ``(B, K, h, w)`` -> its signal ``(B, C, h, w)``, differentiable, for the l2 objective."""

    def prediction_encoder(self) -> Callable[[Tensor], Tensor]:
        """A function from predictions ``(N, K, h, w)`` to signals ``(N, C, h, w)``; made once for a run."""
        return self.codec.encode_prediction

    def map_of(self, prediction: Tensor) -> Tensor:
        """The map in what the head gave, ``(..., K', h, w)`` -> ``(..., K, h, w)``, without parameters of its distribution."""
        return prediction

    def whole_prediction(self, out: Any) -> Tensor:
        """Map and parameters of an output ``(B, K', h, w)``, for `make_output`."""
        return out.prediction

    @abstractmethod
    def make_aggregator(self, batch_size: int, ensemble_size: int, average: str) -> Aggregator:
        """Aggregator of the stream of steps of one run into a map and its uncertainties."""

    @abstractmethod
    def make_output(
        self, prediction: Tensor, size: tuple[int, int] | None = None, log_probabilities: bool | None = None, **fields: Any
    ) -> Any:
        """Wraps a prediction ``(B, K, h, w)`` in the task's output, resized to ``size`` if that is given.

        Args:
            prediction: what the head or the aggregation over steps gave.
            size: height and width of the map.
            log_probabilities: class scores are logarithms of averaged probabilities, which are resized as probabilities.
            **fields: further fields of the output.
        """

    # ---- encode once, decode cheaply -----------------------------------------------------------------------------------

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """Runs the image encoder, once for an image whatever is decoded from it.

        Args:
            pixel_values: normalised images ``(B, 3, H, W)``.

        Returns:
            Merged features ``(B, C, h, w)`` at a quarter of the size.

        Raises:
            ValueError: if the images have another shape or type, or are smaller than 32 x 32.
        """
        if not pixel_values.is_floating_point():
            raise ValueError(f"pixel_values have type {pixel_values.dtype}; expected normalised floating point (image processor)")
        return self.encoder(pixel_values.to(self.dtype))

    def decode_map(
        self,
        features: Tensor,
        num_inference_steps: int | str | None = None,
        ensemble_size: int | None = None,
        average: str | None = None,
        sampler: str | None = None,
        noise: Tensor | None = None,
        generator: Generators = None,
        output_steps: bool = False,
        step_noise: Callable[[int, Tensor], Tensor] | None = None,
    ) -> Any:
        """Denoises a map, given the features of an image.

        Steps, samples and averaging are three separate choices; each defaults to the configuration's.

        Args:
            features: from `encode_image`, ``(B, C, h, w)``.
            num_inference_steps: decoder calls, or ``"auto"``: each image stops when fewer than ``config.auto_threshold`` of its
                pixels changed, after ``config.auto_max_steps`` at the latest.
            ensemble_size: noise samples R for each image.
            average: ``"last"`` step or mean over ``"steps"``; always over the samples.
            sampler: ``"ddim"`` or ``"ddpm"``.
            noise: start noise ``(B, R, C, h, w)``; drawn if not given.
            generator: one, or a list with one for each image, which makes a map independent of its batch.
            output_steps: also return the list of `Step`.
            step_noise: noise of the ancestral sampler, ``(index, x_t) -> Tensor`` like ``x_t``; drawn if not given.

        Returns:
            `MapSegmenterOutput` or `MapDepthOutput` at the resolution of the features.

        Raises:
            ValueError: for an impossible option, or features or noise of another shape.
        """
        config = self.config
        if features.ndim != 4 or features.shape[1] != self.decoder.feature_channels:
            expected = f"(B, {self.decoder.feature_channels}, h, w), from encode_image"
            raise ValueError(f"features have shape {tuple(features.shape)}; expected {expected}")
        options = DecodingOptions(
            num_inference_steps=num_inference_steps, ensemble_size=ensemble_size, average=average, sampler=sampler
        ).resolved(config)
        pairs, auto, ensemble_size = self._time_grid(options), options.num_inference_steps == "auto", options.ensemble_size
        batch_size, _, height, width = features.shape
        generators = generator_list(generator, batch_size)
        shape = (batch_size, ensemble_size, self.codec.channels, height, width)
        if not config.diffusion:
            noise = features.new_zeros(shape, dtype=torch.float32)
        elif noise is None:
            noise = draw_noise(shape[1:], generators, features.device)
        x_T = tokens_in_memory(check_noise(noise, shape).to(features.device, torch.promote_types(features.dtype, torch.float32)))

        aggregator = self.make_aggregator(batch_size, ensemble_size, options.average)
        active = torch.ones(batch_size, dtype=torch.bool)
        denoise = self.denoiser(features, pairs, ensemble_size, active)
        if options.sampler == "ddim":
            run = ddim_steps(denoise, x_T, self.schedule, pairs)
        else:
            if step_noise is None:
                step_noise = lambda index, x: tokens_in_memory(draw_noise(shape[1:], generators, x.device)).to(x.dtype)  # noqa: E731
            run = ddpm_steps(denoise, x_T, self.schedule, pairs, step_noise)
        steps: list[Step] = []
        for step in run:
            fraction = aggregator.update(step.prediction, active)
            if output_steps:
                steps.append(replace(step, prediction=self.map_of(step.prediction)))
            if auto:
                active &= fraction >= config.auto_threshold
                if not bool(active.any()):
                    break
        prediction, kinds = aggregator.result()
        fields = {
            "uncertainty": kinds.get(config.uncertainty or self.default_uncertainty),
            "uncertainties": kinds,
            "num_steps": aggregator.num_steps.to(features.device),
            "steps": steps if output_steps else None,
        }
        return self.make_output(prediction, log_probabilities=options.average == "steps", **fields)

    def _time_grid(self, options: DecodingOptions) -> list[tuple[float, float]]:
        if not self.config.diffusion:
            return time_pairs(1)
        count = self.config.auto_max_steps if options.num_inference_steps == "auto" else options.num_inference_steps
        return time_pairs(count, self.config.time_difference)

    def denoiser(
        self,
        features: Tensor,
        pairs: Sequence[tuple[float, float]],
        ensemble_size: int = 1,
        active: Tensor | None = None,
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Denoiser for a sampler: ``(x_t, t) -> (x0, prediction)``; everything that does not change over a run is computed here.

        Args:
            features: from `encode_image`, ``(B, C, h, w)``.
            pairs: the run's times ``(t, t_next)``; the calls take them in turn, and begin again after the last.
            ensemble_size: noise samples R of each image: ``x_t`` is ``(B*R, C, h, w)``.
            active: images that still run ``(B,)``, boolean, on the CPU; may be changed between calls. The others keep
                the prediction of the call before. By default all run.

        Returns:
            A function; its second argument is not looked at, as the times are known.
        """
        active = torch.ones(features.shape[0], dtype=torch.bool) if active is None else active
        context = self.decoder.prepare(features)
        times = torch.tensor([t for t, _ in pairs], dtype=torch.float32)
        modulations = self.decoder.modulations(self._time_input(times).to(features.device))  # (T, L, 2 C)
        encode = self.prediction_encoder()
        position = itertools.cycle(range(len(pairs)))
        full: list[Tensor] = []  # the newest predictions of all images, stopped ones included

        def denoise(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            index = next(position)
            modulation = modulations[index : index + 1]
            if bool(active.all()):
                prediction = self.head(self.decoder(context, x_t, modulation), context.size)
            else:
                rows = active.nonzero().squeeze(1).to(x_t.device)
                folded = active.repeat_interleave(ensemble_size).to(x_t.device)
                part = self.head(self.decoder(context.select(rows), x_t[folded], modulation), context.size)
                prediction = full[0].clone()
                prediction[folded] = part
            full[:] = [prediction]
            return encode(prediction), prediction

        return denoise

    def _time_input(self, t: Tensor) -> Tensor:
        return self.schedule.log_snr(t) if self.config.time_input == "log_snr" else t

    # ---- training ------------------------------------------------------------------------------------------------------

    def predict_at(self, context: DecoderContext, x_t: Tensor, t: Tensor) -> Tensor:
        """One decoder call.

        Args:
            context: from ``decoder.prepare(features)``.
            x_t: noisy maps ``(B, C, h, w)``.
            t: their times ``(B,)``, in [0, 1].

        Returns:
            Predictions ``(B, K, h, w)``: logits, metres, or whatever the head gives.
        """
        modulations = self.decoder.modulations(self._time_input(t).to(x_t.device))
        return self.head(self.decoder(context, x_t, modulations), context.size)

    def _training_loss(
        self, features: Tensor, labels: Tensor, noise: Tensor | None, timesteps: Tensor | None, generator: Generators
    ) -> tuple[Tensor, Tensor]:
        """One corrupted map for each image, one decoder call: ``(loss, prediction (B, K, h, w))`` (DDP, Alg. 1)."""
        batch_size, _, height, width = features.shape
        shape = (batch_size, self.codec.channels, height, width)
        context = self.decoder.prepare(features)
        if not self.config.diffusion:
            blank = features.new_zeros(shape, dtype=torch.float32)
            prediction = self.predict_at(context, blank, torch.ones(batch_size))
            return self.loss(prediction, labels) + self.auxiliary_loss(features, labels), prediction
        generators = generator_list(generator, batch_size)
        timesteps = torch.cat([uniform_times(1, g) for g in generators]) if timesteps is None else timesteps
        timesteps = check_times(timesteps, batch_size)
        if noise is None:
            noise = draw_noise(shape[1:], generators, features.device)
        noise = check_noise(noise, shape).to(features.device)
        if self.config.self_aligned:
            # The decoder sees its own guess from pure noise instead of the truth, as it will when sampling (Sec. 3.4).
            with torch.no_grad():
                guess = self.predict_at(context, noise, torch.ones(batch_size))
            x0 = self.prediction_encoder()(guess)
        else:
            x0 = self.encode_labels(labels, (height, width))
        levels = self.schedule.alpha_sigma(timesteps)
        x_t = add_noise(x0, noise.to(x0.dtype), *(level.to(x0.device, x0.dtype) for level in levels))
        prediction = self.predict_at(context, x_t, timesteps)
        if self.config.objective == "l2":
            truth = self.encode_labels(labels, (height, width)).detach()
            loss = functional.mse_loss(self.expected_signal(prediction), truth) / self.codec.scale**2
        else:
            loss = self.loss(prediction, labels)
        return loss + self.auxiliary_loss(features, labels), prediction

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        num_inference_steps: int | str | None = None,
        ensemble_size: int | None = None,
        average: str | None = None,
        sampler: str | None = None,
        noise: Tensor | None = None,
        timesteps: Tensor | None = None,
        generator: Generators = None,
        output_uncertainty: bool = False,
        output_steps: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Training loss if labels are given, else a sampled map at the resolution of ``pixel_values``.

        Args:
            pixel_values: normalised images ``(B, 3, H, W)``.
            labels: class ids ``(B, H, W)`` (int64), or depth in metres ``(B, H, W)`` with 0 where there is none.
            num_inference_steps: see `decode_map`, likewise the next three.
            ensemble_size: noise samples for each image.
            average: ``"last"`` or ``"steps"``.
            sampler: ``"ddim"`` or ``"ddpm"``.
            noise: ``(B, R, C, h, w)`` for sampling, ``(B, C, h, w)`` for training; drawn if not given.
            timesteps: training times ``(B,)`` in [0, 1]; drawn uniformly if not given.
            generator: one, or a list with one for each image.
            output_uncertainty: require ``uncertainty`` to be defined.
            output_steps: return the list of `Step`.
            **kwargs: keywords that transformers passes to every model; without effect here.

        Returns:
            `MapSegmenterOutput` or `MapDepthOutput`.

        Raises:
            ValueError: for labels, noise or options that cannot work, keywords that do not exist, or if uncertainty is asked of a
                run that has none.
        """
        for name in kwargs:
            if name not in _FOREIGN_KEYWORDS:
                raise ValueError(f"{type(self).__name__} has no argument {name!r}")
        if labels is not None:
            self.check_labels(labels, pixel_values)
            return self._train_on(self.encode_image(pixel_values), labels, noise, timesteps, generator)
        features = self.encode_image(pixel_values)
        out = self.decode_map(features, num_inference_steps, ensemble_size, average, sampler, noise, generator, output_steps)
        if output_uncertainty:
            self._require_uncertainty(out)
        return self._upsample(out, pixel_values.shape[-2:])

    def _train_on(
        self, features: Tensor, labels: Tensor, noise: Tensor | None, timesteps: Tensor | None, generator: Generators
    ) -> Any:
        loss, prediction = self._training_loss(features, labels, noise, timesteps, generator)
        return self.make_output(prediction.detach(), loss=loss)

    def _require_uncertainty(self, out: Any) -> None:
        if out.uncertainty is None:
            kind = self.config.uncertainty or self.default_uncertainty
            raise ValueError(
                f"uncertainty {kind!r} is not defined for one step of one sample; expected num_inference_steps or "
                f"ensemble_size above 1 (defined here: {sorted(out.uncertainties) or 'none'})"
            )

    def _upsample(self, out: Any, size: tuple[int, int]) -> Any:
        kinds = {name: resize_map(value.unsqueeze(1), size).squeeze(1) for name, value in out.uncertainties.items()}
        uncertainty = None if out.uncertainty is None else kinds[self.config.uncertainty or self.default_uncertainty]
        fields = {"uncertainty": uncertainty, "uncertainties": kinds, "num_steps": out.num_steps, "steps": out.steps}
        return self.make_output(self.whole_prediction(out), size, out.log_probabilities, **fields)


def tokens_in_memory(noise: Tensor) -> Tensor:
    """Noise ``(B, R, C, h, w)`` -> ``(B*R, C, h, w)``, the channels of a pixel next to each other in memory.

    So are the encoded predictions and the decoder's tokens: the update of a step reads all of them in one order, and the
    decoder need not transpose the map.
    """
    return fold(noise).contiguous(memory_format=torch.channels_last)
