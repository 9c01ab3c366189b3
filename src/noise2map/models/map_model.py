"""The body that all map models share: encode once, denoise a map in a few steps, train by corrupting and decoding."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor, nn

from noise2map.codecs import MapCodec
from noise2map.diffusion.ensemble import Generators, fold, generator_list, unfold
from noise2map.diffusion.schedule import make_schedule
from noise2map.hub.sharing import SharedOnHub
from noise2map.models.aggregation import NUMBER_UNCERTAINTIES, Aggregator
from noise2map.models.checks import check_features, check_keywords
from noise2map.models.configuration import Noise2MapConfig
from noise2map.models.decoding import DecodingOptions
from noise2map.models.denoising.denoiser import Denoiser, decoder_input, input_channels, read_tokens
from noise2map.models.denoising.hooks import FormulationHooks
from noise2map.models.denoising.run import WarmStart, aggregate_steps, sampled_field, start_noise
from noise2map.models.denoising.training import training_loss
from noise2map.models.distributions.calibration import Calibration
from noise2map.models.encoder import ImageEncoder, check_quarter
from noise2map.models.initialization import Noise2MapPreTrainedModel
from noise2map.models.map_decoder import DecoderContext, MapDecoder
from noise2map.models.single_step import SingleStepDecoder
from noise2map.models.upsampling import ConvexUpsampling, Mix
from noise2map.runs.memory import release_freed_memory


class MapModel(FormulationHooks, SharedOnHub, Noise2MapPreTrainedModel):
    """Encoder, map decoder, sampling and training.

    A task is a subclass: its codec and head, the class attributes, and the hooks below (`check_labels`, `encode_labels`, `loss`,
    `auxiliary_loss`, `expected_signal`, `prediction_encoder`, `make_aggregator`, `make_output`), and those of `FormulationHooks`
    for the formulations that it supports.

    Attributes:
        task: name of the task, which says how its maps are scored, stored and drawn.
        default_uncertainty: kind that is returned as ``uncertainty`` where the configuration names none.
        objectives: values of ``config.objective`` that the task knows.
        uncertainty_kinds: values of ``config.uncertainty`` that it can have.
        encodes_maps: whether `prediction_encoder` takes maps; that of an export takes what its graph has encoded.
    """

    task: ClassVar[str]
    default_uncertainty: str
    objectives: ClassVar[tuple[str, ...]] = ("task", "l2")
    uncertainty_kinds: ClassVar[tuple[str, ...]] = NUMBER_UNCERTAINTIES
    encodes_maps: ClassVar[bool] = True
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
        decoder: MapDecoder | SingleStepDecoder | None = None,
    ) -> None:
        config.check()  # fields may have been set after the configuration was made, as from_pretrained does
        config.check_objective(self.task, self.objectives)
        config.check_uncertainty(self.task, self.uncertainty_kinds)
        if config.decoder_type != "denoising" and not isinstance(decoder, SingleStepDecoder):
            raise ValueError(f"decoder_type is {config.decoder_type!r}; expected 'denoising' for {self.task}")
        super().__init__(config)
        self.check_calibration(config.calibration)
        self.schedule = make_schedule(config.noise_schedule, config.min_inverse_snr)
        self.encoder = ImageEncoder(config) if encoder is None else encoder
        self.codec = codec
        self.decoder = MapDecoder(config, input_channels(config, codec.channels)) if decoder is None else decoder
        self.head = head
        self.upsampling = ConvexUpsampling(config.hidden_size) if config.upsampling == "convex" else None
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

    def enlarge(self, prediction: Tensor, mix: Mix) -> Tensor:
        """Prediction ``(N, K', h, w)`` -> ``(N, K', 4h, 4w)`` by convex upsampling; of class scores the logits are mixed.

        So are all class scores here when they are resized: at its start a convex model is the bilinear one.
        """
        return mix(prediction)

    def map_of(self, prediction: Tensor) -> Tensor:
        """The map in what the head gave, ``(..., K', h, w)`` -> ``(..., K, h, w)``, without parameters of its distribution."""
        return prediction

    def whole_prediction(self, out: Any) -> Tensor:
        """Map and parameters of an output ``(B, K', h, w)``, for `make_output`."""
        return out.prediction

    def prediction_to_average(self, out: Any) -> Tensor:
        """The same as the head gives it, for an aggregator; logarithms of probabilities are logits where classes exclude."""
        return self.whole_prediction(out)

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

    def check_calibration(self, value: dict[str, Any] | None) -> None:
        """Refuses a calibration that cannot be this model's.

        Raises:
            ValueError: naming what does not fit.
        """
        found = Calibration.read(value, self.calibrated_parts)
        if found is not None and isinstance(found.temperature, tuple):
            raise ValueError(f"calibration.temperature is {list(found.temperature)}; expected one number for {self.task}")

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
        features = self.encoder(pixel_values.to(self.dtype))
        check_quarter(features, pixel_values)
        return features

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
        sampling: str | None = None,
        output_samples: bool = False,
        field_smoothness: float | None = None,
        warm_start: WarmStart | None = None,
        refine: str | None = None,
        refine_share: float | None = None,
        refine_threshold: float | None = None,
        latent_noise: Callable[[int], Tensor] | None = None,
    ) -> Any:
        """Denoises a map, given features; steps, samples and averaging are three separate choices, by default the configuration's.

        Args:
            features: from `encode_image`, ``(B, C, h, w)``.
            num_inference_steps: decoder calls, or ``"auto"``: each image stops when fewer than ``config.auto_threshold`` of its
                pixels changed in a step of which `can_be_read` is true, after ``config.auto_max_steps`` at the latest.
            ensemble_size: noise samples R for each image.
            average: ``"last"`` step or mean over ``"steps"``; always over the samples.
            sampler: ``"ddim"``, ``"ddpm"`` or ``"dpmpp_2m"``.
            noise: start noise ``(B, R, C, h, w)``; drawn if not given.
            generator: one, or a list with one for each image, which makes a map independent of its batch.
            output_steps: also return the list of `Step`.
            step_noise: noise between the steps, ``(index, x_t) -> Tensor`` like ``x_t``; drawn if not given.
            sampling: ``"diffusion"``, ``"one_pass"`` or ``"field"``, see `DecodingOptions`.
            output_samples: also return the R single maps, ``samples`` ``(B, R, K, h, w)``.
            field_smoothness: of ``sampling="field"``, see `DecodingOptions`.
            warm_start: a known map from which the run begins instead of from noise alone.
            refine: ``"all"`` or ``"uncertain"``, see `DecodingOptions`.
            refine_share: of ``refine="uncertain"``.
            refine_threshold: likewise, in its place.
            latent_noise: noise channels of a call, ``index -> (B*R, n, h, w)``, for a model that has some; drawn if not given.

        Returns:
            `MapSegmenterOutput` or `MapDepthOutput` at the resolution of the features.

        Raises:
            ValueError: for an impossible option, or features or noise of another shape.
        """
        options = DecodingOptions(
            num_inference_steps=num_inference_steps, ensemble_size=ensemble_size, average=average, sampler=sampler,
            sampling=sampling, field_smoothness=field_smoothness, refine=refine, refine_share=refine_share,
            refine_threshold=refine_threshold,
        ).resolved(self.config)  # fmt: skip
        field = options if options.sampling == "field" else None
        if field is not None:
            if field.num_inference_steps != 1 and not self.encodes_maps:
                raise ValueError(f"num_inference_steps is {field.num_inference_steps}; expected 1: an export encodes no drawn maps")
            options = replace(options, num_inference_steps=1, ensemble_size=1, average="last")  # the marginals as they are
        generators = generator_list(generator, len(features))
        x_T = start_noise(self, features, options.ensemble_size, noise, generators)
        aggregator = self.make_aggregator(len(features), options.ensemble_size, options.average)
        steps = aggregate_steps(
            self, aggregator, features, x_T, options, generators, step_noise, latent_noise, warm_start, keep=output_steps
        )
        prediction, kinds = aggregator.result()
        samples = self.map_of(aggregator.last) if output_samples else None
        if field is not None:
            samples = sampled_field(self, features, prediction, field, generators)
        if (calibration := self.calibration) is not None:
            prediction, kinds = self.calibrate(prediction, kinds, calibration, options.average == "steps")
        return self.make_output(
            prediction,
            log_probabilities=options.average == "steps",
            uncertainty=kinds.get(self.config.uncertainty or self.default_uncertainty),
            uncertainties=kinds,
            num_steps=aggregator.num_steps.to(features.device) + (0 if field is None else field.num_inference_steps - 1),
            steps=steps if output_steps else None,
            samples=samples,
            calibration=calibration,
        )

    def denoiser(
        self, features: Tensor, pairs: Sequence[tuple[float, float]], ensemble_size: int = 1, active: Tensor | None = None
    ) -> Denoiser:
        """Denoiser for a sampler, ``(x_t, t) -> (x0, prediction)``; see `Denoiser` for the arguments."""
        return Denoiser(self, features, pairs, ensemble_size, active)

    def time_input(self, t: Tensor) -> Tensor:
        """What the time embedding is told of times ``(T,)``."""
        return self.schedule.log_snr(t) if self.config.time_input == "log_snr" else t

    def predict_with(
        self,
        context: DecoderContext,
        x_t: Tensor,
        t: Tensor,
        modulations: Tensor,
        latent: Tensor | None = None,
        keep_parameters: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """`predict_both` with known modulations ``(N, L, 2 C)`` or ``(1, L, 2 C)``; a sample's parameters go unless kept."""
        tokens = self.decoder(context, decoder_input(self, x_t, t, latent), modulations)
        return read_tokens(self, tokens, context.size, x_t, t, latent is not None and not keep_parameters)

    # ---- training ------------------------------------------------------------------------------------------------------

    def predict_both(self, context: DecoderContext, x_t: Tensor, t: Tensor, latent: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One decoder call, see `predict_at`: the prediction of the cells, and that of the map (the same without upsampling)."""
        modulations = self.decoder.modulations(self.time_input(t).to(x_t.device))
        return self.predict_with(context, x_t, t.float().cpu(), modulations, latent)

    def predict_at(self, context: DecoderContext, x_t: Tensor, t: Tensor, latent: Tensor | None = None) -> Tensor:
        """One decoder call.

        Args:
            context: from ``decoder.prepare(features)``.
            x_t: noisy maps ``(N, C, h, w)``, N = B or a multiple of it, the samples of an image next to each other.
            t: their times ``(N,)``, in [0, 1].
            latent: noise channels ``(N, config.noise_channels, h, w)``; zeros if not given.

        Returns:
            Predictions ``(N, K, h, w)``: logits, metres, or whatever the head gives; ``(N, K, 4h, 4w)`` with convex upsampling.
        """
        return self.predict_both(context, x_t, t, latent)[1]

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
        sampling: str | None = None,
        output_samples: bool = False,
        features: Tensor | None = None,
        refine: str | None = None,
        refine_share: float | None = None,
        refine_threshold: float | None = None,
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
            sampling: ``"diffusion"``, ``"one_pass"`` or ``"field"``, see `DecodingOptions`.
            output_samples: also return the R single maps, ``samples`` ``(B, R, K, H, W)``.
            features: what `encode_image` gave for the images, where it is known; they are not encoded again.
            refine: ``"all"`` or ``"uncertain"``, see `DecodingOptions`; likewise the next two.
            refine_share: of ``refine="uncertain"``.
            refine_threshold: in its place.
            **kwargs: keywords that transformers passes to every model; without effect here.

        Returns:
            `MapSegmenterOutput` or `MapDepthOutput`.

        Raises:
            ValueError: for labels, noise or options that cannot work, keywords that do not exist, or if uncertainty is asked of a
                run that has none.
        """
        check_keywords(self, kwargs)
        if labels is not None:
            self.check_labels(labels, pixel_values)
        dials: dict[str, Any] = {
            "num_inference_steps": num_inference_steps, "ensemble_size": ensemble_size, "average": average, "sampler": sampler,
            "sampling": sampling, "refine": refine, "refine_share": refine_share, "refine_threshold": refine_threshold,
        }  # fmt: skip
        if labels is None:
            DecodingOptions(**dials).resolved(self.config)  # before the encoder runs for nothing
        if features is not None:
            check_features(features, pixel_values)
        features = self.encode_image(pixel_values) if features is None else features
        if labels is not None:
            return self._train_on(features, labels, noise, timesteps, generator)
        further: dict[str, Any] = {"noise": noise, "output_steps": output_steps, "output_samples": output_samples}
        out = self.decode_map(features, generator=generator, **dials, **further)
        if output_uncertainty:
            self._require_uncertainty(out)
        return self.at_pixels(out, pixel_values.shape[-2:])

    def _train_on(
        self, features: Tensor, labels: Tensor, noise: Tensor | None, timesteps: Tensor | None, generator: Generators
    ) -> Any:
        loss, prediction = training_loss(self, features, labels, noise, timesteps, generator)
        return self.make_output(prediction.detach(), loss=loss)

    def _require_uncertainty(self, out: Any) -> None:
        if out.uncertainty is None:
            kind = self.config.uncertainty or self.default_uncertainty
            raise ValueError(
                f"uncertainty {kind!r} is not defined for one step of one sample; expected num_inference_steps or "
                f"ensemble_size above 1 (defined here: {sorted(out.uncertainties) or 'none'})"
            )

    def at_pixels(self, out: Any, size: tuple[int, int]) -> Any:
        """What `decode_map` returned, with map, samples and uncertainties resized to a height and width."""
        if out.prediction.device.type == "cpu":  # all classes at full size are the largest tensor of a run
            release_freed_memory(4 * out.prediction[:, :, 0, 0].numel() * size[0] * size[1])
        fields = {"num_steps": out.num_steps, "steps": out.steps, "calibration": out.calibration}
        if out.samples is not None:
            fields["samples"] = unfold(self.make_output(fold(out.samples), size).prediction, out.samples.shape[1])
        kinds = {"uncertainty": out.uncertainty, "uncertainties": out.uncertainties}
        large = self.make_output(self.whole_prediction(out), size, out.log_probabilities, **fields, **kinds)
        kinds = large.uncertainties_at(size)  # what follows from the map is read from the map that is large already
        uncertainty = None if out.uncertainty is None else kinds[self.config.uncertainty or self.default_uncertainty]
        fields |= {"uncertainty": uncertainty, "uncertainties": kinds}
        return self.make_output(self.whole_prediction(large), None, out.log_probabilities, **fields)
