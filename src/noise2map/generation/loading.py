"""Loads an image generator with the parts of its guidance: shipped name, folder or hub id."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from safetensors import SafetensorError

from noise2map.geometry import intrinsics_from_fov
from noise2map.guidance import DepthGuidedPipeline, DepthPredictor, DepthPrior
from noise2map.guidance.features import channels_last_on_cpu
from noise2map.guidance.fetching import fetched_folder
from noise2map.inference.loading import pick_device
from noise2map.runs.files import weights_checksum
from noise2map.zoo import final_hint, resolve_generator

logger = logging.getLogger(__name__)

CAMERA_FILE = "camera.json"

SAMPLERS = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}

SPACINGS = ("trailing", "leading", "linspace")
"""Spacings of a run's steps over the training steps, diffusers' names. A run ought to begin at the last training step, whose
images hold no signal, because it begins with noise: ``leading`` does not (Lin et al. 2023)."""

DEFAULT = "default"  # the sampler, or what a scale means, that the generator was saved with

_FORMER_DEFAULT = "own"

_PARTS = {"depth_predictor": DepthPredictor, "depth_prior": DepthPrior}


def load_generator(
    name: str | Path,
    depth_predictor: str | Path | None = None,
    depth_prior: str | Path | None = None,
    *,
    sampler: str = "ddim",
    timestep_spacing: str = DEFAULT,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> DepthGuidedPipeline:
    """A generator as a pipeline that can be guided, with whatever parts of guidance are given or lie in its folder.

    Args:
        name: shipped name, folder of a `DDPMPipeline`, `DDIMPipeline` or `DepthGuidedPipeline`, or hub id.
        depth_predictor: folder or hub id; by default ``depth_predictor/`` in the folder, if it is there.
        depth_prior: folder or hub id; by default ``depth_prior/`` in the folder, if it is there and knows the depth that a given
            predictor gives.
        sampler: ``"ddim"``, ``"ddpm"``, or ``"default"``: the one that the generator was saved with.
        timestep_spacing: one of `SPACINGS`, or ``"default"``: the one that the generator was saved with.
        device: where to; a name as of `pick_device`.
        dtype: of the weights.

    Raises:
        OSError: if something is missing.
        ValueError: if the parts do not belong together, cannot be read, or draw images of other than three channels.
    """
    sampler = DEFAULT if sampler == _FORMER_DEFAULT else sampler
    if sampler not in (DEFAULT, *SAMPLERS):
        raise ValueError(f"sampler is {sampler!r}; expected 'default', 'ddim' or 'ddpm'")
    if timestep_spacing not in (DEFAULT, *SPACINGS):
        raise ValueError(f"timestep_spacing is {timestep_spacing!r}; expected 'default' or one of {SPACINGS}")
    device = pick_device(device) if isinstance(device, str) else device
    source = resolve_generator(name)
    try:
        pipe = DepthGuidedPipeline.from_pretrained(source)
    except (SafetensorError, RuntimeError, TypeError) as error:
        raise ValueError(f"generator {str(name)!r} could not be loaded: {error}") from error
    except OSError as error:  # the hub's own errors, which do not say what was asked for
        raise OSError(f"generator {str(name)!r} could not be loaded: {error}") from error
    _check_channels(pipe)
    given = {"depth_predictor": depth_predictor, "depth_prior": depth_prior}
    own = None if all(given.values()) else _own_folder(source)
    parts = {part: load_part(part, path, own) or getattr(pipe, part) for part, path in given.items()}
    if depth_predictor is not None and depth_prior is None:
        parts["depth_prior"] = _fitting_prior(parts["depth_prior"], parts["depth_predictor"])
    changes = {} if timestep_spacing == DEFAULT else {"timestep_spacing": timestep_spacing}
    scheduler = SAMPLERS[sampler_of(pipe) if sampler == DEFAULT else sampler].from_config(pipe.scheduler.config, **changes)
    pipe = DepthGuidedPipeline(pipe.unet, scheduler, **parts, convention=pipe.config.convention, reduction=pipe.config.reduction)
    pipe.to(device)
    if dtype != torch.float32:
        pipe.to(dtype)
    channels_last_on_cpu(pipe.unet)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _own_folder(source: str) -> str:
    """The folder of a generator, with what only this library reads in it."""
    return fetched_folder(source, (CAMERA_FILE, *(f"{part}/*" for part in _PARTS)))


def _fitting_prior(prior: DepthPrior | None, predictor: DepthPredictor) -> DepthPrior | None:
    """The generator's own prior, which nobody asked for, if it knows the depth that a given predictor gives."""
    if prior is None or prior.depth_range == predictor.depth_range:
        return prior
    logger.warning(
        "the generator's own depth prior is left out: it was trained on %s, the depth predictor gives %s",
        prior.depth_range,
        predictor.depth_range,
    )
    return None


