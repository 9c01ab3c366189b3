"""Class maps: head, loss, output and model."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import SemanticSegmenterOutput

from noise2map.codecs import CODECS
from noise2map.diffusion.ensemble import entropy_of_logits
from noise2map.diffusion.fields import draw_classes
from noise2map.diffusion.process import expand_like
from noise2map.diffusion.sampling import Step
from noise2map.diffusion.scoring_rules import map_energy_score
from noise2map.models.aggregation import CLASS_UNCERTAINTIES, Aggregator, ProbabilityAggregator, Softmax
from noise2map.models.checks import check_label_shape
from noise2map.models.configuration import Noise2MapConfig
from noise2map.models.distributions.calibration import Calibration, likely_classes
from noise2map.models.distributions.flow import FlowNetwork, LogitFlow, read_whole_maps
from noise2map.models.distributions.low_rank import LowRankNormal
from noise2map.models.distributions.whole_maps import WHOLE_MAP_OBJECTIVES, WholeMapAggregator, WholeMaps, marginals_of
from noise2map.models.encoder import AuxiliaryHead
from noise2map.models.map_model import MapModel
from noise2map.models.resizing import UncertainMaps, resize_logits, resize_map, resized_strips
from noise2map.models.single_step import SINGLE_STEP_DECODERS, KernelUpdateHead

CERTAIN = 30.0
"""Logit by which a pixel counts as known: e^-30 is far below what float32 probabilities resolve."""

_MIN_VARIANCE = 1e-6  # of the noise in a map that is all but clean


class SegmentationHead(nn.Module):
    """A linear classifier for each pixel."""

    def __init__(self, config: Noise2MapConfig) -> None:
        super().__init__()
        self.low_rank = config.objective == "low_rank"
        channels, context = config.num_labels, config.flow_context_channels
        if self.low_rank:
            channels *= 2 + config.low_rank_factors  # see `LowRankNormal.from_prediction`
        self.flow = FlowNetwork(channels, context, config.flow_channels) if config.objective == "flow" else None
        if self.flow is not None:
            channels += context  # see `LogitFlow.from_prediction`
        self.classifier = nn.Linear(config.hidden_size, channels)
        self.config = config  # its temperature may be set later

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens ``(N, h*w, C)`` -> logits ``(N, K, h, w)``, divided by the temperature, float32 or better.

        With the objective ``"low_rank"`` further channels follow, see `LowRankNormal.from_prediction`; all of the normal
        distribution is divided. With ``"flow"`` these are no logits, see `LogitFlow`, which divides those of its network.
        """
        given = self.classifier(tokens)
        given = given.to(torch.promote_types(given.dtype, torch.float32))
        if self.flow is not None:
            return given.transpose(1, 2).unflatten(2, size)
        temperature, count = self.config.temperature, self.config.num_labels
        logits = given / temperature
        if self.low_rank and temperature != 1:
            deviations = slice(count, 2 * count)  # which are given by their logarithms
            logits[..., deviations] = given[..., deviations] - math.log(temperature)
        return logits.transpose(1, 2).unflatten(2, size)


