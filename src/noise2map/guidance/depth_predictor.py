"""Depth from the features of a frozen diffusion U-Net: a per-pixel network that knows the time (DAG, Sec. 3.2)."""

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import pairwise

import torch
from diffusers import ModelMixin, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn
from torch.nn import functional

from noise2map.guidance.depth_range import DepthRange
from noise2map.guidance.features import STRONG_BLOCKS, WEAK_BLOCKS, block_channels, signature_distance, unet_signature

_SIGNATURE_TOLERANCE = 0.05
# The paper reads depth below step 800 of 1,000 of a linear schedule (DAG, Sec. 3.2).
MIN_LOG_SNR = -6.5


class PixelDepthHead(nn.Module):
    """A shallow network on the concatenated features of some blocks, applied to each pixel: ``d = MLP(g_t, t)``.

    The first layer is linear, and so is bilinear upsampling, whose weights sum to one: the layer, and what the time does to its
    output, are applied to each block at its own resolution, blocks of one size are added there, and the sums are upsampled. The
    result is that of upsampling and concatenating thousands of channels first, without ever holding them. Channels are the last
    dimension inside, as they are in the memory of a U-Net with channels last, so that every product is one of large matrices.

    Args:
        channels: block index -> channels.
        hidden_sizes: widths of the hidden layers.
        time_dim: width of the time embedding, which scales and shifts the first hidden layer.
    """

    def __init__(self, channels: Mapping[int, int], hidden_sizes: Sequence[int], time_dim: int) -> None:
        super().__init__()
        width = hidden_sizes[0]
        total = sum(channels.values())
        self.first = nn.ModuleDict({str(k): nn.Conv2d(count, width, 1, bias=False) for k, count in channels.items()})
        for layer in self.first.values():
            # One wide layer split by blocks: initialised by the fan-in of the whole.
            nn.init.uniform_(layer.weight, -(total**-0.5), total**-0.5)
        self.bias = nn.Parameter(torch.zeros(width))
        self.time = nn.Linear(time_dim, 2 * width)
        layers: list[nn.Module] = [nn.SiLU()]
        for before, after in pairwise(hidden_sizes):
            layers += [nn.Conv2d(before, after, 1), nn.SiLU()]
        self.rest = nn.Sequential(*layers, nn.Conv2d(hidden_sizes[-1], 1, 1))

    def forward(self, features: Mapping[int, Tensor], time: Tensor, size: tuple[int, int]) -> Tensor:
        """Standardised features ``(B, C(k), H(k), W(k))`` and time ``(B, time_dim)`` -> depth signal ``(B, 1, *size)``."""
        scale, shift = self.time(time)[:, None, None].chunk(2, dim=-1)
        by_size: dict[tuple[int, int], Tensor] = {}
        for key, layer in self.first.items():
            feature = features[int(key)]
            shape = (feature.shape[-2], feature.shape[-1])
            projected = _pixelwise(layer, feature.movedim(1, -1))
            by_size[shape] = by_size[shape] + projected if shape in by_size else projected
        coarsest = min(by_size)
        by_size[coarsest] = by_size[coarsest] + self.bias
        by_size = {shape: part * (1 + scale) for shape, part in by_size.items()}
        by_size[coarsest] = by_size[coarsest] + shift  # a constant stays one when upsampled
        hidden = reduce(torch.add, (upsample(part, size) for part in by_size.values()))
        for layer in self.rest:
            hidden = _pixelwise(layer, hidden) if isinstance(layer, nn.Conv2d) else layer(hidden)
        return hidden.movedim(-1, 1)


