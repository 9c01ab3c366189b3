"""An export: traced, written, held against its model, and only then put into its folder."""

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from noise2map import __version__
from noise2map.export import parity
from noise2map.export.compiled import check_compiler, compile_program
from noise2map.export.graph_model import SETTINGS, OnnxRunner, ProgramRunner, Runner, graph_model
from noise2map.export.graphs import ENCODER, STEP, check_exportable, entangled, quiet, trace
from noise2map.export.onnx_files import WEIGHTS, onnx_model, write_onnx
from noise2map.models import MapModel
from noise2map.runs.files import write_bytes, write_json
from noise2map.runs.output_folder import claim
from noise2map.tasks import task_of

FORMATS = ("onnx", "torch", "aoti")

_SCRIPT = "run.py"

# What the script without torch reads of a model's configuration.
_FIELDS = (
    "average", "churn", "diffusion", "ensemble_size", "map_scale", "max_depth", "min_depth", "min_inverse_snr", "noise_channels",
    "noise_schedule", "num_inference_steps", "sampler", "sampling", "time_difference", "time_grid",
)  # fmt: skip


def export_model(
    model: MapModel,
    processor: Any,
    out: str | Path,
    format: str = "onnx",
    weights: str = "float32",
    *,
    label: str = "model",
    palette: np.ndarray | None = None,
    overwrite: bool = False,
    tell: Callable[[str], object] = lambda line: None,
) -> list[parity.Parity]:
    """Writes a model as graphs for other programs, after holding them against the model.

    Args:
        model: a model of maps of images, on the CPU in float32.
        processor: its image processor.
        out: folder to write to.
        format: ``"onnx"`` (encoder.onnx, step.onnx, run.py), ``"torch"`` (encoder.pt2, step.pt2, exported programs) or ``"aoti"``
            (the same names, packages that AOTInductor compiled for the processor of this machine).
        weights: precision in which ONNX weights are stored, see `onnx_model`.
        label: what the model is called.
        palette: colors of its classes ``(K, 3)`` uint8.
        overwrite: replace what was made with other settings.
        tell: called with each line of what there is to say.

    Returns:
        How far apart the two are.

    Raises:
        ImportError: if a package that writes the format is not installed.
        OSError: if the folder cannot be written, or there is no compiler for the format ``"aoti"``.
        ValueError: for an unknown format or precision, a model that cannot be exported, or graphs that are not the model.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; expected one of {', '.join(FORMATS)}")
    if weights not in WEIGHTS or (format != "onnx" and weights != "float32"):
        expected = ", ".join(WEIGHTS) if format == "onnx" else f"'float32' with format {format!r}"
        raise ValueError(f"weights are {weights!r}; expected {expected}")
    check_exportable(model)
    if format != "onnx" and entangled(model):
        kind = model.config.backbone_config.model_type
        raise ValueError(f"cannot export a model on a {kind!r} backbone with format {format!r}; expected format 'onnx'")
    if format == "aoti":
        check_compiler()
    settings = {"command": "export", "model": label, "format": format, "weights": weights}
    with claim(out, settings, overwrite=overwrite) as folder, tempfile.TemporaryDirectory() as scratch:
        write = {"onnx": partial(_write_onnx, weights=weights), "torch": _write_programs, "aoti": _write_packages}[format]
        runner = write(model, Path(scratch))
        exported = graph_model(model.config, type(model), runner)
        found = []
        for one in parity.compare(model, exported):
            tell(str(one))
            found.append(one)
        if weights == "float32":
            parity.check(found)
        # What another format left would stand beside the new description, and its script would run old graphs.
        for stale in (*(f"{part}.{kind}" for part in (ENCODER, STEP) for kind in ("onnx", "pt2")), _SCRIPT):
            (folder.root / stale).unlink(missing_ok=True)
        for path in sorted(Path(scratch).iterdir()):
            write_bytes(folder.root / path.name, path.read_bytes())
        model.config.save_pretrained(folder.root)
        processor.save_pretrained(folder.root)
        if format == "onnx":
            shutil.copyfile(Path(__file__).parent / _SCRIPT, folder.root / _SCRIPT)
        write_json(folder.root / SETTINGS, _about(model, label, format, weights, palette, found))
    return found


def _write_onnx(model: MapModel, scratch: Path, weights: str) -> Runner:
    for name, program in trace(model).items():
        write_onnx(onnx_model(program, name, weights), scratch / f"{name}.onnx")
    return OnnxRunner(scratch)


def _write_programs(model: MapModel, scratch: Path) -> Runner:
    programs = trace(model)
    for name, program in programs.items():
        with quiet():
            torch.export.save(program, scratch / f"{name}.pt2")
    # The tracer's guards forbid a single map, which its example had not; the graph itself takes any number, as is compared.
    return ProgramRunner(*(programs[name].module(check_guards=False) for name in (ENCODER, STEP)))


def _write_packages(model: MapModel, scratch: Path) -> Runner:
    packages = [compile_program(program, scratch / f"{name}.pt2") for name, program in trace(model).items()]
    return ProgramRunner(*packages)


def _about(
    model: MapModel, label: str, format: str, weights: str, palette: np.ndarray | None, found: list[parity.Parity]
) -> dict[str, Any]:
    """What is in the folder: for people, for the script, and for `noise2map.export.graph_model.load_export`."""
    task, config = task_of(model), model.config
    return {
        "noise2map": __version__,
        "format": format,
        "weights": weights,
        "model": label,
        "task": task.name,
        "classes": task.has_classes,
        "metres": task.in_metres,
        "units_per_metre": next(units for units in (1000, 256, 100, 1) if units * config.max_depth <= 65535 or units == 1),
        "palette": [] if palette is None else palette.tolist(),
        "map_channels": model.codec.channels,
        "config": {name: getattr(config, name) for name in _FIELDS},
        "parity": [vars(one) for one in found],
    }
