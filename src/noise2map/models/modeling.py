"""The map models by task: one codec for each kind of map, one head for each task, everything else in `MapModel`."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional

from noise2map.codecs import CODECS, DepthCodec, check_depth
from noise2map.models.configuration import Noise2MapConfig
from noise2map.models.heads import AuxiliaryHead, DepthHead, SegmentationHead
from noise2map.models.losses import reduce_depth, segmentation_loss, sigloss
from noise2map.models.map_model import MapModel
from noise2map.models.outputs import MapDepthOutput, MapSegmenterOutput
from noise2map.models.readout import DepthReadout, SegmentationReadout
from noise2map.models.resizing import resize_logits, resize_map


def _check_label_shape(labels: Tensor, pixel_values: Tensor) -> None:
    if pixel_values.ndim != 4:
        raise ValueError(f"pixel_values have shape {tuple(pixel_values.shape)}; expected (B, 3, H, W)")
    expected = (pixel_values.shape[0], *pixel_values.shape[-2:])
    if tuple(labels.shape) != expected:
        raise ValueError(f"labels have shape {tuple(labels.shape)}; expected {expected}, like pixel_values")


class Noise2MapForSemanticSegmentation(MapModel):
    """DDP for semantic segmentation: class maps by denoising encoded labels."""

    task = "segmentation"
    readout_class = SegmentationReadout
    default_uncertainty = "entropy"

    def __init__(self, config: Noise2MapConfig) -> None:
        """Builds the model with fresh weights.

        Raises:
            ValueError: if the configuration has an impossible value.
        """
        kind = CODECS[config.map_encoding]
        codec = kind.create(config.num_labels, config.hidden_size, config.map_scale, config.semantic_loss_ignore_index)
        super().__init__(config, codec, SegmentationHead(config))
        self.auxiliary_head = AuxiliaryHead(config) if config.use_auxiliary_head else None
        self.post_init()

    def check_labels(self, labels: Tensor, pixel_values: Tensor) -> None:
        """See `MapModel.check_labels`."""
        _check_label_shape(labels, pixel_values)
        self.codec.check(labels)

    def encode_labels(self, labels: Tensor, size: tuple[int, int]) -> Tensor:
        """See `MapModel.encode_labels`."""
        small = functional.interpolate(labels.unsqueeze(1).float(), size=size, mode="nearest").squeeze(1).long()
        return self.codec.encode(small)

    def expected_signal(self, prediction: Tensor) -> Tensor:
        """See `MapModel.expected_signal`."""
        codes = self.codec.codes()[:-1].detach()
        return (prediction.softmax(1).movedim(1, -1) @ codes).movedim(-1, 1)

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return segmentation_loss(logits, labels, self.config.semantic_loss_ignore_index, self.config.loss_average)

    def loss(self, prediction: Tensor, labels: Tensor) -> Tensor:
        """See `MapModel.loss`."""
        return self._cross_entropy(prediction, labels)

    def auxiliary_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """See `MapModel.auxiliary_loss`."""
        if self.auxiliary_head is None:
            return super().auxiliary_loss(features, labels)
        return self.config.auxiliary_loss_weight * self._cross_entropy(self.auxiliary_head(features), labels)

    def prediction_encoder(self) -> Callable[[Tensor], Tensor]:
        """See `MapModel.prediction_encoder`."""
        codes = self.codec.codes()  # the sigmoid of the table, once for a run
        return lambda prediction: self.codec.encode_prediction(prediction, codes)

    def make_output(
        self, prediction: Tensor, size: tuple[int, int] | None = None, log_probabilities: bool | None = None, **fields: Any
    ) -> MapSegmenterOutput:
        """See `MapModel.make_output`."""
        if size is not None:
            prediction = resize_logits(prediction, size, log_probabilities=bool(log_probabilities))
        return MapSegmenterOutput(logits=prediction, log_probabilities=log_probabilities or None, **fields)


class Noise2MapForDepthEstimation(MapModel):
    """DDP for depth estimation: metres by denoising normalised depth."""

    task = "depth"
    readout_class = DepthReadout
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
        _check_label_shape(labels, pixel_values)
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

    def make_output(
        self, prediction: Tensor, size: tuple[int, int] | None = None, log_probabilities: bool | None = None, **fields: Any
    ) -> MapDepthOutput:
        """See `MapModel.make_output`."""
        if size is not None:  # the published order: clamp to the range, then resize
            prediction = resize_map(prediction.clamp(self.config.min_depth, self.config.max_depth), size)
        return MapDepthOutput(predicted_depth=prediction.squeeze(1), **fields)
