"""Official DDP checkpoints -> models of this library."""

import math
import re
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import ConvNextConfig, SwinConfig

from noise2map.convert.checkpoint import ConversionReport, find_checkpoint, read_content, strip_wrappers
from noise2map.convert.ddp_bev import bev_dropped_because, bev_sizes, is_bev, rename_bev, segmentation_key
from noise2map.convert.ddp_keys import dropped_because, rename, split_parts
from noise2map.models import MapModel, Noise2MapConfig, Noise2MapForDepthEstimation, Noise2MapForSemanticSegmentation
from noise2map.models.bev import Noise2MapBevConfig, Noise2MapForBevSegmentation

TASKS = ("segmentation", "depth", "bev")

_MODELS: dict[str, type[MapModel]] = {
    "segmentation": Noise2MapForSemanticSegmentation,
    "depth": Noise2MapForDepthEstimation,
    "bev": Noise2MapForBevSegmentation,
}

_STAGES = ["stage1", "stage2", "stage3", "stage4"]

_ADE20K_CLASSES = 150
_ALIGNED_STEPS = 10  # the published self-aligned runs are tested with


def load_official_ddp(checkpoint: str | Path | dict[str, Any], task: str | None = None, **config: Any) -> MapModel:
    """Loads an official DDP checkpoint.

    Everything that can be read off the shapes is: backbone, widths, depths, window, classes, decoder. The rest is what the
    checkpoint's ``meta`` says, else the published values of the task (three steps, ten of self-aligned weights); keywords override
    both (``max_depth=10`` for NYU, ``self_aligned=True``).

    Args:
        checkpoint: a file, a file on the hub (``OWNER/NAME:FILE``), or a state dict with the official key names.
        task: ``"segmentation"``, ``"depth"`` or ``"bev"``; by default read off the keys.
        **config: fields of `Noise2MapConfig`, or of `Noise2MapBevConfig`.

    Returns:
        The model in evaluation mode; ``model.conversion_report`` tells what became of every key.

    Raises:
        FileNotFoundError: if there is no such file, or it cannot be had from the hub.
        ValueError: if a key is unknown or missing, a shape does not fit, or the file carries code.
    """
    content = checkpoint if isinstance(checkpoint, dict) else read_content(find_checkpoint(checkpoint))
    tensors = strip_wrappers(content)
    found = _task_of(tensors)
    task = found if task is None else task
    if task not in TASKS:
        raise ValueError(f"task is {task!r}; expected one of {', '.join(TASKS)}")
    if task != found:
        raise ValueError(f"task is {task!r}, but the checkpoint's keys are those of a {found} model")
    of_depth = [name for name in ("min_depth", "max_depth") if name in config]
    if of_depth and "decode_head.conv_depth.weight" not in tensors:
        raise ValueError(f"{of_depth[0]} is {config[of_depth[0]]}, but the checkpoint is of a {task} model, which has no depth")
    classes = len(tensors["decode_head.conv_seg.weight"]) if task == "segmentation" else None
    told = settings_from_meta(content, task, classes)
    known = {**told, **config}
    aligned = {"num_inference_steps": _ALIGNED_STEPS} if known.get("self_aligned") else {}
    model_config = config_from_shapes(tensors, task, **{**aligned, **known})
    model = _MODELS[task](model_config)
    converted, report = convert_ddp_state_dict(tensors, model_config.time_conditioning)
    _load(model, converted)
    report.settings = {name: value for name, value in told.items() if name not in config}
    model.conversion_report = report
    return model.eval()


