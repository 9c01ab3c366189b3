"""The one seeded sampler of images: a seed gives the same image in every command, batch and process."""

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from noise2map.generation.image_files import SHEET_FILE, SHEET_ROWS, DrawnImage, pair_sheet, seed_name, write_seed
from noise2map.generation.loading import Camera
from noise2map.guidance import DepthGuidedPipeline, GuidanceConfig
from noise2map.guidance.scheduler_step import check_sampling, diffusers_steps_fit, set_timesteps
from noise2map.inference.loading import pick_dtype
from noise2map.runs.files import encode_image, settings_checksum, weights_checksum, write_image
from noise2map.runs.output_folder import OutputFolder
from noise2map.runs.progress import progress_bar

logger = logging.getLogger(__name__)

UNGUIDED = GuidanceConfig()


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Sampling options of images, beside their guidance and their seeds.

    Attributes:
        num_inference_steps: Steps.
        eta: Noise of DDIM steps, 0 to 1.
        dtype: Of most arithmetic, `"float32"`, `"bfloat16"` or `"float16"`: the networks run under autocast; weights, images and
            the steps between them stay as they are.
        batch_size: Images at a time; an image does not depend on it.
    """

    num_inference_steps: int = 50
    eta: float = 0.0
    dtype: str = "float32"
    batch_size: int = 8


@dataclass(frozen=True)
class DrawnBatch:
    """Images of some seeds, on the CPU.

    Attributes:
        images: `(B, 3, H, W)` uint8.
        depths: `(B, H, W)` float32, in the predictor's unit; None where none was asked for.
        skipped: Steps of each image that were left unguided because the gradient was not finite.
    """

    images: Tensor
    depths: Tensor | None
    skipped: list[int]


def draw(
    pipe: DepthGuidedPipeline,
    seeds: Sequence[int],
    options: SamplingOptions,
    guidance: GuidanceConfig = UNGUIDED,
    *,
    output_depth: bool = False,
    on_step: Callable[[dict[str, Tensor]], object] | None = None,
    on_step_tensors: Sequence[str] = ("latents",),
) -> DrawnBatch:
    """Draw the images of seeds in one batch.

    Noise comes from a generator for each image on the CPU, whatever the device: a seed is the same image everywhere, up to the
    rounding of the device.

    Args:
        pipe: The generator, with the parts that the guidance needs.
        seeds: One image each.
        options: How; `batch_size` aside.
        guidance: What guides.
        output_depth: Also return the depth that the strong branch reads at the last step.
        on_step: Called after each step with some of its tensors.
        on_step_tensors: Which, see `DepthGuidedPipeline`.

    Raises:
        ValueError: If the pipeline refuses an argument, or a gradient is not finite.
    """

    def step_end(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        on_step(tensors)  # type: ignore[misc]
        return {}

    warn_of_spacing(pipe.scheduler, options.num_inference_steps)
    with autocast(pipe.device, options.dtype):
        out = pipe(
            batch_size=len(seeds),
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            num_inference_steps=options.num_inference_steps,
            guidance=guidance,
            eta=options.eta,
            output_depth=output_depth,
            output_type="pt",
            callback_on_step_end=None if on_step is None else step_end,
            callback_on_step_end_tensor_inputs=list(on_step_tensors),
        )
    pixels = (out.images.float() * 255).round().to(torch.uint8).cpu()
    return DrawnBatch(pixels, None if out.depths is None else out.depths.float().cpu(), out.skipped.tolist())


def autocast(device: torch.device, dtype: str) -> AbstractContextManager[object]:
    """The networks' arithmetic inside in a type by name; as it is for ``"float32"``."""
    chosen = pick_dtype(dtype)
    return nullcontext() if chosen == torch.float32 else torch.autocast(device.type, chosen)


@functools.lru_cache(maxsize=32)
def _say_once(message: str) -> None:
    logger.warning(message)


def first_timestep(scheduler: Any, num_inference_steps: int) -> int:
    """The training step at which a run of so many steps begins; the last one, unless the spacing is unfortunate."""
    other = type(scheduler).from_config(scheduler.config)
    set_timesteps(other, num_inference_steps)
    return int(other.timesteps[0])