def _pixelwise(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution of ``(B, h, w, C)`` as a matrix product: PyTorch's own is slow backward on one CPU thread."""
    return functional.linear(x, layer.weight.flatten(1), layer.bias)


def upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resizing (``align_corners=False``) of ``(B, h, w, C)`` as two matrix products, which are fast backward, too.

    A map that has the size comes back as it is.
    """
    batch_size, height, _, channels = x.shape
    if x.shape[1:3] == size:
        return x
    rows, columns = (_weights(before, after, x) for before, after in zip(x.shape[1:3], size))
    wide = (columns @ x).reshape(batch_size, height, -1)
    return (rows @ wide).reshape(batch_size, *size, channels)


def _weights(before: int, after: int, like: Tensor) -> Tensor:
    """Interpolation weights from old pixels to new ones along an axis, ``(after, before)``."""
    unit = torch.eye(before, dtype=torch.float32, device=like.device)[None]
    return functional.interpolate(unit, after, mode="linear", align_corners=False)[0].T.to(like.dtype)


class FeatureStandardizer(nn.Module):
    """``(f - mean) / std`` for each channel, with statistics that training sets; a map of the identity before."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def forward(self, feature: Tensor) -> Tensor:
        """``(B, C, h, w)`` -> same shape."""
        return (feature - self.mean[:, None, None]) / self.std[:, None, None]


class DepthPredictor(ModelMixin, ConfigMixin):
    """Depth from U-Net features at any time step, by a strong and a weak branch that are trained together.

    A predictor belongs to the U-Net on whose features it was trained: `check_unet` compares blocks, channels and a few
    weights. Build one with `DepthPredictor.for_unet`.

    Args:
        block_channels: pairs ``(k, C(k))`` of all the blocks in use.
        sample_size: side of the U-Net's images in px, or (height, width).
        strong_blocks: blocks of the strong branch (the paper's are 2, 4, 5, 6, 7).
        weak_blocks: blocks of the weak branch (the paper's is 6).
        probe_blocks: further branches, each a list of blocks; for measuring how much depth a block carries.
        hidden_sizes: widths of the hidden layers.
        time_embed_dim: width of the time embedding.
        min_depth: nearest depth, metres; with max_depth, the output is metric. None for relative depth in [0, 1].
        max_depth: farthest depth, metres.
        depth_representation: ``"log"`` or ``"linear"``, of metric depth.
        min_log_snr: log signal-to-noise ratio from which on the features carry depth; guidance of noisier steps is skipped. The
            paper's 800 of 1,000 steps of a linear schedule end at -6.5.
        unet_signature: numbers that identify the U-Net's weights, see `unet_signature`; None is not compared.
    """

    @register_to_config
    def __init__(
        self,
        block_channels: Sequence[Sequence[int]],
        sample_size: int | Sequence[int],
        strong_blocks: Sequence[int] = STRONG_BLOCKS,
        weak_blocks: Sequence[int] = WEAK_BLOCKS,
        probe_blocks: Sequence[Sequence[int]] = (),
        hidden_sizes: Sequence[int] = (128, 64),
        time_embed_dim: int = 128,
        min_depth: float | None = None,
        max_depth: float | None = None,
        depth_representation: str = "log",
        min_log_snr: float = MIN_LOG_SNR,
        unet_signature: Sequence[float] | None = None,
    ) -> None:
        """Builds the branches.

        Raises:
            ValueError: if a branch uses a block whose channels are not given, two branches are the same, or a number is impossible.
        """
        super().__init__()
        self.channels = {int(k): int(count) for k, count in block_channels}
        self.branches = tuple(tuple(sorted(blocks)) for blocks in (strong_blocks, weak_blocks, *probe_blocks))
        self.depth_range = DepthRange(min_depth, max_depth, depth_representation)
        self._check(hidden_sizes, min_log_snr)
        self.time_proj = Timesteps(time_embed_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(time_embed_dim, time_embed_dim)
        self.standardizers = nn.ModuleDict({str(k): FeatureStandardizer(count) for k, count in sorted(self.channels.items())})
        self.heads = nn.ModuleDict(
            {
                _name(blocks): PixelDepthHead({k: self.channels[k] for k in blocks}, hidden_sizes, time_embed_dim)
                for blocks in self.branches
            }
        )

    def _check(self, hidden_sizes: Sequence[int], min_log_snr: float) -> None:
        for blocks in self.branches:
            if not blocks or set(blocks) - set(self.channels):
                raise ValueError(f"a branch reads blocks {blocks}, but channels are given for {sorted(self.channels)}")
        if len(set(self.branches)) != len(self.branches):
            raise ValueError(
                f"branches read blocks {self.branches}; expected different ones: equal branches have nothing to disagree about"
            )
        if not hidden_sizes or min(hidden_sizes) < 1:
            raise ValueError(f"hidden_sizes are {tuple(hidden_sizes)}; expected at least one positive width")
        if not isinstance(min_log_snr, (int, float)) or not -math.inf < min_log_snr < math.inf:
            raise ValueError(f"min_log_snr is {min_log_snr!r}; expected a number such as {MIN_LOG_SNR}")

    @classmethod
    def for_unet(cls, unet: UNet2DModel, strong_blocks: Sequence[int] = STRONG_BLOCKS, **config: object) -> "DepthPredictor":
        """An untrained predictor for a U-Net, with its channels, size and signature; keywords as of the class.

        Raises:
            ValueError: if the U-Net lacks a block, or does not say the size of its images.
        """
        if unet.config.sample_size is None:
            raise ValueError("the U-Net has no sample_size; expected the size of its images in px")
        weak, probes = config.get("weak_blocks", WEAK_BLOCKS), config.get("probe_blocks", ())
        blocks = {k for group in (strong_blocks, weak, *probes) for k in group}  # type: ignore[misc]
        return cls(
            block_channels=[list(item) for item in block_channels(unet, blocks).items()],
            sample_size=unet.config.sample_size,
            strong_blocks=list(strong_blocks),
            unet_signature=unet_signature(unet),
            **config,
        )

    @property
    def strong_blocks(self) -> tuple[int, ...]:
        """Blocks of the strong branch, ascending."""
        return self.branches[0]

    @property
    def weak_blocks(self) -> tuple[int, ...]:
        """Blocks of the weak branch, ascending."""
        return self.branches[1]

    @property
    def blocks(self) -> tuple[int, ...]:
        """All blocks that some branch reads, ascending."""
        return tuple(sorted({k for blocks in self.branches for k in blocks}))

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the U-Net's images in px."""
        size = self.config.sample_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    def branch(self, blocks: Sequence[int] | None) -> tuple[int, ...]:
        """The branch that reads these blocks; the strong one for None.

        Raises:
            ValueError: if the predictor has no such branch.
        """
        if blocks is None:
            return self.strong_blocks
        chosen = tuple(sorted(blocks))
        if chosen not in self.branches:
            raise ValueError(f"this predictor has no branch on blocks {chosen}; it has {', '.join(map(str, self.branches))}")
        return chosen

    def check_unet(self, unet: UNet2DModel) -> None:
        """Refuses another U-Net than the one that the predictor was trained on.

        Raises:
            ValueError: if the U-Net lacks a block, or its channels, size or weights differ.
        """
        found = block_channels(unet, self.blocks)
        if any(found[k] != self.channels[k] for k in found):
            raise ValueError(
                f"the predictor was trained for another U-Net: it expects channels {self.channels}, the U-Net has {found}"
            )
        size = unet.config.sample_size
        if size is not None and ((size, size) if isinstance(size, int) else tuple(size)) != self.image_size:
            raise ValueError(f"the predictor was trained for a U-Net of {self.image_size} px; this one has sample_size {size}")
        recorded = self.config.unet_signature
        if recorded is None:
            return
        distance = signature_distance(recorded, unet_signature(unet))
        if distance > _SIGNATURE_TOLERANCE:
            raise ValueError(
                f"the predictor was trained for another U-Net of the same shape: its weights differ by {distance:.0%}. "
                "Train one for this U-Net, or call predictor.register_to_config(unet_signature=None) if you know that the "
                "features still carry depth"
            )

    def forward(
        self,
        features: Mapping[int, Tensor],
        timesteps: Tensor | int,
        blocks: Sequence[int] | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Depth signal of one branch.

        Args:
            features: block index -> activation ``(B, C(k), H(k), W(k))``, as a `UNetFeatureTap` reads them.
            timesteps: the U-Net's time step, one for all or ``(B,)``.
            blocks: the branch, by its blocks; the strong one by default.
            size: height and width of the result in px; those of the U-Net's images by default.

        Returns:
            ``(B, 1, h, w)``, nominally in [-1, 1] and not clamped; `decode_depth` turns it into depth.

        Raises:
            ValueError: if the predictor has no such branch, or a feature is missing or has other channels.
        """
        chosen = self.branch(blocks)
        for k in chosen:
            if k not in features or features[k].shape[1] != self.channels[k]:
                got = f"{features[k].shape[1]} channels" if k in features else "none"
                raise ValueError(f"the feature of block {k} has {got}; expected {self.channels[k]} channels")
        batch_size, reference = features[chosen[0]].shape[0], self.heads[_name(chosen)].bias
        steps = torch.as_tensor(timesteps, device=reference.device).reshape(-1).expand(batch_size)
        time = self.time_embedding(self.time_proj(steps).to(reference.dtype))
        standard = {k: self.standardizers[str(k)](features[k].to(reference.dtype)) for k in chosen}
        signal = self.heads[_name(chosen)](standard, functional.silu(time), size or self.image_size)
        return signal.to(reference.dtype)  # under autocast its products are coarser

    def encode_depth(self, depth: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Depth ``(B, h, w)`` -> signal ``(B, 1, h, w)`` in [-1, 1] and mask, see `DepthRange.encode`."""
        return self.depth_range.encode(depth, valid)

    def decode_depth(self, signal: Tensor) -> Tensor:
        """Signal ``(B, 1, h, w)`` -> depth ``(B, h, w)``, metres or in [0, 1], see `DepthRange.decode`."""
        return self.depth_range.decode(signal)


def _name(blocks: Sequence[int]) -> str:
    return "blocks_" + "_".join(map(str, blocks))
