"""Loads a model with its image processor, and refuses what would only look like a model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig

from noise2map.export.graph_model import load_export
from noise2map.models import MapModel, Noise2MapConfig
from noise2map.tasks import TASKS
from noise2map.zoo import available, bare_name, is_export, resolve_model

# Model type -> architectures and their processor.
_KINDS: dict[str, tuple[dict[str, type[MapModel]], Any]] = {}
for _task in TASKS.values():
    _kind = _KINDS.setdefault(_task.model_class.config_class.model_type, ({}, _task.processor_class))
    _kind[0][_task.model_class.__name__] = _task.model_class

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """The device of a name; ``"auto"`` takes CUDA, then MPS, then the CPU.

    Raises:
        ValueError: If the name is unknown or there is no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, got {name!r}")
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise ValueError(f"device {name!r} is not here: this PyTorch sees {torch.cuda.device_count()} CUDA device(s)")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {name!r} is not here")
    return device


def pick_dtype(name: str = "float32") -> torch.dtype:
    """The floating-point type of a name.

    Raises:
        ValueError: If it is not one of float32, bfloat16, float16.
    """
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


def load_model(
    name: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float32",
    kinds: Sequence[str] = ("noise2map",),
    run_programs: bool = False,
) -> tuple[MapModel, Any]:
    """Load a shipped, local or hub checkpoint, ready for prediction.

    Args:
        name: What :func:`noise2map.zoo.resolve_model` takes, or the folder of an ONNX export, which runs on the CPU.
        device: Where to; a name as in :func:`pick_device`.
        dtype: Type of the weights and of most arithmetic; diffusion itself stays in float32.
        kinds: Model types that are wanted: ``"noise2map"`` (maps of images), ``"noise2map-bev"`` (bird's-eye-view maps).
        run_programs: Also open the folder of an export for torch, whose files are programs.

    Returns:
        The model in evaluation mode, and its processor.

    Raises:
        FileNotFoundError: If a folder or a file of it is missing.
        ValueError: If it is not a checkpoint of this library, its configuration is impossible, or weights are missing,
            too many, of other shapes, or not finite.
    """
    device = pick_device(device) if isinstance(device, str) else device
    dtype = pick_dtype(dtype) if isinstance(dtype, str) else dtype
    source = resolve_model(name)
    try:
        raw, _ = PreTrainedConfig.get_config_dict(source)
        model_class, processor_class = _classes(raw, source, kinds)
        processor = processor_class.from_pretrained(source)
        if is_export(source):
            return _load_export(source, model_class, dtype, run_programs), processor
        model, info = model_class.from_pretrained(source, dtype=dtype, output_loading_info=True)
    except SafetensorError as error:
        raise ValueError(f"model {str(name)!r}: the weights cannot be read: {error}") from error
    except RuntimeError as error:  # transformers raises it for weights of other shapes
        raise ValueError(f"model {str(name)!r} could not be loaded: {error}") from error
    except (OSError, ValueError) as error:
        raise type(error)(f"model {str(name)!r} could not be loaded: {error}") from error
    _check_weights(model, info, source)
    return model.to(device).eval(), processor


def _classes(raw: dict[str, Any], source: str, kinds: Sequence[str]) -> tuple[type[MapModel], Any]:
    kind = raw.get("model_type")
    if kind not in kinds:
        hint = ""
        if kind in _KINDS:
            hint = "; for bird's-eye-view maps there is noise2map predict-bev" if kind != "noise2map" else "; it maps single images"
        raise ValueError(f"{source} holds a model of type {kind!r}; expected {' or '.join(map(repr, kinds))}{hint}")
    classes, processor_class = _KINDS[kind]
    architecture = next(iter(raw.get("architectures") or []), None)
    if architecture not in classes:
        raise ValueError(f"its config.json names the architecture {architecture!r}; expected one of {', '.join(classes)}")
    return classes[architecture], processor_class


def _load_export(source: str, model_class: type[MapModel], dtype: torch.dtype, run_programs: bool) -> MapModel:
    if dtype != torch.float32:
        raise ValueError(f"dtype is {str(dtype).removeprefix('torch.')!r}; expected 'float32', in which an export computes")
    return load_export(source, model_class, run_programs=run_programs)


def class_names_of(name: str | Path) -> dict[int, str] | None:
    """Names of a checkpoint's classes, from its configuration alone; None if it is not on this machine."""
    try:
        raw, _ = PreTrainedConfig.get_config_dict(resolve_model(name), local_files_only=True)
        return {int(index): str(label) for index, label in raw["id2label"].items()}
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def depth_range_of(name: str | Path) -> tuple[float, float] | None:
    """Nearest and farthest depth of a checkpoint, metres, from its configuration alone; None if it is not on this machine."""
    try:
        raw, _ = PreTrainedConfig.get_config_dict(resolve_model(name), local_files_only=True)
        if raw.get("model_type") != Noise2MapConfig.model_type:
            return None
        near, far = (raw.get(name, getattr(Noise2MapConfig, name)) for name in ("min_depth", "max_depth"))
        return float(near), float(far)
    except (OSError, ValueError, TypeError):
        return None


def _check_weights(model: MapModel, info: dict[str, Any], source: str) -> None:
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(str(key) for key in info.get(kind) or ())
        if keys:
            raise ValueError(
                f"model {source!r} has {len(keys)} {kind.replace('_keys', '')} weights, such as {keys[0]}: its weights do "
                "not belong to its config.json"
            )
    broken = [key for key, value in model.state_dict().items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ValueError(f"model {source!r} has weights that are NaN or infinite, such as {broken[0]}")


def is_map_model(name: str) -> bool:
    """True if a name stands for a checkpoint of this library: shipped, or a folder or hub id whose config says so."""
    if bare_name(name) in available():
        return True
    folder = Path(name).expanduser()
    if not folder.is_dir() and "/" not in name:
        return False  # no name of the hub: nobody need be asked
    try:
        raw, _ = PreTrainedConfig.get_config_dict(str(folder) if folder.is_dir() else name)
    except (OSError, ValueError):
        return False
    return raw.get("model_type") == Noise2MapConfig.model_type
