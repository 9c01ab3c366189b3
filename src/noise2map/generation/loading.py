"""Loads an image generator with the parts of its guidance: shipped name, folder or hub id."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from safetensors import SafetensorError

from noise2map.geometry import intrinsics_from_fov
from noise2map.guidance import DepthGuidedPipeline, DepthPredictor, DepthPrior
from noise2map.zoo import resolve_generator

CAMERA_FILE = "camera.json"

SAMPLERS = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}

OWN = "own"  # the sampler, or what a scale means, that the generator was saved with

_PARTS = {"depth_predictor": DepthPredictor, "depth_prior": DepthPrior}


def load_generator(
    name: str | Path,
    depth_predictor: str | Path | None = None,
    depth_prior: str | Path | None = None,
    *,
    sampler: str = "ddim",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> DepthGuidedPipeline:
    """A generator as a pipeline that can be guided, with whatever parts of guidance are given or lie in its folder.

    Args:
        name: shipped name, folder of a `DDPMPipeline`, `DDIMPipeline` or `DepthGuidedPipeline`, or hub id.
        depth_predictor: folder or hub id; by default ``depth_predictor/`` in the folder, if it is there.
        depth_prior: folder or hub id; by default ``depth_prior/`` in the folder, if it is there.
        sampler: ``"ddim"``, ``"ddpm"``, or ``"own"``: the one that the generator was saved with.
        device: where to.
        dtype: of the weights.

    Raises:
        OSError: if something is missing.
        ValueError: if the parts do not belong together, or cannot be read.
    """
    if sampler not in (OWN, *SAMPLERS):
        raise ValueError(f"sampler is {sampler!r}; expected 'own', 'ddim' or 'ddpm'")
    source = resolve_generator(name)
    try:
        pipe = DepthGuidedPipeline.from_pretrained(source)
    except (SafetensorError, RuntimeError, TypeError) as error:
        raise ValueError(f"generator {str(name)!r} could not be loaded: {error}") from error
    given = {"depth_predictor": depth_predictor, "depth_prior": depth_prior}
    parts = {part: load_part(part, path, source) or getattr(pipe, part) for part, path in given.items()}
    scheduler = SAMPLERS[sampler_of(pipe) if sampler == OWN else sampler].from_config(pipe.scheduler.config)
    pipe = DepthGuidedPipeline(pipe.unet, scheduler, **parts, convention=pipe.config.convention, reduction=pipe.config.reduction)
    pipe.to(device)
    if dtype != torch.float32:
        pipe.to(dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sampler_of(pipe: Any) -> str:
    """The sampler of a pipeline, ``"ddim"`` or ``"ddpm"``.

    Raises:
        ValueError: If it is another one.
    """
    for name, kind in SAMPLERS.items():
        if isinstance(pipe.scheduler, kind):
            return name
    raise ValueError(f"the generator's own sampler is a {type(pipe.scheduler).__name__}; choose 'ddim' or 'ddpm'")


def load_part(part: str, path: str | Path | None, generator: str | None = None) -> Any:
    """A predictor (`"depth_predictor"`) or prior (`"depth_prior"`), by path or from the generator's folder; None if there is none.

    Raises:
        FileNotFoundError: If the path is not there.
        ValueError: If it holds something else.
    """
    kind = _PARTS[part]
    if path is not None:
        folder = Path(path).expanduser()
        if not folder.is_dir() and ("/" not in str(path) or folder.is_absolute()):
            raise FileNotFoundError(f"there is no {part.replace('_', ' ')} {str(path)!r}")
        source = str(folder) if folder.is_dir() else str(path)
    elif generator is not None and (Path(generator) / part).is_dir():
        source = str(Path(generator) / part)
    else:
        return None
    try:
        return kind.from_pretrained(source).eval()
    except (OSError, ValueError, TypeError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"{part.replace('_', ' ')} {source!r} could not be loaded: {error}") from error


def camera_of(name: str | Path, size: int | Sequence[int], fov_deg: float | None = None) -> tuple[list[float], str]:
    """Intrinsics of a generator's pictures, and where they come from.

    Args:
        name: as of `load_generator`.
        size: side of the pictures in px, or height and width.
        fov_deg: horizontal field of view to assume instead, degrees.

    Returns:
        ``fx, fy, cx, cy`` in px, and ``"camera.json"``, ``"given"`` or ``"assumed"``.
    """
    height, width = (size, size) if isinstance(size, int) else size
    path = Path(resolve_generator(name)) / CAMERA_FILE
    if fov_deg is None and path.is_file():
        record = json.loads(path.read_text(encoding="utf-8"))
        scales = [width / record["size_px"][0], height / record["size_px"][1]] * 2
        return [value * scale for value, scale in zip(record["intrinsics_px"], scales)], CAMERA_FILE
    values = intrinsics_from_fov(60.0 if fov_deg is None else fov_deg, height, width)
    return [round(float(value), 4) for value in values], "assumed" if fov_deg is None else "given"
