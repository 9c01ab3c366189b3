"""From features to tokens in one call, with the calls of the map decoder, so that a model may hold either."""

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from noise2map.models.configuration import Noise2MapConfig
from noise2map.models.encoder import ConvNorm
from noise2map.models.map_decoder import DecoderContext


class SingleStepDecoder(nn.Module):
    """Base: stands where `MapDecoder` does in a model without diffusion, and does not look at a noisy map or a time.

    Args:
        config: sizes.
    """

    def __init__(self, config: Noise2MapConfig) -> None:
        super().__init__()
        self.hidden_size = self.feature_channels = config.hidden_size

    @abstractmethod
    def refine(self, features: Tensor) -> Tensor:
        """Features ``(B, C, h, w)`` -> refined features of the same shape."""

    def prepare(self, features: Tensor) -> DecoderContext:
        """All of the work: there is one call, and nothing that changes over it."""
        size = (features.shape[-2], features.shape[-1])
        tokens = self.refine(features).flatten(2).transpose(1, 2)
        return DecoderContext(tokens, [], features.new_zeros(0, 2), size)

    def modulations(self, time: Tensor) -> Tensor:
        """Nothing to modulate: ``(T,) -> (T, 0, 2 C)``."""
        return time.new_zeros(len(time), 0, 2 * self.hidden_size)

    def forward(self, context: DecoderContext, x_t: Tensor, modulations: Tensor) -> Tensor:
        """Tokens ``(B, h*w, C)``; the empty map and the modulations are without effect."""
        return context.image


class PyramidPooling(SingleStepDecoder):
    """Pyramid pooling and a 3x3 convolution, after UPerNet (Xiao et al. 2018): every cell sees means over 1, 4, 9 and 36 regions.

    UPerNet's other half, the feature pyramid and its fusion, is the encoder's here. The pooled maps keep a quarter of the
    channels each, as in the pooling that it took over (Zhao et al. 2017).
    """

    BINS = (1, 2, 3, 6)

    def __init__(self, config: Noise2MapConfig) -> None:
        super().__init__(config)
        narrow = config.hidden_size // len(self.BINS)
        # No normalisation: a map of one cell has nothing to be normalised over.
        self.reduce = nn.ModuleList(nn.Conv2d(config.hidden_size, narrow, 1) for _ in self.BINS)
        self.fuse = ConvNorm(config.hidden_size + narrow * len(self.BINS), config.hidden_size, 3, config.group_norm_groups)

    def refine(self, features: Tensor) -> Tensor:
        """See `SingleStepDecoder.refine`."""
        size = (features.shape[-2], features.shape[-1])
        parts = [features]
        for bins, reduce in zip(self.BINS, self.reduce):
            pooled = functional.relu(reduce(functional.adaptive_avg_pool2d(features, bins)))
            parts.append(functional.interpolate(pooled, size=size, mode="bilinear", align_corners=False))
        return functional.relu(self.fuse(torch.cat(parts, 1)))


class KernelFeatures(SingleStepDecoder):
    """A 3x3 convolution: what the kernels of `KernelUpdateHead` are compared with."""

    def __init__(self, config: Noise2MapConfig) -> None:
        super().__init__(config)
        self.conv = ConvNorm(config.hidden_size, config.hidden_size, 3, config.group_norm_groups)

    def refine(self, features: Tensor) -> Tensor:
        """See `SingleStepDecoder.refine`."""
        return functional.relu(self.conv(features))


SINGLE_STEP_DECODERS: dict[str, type[SingleStepDecoder]] = {"pyramid_pooling": PyramidPooling, "kernel_update": KernelFeatures}
"""By the name in `Noise2MapConfig.decoder_type`."""