def sampler_of(pipe: Any) -> str:
    """The sampler of a pipeline, ``"ddim"`` or ``"ddpm"``.

    Raises:
        ValueError: If it is another one.
    """
    for name, kind in SAMPLERS.items():
        if isinstance(pipe.scheduler, kind):
            return name
    raise ValueError(f"the generator's sampler is a {type(pipe.scheduler).__name__}; choose 'ddim' or 'ddpm'")


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
        raise ValueError(f"{part.replace('_', ' ')} {source!r} could not be loaded: {error}{final_hint(Path(source))}") from error


def load_priors(pipe: DepthGuidedPipeline, paths: Sequence[str | Path]) -> list[DepthPrior]:
    """Depth priors on the device of a pipeline, whose prior becomes the first.

    Args:
        pipe: the generator, which refuses priors that do not fit its predictor.
        paths: folders or hub ids; without any, the pipeline's own prior, if it has one that fits.

    Raises:
        OSError: if one is missing.
        ValueError: if one cannot be read or does not fit, or there is no predictor.
    """
    loaded = [load_part("depth_prior", path) for path in paths]
    if not loaded:
        loaded = [] if pipe.depth_prior is None else [pipe.depth_prior]
    if loaded and pipe.depth_predictor is None:
        raise ValueError("a depth prior is given, but no depth predictor; expected --depth-predictor")
    for prior in reversed(loaded):  # the first is registered last
        pipe.register_modules(depth_prior=prior.to(pipe.device))
        pipe.check_components()
    return loaded


def prior_name(prior: DepthPrior) -> str:
    """A depth prior by resolution and weights, `"64px-ab12"`."""
    return f"{prior.image_size[0]}px-{weights_checksum(prior)[:4]}"


def side_of(pipe: DepthGuidedPipeline) -> int:
    """Side of a generator's square images in px.

    Raises:
        ValueError: if they are not square.
    """
    size = pipe.unet.config.sample_size
    sides = {size} if isinstance(size, int) else set(size or ())
    if len(sides) != 1:
        raise ValueError(f"the generator draws images of {size} px; expected square ones")
    return int(sides.pop())


def _check_channels(pipe: DepthGuidedPipeline) -> None:
    """Refuse generators whose images are none to be written.

    Raises:
        ValueError: If they do not have three channels.
    """
    channels = pipe.unet.config.in_channels
    if channels != 3:
        raise ValueError(
            f"the generator draws images of {channels} channel{'s' * (channels != 1)}; expected 3, red, green and blue"
        )


class Camera(NamedTuple):
    """Intrinsics of a generator's images.

    Attributes:
        intrinsics_px: ``fx, fy, cx, cy`` in px.
        source: ``"camera.json"`` of the generator, ``"given"`` or ``"assumed"``.
    """

    intrinsics_px: list[float]
    source: str


def camera_of(name: str | Path, size: int | Sequence[int], fov_deg: float | None = None) -> Camera:
    """Intrinsics of a generator's images, and where they come from.

    Args:
        name: as of `load_generator`.
        size: side of the images in px, or height and width.
        fov_deg: horizontal field of view to assume instead, degrees.

    Raises:
        OSError: if the generator is missing, or a hub id cannot be reached.
        ValueError: if its camera file is none.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if fov_deg is None and (path := Path(_own_folder(resolve_generator(name))) / CAMERA_FILE).is_file():
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            scales = [width / record["size_px"][0], height / record["size_px"][1]] * 2
            values = [float(value * scale) for value, scale in zip(record["intrinsics_px"], scales, strict=True)]
        except (ValueError, KeyError, TypeError, IndexError, ZeroDivisionError) as error:
            raise ValueError(f"{path} is no camera ({error!r}); expected size_px and the four intrinsics_px") from error
        return Camera(values, CAMERA_FILE)
    values = intrinsics_from_fov(60.0 if fov_deg is None else fov_deg, height, width)
    return Camera([round(float(value), 4) for value in values], "assumed" if fov_deg is None else "given")
