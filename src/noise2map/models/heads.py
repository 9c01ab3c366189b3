"""Heads: decoder tokens -> class logits or depth in metres; and the auxiliary head on the image features."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from noise2map.models.configuration import Noise2MapConfig


class SegmentationHead(nn.Module):
    """A linear classifier for each pixel."""

    def __init__(self, config: Noise2MapConfig) -> None:
        super().__init__()
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.temperature = float(config.temperature)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens ``(N, h*w, C)`` -> logits ``(N, K, h, w)``, divided by the temperature, float32 or better."""
        logits = self.classifier(tokens)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / self.temperature
        return logits.transpose(1, 2).unflatten(2, size)


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


class AuxiliaryHead(nn.Module):
    """Fully convolutional classifier on the image features; trains the encoder directly, unused at inference."""

    def __init__(self, config: Noise2MapConfig) -> None:
        super().__init__()
        self.conv = nn.Conv2d(config.hidden_size, config.auxiliary_channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(config.auxiliary_channels)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(config.auxiliary_channels, config.num_labels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Features ``(B, C, h, w)`` -> logits ``(B, K, h, w)``."""
        return self.classifier(self.dropout(functional.relu(self.norm(self.conv(features)))))
