"""The map decoder: noisy map + image features + time -> refined tokens (DDP, Sec. 3.2).

What depends only on the image, the grid or the time is computed once for a run (`MapDecoder.prepare`), not once for each step.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from noise2map.models.configuration import Noise2MapConfig
from noise2map.models.kernels import exporting
from noise2map.models.kernels.deformable_attention import deformable_sample, pixel_grid
from noise2map.models.kernels.embedding_bag import pad_map, sample_at
from noise2map.models.kernels.onednn_linear import apply_linear, feed_forward, linear


def sine_position_encoding(height: int, width: int, channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Sine encoding of pixel centres (Carion et al. 2020), ``(h*w, channels)``: half for y, half for x, sin and cos interleaved."""
    half = channels // 2
    frequency = 10000 ** (2 * torch.div(torch.arange(half, device=device), 2, rounding_mode="floor") / half)

    def encode(count: int) -> Tensor:
        position = (torch.arange(count, device=device, dtype=torch.float32) + 0.5) / (count + 1e-6) * 2 * math.pi
        angle = position[:, None] / frequency
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=2).flatten(1)

    y, x = encode(height), encode(width)
    both = torch.cat([y[:, None].expand(-1, width, -1), x[None].expand(height, -1, -1)], dim=-1)
    return both.reshape(height * width, channels).to(dtype)


class TimeEmbedding(nn.Module):
    """Learnt Fourier features of time and a two-layer network: ``(T,) -> (T, dim)``."""

    def __init__(self, frequencies: int, dim: int) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.randn(frequencies))
        self.linear_in = nn.Linear(2 * frequencies + 1, dim)
        self.linear_out = nn.Linear(dim, dim)

    def fourier(self, time: Tensor) -> Tensor:
        """``(T,) -> (T, 2 F + 1)``: the time itself, sines, cosines; in float32 whatever the model's type."""
        angle = time.float()[:, None] * self.frequencies.float()[None] * 2 * math.pi
        return torch.cat([time.float()[:, None], angle.sin(), angle.cos()], dim=-1)

    def forward(self, time: Tensor) -> Tensor:
        """Embedding of log-SNR or time, ``(T, dim)``; in float32 or better whatever the model's type."""
        return _precise_linear(self.linear_out, functional.gelu(_precise_linear(self.linear_in, self.fourier(time))))


def _precise_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    # A handful of rows once for a run: rounding them to bfloat16 on the way would move every token of every step.
    dtype = torch.promote_types(layer.weight.dtype, torch.float32)
    return functional.linear(x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))


def _softmax_of_few(logits: Tensor) -> Tensor:
    """Softmax over a last dimension of a few entries; with them in front, the kernel vectorises over all the others."""
    return logits.movedim(-1, 0).contiguous().softmax(0).movedim(0, -1).contiguous()