def convert_ddp_state_dict(
    tensors: dict[str, Tensor], time_conditioning: bool = True
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Official names and layouts -> ours.

    Raises:
        ValueError: naming the keys that are neither used nor known to be superfluous.
    """
    converted: dict[str, Tensor] = {}
    report = ConversionReport()
    unknown = []
    rename_key, drop_reason = (rename_bev, bev_dropped_because) if is_bev(tensors) else (rename, dropped_because)
    for key, tensor in tensors.items():
        reason = drop_reason(key, time_conditioning)
        if reason is not None:
            report.dropped[key] = reason
            continue
        name = rename_key(key)
        if name is None:
            unknown.append(key)
            continue
        parts = split_parts(name, tensor)
        converted.update(parts)
        report.used[key] = list(parts)
    if unknown:
        raise ValueError(f"checkpoint has {len(unknown)} unknown keys, such as {unknown[:3]}; expected an official DDP model")
    return converted, report


def config_from_shapes(tensors: dict[str, Tensor], task: str, **overrides: Any) -> Noise2MapConfig:
    """The configuration that an official state dict was made with, as far as its shapes tell.

    Raises:
        ValueError: if a tensor that a size is read from is missing.
    """

    def shape(key: str) -> tuple[int, ...]:
        if key not in tensors:
            raise ValueError(f"checkpoint has no key {key!r}; expected an official DDP {task} model")
        return tuple(tensors[key].shape)

    if task == "bev":
        return _bev_config(tensors, shape, overrides)
    sizes = _decoder_sizes(tensors, shape, overrides) | {
        "backbone_config": _backbone_config(tensors, shape),
        "use_auxiliary_head": "auxiliary_head.conv_seg.weight" in tensors,
    }
    if sizes["use_auxiliary_head"]:
        sizes["auxiliary_channels"] = shape("auxiliary_head.convs.0.conv.weight")[0]
    if task == "segmentation":
        classes = shape("decode_head.conv_seg.weight")[0]
        # The ADE20K configurations average over steps, the Cityscapes ones take the last.
        sizes |= {"num_labels": classes, "average": "steps" if classes == _ADE20K_CLASSES else "last"}
    else:
        sizes |= {"map_scale": 0.1, "time_input": "time", "min_inverse_snr": 0.0, "min_depth": 1e-3, "max_depth": 80.0}
    return Noise2MapConfig(**{**sizes, **overrides})


def _decoder_sizes(tensors: dict[str, Tensor], shape: Any, overrides: dict[str, Any]) -> dict[str, Any]:
    layer = "decode_head.encoder.layers.0"
    heads = overrides.get("decoder_attention_heads", 8)
    return {
        "hidden_size": shape(f"{layer}.norms.0.weight")[0],
        "decoder_layers": _count(tensors, r"decode_head\.encoder\.layers\.(\d+)\."),
        "decoder_attention_heads": heads,
        "decoder_n_points": shape(f"{layer}.attentions.0.attention_weights.weight")[0] // heads,
        "decoder_ffn_dim": shape(f"{layer}.ffns.0.layers.0.0.weight")[0],
        "time_embed_dim": shape("time_mlp.3.weight")[0],
        "time_embed_frequencies": shape("time_mlp.0.weights")[0],
        "time_conditioning": f"{layer}.time_mlp.1.weight" in tensors,
    }


def _bev_config(tensors: dict[str, Tensor], shape: Any, overrides: dict[str, Any]) -> Noise2MapBevConfig:
    sizes = bev_sizes(tensors, shape)
    known = {segmentation_key(key): tensor for key, tensor in tensors.items()}  # backbone and decoder are the same there

    def segmentation_shape(key: str) -> tuple[int, ...]:
        if key not in known:
            raise ValueError(f"checkpoint has no counterpart of {key!r}; expected an official DDP bev model")
        return tuple(known[key].shape)

    sizes |= _decoder_sizes(known, segmentation_shape, overrides)
    if "camera" in sizes["sensors"]:
        sizes["backbone_config"] = _backbone_config(known, segmentation_shape, _STAGES[1:])
    return Noise2MapBevConfig(**{**sizes, **overrides})


def _task_of(tensors: dict[str, Tensor]) -> str:
    if is_bev(tensors):
        return "bev"
    if "decode_head.conv_depth.weight" in tensors:
        return "depth"
    if "decode_head.conv_seg.weight" in tensors:
        return "segmentation"
    raise ValueError(
        "checkpoint has neither decode_head.conv_seg, decode_head.conv_depth nor heads.map.conv_seg; expected an official DDP model"
    )


def _count(tensors: dict[str, Tensor], pattern: str) -> int:
    indices = {int(match.group(1)) for key in tensors if (match := re.match(pattern, key))}
    return max(indices) + 1 if indices else 0


def _backbone_config(tensors: dict[str, Tensor], shape: Any, stages: list[str] = _STAGES) -> SwinConfig | ConvNextConfig:
    if "backbone.patch_embed.projection.weight" in tensors:
        depths = [_count(tensors, rf"backbone\.stages\.{i}\.blocks\.(\d+)\.") for i in range(4)]
        table = "backbone.stages.{}.blocks.0.attn.w_msa.relative_position_bias_table"
        width = shape("backbone.patch_embed.projection.weight")[0]
        return SwinConfig(
            embed_dim=width,
            depths=depths,
            num_heads=[shape(table.format(i))[1] for i in range(4)],
            window_size=(math.isqrt(shape(table.format(0))[0]) + 1) // 2,
            mlp_ratio=shape("backbone.stages.0.blocks.0.ffn.layers.0.0.weight")[0] / width,
            drop_path_rate=0.3,
            out_features=stages,
        )
    if "backbone.downsample_layers.0.0.weight" in tensors:
        return ConvNextConfig(
            hidden_sizes=[shape(f"backbone.norm{i}.weight")[0] for i in range(4)],
            depths=[_count(tensors, rf"backbone\.stages\.{i}\.(\d+)\.") for i in range(4)],
            layer_scale_init_value=1.0,
            drop_path_rate=0.4,
            out_features=_STAGES,
        )
    raise ValueError("checkpoint's backbone is neither Swin nor ConvNeXt; expected one of the official DDP models")


def _load(model: MapModel, converted: dict[str, Tensor]) -> None:
    own = model.state_dict()
    missing = sorted(set(own) - set(converted))
    surplus = sorted(set(converted) - set(own))
    if missing or surplus:
        raise ValueError(
            f"checkpoint leaves {len(missing)} weights unset {missing[:3]} and has {len(surplus)} too many {surplus[:3]}"
        )
    for name, tensor in converted.items():
        if own[name].shape != tensor.shape:
            raise ValueError(f"checkpoint's {name} has shape {tuple(tensor.shape)}; expected {tuple(own[name].shape)}")
    model.load_state_dict(converted)


# Settings of the official configuration by its names, and ours.
_WORDS = {"noise_schedule": "noise_schedule", "diffusion": "sampler"}
_WHOLE_NUMBERS = {"timesteps": "num_inference_steps", "randsteps": "ensemble_size", "time_difference": "time_difference"}

_NUMBER = r"([0-9.]+(?:e[+-]?[0-9]+)?)"


def settings_from_meta(content: Any, task: str, num_labels: int | None = None) -> dict[str, Any]:
    """Fields of `Noise2MapConfig` that shapes do not tell, as far as ``content["meta"]`` does; the text is searched, never run.

    Args:
        content: a checkpoint as it was read; one without ``meta`` tells nothing.
        task: ``"segmentation"``, ``"depth"`` or ``"bev"`` (of which nothing is taken).
        num_labels: classes of the model (segmentation); names and colors count where there are as many.
    """
    meta = content.get("meta") if isinstance(content, dict) else None
    if not isinstance(meta, dict) or task not in ("segmentation", "depth"):
        return {}
    text = meta.get("config")
    found = _from_text(text, task) if isinstance(text, str) else {}
    return found | (_classes(meta, num_labels) if task == "segmentation" else {})


def _from_text(text: str, task: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if re.search(r"\btype=['\"]SelfAlignedDDP['\"]", text):
        found["self_aligned"] = True
    scale = re.search(rf"\bbit_scale={_NUMBER}", text)
    if scale:
        found["map_scale"] = float(scale[1])
    for official, ours in _WORDS.items():
        value = re.search(rf"\b{official}=['\"](\w+)['\"]", text)
        if value:
            found[ours] = value[1]
    for official, ours in _WHOLE_NUMBERS.items():
        value = re.search(rf"\b{official}=(\d+)\b", text)
        if value:
            found[ours] = int(value[1])
    if task == "segmentation":
        accumulation = re.search(r"\baccumulation=(True|False)\b", text)
        if accumulation:
            found["average"] = "steps" if accumulation[1] == "True" else "last"
    else:
        # The model, its head and the datasets each have a range: where they differ, only the user knows.
        for name in ("min_depth", "max_depth"):
            values = {float(value) for value in re.findall(rf"\b{name}={_NUMBER}", text)}
            if len(values) == 1:
                found[name] = values.pop()
    return found


def _classes(meta: dict[str, Any], num_labels: int | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    names, colors = meta.get("CLASSES"), meta.get("PALETTE")
    if isinstance(names, list | tuple) and len(names) == num_labels and all(isinstance(name, str) for name in names):
        found["id2label"] = {index: name.strip() for index, name in enumerate(names)}
    if isinstance(colors, list | tuple) and len(colors) == num_labels and all(_is_color(color) for color in colors):
        found["palette"] = ["#{:02x}{:02x}{:02x}".format(*color) for color in colors]
    return found


def _is_color(value: Any) -> bool:
    parts = value if isinstance(value, list | tuple) else ()
    return len(parts) == 3 and all(isinstance(part, int) and 0 <= part <= 255 for part in parts)
