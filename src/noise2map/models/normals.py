"""Surface normals: head, losses, aggregation, output and model."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.utils import ModelOutput

from noise2map.codecs.normals import NormalsCodec, check_normals, unit_vectors
from noise2map.diffusion.sampling import Step
from noise2map.models.aggregation import Aggregator, RunningMoments
from noise2map.models.checks import check_label_shape
from noise2map.models.configuration import Noise2MapConfig
from noise2map.models.denoising.refinement import neighbour_range
from noise2map.models.distributions import bounded_exp
from noise2map.models.distributions.angular import AngularDistribution, concentration_of, expected_angle, resultant_length
from noise2map.models.distributions.calibration import Calibration, check_level
from noise2map.models.map_model import MapModel
from noise2map.models.resizing import UncertainMaps, resize_map
from noise2map.models.upsampling import Mix

# Two directions count as different when they are more than this apart.
FLIP_DEGREES = 5.0


# Bounds of the log of the inverse concentration: expected angles of 0.2 degrees, what 8 bits of a label can tell, and 89, nothing.
_LOG_SPREADS = (-6.3, 4.0)


class NormalsHead(nn.Module):
    """A 3x3 regressor of unit vectors, and with the objective ``"angular"`` of the inverse of their concentration."""

    def __init__(self, config: Noise2MapConfig) -> None:
        super().__init__()
        self.regressor = nn.Conv2d(config.hidden_size, 4 if config.objective == "angular" else 3, 3, padding=1)
        self.config = config  # its temperature may be set later

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens ``(N, h*w, C)`` -> unit vectors ``(N, 3, h, w)``, float32 or better; or ``(N, 4, h, w)`` with the spread."""
        z = self.regressor(tokens.transpose(1, 2).unflatten(2, size))
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        directions = unit_vectors(z[:, :3])
        if z.shape[1] == 3:
            return directions
        return torch.cat([directions, bounded_exp(z[:, 3:], *_LOG_SPREADS) * self.config.temperature], dim=1)


def normals_loss(prediction: Tensor, labels: Tensor) -> Tensor:
    """Mean of one minus the cosine of the angle between prediction and truth.

    Args:
        prediction: vectors ``(B, 3, h, w)``, resized bilinearly to the labels.
        labels: unit vectors ``(B, 3, H, W)``, zero where unknown.

    Returns:
        Scalar, 0 to 2; zero (with a graph) if nothing is known.
    """
    known = labels.norm(dim=1) > 0.5
    cosine = (unit_vectors(resize_map(prediction.float(), tuple(labels.shape[-2:]))) * labels).sum(1)
    return ((1 - cosine) * known).sum() / known.sum().clamp(min=1)


