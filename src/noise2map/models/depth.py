"""Depth maps: head, losses, aggregation, output and model."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import DepthEstimatorOutput

from noise2map.codecs import DepthCodec, check_depth
from noise2map.diffusion.fields import draw_laplace
from noise2map.diffusion.sampling import Step
from noise2map.diffusion.scoring_rules import map_crps
from noise2map.models.aggregation import Aggregator, RunningMoments
from noise2map.models.checks import check_label_shape
from noise2map.models.configuration import Noise2MapConfig
from noise2map.models.denoising.refinement import neighbour_range
from noise2map.models.distributions import bounded_exp
from noise2map.models.distributions.calibration import Calibration, check_level
from noise2map.models.distributions.laplace import LogLaplace
from noise2map.models.map_model import MapModel
from noise2map.models.resizing import UncertainMaps, resize_map
from noise2map.models.upsampling import Mix


def sigloss(depth_m: Tensor, labels_m: Tensor, valid: Tensor | None = None) -> Tensor:
    """Scale-invariant log loss ``sqrt(var(g) + 0.15 mean(g)²)``, ``g`` the log ratio of all valid pixels (Eigen 2014).

    Args:
        depth_m: predicted metres ``(B, 1, h, w)``, resized bilinearly to the labels.
        labels_m: metres ``(B, H, W)``, 0 where invalid.
        valid: boolean mask ``(B, H, W)``; default ``labels_m > 0``.

    Returns:
        Scalar; zero (with a graph) if fewer than two pixels are valid.
    """
    depth_m = functional.interpolate(depth_m.float(), size=labels_m.shape[-2:], mode="bilinear", align_corners=False).squeeze(1)
    valid = labels_m > 0 if valid is None else valid
    ratio = torch.log(depth_m[valid] + 1e-3) - torch.log(labels_m[valid] + 1e-3)
    if ratio.numel() < 2:
        return depth_m.sum() * 0
    return torch.sqrt(ratio.var() + 0.15 * ratio.mean() ** 2)


def reduce_depth(depth_m: Tensor, valid: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Depth at a lower resolution, each cell the mean of its valid pixels alone.

    Args:
        depth_m: metres ``(B, H, W)``; what invalid pixels hold does not matter.
        valid: boolean mask ``(B, H, W)``.
        size: ``(h, w)``.

    Returns:
        Metres ``(B, h, w)`` and the mask of cells with at least one valid pixel.
    """
    weight = valid.to(depth_m.dtype).unsqueeze(1)
    known = torch.where(valid, depth_m, torch.zeros_like(depth_m)).unsqueeze(1)
    share = functional.interpolate(weight, size=size, mode="area")
    mean = functional.interpolate(known, size=size, mode="area") / share.clamp(min=torch.finfo(share.dtype).tiny)
    any_valid = share > 0
    return torch.where(any_valid, mean, torch.zeros_like(mean)).squeeze(1), any_valid.squeeze(1)


def laplace_loss(prediction: Tensor, labels_m: Tensor) -> Tensor:
    """Mean negative log-likelihood of log depth over all valid pixels, in nats.

    Args:
        prediction: parameters ``(B, K', h, w)``, see `LogLaplace.from_prediction`, resized bilinearly to the labels.
        labels_m: metres ``(B, H, W)``, 0 where invalid.

    Returns:
        Scalar; zero (with a graph) if nothing is valid.
    """
    valid = labels_m > 0
    whole = LogLaplace.from_prediction(resize_map(prediction.float(), (labels_m.shape[-2], labels_m.shape[-1])))
    nats = whole.negative_log_likelihood(torch.where(valid, labels_m, 1).to(prediction.dtype))
    return (nats * valid).sum() / valid.sum().clamp(min=1)


# How far apart two pixels are whose difference is compared: all starting points, so that each place within a cell counts.
_STRIDES = (1, 2, 4)