class DeformableAttention(nn.Module):
    """Single-level deformable self-attention over all pixels of a map (Zhu et al. 2021)."""

    def __init__(self, hidden_size: int, num_heads: int, num_points: int) -> None:
        super().__init__()
        self.num_heads, self.num_points = num_heads, num_points
        self.formulation = "auto"  # of the sampling, see `deformable_sample`
        self.offsets = nn.Linear(hidden_size, num_heads * num_points * 2)
        self.weights = nn.Linear(hidden_size, num_heads * num_points)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def _query_weight(self) -> Tensor:
        return torch.cat([self.offsets.weight, self.weights.weight])

    def position_term(self, position: Tensor) -> Tensor:
        """Contribution of the positional encoding ``(h*w, C)`` to offsets and weights, ``(h*w, 3 heads points)``, biases included.

        Both are linear in tokens plus encoding, and the encoding is the same at every step.
        """
        return functional.linear(position, self._query_weight(), torch.cat([self.offsets.bias, self.weights.bias]))

    def _query(self, tokens: Tensor, position_term: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets ``(N, L, heads, points, 2)`` and weights ``(N, L, heads, points)`` of tokens ``(N, L, C)``."""
        heads, points = self.num_heads, self.num_points
        query = linear(tokens, self._query_weight()) + position_term
        offsets, weights = query.split([heads * points * 2, heads * points], dim=-1)
        offsets = offsets.view(*tokens.shape[:2], heads, points, 2)
        return offsets, _softmax_of_few(weights.view(*tokens.shape[:2], heads, points))

    def forward(
        self,
        tokens: Tensor,
        position_term: Tensor,
        size: tuple[int, int],
        base_grid: Tensor,
        kept: list[Tensor] | None = None,
    ) -> Tensor:
        """Tokens ``(N, h*w, C)`` -> ``(N, h*w, C)``, with the residual; ``position_term`` from the method of that name.

        The values that were read are appended to ``kept``, with a border of zeros, for `refine`.
        """
        n, _, channels = tokens.shape
        offsets, weights = self._query(tokens, position_term)
        value = apply_linear(self.value, tokens).view(n, *size, self.num_heads, channels // self.num_heads)
        if kept is not None:
            kept.append(pad_map(value, value.dtype))
        sampled = deformable_sample(value, offsets, weights, self.formulation, base_grid)
        return apply_linear(self.output, sampled, residual=tokens)

    def refine(self, tokens: Tensor, position_term: Tensor, chosen: "ChosenTokens", values: Tensor) -> Tensor:
        """As `forward` for some of the tokens, ``(1, M, C)``, which read the kept values of all; their own are renewed in place.

        Args:
            tokens: the chosen ones.
            position_term: of them, ``(M, 3 heads points)``.
            chosen: which they are.
            values: kept by `forward`, ``(N, h+2, w+2, heads, d)``.
        """
        offsets, weights = self._query(tokens, position_term)
        own = apply_linear(self.value, tokens).view(-1, *values.shape[-2:]).to(values.dtype)
        values[chosen.images, chosen.pixels[:, 1] + 1, chosen.pixels[:, 0] + 1] = own
        sampled = sample_at(values, offsets[0], weights[0], chosen.pixels, chosen.images)
        return apply_linear(self.output, sampled[None].to(tokens.dtype), residual=tokens)


class MapDecoderLayer(nn.Module):
    """Deformable attention, feed-forward, and modulation by time at the end of the layer; post-norm."""

    def __init__(self, config: Noise2MapConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.attention = DeformableAttention(size, config.decoder_attention_heads, config.decoder_n_points)
        self.attention_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.linear_in = nn.Linear(size, config.decoder_ffn_dim)
        self.linear_out = nn.Linear(config.decoder_ffn_dim, size)
        self.ffn_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.time = nn.Linear(config.time_embed_dim, 2 * size) if config.time_conditioning else None

    def modulation(self, embedding: Tensor) -> Tensor:
        """Time embedding ``(T, D)`` -> scale and shift ``(T, 2 C)``; zeros if the layers are not told the time."""
        if self.time is None:
            return embedding.new_zeros(embedding.shape[0], 2 * self.linear_out.out_features)
        return _precise_linear(self.time, functional.silu(embedding))

    def forward(
        self,
        tokens: Tensor,
        position_term: Tensor,
        modulation: Tensor,
        size: tuple[int, int],
        base_grid: Tensor,
        kept: list[Tensor] | None = None,
    ) -> Tensor:
        """Tokens ``(N, h*w, C)``, modulation ``(N, 2 C)`` or ``(1, 2 C)`` -> ``(N, h*w, C)``; ``kept`` as in the attention."""
        return self._after(self.attention(tokens, position_term, size, base_grid, kept), modulation)

    def refine(self, tokens: Tensor, position_term: Tensor, modulation: Tensor, chosen: "ChosenTokens", values: Tensor) -> Tensor:
        """Some of the tokens ``(1, M, C)``, modulation ``(1, 2 C)`` -> ``(1, M, C)``, see `DeformableAttention.refine`."""
        return self._after(self.attention.refine(tokens, position_term, chosen, values), modulation)

    def _after(self, attended: Tensor, modulation: Tensor) -> Tensor:
        tokens = self.attention_norm(attended)
        return modulated_norm(self.ffn_norm, feed_forward(tokens, self.linear_in, self.linear_out), modulation)


def modulated_norm(norm: nn.Module, tokens: Tensor, modulation: Tensor) -> Tensor:
    """``norm(tokens) * (scale + 1) + shift``; tokens ``(N, h*w, C)``, modulation ``(N, 2 C)`` or ``(1, 2 C)``: scale, then shift.

    Where all tokens share one row of it, as in every step of sampling, norm and modulation are one affine and one pass over the
    tokens. A norm that is replaced or listened to, and a graph for elsewhere, keep the two.
    """
    scale, shift = modulation[:, None].chunk(2, dim=-1)
    plain = type(norm) is nn.LayerNorm and not norm._forward_hooks and not norm._forward_pre_hooks
    if len(modulation) > 1 or not plain or exporting():
        return torch.addcmul(shift, norm(tokens), scale + 1)
    gain = scale[0, 0] + 1
    return functional.layer_norm(
        tokens, norm.normalized_shape, norm.weight * gain, torch.addcmul(shift[0, 0], norm.bias, gain), norm.eps
    )


@dataclass
class DecoderContext:
    """Tensors that stay the same over the steps of a run.

    Attributes:
        image: image half of the projection, with its bias, ``(B, h*w, C)``.
        position_terms: each layer's share of the positional encoding, ``(h*w, 3 heads points)``.
        base_grid: columns and rows ``(h*w, 2)``.
        size: ``(h, w)``.
    """

    image: Tensor
    position_terms: list[Tensor]
    base_grid: Tensor
    size: tuple[int, int]

    def select(self, rows: Tensor) -> "DecoderContext":
        """The context of some of the images."""
        return replace(self, image=self.image[rows])


@dataclass
class ChosenTokens:
    """Some tokens of N maps of ``h*w``, in rising order.

    Attributes:
        images: the map that each is of, ``(M,)``, from 0 to N - 1.
        cells: its place in the map, row-major, ``(M,)``.
        pixels: column and row of it, ``(M, 2)``, whole numbers.
    """

    images: Tensor
    cells: Tensor
    pixels: Tensor

    @classmethod
    def where(cls, mask: Tensor) -> "ChosenTokens":
        """Those of a boolean mask ``(N, h, w)``."""
        images, rows, columns = mask.nonzero(as_tuple=True)
        return cls(images, rows * mask.shape[2] + columns, torch.stack((columns, rows), dim=-1))

    def of_maps(self, running: Tensor) -> "ChosenTokens":
        """Those of some of the maps, boolean ``(N,)``."""
        kept = running[self.images]
        return ChosenTokens(self.images[kept], self.cells[kept], self.pixels[kept])


class MapDecoder(nn.Module):
    """Noisy map + image features + time -> tokens ``(N, h*w, C)``.

    Args:
        config: sizes.
        map_channels: channels of the encoded map.
        feature_channels: channels of the image features; the decoder's own width if not given.
        resample: linear map of ``(N, C, h, w)`` to the grid that the layers and the head work on, where that is not the grid
            of the diffusion (bird's-eye view).
    """

    def __init__(
        self,
        config: Noise2MapConfig,
        map_channels: int,
        feature_channels: int | None = None,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size = config.hidden_size
        self.feature_channels = config.hidden_size if feature_channels is None else feature_channels
        # One projection of [features, noisy map], as in the published model; used in two halves.
        self.projection = nn.Conv2d(self.feature_channels + map_channels, config.hidden_size, 1)
        self.resample = resample
        conditioned = config.time_conditioning
        self.time_embedding = TimeEmbedding(config.time_embed_frequencies, config.time_embed_dim) if conditioned else None
        self.layers = nn.ModuleList(MapDecoderLayer(config) for _ in range(config.decoder_layers))

    def prepare(self, features: Tensor) -> DecoderContext:
        """Computes what a run needs once, from features ``(B, C, h, w)``."""
        weight = self.projection.weight[:, : self.feature_channels, 0, 0]
        image = linear(features.flatten(2).transpose(1, 2), weight, self.projection.bias)
        image, (height, width) = self._to_queries(image, features.shape[-2:])
        position = sine_position_encoding(height, width, self.hidden_size, features.device, image.dtype)
        terms = [layer.attention.position_term(position) for layer in self.layers]
        return DecoderContext(image, terms, pixel_grid(height, width, features.device), (height, width))

    def _to_queries(self, tokens: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """Projected tokens ``(N, h*w, C)`` on the grid of the diffusion -> on the grid of the layers, and its size."""
        if self.resample is None:
            return tokens, (size[0], size[1])
        maps = self.resample(tokens.transpose(1, 2).unflatten(2, size))
        return maps.flatten(2).transpose(1, 2), (maps.shape[-2], maps.shape[-1])

    def modulations(self, time: Tensor) -> Tensor:
        """Scales and shifts of all layers for some times: ``(T,) -> (T, L, 2 C)``."""
        dtype = self.projection.weight.dtype
        # Tensors without data have no autocast to switch off, and graphs for elsewhere know of none.
        with nullcontext() if time.device.type == "meta" or exporting() else torch.autocast(time.device.type, enabled=False):
            embedding = time.new_zeros(len(time), 1) if self.time_embedding is None else self.time_embedding(time)
            return torch.stack([layer.modulation(embedding) for layer in self.layers], dim=1).to(dtype)

    def fuse(self, context: DecoderContext, x_t: Tensor) -> Tensor:
        """Projects noisy maps ``(N, C_map, h, w)`` and adds the image half; N = B*R. Tokens ``(N, h*w, C)``."""
        weight = self.projection.weight[:, self.feature_channels :, 0, 0]
        noisy = linear(x_t.to(weight.dtype).flatten(2).transpose(1, 2), weight)
        # Resampling is linear in what is resampled, so the two halves may be resampled apart.
        noisy, _ = self._to_queries(noisy, x_t.shape[-2:])
        # The R samples of an image share its half of the projection.
        return (noisy.unflatten(0, (context.image.shape[0], -1)) + context.image[:, None]).flatten(0, 1)

    def forward(self, context: DecoderContext, x_t: Tensor, modulations: Tensor, kept: list[Tensor] | None = None) -> Tensor:
        """One call of the decoder.

        Args:
            context: from `prepare`, B images.
            x_t: noisy maps ``(N, C_map, h, w)``, N = B*R, the R samples of an image next to each other.
            modulations: from `modulations`, ``(N, L, 2 C)`` or ``(1, L, 2 C)``.
            kept: gets the values of every layer, for `refine`.

        Returns:
            Tokens ``(N, h*w, C)``.
        """
        tokens = self.fuse(context, x_t)
        for layer, position_term, modulation in zip(self.layers, context.position_terms, modulations.unbind(1)):
            tokens = layer(tokens, position_term, modulation, context.size, context.base_grid, kept)
        return tokens

    def refine(
        self, context: DecoderContext, x_t: Tensor, modulations: Tensor, chosen: ChosenTokens, values: list[Tensor]
    ) -> Tensor:
        """One call of the decoder for some of the tokens; without gradients.

        Queries are sparse, what they read is not: a token reads the newest value of every other one, whenever that was computed.

        Args:
            context: as in `forward`.
            x_t: as in `forward`.
            modulations: of one time, ``(1, L, 2 C)``.
            chosen: the tokens.
            values: kept by `forward`; those of the chosen tokens are renewed in place.

        Returns:
            The chosen tokens ``(M, C)``.
        """
        tokens = self._fuse_some(context, x_t, chosen)[None]
        for layer, term, modulation, own in zip(self.layers, context.position_terms, modulations.unbind(1), values):
            tokens = layer.refine(tokens, term[chosen.cells], modulation, chosen, own)
        return tokens[0]

    def _fuse_some(self, context: DecoderContext, x_t: Tensor, chosen: ChosenTokens) -> Tensor:
        """The chosen tokens of `fuse`, ``(M, C)``."""
        if self.resample is not None:  # a resampled token is a mean over others
            return self.fuse(context, x_t)[chosen.images, chosen.cells]
        weight = self.projection.weight[:, self.feature_channels :, 0, 0]
        noisy = x_t.to(weight.dtype).flatten(2).transpose(1, 2)[chosen.images, chosen.cells]
        samples = x_t.shape[0] // context.image.shape[0]
        return linear(noisy, weight) + context.image[chosen.images // samples, chosen.cells]
