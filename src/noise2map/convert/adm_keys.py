"""Names and layouts of ADM's weights -> those of `diffusers.UNet2DModel`."""

from torch import Tensor

from noise2map.convert.adm_flags import AdmArchitecture
from noise2map.convert.checkpoint import ConversionReport

_RES_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ATTENTION = {"norm": "group_norm", "qkv": "qkv", "proj_out": "to_out.0"}
_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def adm_layer_names(architecture: AdmArchitecture) -> dict[str, str]:
    """Layer of an ADM U-Net -> layer of the `UNet2DModel` (``qkv`` stands for ``to_q``, ``to_k`` and ``to_v``)."""
    names = dict(_ENDS)
    for number, block in (("0", "resnets.0"), ("1", "attentions.0"), ("2", "resnets.1")):
        _add(names, f"middle_block.{number}", f"mid_block.{block}", _ATTENTION if number == "1" else _RES_BLOCK)
    _add_encoder(names, architecture)
    _add_decoder(names, architecture)
    return names


def convert_adm_state_dict(tensors: dict[str, Tensor], architecture: AdmArchitecture) -> tuple[dict[str, Tensor], ConversionReport]:
    """ADM's weights under the names and in the layouts of `UNet2DModel`, float32.

    Raises:
        ValueError: naming the keys that the architecture has no place for.
    """
    names = adm_layer_names(architecture)
    converted: dict[str, Tensor] = {}
    report = ConversionReport()
    unknown = []
    for key, tensor in tensors.items():
        layer, _, leaf = key.rpartition(".")
        name = names.get(layer)
        if name is None:
            unknown.append(key)
            continue
        tensor = tensor.float()
        if name.endswith(".qkv"):
            parts = _split_qkv(key, tensor, architecture)
            renamed = {f"{name.removesuffix('qkv')}{part}.{leaf}": value for part, value in parts.items()}
        else:
            renamed = {f"{name}.{leaf}": tensor.squeeze(-1) if layer.endswith("proj_out") and tensor.ndim == 3 else tensor}
        converted.update(renamed)
        report.used[key] = list(renamed)
    if unknown:
        raise ValueError(
            f"{len(unknown)} keys have no place in the architecture that the flags describe, such as "
            f"{', '.join(sorted(unknown)[:3])}; "
            "check num_res_blocks, channel_mult, attention_resolutions and resblock_updown"
        )
    return converted, report


def _split_qkv(key: str, tensor: Tensor, architecture: AdmArchitecture) -> dict[str, Tensor]:
    """Rows of the joint projection -> query, key and value, each ``(C, C)`` or ``(C,)``.

    The legacy order lays the rows out head by head, the new order as three blocks.
    """
    rows = tensor.shape[0]
    width = rows // 3
    head_dim = width if architecture.head_dim is None else architecture.head_dim
    if rows % 3 or width % head_dim:
        raise ValueError(f"{key} has {rows} rows; expected three times a multiple of the {head_dim} channels of a head")
    rest = tensor.shape[1:2]
    if architecture.new_attention_order:
        parts = tensor.reshape(3, width, *rest).unbind(0)
    else:
        parts = tensor.reshape(width // head_dim, 3, head_dim, *rest).unbind(1)
    return {name: part.reshape(width, *rest).contiguous() for name, part in zip(("to_q", "to_k", "to_v"), parts)}


def _add(names: dict[str, str], official: str, ours: str, layers: dict[str, str]) -> None:
    names.update({f"{official}.{theirs}": f"{ours}.{mine}" for theirs, mine in layers.items()})


def _add_encoder(names: dict[str, str], architecture: AdmArchitecture) -> None:
    number, last = 1, len(architecture.widths) - 1
    for level, has_attention in enumerate(architecture.attention):
        for j in range(architecture.num_res_blocks):
            _add(names, f"input_blocks.{number}.0", f"down_blocks.{level}.resnets.{j}", _RES_BLOCK)
            if has_attention:
                _add(names, f"input_blocks.{number}.1", f"down_blocks.{level}.attentions.{j}", _ATTENTION)
            number += 1
        if level < last:
            _add_resampler(names, f"input_blocks.{number}.0", f"down_blocks.{level}.downsamplers.0", "op", architecture)
            number += 1


def _add_decoder(names: dict[str, str], architecture: AdmArchitecture) -> None:
    last = len(architecture.widths) - 1
    for i, has_attention in enumerate(reversed(architecture.attention)):
        for j in range(architecture.num_res_blocks + 1):
            block = f"output_blocks.{i * (architecture.num_res_blocks + 1) + j}"
            _add(names, f"{block}.0", f"up_blocks.{i}.resnets.{j}", _RES_BLOCK)
            if has_attention:
                _add(names, f"{block}.1", f"up_blocks.{i}.attentions.{j}", _ATTENTION)
            if j == architecture.num_res_blocks and i < last:
                number = 2 if has_attention else 1
                _add_resampler(names, f"{block}.{number}", f"up_blocks.{i}.upsamplers.0", "conv", architecture)


def _add_resampler(names: dict[str, str], official: str, ours: str, layer: str, architecture: AdmArchitecture) -> None:
    if architecture.resblock_updown:
        _add(names, official, ours, _RES_BLOCK)
    else:
        names[f"{official}.{layer}"] = f"{ours}.conv"