def warn_of_spacing(scheduler: Any, num_inference_steps: int) -> None:
    """Says once if a run begins where training images still held a signal: its images come out too bright or too dark."""
    first, last = first_timestep(scheduler, num_inference_steps), scheduler.config.num_train_timesteps - 1
    if first < last:
        signal = float(scheduler.alphas_cumprod[first]) ** 0.5
        spacing = scheduler.config.timestep_spacing
        _say_once(
            f"{num_inference_steps} steps with timestep_spacing {spacing!r} begin at step {first} of {last}, where images keep "
            f"{100 * signal:.2g} % of their signal, from noise that has none; 'trailing' begins at the last"
        )


def image_settings(pipe: DepthGuidedPipeline, options: SamplingOptions, guidance: GuidanceConfig = UNGUIDED) -> dict[str, Any]:
    """All that an image depends on beside its seed, as flat JSON values; of guidance only where there is any.

    The noise does not depend on the device, but the rounding of its arithmetic does, which guidance amplifies: images of equal
    seeds are compared within one kind of device.
    """
    scheduler = _public(pipe.scheduler.config)
    found: dict[str, Any] = {
        "unet": _part_checksum(pipe.unet),
        "weights_dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "scheduler": type(pipe.scheduler).__name__,
        **{f"scheduler.{name}": _value(value) for name, value in sorted(scheduler.items())},
        "steps": options.num_inference_steps,
        "eta": options.eta,
        "dtype": options.dtype,
        "device": pipe.device.type,
        "noise": "a CPU generator for each image",
    }
    if not diffusers_steps_fit(pipe.scheduler, options.num_inference_steps):
        found["step_to"] = "the next of the run"  # images of earlier versions, whose steps ended short of it, are others
    parts = {"depth_predictor": pipe.depth_predictor, "depth_prior": pipe.depth_prior}
    guidance = guidance.bound(convention=pipe.config.convention, reduction=pipe.config.reduction, pipe_parts=parts)
    if guidance.losses:
        found["depth_predictor"] = _part_checksum(pipe.depth_predictor)
        found |= {f"guidance.{name}": _value(getattr(guidance, name)) for name in _names(guidance) if name != "losses"}
    for loss in guidance.losses:
        found |= {f"{loss.name}.{name}": _value(getattr(loss, name)) for name in _names(loss)}
    return found


def option_settings(command: str, options: Any) -> dict[str, Any]:
    """The options of a command that decide its results, as flat JSON values: all but folders, device and batch size.

    Args:
        command: Its name.
        options: A dataclass with `sampling` and `guidance` among its fields.
    """
    found: dict[str, Any] = {"command": command}
    for one in fields(options):
        value = getattr(options, one.name)
        if one.name == "guidance":
            found |= {f"guidance.{name}": _value(getattr(value, name)) for name in _names(value) if name != "losses"}
            found |= {f"{loss.name}.{name}": _value(getattr(loss, name)) for loss in value.losses for name in _names(loss)}
        elif one.name == "sampling":
            found |= {name: _value(getattr(value, name)) for name in _names(value) if name != "batch_size"}
        elif one.name not in ("out", "cache", "device", "samples"):
            found[one.name] = _value(value)
    return found


def folder_name(settings: Mapping[str, Any], guidance: GuidanceConfig = UNGUIDED) -> str:
    """`consistency-40_prior-40_CHECKSUM`: what guides, and a checksum of all that decides an image."""
    words = [f"{loss.name.replace(' ', '-')}-{loss.scale:g}" for loss in guidance.active] or ["unguided"]
    words += [guidance.placebo] if guidance.active and guidance.placebo else []
    return "_".join([*words, settings_checksum(dict(settings), 10)])


