"""Blocks that the branches share. Their parts are named as in the published state dict."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class ConvNormRelu(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, h, w) -> (B, C_out, h, w)``."""
        return functional.relu(self.bn(self.conv(x)))


def conv_norm_relu(
    in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, eps: float = 1e-5, momentum: float = 0.1
) -> list[nn.Module]:
    """The same three layers in a row, for a sequence."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
    return [conv, nn.BatchNorm2d(out_channels, eps, momentum), nn.ReLU()]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, h, w) -> (B, C_out, h / stride, w / stride)``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(x)) + shortcut)


# The published LiDAR model's normalisation differs from torch's default.
_SECOND_NORM = {"eps": 1e-3, "momentum": 0.01}


class ResNetDecoder(nn.Module):
    """A small residual network and a two-scale neck (published with cameras).

    Args:
        in_channels: channels of the bird's-eye view.
        stages: widths; the first two halve the resolution, the others keep it.
        blocks: residual blocks of each stage.
        out_channels: channels of the result.
    """

    def __init__(self, in_channels: int, stages: list[int], blocks: int, out_channels: int) -> None:
        super().__init__()
        self.backbone = nn.ModuleList()
        for i, width in enumerate(stages):
            stride = 2 if i < 2 else 1
            rest = [ResidualBlock(width, width) for _ in range(blocks - 1)]
            self.backbone.append(nn.Sequential(ResidualBlock(in_channels, width, stride), *rest))
            in_channels = width
        self.neck = nn.ModuleDict(
            {
                "fuse": nn.Sequential(
                    *conv_norm_relu(stages[0] + stages[-1], out_channels, 1), *conv_norm_relu(out_channels, out_channels)
                ),
                "upsample": nn.Sequential(nn.Identity(), *conv_norm_relu(out_channels, out_channels)),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, X, Y) -> (B, out_channels, X, Y)``."""
        size = x.shape[-2:]
        maps = []
        for stage in self.backbone:
            x = stage(x)
            maps.append(x)
        last = functional.interpolate(maps[-1], size=maps[0].shape[-2:], mode="bilinear", align_corners=True)
        fused = self.neck["fuse"](torch.cat([last, maps[0]], dim=1))
        return self.neck["upsample"](functional.interpolate(fused, size=size, mode="bilinear", align_corners=True))


class SecondDecoder(nn.Module):
    """Plain convolutions at falling resolution, each stage brought back to the first one's (Yan et al. 2018; published with LiDAR).

    Args:
        in_channels: channels of the bird's-eye view.
        stages: widths; each but the first halves the resolution.
        layers: convolutions of each stage after the first one.
        out_channels: channels of the result for each stage.
    """

    def __init__(self, in_channels: int, stages: list[int], layers: int, out_channels: int) -> None:
        super().__init__()
        blocks, deblocks = nn.ModuleList(), nn.ModuleList()
        for i, width in enumerate(stages):
            first = conv_norm_relu(in_channels, width, stride=1 if i == 0 else 2, **_SECOND_NORM)
            rest = [layer for _ in range(layers) for layer in conv_norm_relu(width, width, **_SECOND_NORM)]
            blocks.append(nn.Sequential(*first, *rest))
            if i == 0:
                back: nn.Module = nn.Conv2d(width, out_channels, 1, bias=False)
            else:
                back = nn.ConvTranspose2d(width, out_channels, 2**i, 2**i, bias=False)
            deblocks.append(nn.Sequential(back, nn.BatchNorm2d(out_channels, **_SECOND_NORM), nn.ReLU()))
            in_channels = width
        self.backbone = nn.ModuleDict({"blocks": blocks})
        self.neck = nn.ModuleDict({"deblocks": deblocks})

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, X, Y) -> (B, stages * out_channels, X, Y)``."""
        parts = []
        for block, deblock in zip(self.backbone["blocks"], self.neck["deblocks"]):
            x = block(x)
            parts.append(deblock(x))
        return torch.cat(parts, dim=1)
