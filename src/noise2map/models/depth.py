"""Depth maps: head, SigLoss, aggregation, output and model."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import DepthEstimatorOutput

from noise2map.codecs import DepthCodec, check_depth
from noise2map.diffusion.sampling import Step
from noise2map.models.aggregation import Aggregator
from noise2map.models.configuration import Noise2MapConfig
from noise2map.models.labels import check_label_shape
from noise2map.models.map_model import MapModel
from noise2map.models.resizing import resize_map


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


class DepthHead(nn.Module):
    """A 3x3 regressor: metres.

    Linear representation: ``relu(z) + min_depth`` (published; unbounded above). Logarithmic: ``sqrt(min max) exp(z)``, kept within
    twice the range on either side so that the exponential cannot overflow.
    """

    def __init__(self, config: Noise2MapConfig) -> None:
        super().__init__()
        self.regressor = nn.Conv2d(config.hidden_size, 1, 3, padding=1)
        self.representation = config.depth_representation
        self.min_depth, self.max_depth = float(config.min_depth), float(config.max_depth)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens ``(N, h*w, C)`` -> depth in metres ``(N, 1, h, w)``, float32 or better."""
        z = self.regressor(tokens.transpose(1, 2).unflatten(2, size))
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        if self.representation == "linear":
            return z.relu() + self.min_depth
        middle = 0.5 * (math.log(self.min_depth) + math.log(self.max_depth))
        reach = middle - math.log(self.min_depth) + math.log(2.0)
        return (middle + z.clamp(-reach, reach)).exp()


@dataclass
class MapDepthOutput(DepthEstimatorOutput):
    """Depth output: ``predicted_depth`` in metres ``(B, h, w)``; the rest as in `MapSegmenterOutput`."""

    uncertainty: Tensor | None = None
    uncertainties: dict[str, Tensor] | None = None
    num_steps: Tensor | None = None
    steps: list[Step] | None = field(default=None, repr=False)
    log_probabilities: bool | None = None

    @property
    def prediction(self) -> Tensor:
        """The map as ``(B, K, h, w)``, whatever the task."""
        return self.predicted_depth.unsqueeze(1)


class DepthAggregator(Aggregator):
    """Depth maps in metres; the spread is relative to the depth."""

    def _flips(self, before: Tensor, after: Tensor) -> Tensor:
        ratio = (after / before).squeeze(2)
        return (ratio > 1 + DEPTH_FLIP_TOLERANCE) | (ratio < 1 / (1 + DEPTH_FLIP_TOLERANCE))

    def _accumulate(self, value: Tensor, rows: Tensor) -> None:
        if self.average == "last" and self.ensemble_size > 1:
            return
        value = value.double()  # a difference of squares follows
        self._add("d", value.mean(1), rows)
        self._add("d2", value.square().mean(1), rows)

    def result(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Metres ``(B, 1, h, w)``; step-flip (changes of more than 5 %) and the relative standard deviation, clamped to 1."""
        assert self.last is not None
        if "d" in self._sums:
            mean, square = self._per_step("d"), self._per_step("d2")
        else:
            members = self.last.double()
            mean, square = members.mean(1), members.square().mean(1)
        depth_m = mean.to(self.last.dtype) if self.average == "steps" else self.last.mean(1)
        kinds = self._step_flip()
        if self.ensemble_size > 1 or int(self.num_steps.max()) > 1:
            spread = (square - mean.square()).clamp(min=0).sqrt() / mean
            kinds["sample_variance"] = spread.squeeze(1).clamp(max=1).to(self.last.dtype)
        return depth_m, kinds


class Noise2MapForDepthEstimation(MapModel):
    """DDP for depth estimation: metres by denoising normalised depth."""

    task = "depth"
    default_uncertainty = "sample_variance"

    def __init__(self, config: Noise2MapConfig) -> None:
        """Builds the model with fresh weights.

        Raises:
            ValueError: if the configuration has an impossible value.
        """
        farthest = config.max_depth if config.sample_max_depth is None else config.sample_max_depth
        codec = DepthCodec(config.min_depth, farthest, config.map_scale, config.depth_representation)
        super().__init__(config, codec, DepthHead(config))
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
        return sigloss(prediction, labels)

    def make_aggregator(self, batch_size: int, ensemble_size: int, average: str) -> Aggregator:
        """See `MapModel.make_aggregator`."""
        return DepthAggregator(batch_size, ensemble_size, average)

    def make_output(
        self, prediction: Tensor, size: tuple[int, int] | None = None, log_probabilities: bool | None = None, **fields: Any
    ) -> MapDepthOutput:
        """See `MapModel.make_output`."""
        if size is not None:  # the published order: clamp to the range, then resize
            prediction = resize_map(prediction.clamp(self.config.min_depth, self.config.max_depth), size)
        return MapDepthOutput(predicted_depth=prediction.squeeze(1), **fields)


# Two depths count as different when they are more than this fraction apart.
DEPTH_FLIP_TOLERANCE = 0.05
