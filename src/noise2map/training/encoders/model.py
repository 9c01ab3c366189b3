"""An image encoder with a light head for each kind of map: a model that only exists to train the encoder."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.utils import ModelOutput

from noise2map.models import Noise2MapConfig
from noise2map.models.encoder import ImageEncoder
from noise2map.models.initialization import Noise2MapPreTrainedModel
from noise2map.models.normals import normals_loss
from noise2map.models.segmentation import segmentation_loss

# The scale of a log depth is kept within e^-6 (0.25 %) and e^2: one pixel known too well must not rule the sum.
_LOG_SCALE = (-6.0, 2.0)


class LightHead(nn.Conv2d):
    """A linear map from the features of each cell to its values: what is to be told must lie in the features themselves."""

    def __init__(self, config: Noise2MapConfig, outputs: int) -> None:
        super().__init__(config.hidden_size, outputs, 1)

    def loss(self, values: Tensor, truth: Tensor) -> Tensor:
        """Loss, a scalar, of what the head gave ``(B, K, h, w)`` against true maps ``(B, ..., H, W)``."""
        raise TypeError(f"{type(self).__name__} has no loss; expected the head of a kind of map")

    def maps(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """What the head gave as maps ``(B, ..., H, W)`` of a size, like the truth."""
        raise TypeError(f"{type(self).__name__} has no maps; expected the head of a kind of map")


class ClassHead(LightHead):
    """Logits; cross entropy over labelled pixels."""

    def __init__(self, config: Noise2MapConfig) -> None:
        super().__init__(config, config.num_labels)
        self.ignore_index = config.semantic_loss_ignore_index

    def loss(self, values: Tensor, truth: Tensor) -> Tensor:
        """Against class ids ``(B, H, W)``."""
        return segmentation_loss(values, truth, self.ignore_index, "valid")

    def maps(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """Class ids ``(B, H, W)``."""
        return _enlarged(values, size).argmax(1)


class LogDepthHead(LightHead):
    """Median and scale of the log of the depth; negative log likelihood of a Laplace distribution."""

    def __init__(self, config: Noise2MapConfig) -> None:
        super().__init__(config, 2)
        self.middle = 0.5 * (math.log(config.min_depth) + math.log(config.max_depth))

    def loss(self, values: Tensor, truth: Tensor) -> Tensor:
        """Against metres ``(B, H, W)``, 0 where unknown."""
        median, log_scale = _enlarged(values, tuple(truth.shape[-2:])).unbind(1)
        known = truth > 0
        if not bool(known.any()):
            return values.sum() * 0
        log_scale = log_scale[known].clamp(*_LOG_SCALE)
        error = (median[known] + self.middle - truth[known].log()).abs()
        return (error * torch.exp(-log_scale) + log_scale + math.log(2)).mean()

    def maps(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """Metres ``(B, H, W)``."""
        return (_enlarged(values, size)[:, 0] + self.middle).exp()


class DirectionHead(LightHead):
    """Vectors; one minus the cosine of the angle."""

    def __init__(self, config: Noise2MapConfig) -> None:
        super().__init__(config, 3)

    def loss(self, values: Tensor, truth: Tensor) -> Tensor:
        """Against unit vectors ``(B, 3, H, W)``, zero where unknown."""
        return normals_loss(values, truth)

    def maps(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """Unit vectors ``(B, 3, H, W)``."""
        return functional.normalize(_enlarged(values, size), dim=1)


def _enlarged(values: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(values.float(), size=size, mode="bilinear", align_corners=False)


# By what a raw sample calls the map.
HEADS: Mapping[str, type[Any]] = {"labels": ClassHead, "depth_m": LogDepthHead, "normals": DirectionHead}


class JointEncoder(Noise2MapPreTrainedModel):
    """An `ImageEncoder` trained on classes, depth and normals together; the recipes of all tasks start from its ``encoder``.

    Attributes:
        loss_weights: factor of each head's loss.
    """

    loss_weights: ClassVar[Mapping[str, float]] = {"labels": 1.0, "depth_m": 0.5, "normals": 1.0}

    def __init__(self, config: Noise2MapConfig) -> None:
        """Builds the model with fresh weights.

        Raises:
            ValueError: if the configuration has an impossible value.
        """
        config.check()
        super().__init__(config)
        self.encoder = ImageEncoder(config)
        self.heads = nn.ModuleDict({name: kind(config) for name, kind in HEADS.items()})
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Mapping[str, Tensor] | None = None, generator: Any = None) -> ModelOutput:
        """One pass of the encoder and every head.

        Args:
            pixel_values: normalised images ``(B, 3, H, W)``.
            labels: true maps by the names of `HEADS`: class ids ``(B, H, W)``, metres ``(B, H, W)``, unit vectors ``(B, 3, H, W)``.
            generator: accepted as every trained model does; nothing is drawn here.

        Returns:
            ``predictions`` of each head ``(B, K, h, w)``; with labels ``losses`` of each head and their weighted sum ``loss``.
        """
        features = self.encoder(pixel_values.to(self.dtype))
        predictions = {name: head(features) for name, head in self.heads.items()}
        if labels is None:
            return ModelOutput(predictions=predictions)
        losses = {name: self.heads[name].loss(value, labels[name]) for name, value in predictions.items()}
        total = torch.stack([self.loss_weights[name] * loss for name, loss in losses.items()]).sum()
        return ModelOutput(loss=total, losses=losses, predictions=predictions)