def draw_images(
    pipe: DepthGuidedPipeline,
    seeds: Sequence[int],
    out: Path,
    options: SamplingOptions,
    guidance: GuidanceConfig = UNGUIDED,
    *,
    on_images: Callable[[int], object] = lambda count: None,
) -> OutputFolder:
    """Draw the images of some seeds that are not there yet.

    Args:
        pipe: The generator, with the parts that the guidance needs.
        seeds: Of the images.
        out: Folder of all settings. One folder below it, see `folder_name`, gets the images, `SEED.png`.
        options: How.
        guidance: What guides.
        on_images: Called with the number of images done.

    Returns:
        The folder, closed; its `done` tells seconds for each image.

    Raises:
        OSError: If something cannot be written; `BlockingIOError` if another process draws these images.
        ValueError: If the pipeline refuses an argument, or a gradient is not finite.
    """
    settings = image_settings(pipe, options, guidance)
    paired = check_drawing(pipe, seeds, options, guidance)
    with OutputFolder(out / folder_name(settings, guidance), settings) as folder:
        missing = _in_pairs(seeds, folder) if paired else [seed for seed in seeds if not folder.is_done(str(seed), {})]
        on_images(len(seeds) - len(missing))
        size = _even(options.batch_size) if paired else options.batch_size
        for start in range(0, len(missing), size):
            part = missing[start : start + size]
            began = perf_counter()
            drawn = draw(pipe, part, options, guidance)
            seconds = (perf_counter() - began) / len(part)
            for seed, pixels, skipped in zip(part, drawn.images, drawn.skipped):
                name = f"{seed_name(seed)}.png"
                line = {"id": str(seed), "source": {}, "files": {"image": name}, "seconds": seconds, "skipped_steps": skipped}
                folder.write(line, {name: encode_image(Image.fromarray(pixels.permute(1, 2, 0).numpy()))})
            on_images(len(part))
    return folder


def check_drawing(
    pipe: DepthGuidedPipeline, seeds: Sequence[int], options: SamplingOptions, guidance: GuidanceConfig = UNGUIDED
) -> bool:
    """Refuse what `draw_images` cannot draw, before any work.

    Returns:
        Whether images are drawn in pairs, of seeds 2k and 2k + 1.

    Raises:
        ValueError: If there are more steps than the generator has, or a seed is alone that needs a neighbor.
    """
    paired = bool(guidance.active) and guidance.placebo == "neighbor"
    size = _even(options.batch_size) if paired else options.batch_size
    check_sampling(pipe.scheduler, size, options.num_inference_steps, options.eta, None)
    known = set(seeds)
    alone = [seed for seed in seeds if seed ^ 1 not in known] if paired else []
    if alone:
        raise ValueError(f"the placebo 'neighbor' pairs seeds 2k and 2k + 1; expected seed {alone[0] ^ 1} beside {alone[0]}")
    return paired


def _even(count: int) -> int:
    return count + count % 2


