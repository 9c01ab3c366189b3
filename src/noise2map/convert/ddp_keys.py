"""Names of the official DDP state dict, and what they are called here.

A rule is ``(pattern, replacement)``; the first full match wins. Tensors that change on the way have a `Transform`.
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor

Parts = dict[str, Tensor]

_SWIN = "encoder.backbone.swin"
_SWIN_BLOCK = rf"{_SWIN}.encoder.layers.\1.blocks.\2"
_WB = r"(weight|bias)"

_SWIN_RULES = [
    (rf"backbone\.patch_embed\.projection\.{_WB}", rf"{_SWIN}.embeddings.patch_embeddings.projection.\1"),
    (rf"backbone\.patch_embed\.norm\.{_WB}", rf"{_SWIN}.embeddings.norm.\1"),
    (rf"backbone\.stages\.(\d+)\.blocks\.(\d+)\.norm1\.{_WB}", rf"{_SWIN_BLOCK}.layernorm_before.\3"),
    (rf"backbone\.stages\.(\d+)\.blocks\.(\d+)\.norm2\.{_WB}", rf"{_SWIN_BLOCK}.layernorm_after.\3"),
    (
        r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.relative_position_bias_table",
        rf"{_SWIN_BLOCK}.attention.relative_position_bias.relative_position_bias_table",
    ),
    (rf"backbone\.stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.qkv\.{_WB}", rf"{_SWIN_BLOCK}.attention.QKV_proj.\3"),
    (rf"backbone\.stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.proj\.{_WB}", rf"{_SWIN_BLOCK}.attention.o_proj.\3"),
    (rf"backbone\.stages\.(\d+)\.blocks\.(\d+)\.ffn\.layers\.0\.0\.{_WB}", rf"{_SWIN_BLOCK}.mlp.fc1.\3"),
    (rf"backbone\.stages\.(\d+)\.blocks\.(\d+)\.ffn\.layers\.1\.{_WB}", rf"{_SWIN_BLOCK}.mlp.fc2.\3"),
    (rf"backbone\.stages\.(\d+)\.downsample\.norm\.{_WB}", rf"{_SWIN}.encoder.layers.\1.downsample.norm.\2"),
    (r"backbone\.stages\.(\d+)\.downsample\.reduction\.weight", rf"{_SWIN}.encoder.layers.\1.downsample.reduction.weight"),
]

_CONVNEXT = "encoder.backbone"
_CONVNEXT_BLOCK = rf"{_CONVNEXT}.encoder.stages.\1.layers.\2"
_CONVNEXT_RULES = [
    (rf"backbone\.downsample_layers\.0\.0\.{_WB}", rf"{_CONVNEXT}.embeddings.patch_embeddings.\1"),
    (rf"backbone\.downsample_layers\.0\.1\.{_WB}", rf"{_CONVNEXT}.embeddings.layernorm.\1"),
    (rf"backbone\.downsample_layers\.([1-3])\.([01])\.{_WB}", rf"{_CONVNEXT}.encoder.stages.\1.downsampling_layer.\2.\3"),
    (r"backbone\.stages\.(\d+)\.(\d+)\.gamma", rf"{_CONVNEXT_BLOCK}.layer_scale_parameter"),
    (rf"backbone\.stages\.(\d+)\.(\d+)\.depthwise_conv\.{_WB}", rf"{_CONVNEXT_BLOCK}.dwconv.\3"),
    (rf"backbone\.stages\.(\d+)\.(\d+)\.norm\.{_WB}", rf"{_CONVNEXT_BLOCK}.layernorm.\3"),
    (rf"backbone\.stages\.(\d+)\.(\d+)\.pointwise_conv([12])\.{_WB}", rf"{_CONVNEXT_BLOCK}.pwconv\3.\4"),
]

_LAYER = r"decode_head\.encoder\.layers\.(\d+)"
_DECODER_RULES = [
    (rf"{_LAYER}\.attentions\.0\.sampling_offsets\.{_WB}", r"decoder.layers.\1.attention.offsets.\2"),
    (rf"{_LAYER}\.attentions\.0\.attention_weights\.{_WB}", r"decoder.layers.\1.attention.weights.\2"),
    (rf"{_LAYER}\.attentions\.0\.value_proj\.{_WB}", r"decoder.layers.\1.attention.value.\2"),
    (rf"{_LAYER}\.attentions\.0\.output_proj\.{_WB}", r"decoder.layers.\1.attention.output.\2"),
    (rf"{_LAYER}\.time_mlp\.1\.{_WB}", r"decoder.layers.\1.time.\2"),
    (rf"{_LAYER}\.ffns\.0\.layers\.0\.0\.{_WB}", r"decoder.layers.\1.linear_in.\2"),
    (rf"{_LAYER}\.ffns\.0\.layers\.1\.{_WB}", r"decoder.layers.\1.linear_out.\2"),
    (rf"{_LAYER}\.norms\.0\.{_WB}", r"decoder.layers.\1.attention_norm.\2"),
    (rf"{_LAYER}\.norms\.1\.{_WB}", r"decoder.layers.\1.ffn_norm.\2"),
    (r"time_mlp\.0\.weights", "decoder.time_embedding.frequencies"),
    (rf"time_mlp\.1\.{_WB}", r"decoder.time_embedding.linear_in.\1"),
    (rf"time_mlp\.3\.{_WB}", r"decoder.time_embedding.linear_out.\1"),
    (rf"(?:transform|down)\.conv\.{_WB}", r"decoder.projection.\1"),
    (r"embedding_table\.weight", "codec.embedding.weight"),
    (r"decode_head\.conv_seg\.weight", "head.classifier.weight"),
    (r"decode_head\.conv_seg\.bias", "head.classifier.bias"),
    (rf"decode_head\.conv_depth\.{_WB}", r"head.regressor.\1"),
]

_NECK_RULES = [
    (r"neck\.0\.lateral_convs\.(\d)\.conv\.weight", r"encoder.pyramid.lateral.\1.conv.weight"),
    (rf"neck\.0\.lateral_convs\.(\d)\.gn\.{_WB}", r"encoder.pyramid.lateral.\1.norm.\2"),
    (r"neck\.0\.fpn_convs\.(\d)\.conv\.weight", r"encoder.pyramid.output.\1.conv.weight"),
    (rf"neck\.0\.fpn_convs\.(\d)\.gn\.{_WB}", r"encoder.pyramid.output.\1.norm.\2"),
    (r"neck\.1\.down\.conv\.weight", "encoder.merge.conv.weight"),
    (rf"neck\.1\.down\.gn\.{_WB}", r"encoder.merge.norm.\1"),
    (rf"auxiliary_head\.conv_seg\.{_WB}", r"auxiliary_head.classifier.\1"),
    (r"auxiliary_head\.convs\.0\.conv\.weight", "auxiliary_head.conv.weight"),
    (
        r"auxiliary_head\.convs\.0\.bn\.(weight|bias|running_mean|running_var|num_batches_tracked)",
        r"auxiliary_head.norm.\1",
    ),
]

_STAGE_NORM = re.compile(rf"backbone\.norm([0-3])\.{_WB}")
_RULES = [
    (re.compile(pattern), replacement) for pattern, replacement in _SWIN_RULES + _CONVNEXT_RULES + _DECODER_RULES + _NECK_RULES
]
_DROPPED = [(re.compile(r"backbone\..*\.relative_position_index"), "computed from the window size")]
_TIME_KEYS = re.compile(r"time_mlp\..*")


def rename(key: str) -> str | None:
    """Our name of an official key, or `None` if it has none."""
    norm = _STAGE_NORM.fullmatch(key)
    if norm:  # stages are counted from 1 here
        return f"encoder.backbone.hidden_states_norms.stage{int(norm.group(1)) + 1}.{norm.group(2)}"
    for pattern, replacement in _RULES:
        match = pattern.fullmatch(key)
        if match:
            return match.expand(replacement)
    return None


def dropped_because(key: str, time_conditioning: bool) -> str | None:
    """Why an official key is not needed, or `None` if it is."""
    for pattern, reason in _DROPPED:
        if pattern.fullmatch(key):
            return reason
    if not time_conditioning and _TIME_KEYS.fullmatch(key):
        return "the checkpoint's decoder layers are not told the time"
    return None


def split_parts(name: str, tensor: Tensor) -> Parts:
    """Parts of one official tensor: renamed, split or permuted."""
    for pattern, transform in _TRANSFORMS:
        if re.search(pattern, name):
            return transform(name, tensor)
    return {name: tensor}


def _split_qkv(name: str, tensor: Tensor) -> Parts:
    return {name.replace("QKV_proj", f"{part}_proj"): piece for part, piece in zip("qkv", tensor.chunk(3))}


def _merge_order(name: str, tensor: Tensor) -> Parts:
    # Official: channel-major, neighbours (row, column) in reading order; transformers: neighbour-major, column before row.
    last = tensor.shape[-1]
    blocks = tensor.reshape(*tensor.shape[:-1], last // 4, 4)[..., torch.tensor([0, 2, 1, 3])]
    return {name: blocks.transpose(-1, -2).reshape(tensor.shape)}


def _drop_pixel_axes(name: str, tensor: Tensor) -> Parts:
    return {name: tensor.flatten(1)}  # a 1x1 convolution is a linear layer here


_TRANSFORMS: list[tuple[str, Callable[[str, Tensor], Parts]]] = [
    (r"\.QKV_proj\.", _split_qkv),
    (r"swin\.encoder\.layers\.\d+\.downsample\.(norm|reduction)", _merge_order),
    (r"head\.classifier\.weight$", lambda name, t: {name: t} if name.startswith("auxiliary") else _drop_pixel_axes(name, t)),
]
