"""Surface normals: head, loss, aggregation, output and model."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.utils import ModelOutput

from noise2map.codecs.normals import NormalsCodec, check_normals, unit_vectors
from noise2map.diffusion.sampling import Step
from noise2map.models.aggregation import Aggregator
from noise2map.models.configuration import Noise2MapConfig
from noise2map.models.labels import check_label_shape
from noise2map.models.map_model import MapModel
from noise2map.models.resizing import resize_map

# Two directions count as different when they are more than this apart.
FLIP_DEGREES = 5.0


class NormalsHead(nn.Module):
    """A 3x3 regressor of unit vectors."""

    def __init__(self, config: Noise2MapConfig) -> None:
        super().__init__()
        self.regressor = nn.Conv2d(config.hidden_size, 3, 3, padding=1)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens ``(N, h*w, C)`` -> unit vectors ``(N, 3, h, w)``, float32 or better."""
        z = self.regressor(tokens.transpose(1, 2).unflatten(2, size))
        return unit_vectors(z.to(torch.promote_types(z.dtype, torch.float32)))


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


def reduce_normals(normals: Tensor, size: tuple[int, int]) -> Tensor:
    """Normals ``(B, 3, H, W)`` at a lower resolution ``(B, 3, h, w)``: the mean direction of a cell's known pixels."""
    return unit_vectors(functional.interpolate(normals, size=size, mode="area"))


class NormalsAggregator(Aggregator):
    """Unit vectors; the mean over samples (and steps) is one of directions."""

    def _flips(self, before: Tensor, after: Tensor) -> Tensor:
        return (before * after).sum(2) < math.cos(math.radians(FLIP_DEGREES))

    def _accumulate(self, value: Tensor, rows: Tensor) -> None:
        if self.average == "last" and self.ensemble_size > 1:
            return  # the members are the last step's samples
        self._add("n", value.double().mean(1), rows)

    def result(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Unit vectors ``(B, 3, h, w)``; step-flip (turns of more than 5 degrees) and the spherical variance.

        The latter, one minus the length of the mean vector, is 0 where all agree and 1 where they cancel out.
        """
        assert self.last is not None
        members = self.last.double().mean(1)
        mean = self._per_step("n") if "n" in self._sums else members
        kinds = self._step_flip()
        if self.ensemble_size > 1 or int(self.num_steps.max()) > 1:
            kinds["sample_variance"] = (1 - mean.norm(dim=1)).clamp(0, 1).to(self.last.dtype)
        chosen = mean if self.average == "steps" else members
        return unit_vectors(chosen).to(self.last.dtype), kinds


@dataclass
class MapNormalsOutput(ModelOutput):
    """Surface normals.

    Attributes:
        loss: training loss, if labels were given.
        predicted_normals: unit vectors ``(B, 3, h, w)``: x to the right, y up, z towards the viewer, as in diffusers'
            ``MarigoldNormalsPipeline``.
        uncertainty: the configured kind, ``(B, h, w)`` in [0, 1]; `None` where it is not defined.
        uncertainties: every kind that is defined for the run, by name.
        num_steps: decoder calls that each image took, ``(B,)``.
        steps: the run's `Step` objects, if asked for.
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

    @property
    def prediction(self) -> Tensor:
        """The map as ``(B, K, h, w)``, whatever the task."""
        assert self.predicted_normals is not None
        return self.predicted_normals


class Noise2MapForNormalEstimation(MapModel):
    """DDP for surface normals: unit vectors by denoising scaled ones."""

    task = "normals"
    default_uncertainty = "sample_variance"

    def __init__(self, config: Noise2MapConfig) -> None:
        """Builds the model with fresh weights.

        Raises:
            ValueError: if the configuration has an impossible value.
        """
        super().__init__(config, NormalsCodec(config.map_scale), NormalsHead(config))
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
        return normals_loss(prediction, labels)

    def make_aggregator(self, batch_size: int, ensemble_size: int, average: str) -> Aggregator:
        """See `MapModel.make_aggregator`."""
        return NormalsAggregator(batch_size, ensemble_size, average)

    def make_output(
        self, prediction: Tensor, size: tuple[int, int] | None = None, log_probabilities: bool | None = None, **fields: Any
    ) -> MapNormalsOutput:
        """See `MapModel.make_output`."""
        if size is not None:
            prediction = unit_vectors(resize_map(prediction, size))
        return MapNormalsOutput(predicted_normals=prediction, **fields)