def gradient_loss(depth_m: Tensor, labels_m: Tensor) -> Tensor:
    """Mean absolute error of differences of log depth between pixels 1, 2 and 4 apart, over rows and columns.

    Multi-scale gradient matching (Li & Snavely 2018, "MegaDepth", eq. 5; Ranftl et al. 2020, "MiDaS", eq. 11), at full resolution
    in place of subsampled maps: a likelihood of single pixels does not see whether the slope of a wall jumps between them.

    Args:
        depth_m: predicted metres ``(B, 1, h, w)``, positive, resized bilinearly to the labels.
        labels_m: metres ``(B, H, W)``, 0 where invalid; only pairs with two valid ends count.

    Returns:
        Scalar, the mean over distances of the sum over directions; zero (with a graph) if no pair is valid.
    """
    depth_m = resize_map(depth_m.float(), (labels_m.shape[-2], labels_m.shape[-1])).squeeze(1)
    valid = labels_m > 0
    ratio = torch.where(valid, depth_m.log() - torch.where(valid, labels_m, 1).log(), 0)
    total = depth_m.new_zeros(())
    for down, right in ((stride * (1 - along), stride * along) for stride in _STRIDES for along in (0, 1)):
        both = valid[:, down:, right:] & valid[:, : -down or None, : -right or None]
        error = (ratio[:, down:, right:] - ratio[:, : -down or None, : -right or None]).abs() * both
        total = total + error.sum() / both.sum().clamp(min=1)
    return total / len(_STRIDES)


# Components of the distribution that the head predicts.
_COMPONENTS = {"laplace": 1, "laplace_mixture": 2, "crps": 1}
# Bounds of the log scale. The least, 0.1 %, is what millimetres of a label can tell; the greatest is beyond that of depths spread
# evenly over any range (a quarter of its logarithm's width), so neither holds a model back.
_LOG_SCALES = (-7.0, 2.0)