def _in_pairs(seeds: Sequence[int], folder: OutputFolder) -> list[int]:
    """Seeds to draw where images depend on their neighbor: always the two of a pair, 2k and 2k + 1."""
    pairs = sorted({seed // 2 for seed in seeds if not folder.is_done(str(seed), {})})
    return [seed for pair in pairs for seed in (2 * pair, 2 * pair + 1)]


@dataclass
class SamplingReport:
    """Report of a run of `sample_images`.

    Attributes:
        written: Seeds drawn now.
        kept: Seeds that an earlier run had drawn.
        metric: Whether depth is in metres (else there are no normals and point clouds).
        with_depth: Whether there is any depth.
    """

    written: list[int]
    kept: list[int]
    metric: bool
    with_depth: bool


def sample_images(
    pipe: DepthGuidedPipeline,
    seeds: Sequence[int],
    out: Path,
    options: SamplingOptions,
    guidance: GuidanceConfig = UNGUIDED,
    *,
    camera: Camera,
    title: str = "",
    pair: bool = True,
    overwrite: bool = False,
) -> SamplingReport:
    """Draw the images of seeds with depth, normals and point clouds; what an earlier run of equal settings drew is kept.

    Args:
        pipe: The generator with the parts that the guidance needs.
        seeds: One image each.
        out: Folder to write to.
        options: How.
        guidance: What guides.
        camera: Of the images.
        title: Heading of the sheet.
        pair: Also draw the same seeds without guidance: they start from the same noise.
        overwrite: Replace images of other settings.

    Raises:
        OSError: If the folder cannot be written; `BlockingIOError` if another process writes to it.
        ValueError: If the folder holds images of other settings, the pipeline refuses an argument, or the guidance needs pairs.
    """
    pipe.check_call(
        guidance, batch_size=options.batch_size, num_inference_steps=options.num_inference_steps, eta=options.eta
    )  # before any work
    if guidance.active and guidance.placebo == "neighbor":
        raise ValueError("the placebo 'neighbor' guides by another image of the batch; expected draw_images, which pairs seeds")
    with_depth, pair = pipe.depth_predictor is not None, pair and bool(guidance.active)
    ways = {"": guidance, "unguided/": UNGUIDED} if pair else {"": guidance}
    settings = {**image_settings(pipe, options, guidance), "intrinsics_px": list(camera.intrinsics_px), "camera": camera.source}
    settings |= {"pair": pair, **({"depth_from": _part_checksum(pipe.depth_predictor)} if with_depth else {})}
    with OutputFolder(out, settings, overwrite=overwrite) as folder:
        kept = [seed for seed in seeds if folder.is_done(seed_name(seed), {"seed": seed})]
        todo = [seed for seed in seeds if seed not in set(kept)]
        steps = options.num_inference_steps * len(ways)
        with progress_bar(total=len(seeds) * steps, initial=len(kept) * steps, desc="sample", unit="step") as bar:
            for start in range(0, len(todo), options.batch_size):
                part = todo[start : start + options.batch_size]
                count = functools.partial(bar.update, len(part))
                drawn = {
                    prefix: draw(pipe, part, options, way, output_depth=with_depth, on_step=lambda _, count=count: count())
                    for prefix, way in ways.items()
                }
                for index, seed in enumerate(part):
                    images = {prefix: _one(batch, index) for prefix, batch in drawn.items()}
                    depth_range = pipe.depth_predictor.depth_range if with_depth else None
                    write_seed(folder, seed, images, depth_range, camera, guided=bool(guidance.active))
        if with_depth:
            metric = pipe.depth_predictor.depth_range.metric
            sheet = pair_sheet(out, list(seeds)[:SHEET_ROWS], list(ways), metric, bool(guidance.active), title)
            write_image(out / SHEET_FILE, sheet)
    return SamplingReport(todo, kept, with_depth and pipe.depth_predictor.depth_range.metric, with_depth)


def describe(guidance: GuidanceConfig) -> str:
    """`consistency 40, prior 40 (variance)`; `unguided` without guidance."""
    scales = ", ".join(f"{loss.name} {loss.scale:g}" for loss in guidance.active)
    scales += f", placebo {guidance.placebo}" if scales and guidance.placebo else ""
    return f"{scales} ({guidance.convention})" if scales else "unguided"


def _one(batch: DrawnBatch, index: int) -> DrawnImage:
    image = Image.fromarray(batch.images[index].permute(1, 2, 0).numpy())
    return DrawnImage(image, None if batch.depths is None else batch.depths[index].numpy(), batch.skipped[index])


def _part_checksum(part: Any) -> str:
    """Weights and configuration of a network of the pipeline."""
    return settings_checksum({"weights": weights_checksum(part, 16), **{k: _value(v) for k, v in _public(part.config).items()}}, 16)


def _names(options: Any) -> list[str]:
    return [one.name for one in fields(options)]


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if not name.startswith("_")}


def _value(value: Any) -> Any:
    """A JSON value that stands for a setting: a network's checksum, a word such as `"-inf"` for a number that JSON lacks."""
    if isinstance(value, nn.Module):
        return _part_checksum(value)
    if isinstance(value, Mapping):
        return {str(name): _value(one) for name, one in _public(value).items()}
    if hasattr(value, "tolist"):
        return _value(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_value(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if callable(value):
        raise ValueError(f"{value!r} cannot be recorded; expected numbers and words that decide an image")
    return value
