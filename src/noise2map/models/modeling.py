"""The map models by task: one codec for each kind of map, one head for each task, everything else in `MapModel`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from noise2map.codecs import AnalogBitsCodec, ClassEmbeddingCodec, DepthCodec, MapCodec, OneHotCodec, check_depth
from noise2map.models.configuration import Noise2MapConfig
from noise2map.models.heads import AuxiliaryHead, DepthHead, SegmentationHead
from noise2map.models.losses import reduce_depth, segmentation_loss, sigloss
from noise2map.models.map_model import MapModel, resize_map
from noise2map.models.outputs import MapDepthOutput, MapSegmenterOutput
from noise2map.models.readout import DepthReadout, SegmentationReadout


def _check_label_shape(labels: Tensor, pixel_values: Tensor) -> None:
    if pixel_values.ndim != 4:
        raise ValueError(f"pixel_values have shape {tuple(pixel_values.shape)}; expected (B, 3, H, W)")
    expected = (pixel_values.shape[0], *pixel_values.shape[-2:])
    if tuple(labels.shape) != expected:
        raise ValueError(f"labels have shape {tuple(labels.shape)}; expected {expected}, like pixel_values")


class Noise2MapForSemanticSegmentation(MapModel):
    """DDP for semantic segmentation: class maps by denoising encoded labels."""

    readout_class = SegmentationReadout
    default_uncertainty = "entropy"

    def __init__(self, config: Noise2MapConfig) -> None:
        """Builds the model with fresh weights.

        Raises:
            ValueError: if the configuration has an impossible value.
        """
        sizes = {"num_labels": config.num_labels, "scale": config.map_scale, "ignore_index": config.semantic_loss_ignore_index}
        codec: MapCodec
        if config.map_encoding == "class_embedding":
            codec = ClassEmbeddingCodec(channels=config.hidden_size, **sizes)
        elif config.map_encoding == "one_hot":
            codec = OneHotCodec(**sizes)
        else:
            codec = AnalogBitsCodec(**sizes)
        super().__init__(config, codec, SegmentationHead(config))
        self.auxiliary_head = AuxiliaryHead(config) if config.use_auxiliary_head else None
        self.post_init()

    def _check_labels(self, labels: Tensor, pixel_values: Tensor) -> None:
        _check_label_shape(labels, pixel_values)
        self.codec.check(labels)

    def _encode_labels(self, labels: Tensor, size: tuple[int, int]) -> Tensor:
        small = functional.interpolate(labels.unsqueeze(1).float(), size=size, mode="nearest").squeeze(1).long()
        return self.codec.encode(small)

    def _soft_signal(self, readout: Tensor) -> Tensor:
        codes = self.codec.codes()[:-1].detach()
        return (readout.softmax(1).movedim(1, -1) @ codes).movedim(-1, 1)

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return segmentation_loss(logits, labels, self.config.semantic_loss_ignore_index, self.config.loss_average)

    def _task_loss(self, readout: Tensor, labels: Tensor) -> Tensor:
        return self._cross_entropy(readout, labels)

    def _auxiliary_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        if self.auxiliary_head is None:
            return super()._auxiliary_loss(features, labels)
        return self.config.auxiliary_loss_weight * self._cross_entropy(self.auxiliary_head(features), labels)

    def _readout_encoder(self) -> Callable[[Tensor], Tensor]:
        codes = self.codec.codes()  # the sigmoid of the table, once for a run
        return lambda readout: self.codec.encode_readout(readout, codes)

    def _output(self, prediction: Tensor, size: tuple[int, int] | None, average: str, **fields: Any) -> MapSegmenterOutput:
        if size is not None:
            if average == "steps":  # averaged probabilities are resized as probabilities
                smallest = torch.finfo(prediction.dtype).tiny
                prediction = resize_map(prediction.exp(), size).clamp(min=smallest).log()
            else:
                prediction = resize_map(prediction, size)
        return MapSegmenterOutput(logits=prediction, **fields)


class Noise2MapForDepthEstimation(MapModel):
    """DDP for depth estimation: metres by denoising normalised depth."""

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

    def _check_labels(self, labels: Tensor, pixel_values: Tensor) -> None:
        _check_label_shape(labels, pixel_values)
        check_depth(labels, labels != 0)

    def _encode_labels(self, labels: Tensor, size: tuple[int, int]) -> Tensor:
        if self.config.depth_noising == "bilinear":
            small = resize_map(labels.unsqueeze(1), size)
            return self.codec.normalise(small) * self.codec.scale
        return self.codec.encode(*reduce_depth(labels, labels > 0, size))

    def _soft_signal(self, readout: Tensor) -> Tensor:
        return self.codec.normalise(readout) * self.codec.scale

    def _task_loss(self, readout: Tensor, labels: Tensor) -> Tensor:
        return sigloss(readout, labels)

    def _output(self, prediction: Tensor, size: tuple[int, int] | None, average: str, **fields: Any) -> MapDepthOutput:
        if size is not None:  # the published order: clamp to the range, then resize
            prediction = resize_map(prediction.clamp(self.config.min_depth, self.config.max_depth), size)
        return MapDepthOutput(predicted_depth=prediction.squeeze(1), **fields)