@dataclass
class MapSegmenterOutput(UncertainMaps, SemanticSegmenterOutput):
    """Segmentation output.

    Attributes:
        loss: training loss, if labels were given.
        logits: ``(B, K, h, w)``; with ``average="steps"`` the log of the averaged probabilities.
        uncertainty: the configured kind, ``(B, h, w)`` in [0, 1]; `None` where it is not defined.
        uncertainties: every kind that is defined for the run, by name.
        num_steps: decoder calls that each image took, ``(B,)``.
        steps: the run's `Step` objects, if asked for; their tensors have the images' samples folded into the batch ``(B*R, ...)``.
        log_probabilities: True where the logits are logarithms of averaged probabilities, which are resized as probabilities.
        samples: the last step's prediction of each sample ``(B, R, K, h, w)``, if asked for; of ``sampling="field"`` the maps
            themselves: 0 for the class of a pixel and -30 for the others. They are not calibrated.
        calibration: what the logits were corrected by.
    """

    uncertainty: Tensor | None = None
    uncertainties: dict[str, Tensor] | None = None
    num_steps: Tensor | None = None
    steps: list[Step] | None = field(default=None, repr=False)
    log_probabilities: bool | None = None
    samples: Tensor | None = None
    calibration: Calibration | None = field(default=None, repr=False)

    @property
    def prediction(self) -> Tensor:
        """The map as ``(B, K, h, w)``, whatever the task."""
        return self.logits

    def prediction_set(self, level: float) -> Tensor:
        """Classes of every pixel among which the truth is with a probability, bool ``(B, K, h, w)``; never none.

        Args:
            level: the probability, between 0 and 1. What one class reaches alone is not reached less.

        Raises:
            ValueError: if the level is impossible or beyond what was fitted, or the model is not calibrated.
        """
        if self.calibration is None or not self.calibration.thresholds:
            raise ValueError("the output has no sets of classes; expected that of a calibrated model (noise2map calibrate)")
        return likely_classes(self.logits.softmax(1), self.calibration.least_probability(level))

    def uncertainties_at(
        self, *sizes: tuple[int, int], rows: Sequence[int] | None = None, kinds: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """See `UncertainMaps.uncertainties_at`; entropy and least confidence are those of the resized probabilities.

        So is the mutual information where the output holds several samples. An interpolated entropy knows nothing of the
        edge between two cells that are certain of different classes.
        """
        found = super().uncertainties_at(*sizes, rows=rows, kinds=kinds)
        if self.logits.shape[1] < 2:  # class ids, or a single class
            return found
        # Of a single sample it is over the steps, if at all.
        samples = self.samples if not self.log_probabilities and self.samples is not None and self.samples.shape[1] > 1 else None
        names = ("entropy", "least_confidence") if samples is None else ("entropy", "least_confidence", "mutual_information")
        wanted = [name for name in names if name in found]
        for place, row in enumerate(range(len(self.logits)) if rows is None else rows):
            own = None if samples is None or "mutual_information" not in wanted else samples[row]
            maps = _uncertainties_of(self.logits[row], bool(self.log_probabilities), own, sizes or ((*self.logits.shape[-2:],),))
            for name in wanted:
                found[name][place] = maps[name].to(found[name])
        return found


def _uncertainties_of(
    logits: Tensor, log_probabilities: bool, samples: Tensor | None, sizes: Sequence[tuple[int, int]]
) -> dict[str, Tensor]:
    """Entropy, least confidence and mutual information ``(H, W)`` of logits ``(K, h, w)`` and samples ``(R, K, h, w)``."""
    link = Softmax()
    found: dict[str, list[Tensor]] = {"entropy": [], "least_confidence": [], "mutual_information": []}
    # Logarithms that stay as large as they are need not become probabilities: their softmax is the same.
    resized_as_p = log_probabilities and any(size != tuple(logits.shape[-2:]) for size in sizes)
    for strip in resized_strips(logits.exp() if resized_as_p else logits, *sizes):
        if resized_as_p:
            p = strip / strip.sum(0)
            unsure, doubt = link.entropy(p), link.doubt(p)
        else:
            unsure, largest = entropy_of_logits(strip, 0)
            doubt = 1 - largest
        found["entropy"].append(unsure)
        found["least_confidence"].append(doubt)
    for strip in () if samples is None else resized_strips(samples.flatten(0, 1), *sizes):
        p = strip.unflatten(0, samples.shape[:2]).softmax(1)
        found["mutual_information"].append((link.entropy(p.mean(0)) - link.entropy(p).mean(0)).clamp(0, 1))
    return {name: torch.cat(parts) for name, parts in found.items() if parts}


class Noise2MapForSemanticSegmentation(MapModel):
    """DDP for semantic segmentation: class maps by denoising encoded labels."""

    task = "segmentation"
    default_uncertainty = "entropy"
    uncertainty_kinds = CLASS_UNCERTAINTIES
    objectives = ("task", "l2", "energy", *WHOLE_MAP_OBJECTIVES)
    calibrated_parts = ("confidences", "thresholds")

    def __init__(self, config: Noise2MapConfig) -> None:
        """Builds the model with fresh weights.

        Raises:
            ValueError: if the configuration has an impossible value.
        """
        kind = CODECS[config.map_encoding]
        codec = kind.create(config.num_labels, config.hidden_size, config.map_scale, config.semantic_loss_ignore_index)
        single = SINGLE_STEP_DECODERS.get(config.decoder_type)
        head = KernelUpdateHead(config) if config.decoder_type == "kernel_update" else SegmentationHead(config)
        super().__init__(config, codec, head, decoder=None if single is None else single(config))
        self.auxiliary_head = AuxiliaryHead(config) if config.use_auxiliary_head else None
        self.post_init()

    def check_labels(self, labels: Tensor, pixel_values: Tensor) -> None:
        """See `MapModel.check_labels`."""
        check_label_shape(labels, pixel_values)
        self.codec.check(labels)

    def encode_labels(self, labels: Tensor, size: tuple[int, int]) -> Tensor:
        """See `MapModel.encode_labels`."""
        return self.codec.encode(self._small_labels(labels, size))

    def _small_labels(self, labels: Tensor, size: tuple[int, ...]) -> Tensor:
        return functional.interpolate(labels.unsqueeze(1).float(), size=size, mode="nearest").squeeze(1).long()

    def expected_signal(self, prediction: Tensor) -> Tensor:
        """See `MapModel.expected_signal`."""
        return _mean_code(prediction, self.codec.codes()[:-1].detach())

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return segmentation_loss(logits, labels, self.config.semantic_loss_ignore_index, self.config.loss_average)

    def map_of(self, prediction: Tensor) -> Tensor:
        """See `MapModel.map_of`; logits of the marginals."""
        return marginals_of(prediction, self.config.num_labels, self._whole_maps)

    def _whole_maps(self, prediction: Tensor) -> WholeMaps:
        """The distribution ``(N, K', h, w)`` that the head gave; of the objectives that have one."""
        return read_whole_maps(prediction, self, LowRankNormal, LogitFlow)

    def loss(self, prediction: Tensor, labels: Tensor) -> Tensor:
        """See `MapModel.loss`."""
        if self.config.objective in WHOLE_MAP_OBJECTIVES:
            small = self._small_labels(labels, tuple(prediction.shape[-2:]))
            return self._whole_maps(prediction).loss(small, self.config.semantic_loss_ignore_index)
        return self._cross_entropy(prediction, labels)

    def auxiliary_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """See `MapModel.auxiliary_loss`."""
        if self.auxiliary_head is None:
            return super().auxiliary_loss(features, labels)
        return self.config.auxiliary_loss_weight * self._cross_entropy(self.auxiliary_head(features), labels)

    def prediction_encoder(self) -> Callable[[Tensor], Tensor]:
        """See `MapModel.prediction_encoder`."""
        codes = self.codec.codes()  # the sigmoid of the table, once for a run
        if self.config.feedback == "mean":
            return lambda prediction: _mean_code(self.map_of(prediction), codes[:-1])
        return lambda prediction: self.codec.encode_prediction(self.map_of(prediction), codes)

    def corrupted_loss(self, prediction: Tensor, labels: Tensor) -> Tensor:
        """See `MapModel.corrupted_loss`; cells are compared with the labels that were corrupted, not with those of all pixels."""
        return self._cross_entropy(prediction, self._small_labels(labels, tuple(prediction.shape[-2:])))

    def sample_loss(self, members: Tensor, labels: Tensor) -> Tensor:
        """See `MapModel.sample_loss`; the energy score of patches of the probability maps."""
        small = self._small_labels(labels, tuple(members.shape[-2:]))
        valid = small != self.config.semantic_loss_ignore_index
        truth = functional.one_hot(torch.where(valid, small, 0), self.config.num_labels).movedim(-1, 1)
        return map_energy_score(members.softmax(2), truth.to(members.dtype), valid)

    def evidence(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """See `MapModel.evidence`: ``alpha <x_t, e_k> / sigma²``, the log-likelihood of each code up to a common term."""
        codes = self.codec.codes()[:-1].to(x_t.dtype)
        strength = alpha / sigma.square().clamp(min=_MIN_VARIANCE)
        return log_likelihood(torch.einsum("nchw,kc->nkhw", x_t, codes) * expand_like(strength, x_t))

    def cell_uncertainty(self, prediction: Tensor) -> Tensor:
        """See `MapModel.cell_uncertainty`; least confidence."""
        return 1 - entropy_of_logits(self.map_of(prediction))[1]

    def draw_samples(
        self, prediction: Tensor, count: int, smoothness: float, generators: Sequence[torch.Generator | None]
    ) -> Tensor:
        """See `MapModel.draw_samples`."""
        if prediction.shape[1] > self.config.num_labels:
            return self._whole_maps(prediction).sample(count, generators)
        ids = draw_classes(prediction.log_softmax(1), count, smoothness, generators)
        return (functional.one_hot(ids, self.config.num_labels).movedim(-1, 2).float() - 1) * CERTAIN

    def make_aggregator(self, batch_size: int, ensemble_size: int, average: str) -> Aggregator:
        """See `MapModel.make_aggregator`."""
        if self.config.objective in WHOLE_MAP_OBJECTIVES:
            return WholeMapAggregator(self.map_of, batch_size, ensemble_size, average)
        return ProbabilityAggregator(Softmax(), batch_size, ensemble_size, average)

    def calibrate(
        self, prediction: Tensor, kinds: dict[str, Tensor], calibration: Calibration, log_probabilities: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `MapModel.calibrate`; entropy and least confidence are those of the corrected probabilities."""
        logits, link = calibration.correct_classes(self.map_of(prediction)), Softmax()
        if log_probabilities:
            logits = logits.log_softmax(1)
        p = logits.softmax(1)
        return logits, kinds | {"entropy": link.entropy(p), "least_confidence": link.doubt(p)}

    def make_output(
        self, prediction: Tensor, size: tuple[int, int] | None = None, log_probabilities: bool | None = None, **fields: Any
    ) -> MapSegmenterOutput:
        """See `MapModel.make_output`."""
        prediction = self.map_of(prediction)
        if size is not None:
            prediction = resize_logits(prediction, size, log_probabilities=bool(log_probabilities))
        return MapSegmenterOutput(logits=prediction, log_probabilities=log_probabilities or None, **fields)


def _mean_code(logits: Tensor, codes: Tensor) -> Tensor:
    """Expected code ``(N, C, h, w)`` of logits ``(N, K, h, w)``; codes ``(K, C)``."""
    return (logits.softmax(1).to(codes.dtype).movedim(1, -1) @ codes).movedim(-1, 1)


def log_likelihood(values: Tensor) -> Tensor:
    """Log-likelihoods ``(N, K, h, w)`` up to a common term, centred and kept within what a softmax in float32 can add up."""
    return (values - values.mean(1, keepdim=True)).clamp(-CERTAIN / 2, CERTAIN / 2)


def segmentation_loss(logits: Tensor, labels: Tensor, ignore_index: int = 255, average: str = "all") -> Tensor:
    """Cross entropy of logits resized bilinearly to the labels.

    Args:
        logits: ``(B, K, h, w)``.
        labels: class ids ``(B, H, W)``, integers.
        ignore_index: label without loss.
        average: ``"all"`` divides by the number of all pixels, as the published code does; ``"valid"`` by that of labelled ones.

    Returns:
        Scalar.
    """
    logits = resize_map(logits.float(), (labels.shape[-2], labels.shape[-1]))
    total = functional.cross_entropy(logits, labels.long(), ignore_index=ignore_index, reduction="sum")
    count = labels.numel() if average == "all" else int((labels != ignore_index).sum())
    return total / max(count, 1)