class DepthHead(nn.Module):
    """A 3x3 regressor: metres, and with the objective ``"laplace"`` (``"laplace_mixture"``) the scale (weights) of log depth.

    Linear representation: ``relu(z) + min_depth`` (published; unbounded above). Logarithmic: ``sqrt(min max) exp(z)``, kept within
    twice the range on either side so that the exponential cannot overflow.
    """

    def __init__(self, config: Noise2MapConfig) -> None:
        super().__init__()
        self.components = _COMPONENTS.get(config.objective, 0)
        channels = {0: 1, 1: 2}.get(self.components, 3 * self.components)  # a single component has no weight
        self.regressor = nn.Conv2d(config.hidden_size, channels, 3, padding=1)
        self.representation = config.depth_representation
        self.min_depth, self.max_depth = float(config.min_depth), float(config.max_depth)
        self.config = config  # its temperature may be set later

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens ``(N, h*w, C)`` -> depth in metres ``(N, 1, h, w)``, float32 or better; with a scale, `LogLaplace.channels`."""
        z = self.regressor(tokens.transpose(1, 2).unflatten(2, size))
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        count = self.components
        if not count:
            return self._metres(z)
        medians, scales = self._metres(z[:, :count]), bounded_exp(z[:, count : 2 * count], *_LOG_SCALES) * self.config.temperature
        weights = z[:, 2 * count :].softmax(1) if count > 1 else torch.ones_like(medians)
        return LogLaplace(weights, medians, scales).channels()

    def _metres(self, z: Tensor) -> Tensor:
        if self.representation == "linear":
            return z.relu() + self.min_depth
        middle = 0.5 * (math.log(self.min_depth) + math.log(self.max_depth))
        reach = middle - math.log(self.min_depth) + math.log(2.0)
        return (middle + z.clamp(-reach, reach)).exp()


@dataclass
class MapDepthOutput(UncertainMaps, DepthEstimatorOutput):
    """Depth output: ``predicted_depth`` in metres ``(B, h, w)``; the rest as in `MapSegmenterOutput`.

    Attributes:
        predicted_scale: Laplace scale of log depth ``(B, h, w)``, in units of ratios: half of all truths are expected within a
            factor ``2^scale`` of the prediction; `None` where the model predicts none.
        mixture: weights, medians (metres) and scales of the components ``(B, 6, h, w)``; `None` where there is but one, or where
            several samples or steps were averaged.
        calibration: what the scale was corrected by, and `interval` is.
    """

    uncertainty: Tensor | None = None
    uncertainties: dict[str, Tensor] | None = None
    num_steps: Tensor | None = None
    steps: list[Step] | None = field(default=None, repr=False)
    log_probabilities: bool | None = None
    predicted_scale: Tensor | None = None
    mixture: Tensor | None = None
    samples: Tensor | None = None
    calibration: Calibration | None = field(default=None, repr=False)

    @property
    def prediction(self) -> Tensor:
        """The map as ``(B, K, h, w)``, whatever the task."""
        return self.predicted_depth.unsqueeze(1)

    def stated_level(self, level: float) -> float:
        """Level at which the stated distribution's interval holds ``level`` of the truths, see `Calibration.stated_level`."""
        return level if self.calibration is None else self.calibration.stated_level(level)

    def uncertainties_at(
        self, *sizes: tuple[int, int], rows: Sequence[int] | None = None, kinds: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """See `UncertainMaps.uncertainties_at`; the kind ``scale`` is that of the resized scale."""
        found = super().uncertainties_at(*sizes, rows=rows, kinds=kinds)
        if "scale" in found and self.predicted_scale is not None:
            found["scale"] = scale_as_uncertainty(self._resized(self.predicted_scale, sizes, rows))
        return found

    def interval(self, level: float) -> tuple[Tensor, Tensor]:
        """Central prediction interval of every pixel's depth.

        Args:
            level: probability that the truth lies within, between 0 and 1.

        Returns:
            Nearest and farthest depth, metres ``(B, h, w)``.

        Raises:
            ValueError: if the level is impossible, or the model predicts no scale (``objective`` is not ``"laplace"``) and is not
                calibrated.
        """
        check_level(level)
        if self.predicted_scale is None:
            raise ValueError("the output has no predicted_scale; expected that of a model with objective 'laplace', or calibrated")
        return LogLaplace.from_prediction(with_scale(self)).interval(self.stated_level(level))


def with_scale(out: MapDepthOutput) -> Tensor:
    """Depth, and where the model predicts them scale and components, ``(B, K', h, w)``, as `LogLaplace.channels` lays them out."""
    parts = [out.predicted_depth[:, None]]
    if out.predicted_scale is not None:
        parts.append(out.predicted_scale[:, None])
    return torch.cat(parts if out.mixture is None else [*parts, out.mixture], dim=1)


def calibrated_scale(prediction: Tensor, calibration: Calibration) -> Tensor:
    """Depth, scale and components ``(B, K', ...)`` with calibrated scales; a constant one is added to depth alone, if there is one.

    A constant scale replaces a mixture by one component.
    """
    if prediction.shape[1] == 1 and calibration.scale is None:
        return prediction
    depth_m, scales = prediction[:, :1], prediction[:, 1:2] if prediction.shape[1] > 1 else prediction[:, :1]
    whole = torch.cat([depth_m, calibration.scales(scales)], 1)
    if prediction.shape[1] < 3 or calibration.scale is not None:
        return whole
    weights, medians_m, scales = prediction[:, 2:].chunk(3, dim=1)
    return torch.cat([whole, weights, medians_m, calibration.scales(scales)], 1)


def scale_as_uncertainty(scale: Tensor) -> Tensor:
    """``1 - exp(-b)``, in [0, 1) and rising with the scale ``b``: by what share the depth is less at one scale below the median."""
    return -torch.expm1(-scale)


class DepthAggregator(Aggregator):
    """Depth maps in metres; the spread is relative to the depth.

    Two depths count as different when they are more than a fraction apart, ``flip_tolerance``. A predicted scale of several samples
    (or steps) is that of a Laplace distribution with the variance of their mixture, by the law of total variance: the mean of each
    one's ``2 b²`` plus the variance of their log depths. Samples that come without a scale give one by their variance alone where
    they are made to be draws from the truth's distribution (``spread_is_scale``, objective ``"crps"``).
    """

    def __init__(
        self, batch_size: int, ensemble_size: int, average: str, flip_tolerance: float = 0.05, spread_is_scale: bool = False
    ) -> None:
        super().__init__(batch_size, ensemble_size, average)
        self.flip_tolerance, self.spread_is_scale = flip_tolerance, spread_is_scale
        self._depth, self._log, self._within = RunningMoments(), RunningMoments(), RunningMoments()

    def _flips(self, before: Tensor, after: Tensor) -> Tensor:
        ratio = after[:, :, 0] / before[:, :, 0]
        return (ratio > 1 + self.flip_tolerance) | (ratio < 1 / (1 + self.flip_tolerance))

    def _accumulate(self, value: Tensor, rows: Tensor) -> None:
        if self.average == "last" and self.ensemble_size > 1:
            return  # the members are the last step's samples
        self._depth.add(value[:, :, :1], rows)
        if self.average == "steps":
            self._add_scales(value, rows)

    def _add_scales(self, value: Tensor, rows: Tensor) -> None:
        if value.shape[2] > 1 or self.spread_is_scale:
            self._log.add(value[:, :, :1].log(), rows)
            self._within.add(2 * (value[:, :, 1:2] if value.shape[2] > 1 else torch.zeros_like(value)).square(), rows)

    def result(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Metres ``(B, 1, h, w)``; step-flip (changes beyond the tolerance) and the relative standard deviation, clamped to 1.

        With a predicted scale the map has further channels, see `with_scale`, and there is a further kind, see
        `scale_as_uncertainty`.
        """
        assert self.last is not None
        everyone = torch.ones(self.last.shape[0], dtype=torch.bool, device=self.last.device)
        if self.average == "last":
            self._add_scales(self.last, everyone)
            if self.ensemble_size > 1:
                self._depth.add(self.last[:, :, :1], everyone)
        depth_m = self._depth.mean if self.average == "steps" else self.last[:, :, :1].mean(1)
        kinds = self._step_flip()
        several = self.ensemble_size > 1 or int(self.num_steps.max()) > 1
        if several:
            spread = self._depth.variance.sqrt() / self._depth.mean
            kinds["sample_variance"] = spread.squeeze(1).clamp(max=1)
        if self.last.shape[2] == 1 and not (self.spread_is_scale and self.ensemble_size > 1):
            return depth_m, kinds
        if self.ensemble_size == 1 and (self.average == "last" or not several):
            whole = self.last[:, 0]
        else:
            whole = torch.cat([depth_m, (0.5 * (self._within.mean + self._log.variance)).sqrt()], dim=1)
        return whole, {**kinds, "scale": scale_as_uncertainty(whole[:, 1])}


class Noise2MapForDepthEstimation(MapModel):
    """DDP for depth estimation: metres by denoising normalised depth."""

    task = "depth"
    default_uncertainty = "sample_variance"
    objectives = ("task", "l2", *_COMPONENTS)
    calibrated_parts = ("scale", "radii")

    def __init__(self, config: Noise2MapConfig) -> None:
        """Builds the model with fresh weights.

        Raises:
            ValueError: if the configuration has an impossible value.
        """
        farthest = config.max_depth if config.sample_max_depth is None else config.sample_max_depth
        codec = DepthCodec(config.min_depth, farthest, config.map_scale, config.depth_representation)
        super().__init__(config, codec, DepthHead(config))
        if config.objective in _COMPONENTS:
            self.default_uncertainty = "scale"
        self.post_init()

    def check_labels(self, labels: Tensor, pixel_values: Tensor) -> None:
        """See `MapModel.check_labels`."""
        check_label_shape(labels, pixel_values)
        check_depth(labels, labels != 0)

    def encode_labels(self, labels: Tensor, size: tuple[int, int]) -> Tensor:
        """See `MapModel.encode_labels`."""
        if self.config.depth_noising == "bilinear":
            small = resize_map(labels.unsqueeze(1), size)
            return self.codec.normalise(small) * self.codec.scale
        return self.codec.encode(*reduce_depth(labels, labels > 0, size))

    def expected_signal(self, prediction: Tensor) -> Tensor:
        """See `MapModel.expected_signal`."""
        return self.codec.normalise(prediction) * self.codec.scale

    def loss(self, prediction: Tensor, labels: Tensor) -> Tensor:
        """See `MapModel.loss`."""
        loss = laplace_loss(prediction, labels) if self.config.objective in _COMPONENTS else sigloss(prediction, labels)
        weight = self.config.gradient_weight
        return loss + weight * gradient_loss(prediction[:, :1], labels) if weight else loss

    def prediction_encoder(self) -> Callable[[Tensor], Tensor]:
        """See `MapModel.prediction_encoder`; of a distribution the median is fed back."""
        return lambda prediction: self.codec.encode_prediction(self.map_of(prediction))

    def enlarge(self, prediction: Tensor, mix: Mix) -> Tensor:
        """See `MapModel.enlarge`; depths and scales are mixed as logarithms, weights of a mixture as they are."""
        if prediction.shape[1] == 1:
            return mix(prediction.log()).exp()
        cells = LogLaplace.from_prediction(prediction)
        return LogLaplace(mix(cells.weights), mix(cells.medians_m.log()).exp(), mix(cells.scales.log()).exp()).channels()

    def map_of(self, prediction: Tensor) -> Tensor:
        """See `MapModel.map_of`."""
        return prediction[..., :1, :, :]

    def whole_prediction(self, out: MapDepthOutput) -> Tensor:
        """See `MapModel.whole_prediction`."""
        return with_scale(out)

    def sample_loss(self, members: Tensor, labels: Tensor) -> Tensor:
        """See `MapModel.sample_loss`; the CRPS of log depth, at the size of the samples."""
        truth, valid = reduce_depth(labels, labels > 0, (members.shape[-2], members.shape[-1]))
        return map_crps(members[:, :, 0].log(), truth.clamp(min=self.config.min_depth).log(), valid)

    def cell_uncertainty(self, prediction: Tensor) -> Tensor:
        """See `MapModel.cell_uncertainty`; the predicted scale, or else how much depth differs around a cell."""
        return prediction[:, 1] if prediction.shape[1] > 1 else neighbour_range(prediction.log())

    def draw_samples(
        self, prediction: Tensor, count: int, smoothness: float, generators: Sequence[torch.Generator | None]
    ) -> Tensor:
        """See `MapModel.draw_samples`; a mixture is drawn as the Laplace distribution of its median and scale."""
        if prediction.shape[1] < 2:
            return super().draw_samples(prediction, count, smoothness, generators)
        return draw_laplace(prediction[:, 0].log(), prediction[:, 1], count, smoothness, generators).exp().unsqueeze(2)

    def make_aggregator(self, batch_size: int, ensemble_size: int, average: str) -> Aggregator:
        """See `MapModel.make_aggregator`."""
        spread_is_scale = self.config.objective == "crps"
        return DepthAggregator(batch_size, ensemble_size, average, self.config.flip_tolerance, spread_is_scale)

    def calibrate(
        self, prediction: Tensor, kinds: dict[str, Tensor], calibration: Calibration, log_probabilities: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `MapModel.calibrate`; without a predicted scale the calibration's own holds everywhere."""
        whole = calibrated_scale(prediction, calibration)
        return whole, kinds | {"scale": scale_as_uncertainty(whole[:, 1])} if "scale" in kinds else kinds

    def make_output(
        self, prediction: Tensor, size: tuple[int, int] | None = None, log_probabilities: bool | None = None, **fields: Any
    ) -> MapDepthOutput:
        """See `MapModel.make_output`."""
        depth_m, parameters = prediction[:, :1], prediction[:, 1:]
        if size is not None:  # the published order: clamp to the range, then resize
            depth_m = resize_map(depth_m.clamp(self.config.min_depth, self.config.max_depth), size)
            parameters = resize_map(parameters, size) if parameters.shape[1] else parameters
        if parameters.shape[1]:
            fields |= {"predicted_scale": parameters[:, 0], "mixture": parameters[:, 1:] if parameters.shape[1] > 1 else None}
        return MapDepthOutput(predicted_depth=depth_m.squeeze(1), **fields)
