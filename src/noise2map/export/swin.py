"""Swin transformers without decisions by the size of the image, which a graph of open sizes cannot make.

The layers of transformers pad only what does not divide. Padding by nothing and cutting nothing off gives the same numbers; so the
subclasses here do both always. Sizes are counted in windows from the start: a tracer need not prove that a padded side divides.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers.models.swin.modeling_swin import SwinLayer, SwinPatchEmbeddings, SwinPatchMerging

_FAR = -100.0  # what the published mask adds to the logits between regions that do not touch


def _pad_to(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """Tokens ``(B, h, w, C)`` -> ``(B, rows, columns, C)`` with zeros below and to the right."""
    return functional.pad(tokens, (0, 0, 0, columns - tokens.shape[2], 0, rows - tokens.shape[1]))


class OpenPatchEmbeddings(SwinPatchEmbeddings):
    """Pads to whole patches, be it by nothing."""

    def maybe_pad(self, pixel_values: Tensor, height: int, width: int) -> Tensor:
        """Images ``(B, 3, H, W)`` -> sides that are multiples of the patch size."""
        below, beside = self.patch_size[0] - 1, self.patch_size[1] - 1  # a convolution with strides drops what is too much
        return functional.pad(pixel_values, (0, beside, 0, below))


class OpenPatchMerging(SwinPatchMerging):
    """Pads to even sides, be it by nothing."""

    def forward(self, input_feature: Tensor, input_dimensions: tuple[int, int]) -> Tensor:
        """Tokens ``(B, h w, C)`` of a map ``(h, w)`` -> ``(B, h' w', 2 C)``, half of each side."""
        height, width = input_dimensions
        batch, _, channels = input_feature.shape
        rows, columns = (height + 1) // 2, (width + 1) // 2
        tokens = _pad_to(input_feature.view(batch, height, width, channels), 2 * rows, 2 * columns)
        pairs = tokens.view(batch, rows, 2, columns, 2, channels).permute(0, 1, 3, 4, 2, 5)  # columns before rows, as published
        return self.reduction(self.norm(pairs.reshape(batch, rows * columns, 4 * channels)))


class OpenLayer(SwinLayer):
    """Counts in windows, and cuts off what was padded, be it nothing."""

    def forward(self, hidden_states: Tensor, input_dimensions: tuple[int, int], **kwargs: Any) -> tuple[Tensor, Any]:
        """Tokens ``(B, h w, C)`` of a map ``(h, w)`` -> the same shape; always in windows, and without attention weights."""
        height, width = input_dimensions
        batch, _, channels = hidden_states.shape
        size = self.window_size
        down, across = (height + size - 1) // size, (width + size - 1) // size
        tokens = self.layernorm_before(hidden_states).view(batch, height, width, channels)
        tokens = self.cyclic_shift(_pad_to(tokens, down * size, across * size))
        windows = tokens.view(batch, down, size, across, size, channels).transpose(2, 3)
        attended = self._attend(windows.reshape(batch, down * across, size * size, channels), down, across)
        attended = attended.view(batch, down, across, size, size, channels).transpose(2, 3)
        attended = self.cyclic_shift(attended.reshape(batch, down * size, across * size, channels), reverse=True)
        kept = attended[:, :height, :width].reshape(batch, height * width, channels)
        hidden_states = hidden_states + self.drop_path(kept)
        return hidden_states + self.mlp(self.layernorm_after(hidden_states)), None

    def _attend(self, windows: Tensor, down: int, across: int) -> Tensor:
        """Attention within windows ``(B, windows, tokens, C)``."""
        attention = self.attention
        heads, width = attention.num_attention_heads, attention.head_dim
        batch, count, length, channels = windows.shape
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        query, key, value = (part(windows).view(batch, count, length, heads, width).transpose(2, 3) for part in parts)
        logits = query @ key.transpose(-1, -2) * attention.scaling + attention.relative_position_bias()
        if self.shift_size > 0:
            logits = logits + self._mask(windows, down, across).view(count, 1, length, length)
        mixed = (logits.softmax(-1) @ value).transpose(2, 3).reshape(batch, count, length, channels)
        return attention.o_proj(mixed)

    def _mask(self, like: Tensor, down: int, across: int) -> Tensor:
        """What is added between tokens of a window that the shift has brought together, ``(windows, tokens, tokens)``."""
        size, shift = self.window_size, self.shift_size
        place = like.new_ones(size).cumsum(0) - 1 >= size - shift  # the part of a window that came from the other side

        def regions(blocks: int) -> Tensor:
            last = like.new_ones(blocks).cumsum(0) == blocks
            return (last[:, None] & place[None]).to(like.dtype) + last[:, None].to(like.dtype)  # (blocks, size): 0, 1 or 2

        label = regions(down)[:, None, :, None] * 3 + regions(across)[None, :, None, :]
        label = label.reshape(down * across, size * size)
        return (label[:, None] != label[:, :, None]).to(like.dtype) * _FAR


_OPEN = {SwinPatchEmbeddings: OpenPatchEmbeddings, SwinPatchMerging: OpenPatchMerging, SwinLayer: OpenLayer}


def open_sizes(encoder: nn.Module) -> nn.Module:
    """The same encoder, changed in place: layers of Swin transformers become those that decide nothing by sizes.

    Args:
        encoder: an image encoder in evaluation mode; others than Swin stay as they are.
    """
    for module in encoder.modules():
        if type(module) in _OPEN:
            module.__class__ = _OPEN[type(module)]
    return encoder
