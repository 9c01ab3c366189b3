"""The image encoder: backbone, feature pyramid and merge. Runs once for each image (DDP, Sec. 3.2)."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoBackbone, PreTrainedConfig

from noise2map.models.configuration import Noise2MapConfig

_NUM_SCALES = 4

# Final norms of Swin, BiT and MaskFormer-Swin backbones whose result nobody reads: weights that would get no gradient.
_UNUSED_NORMS = (("swin", "layernorm"), ("bit", "norm"), ("model", "layernorm"))

# Backbones whose position embedding has one size.
_FIXED_SIZE = ("hiera",)


def make_backbone(config: PreTrainedConfig, num_scales: int) -> nn.Module:
    """A backbone of transformers with ``num_scales`` feature maps, the last one at 1/32.

    Raises:
        ValueError: if the configuration gives another number of feature maps.
    """
    backbone = AutoBackbone.from_config(config)
    for part, norm in _UNUSED_NORMS:
        if hasattr(getattr(backbone, part, None), norm):
            setattr(getattr(backbone, part), norm, nn.Identity())
    if len(backbone.channels) != num_scales:
        first = 2 ** (6 - num_scales)
        raise ValueError(
            f"backbone_config gives {len(backbone.channels)} feature maps ({config.out_features}); expected {num_scales}: set "
            f"out_features to the stages at 1/{first} to 1/32"
        )
    return backbone


class ConvNorm(nn.Module):
    """Convolution without bias, then group normalisation; no activation."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.GroupNorm(groups, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, h, w) -> (B, C_out, h, w)``."""
        return self.norm(self.conv(x))


class FeaturePyramid(nn.Module):
    """Top-down feature pyramid: every scale gets what the coarser ones saw (Lin et al. 2017)."""

    def __init__(self, in_channels: list[int], channels: int, groups: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(ConvNorm(c, channels, 1, groups) for c in in_channels)
        self.output = nn.ModuleList(ConvNorm(channels, channels, 3, groups) for _ in in_channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Backbone maps, fine to coarse ``(B, C_i, h_i, w_i)`` -> the same sizes with ``channels`` channels."""
        laterals = [layer(x) for layer, x in zip(self.lateral, maps)]
        for i in range(len(laterals) - 1, 0, -1):
            coarse = functional.interpolate(laterals[i], size=laterals[i - 1].shape[-2:], mode="nearest")
            laterals[i - 1] = laterals[i - 1] + coarse
        return [layer(x) for layer, x in zip(self.output, laterals)]


class ImageEncoder(nn.Module):
    """Image -> one feature map at 1/4 of its size."""

    def __init__(self, config: Noise2MapConfig) -> None:
        """Builds the parts.

        Raises:
            ValueError: if the backbone does not give four feature maps.
        """
        super().__init__()
        self.backbone = make_backbone(config.backbone_config, _NUM_SCALES)
        fixed = config.backbone_config.model_type in _FIXED_SIZE
        self.image_size = tuple(config.backbone_config.image_size) if fixed else None
        channels = list(self.backbone.channels)
        self.pyramid = FeaturePyramid(channels, config.hidden_size, config.group_norm_groups)
        self.merge = ConvNorm(_NUM_SCALES * config.hidden_size, config.hidden_size, 1, config.group_norm_groups)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised images ``(B, 3, H, W)`` -> features ``(B, C, h, w)``, ``h`` and ``w`` a quarter of the image's.

        Raises:
            ValueError: if the images are not a batch of three-channel images of at least 32 x 32 pixels.
        """
        check_images(pixel_values)
        if self.image_size is not None and tuple(pixel_values.shape[-2:]) != self.image_size:
            expected, given = tuple(self.image_size), tuple(pixel_values.shape[-2:])
            raise ValueError(f"images are {given} pixels (height, width); this backbone takes {expected}, its image_size, alone")
        maps = self.pyramid(list(self.backbone(pixel_values).feature_maps))
        size = maps[0].shape[-2:]
        merged = [maps[0]] + [functional.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in maps[1:]]
        return self.merge(torch.cat(merged, dim=1))


def check_images(pixel_values: Tensor) -> None:
    """Refuses what is no batch of images.

    Raises:
        ValueError: if the images are not ``(B, 3, H, W)`` with at least one image of at least 32 x 32 pixels.
    """
    if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
        raise ValueError(f"pixel_values have shape {tuple(pixel_values.shape)}; expected (B, 3, H, W)")
    if 0 in pixel_values.shape:
        raise ValueError(f"pixel_values have shape {tuple(pixel_values.shape)}; expected at least one image")
    if min(pixel_values.shape[-2:]) < 32:
        height, width = pixel_values.shape[-2:]
        raise ValueError(f"images are {width}x{height} pixels; expected at least 32x32 (the image processor resizes)")


def check_quarter(features: Tensor, pixel_values: Tensor) -> None:
    """Refuses features that are coarser than a quarter of their images: those of a backbone with other strides.

    Raises:
        ValueError: saying what the backbone has to give.
    """
    (height, width), (rows, columns) = pixel_values.shape[-2:], features.shape[-2:]
    if 6 * rows < height or 6 * columns < width:
        raise ValueError(
            f"features of images of {width}x{height} pixels are {columns}x{rows}; expected a quarter: set out_features of "
            "backbone_config to the stages at 1/4 to 1/32"
        )


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