def angular_loss(prediction: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood of all known directions, in nats.

    Args:
        prediction: parameters ``(B, 4, h, w)``, see `AngularDistribution.from_prediction`, resized bilinearly to the labels.
        labels: unit vectors ``(B, 3, H, W)``, zero where unknown.

    Returns:
        Scalar; zero (with a graph) if nothing is known.
    """
    known = labels.norm(dim=1) > 0.5
    whole = AngularDistribution.from_prediction(resize_map(prediction.float(), (labels.shape[-2], labels.shape[-1])))
    return (whole.negative_log_likelihood(labels.float()) * known).sum() / known.sum().clamp(min=1)


def reduce_normals(normals: Tensor, size: tuple[int, int]) -> Tensor:
    """Normals ``(B, 3, H, W)`` at a lower resolution ``(B, 3, h, w)``: the mean direction of a cell's known pixels."""
    return unit_vectors(functional.interpolate(normals, size=size, mode="area"))


class NormalsAggregator(Aggregator):
    """Unit vectors; the mean over samples (and steps) is one of directions.

    With a predicted spread several samples (or steps) are a mixture, and the result has the concentration of the distribution whose
    mean vector is as long as the mixture's.
    """

    def __init__(self, batch_size: int, ensemble_size: int, average: str) -> None:
        super().__init__(batch_size, ensemble_size, average)
        self._means, self._resultants = RunningMoments(), RunningMoments()

    def _flips(self, before: Tensor, after: Tensor) -> Tensor:
        return (before * after)[:, :, :3].sum(2) < math.cos(math.radians(FLIP_DEGREES))

    def _accumulate(self, value: Tensor, rows: Tensor) -> None:
        if self.average == "last" and self.ensemble_size > 1:
            return  # the members are the last step's samples
        self._means.add(value[:, :, :3], rows)
        if self.average == "steps":
            self._add_resultants(value, rows)

    def _add_resultants(self, value: Tensor, rows: Tensor) -> None:
        if value.shape[2] > 3:
            self._resultants.add(value[:, :, :3] * resultant_length(1 / value[:, :, 3:]), rows)

    def result(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Unit vectors ``(B, 3, h, w)``; step-flip (turns of more than 5 degrees) and the spherical variance.

        The latter, one minus the length of the mean vector, is 0 where all agree and 1 where they cancel out. With a predicted
        spread the map has a further channel, and there is a further kind, see `scale_as_uncertainty`.
        """
        assert self.last is not None
        members, everyone = self.last[:, :, :3], torch.ones(self.last.shape[0], dtype=torch.bool, device=self.last.device)
        if self.average == "last":
            self._add_resultants(self.last, everyone)
            if self.ensemble_size > 1:
                self._means.add(members, everyone)
        kinds = self._step_flip()
        several = self.ensemble_size > 1 or int(self.num_steps.max()) > 1
        if several:
            kinds["sample_variance"] = _one_minus_length(self._means)
        normals = unit_vectors(self._means.mean if self.average == "steps" else members.mean(1))
        if self.last.shape[2] == 3:
            return normals, kinds
        if self.ensemble_size == 1 and (self.average == "last" or not several):
            spread = self.last[:, 0, 3:]
        else:
            spread = 1 / concentration_of(self._resultants.mean.norm(dim=1, keepdim=True))
        kinds["scale"] = scale_as_uncertainty(scale_degrees(spread[:, 0]))
        return torch.cat([normals, spread], dim=1), kinds


def _one_minus_length(moments: RunningMoments) -> Tensor:
    """One minus the length of the mean of unit vectors, by way of their variance, which the two add up to one with.

    ``1 - |m| = (1 - |m|²) / (1 + |m|)``, and ``1 - |m|²`` is the variance: no difference of nearly equal numbers.
    """
    return (moments.variance.sum(1) / (1 + moments.mean.norm(dim=1))).clamp(0, 1)


def scale_degrees(spread: Tensor) -> Tensor:
    """Expected angle in degrees between truth and prediction, of inverse concentrations of any shape."""
    return torch.rad2deg(expected_angle(1 / spread))


def calibrated_spread(prediction: Tensor, calibration: Calibration) -> Tensor:
    """Directions and spread ``(B, K', ...)``, calibrated; where no spread is stated, with the calibration's, if it has one."""
    if prediction.shape[1] == 3 and calibration.scale is None:
        return prediction
    spread = prediction[:, 3:] if prediction.shape[1] > 3 else prediction[:, :1]
    return torch.cat([prediction[:, :3], calibration.scales(spread)], 1)


def scale_as_uncertainty(degrees: Tensor) -> Tensor:
    """In [0, 1] and rising with the expected angle: 0 is certain, and 1 is 90 degrees, that of any direction at all."""
    return (degrees / 90).clamp(0, 1)


@dataclass
class MapNormalsOutput(UncertainMaps, ModelOutput):
    """Surface normals.

    Attributes:
        loss: training loss, if labels were given.
        predicted_scale: expected angle between truth and prediction, degrees ``(B, h, w)``; `None` where the model predicts none.
        spread: inverse of the concentration ``(B, h, w)``, radians; `None` where the model predicts none.
        predicted_normals: unit vectors ``(B, 3, h, w)``: x to the right, y up, z towards the viewer, as in diffusers'
            ``MarigoldNormalsPipeline``.
        uncertainty: the configured kind, ``(B, h, w)`` in [0, 1]; `None` where it is not defined.
        uncertainties: every kind that is defined for the run, by name.
        num_steps: decoder calls that each image took, ``(B,)``.
        steps: the run's `Step` objects, if asked for.
        calibration: what the spread was corrected by, and `cone` is.
    """

    loss: Tensor | None = None
    predicted_normals: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    uncertainty: Tensor | None = None
    uncertainties: dict[str, Tensor] | None = None
    num_steps: Tensor | None = None
    steps: list[Step] | None = field(default=None, repr=False)
    log_probabilities: bool | None = None
    samples: Tensor | None = None
    predicted_scale: Tensor | None = None
    spread: Tensor | None = None
    calibration: Calibration | None = field(default=None, repr=False)

    @property
    def prediction(self) -> Tensor:
        """The map as ``(B, K, h, w)``, whatever the task."""
        assert self.predicted_normals is not None
        return self.predicted_normals

    def uncertainties_at(
        self, *sizes: tuple[int, int], rows: Sequence[int] | None = None, kinds: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """See `UncertainMaps.uncertainties_at`; the kind ``scale`` is that of the resized spread."""
        found = super().uncertainties_at(*sizes, rows=rows, kinds=kinds)
        if "scale" in found and self.spread is not None:
            found["scale"] = scale_as_uncertainty(scale_degrees(self._resized(self.spread, sizes, rows)))
        return found

    def stated_level(self, level: float) -> float:
        """Level at which the stated distribution's cone holds ``level`` of the truths, see `Calibration.stated_level`."""
        return level if self.calibration is None else self.calibration.stated_level(level)

    def cone(self, level: float) -> Tensor:
        """Angle from the prediction, degrees ``(B, h, w)``, within which the truth lies with a probability.

        Args:
            level: the probability, between 0 and 1.

        Raises:
            ValueError: if the level is impossible, or the model predicts no scale (``objective`` is not ``"angular"``) and is not
                calibrated.
        """
        check_level(level)
        if self.spread is None:
            raise ValueError("the output has no predicted_scale; expected that of a model with objective 'angular', or calibrated")
        return AngularDistribution(self.prediction, 1 / self.spread).cone(self.stated_level(level))


class Noise2MapForNormalEstimation(MapModel):
    """DDP for surface normals: unit vectors by denoising scaled ones."""

    task = "normals"
    default_uncertainty = "sample_variance"
    objectives = ("task", "l2", "angular")
    calibrated_parts = ("scale", "radii")

    def __init__(self, config: Noise2MapConfig) -> None:
        """Builds the model with fresh weights.

        Raises:
            ValueError: if the configuration has an impossible value.
        """
        super().__init__(config, NormalsCodec(config.map_scale), NormalsHead(config))
        if config.objective == "angular":
            self.default_uncertainty = "scale"
        self.post_init()

    def check_labels(self, labels: Tensor, pixel_values: Tensor) -> None:
        """See `MapModel.check_labels`."""
        check_label_shape(labels, pixel_values, 3)
        check_normals(labels)

    def encode_labels(self, labels: Tensor, size: tuple[int, int]) -> Tensor:
        """See `MapModel.encode_labels`."""
        return self.codec.encode(reduce_normals(labels, size))

    def expected_signal(self, prediction: Tensor) -> Tensor:
        """See `MapModel.expected_signal`."""
        return self.codec.encode_prediction(prediction)

    def loss(self, prediction: Tensor, labels: Tensor) -> Tensor:
        """See `MapModel.loss`."""
        return angular_loss(prediction, labels) if self.config.objective == "angular" else normals_loss(prediction, labels)

    def prediction_encoder(self) -> Callable[[Tensor], Tensor]:
        """See `MapModel.prediction_encoder`; of a distribution the mean direction is fed back."""
        return lambda prediction: self.codec.encode_prediction(self.map_of(prediction))

    def enlarge(self, prediction: Tensor, mix: Mix) -> Tensor:
        """See `MapModel.enlarge`; means of directions, of length one again, and of the logarithms of spreads."""
        normals = unit_vectors(mix(prediction[:, :3]))
        return normals if prediction.shape[1] == 3 else torch.cat([normals, mix(prediction[:, 3:].log()).exp()], dim=1)

    def map_of(self, prediction: Tensor) -> Tensor:
        """See `MapModel.map_of`."""
        return prediction[..., :3, :, :]

    def whole_prediction(self, out: MapNormalsOutput) -> Tensor:
        """See `MapModel.whole_prediction`."""
        return out.prediction if out.spread is None else torch.cat([out.prediction, out.spread[:, None]], dim=1)

    def cell_uncertainty(self, prediction: Tensor) -> Tensor:
        """See `MapModel.cell_uncertainty`; the predicted spread, or else how much directions differ around a cell."""
        return prediction[:, 3] if prediction.shape[1] > 3 else neighbour_range(prediction)

    def draw_samples(
        self, prediction: Tensor, count: int, smoothness: float, generators: Sequence[torch.Generator | None]
    ) -> Tensor:
        """See `MapModel.draw_samples`."""
        if prediction.shape[1] < 4:
            return super().draw_samples(prediction, count, smoothness, generators)
        return AngularDistribution.from_prediction(prediction).sample(count, smoothness, generators)

    def make_aggregator(self, batch_size: int, ensemble_size: int, average: str) -> Aggregator:
        """See `MapModel.make_aggregator`."""
        return NormalsAggregator(batch_size, ensemble_size, average)

    def calibrate(
        self, prediction: Tensor, kinds: dict[str, Tensor], calibration: Calibration, log_probabilities: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `MapModel.calibrate`; without a predicted spread the calibration's own holds everywhere."""
        whole = calibrated_spread(prediction, calibration)
        return whole, kinds | {"scale": scale_as_uncertainty(scale_degrees(whole[:, 3]))} if "scale" in kinds else kinds

    def make_output(
        self, prediction: Tensor, size: tuple[int, int] | None = None, log_probabilities: bool | None = None, **fields: Any
    ) -> MapNormalsOutput:
        """See `MapModel.make_output`."""
        if size is not None:
            prediction = resize_map(prediction, size)
        normals = prediction[:, :3] if size is None else unit_vectors(prediction[:, :3])
        if prediction.shape[1] > 3:
            fields |= {"spread": prediction[:, 3], "predicted_scale": scale_degrees(prediction[:, 3])}
        return MapNormalsOutput(predicted_normals=normals, **fields)
