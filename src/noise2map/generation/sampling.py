"""Images drawn by a generator, seed by seed, into a folder that can be gone on with."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image

from noise2map.generation.depth_reading import _digits, _signature_of
from noise2map.generation.image_files import write_cloud
from noise2map.generation.loading import OWN
from noise2map.guidance import DepthGuidedPipeline, DepthPrior, GuidanceConfig
from noise2map.inference.maps_on_disk import depth_png_scale
from noise2map.report.palettes import colorize, colorize_normals, depth_range
from noise2map.report.panels import Cell, Panel, depth_cell, render
from noise2map.runs.files import encode_image, write_image
from noise2map.runs.output_folder import OutputFolder
from noise2map.zoo import label_of


@dataclass(frozen=True)
class GuidanceSetting:
    """A way to draw images.

    Attributes:
        name: In tables.
        consistency_scale: Weight of depth consistency guidance.
        prior_scale: Weight of depth prior guidance.
        prior: Which of the priors, by name; "" for the pipeline's own.
    """

    name: str
    consistency_scale: float = 0.0
    prior_scale: float = 0.0
    prior: str = ""

    @property
    def key(self) -> str:
        """Name of its folder: equal scales and prior, equal images."""
        prior = f"_{self.prior}" if self.prior and self.prior_scale else ""
        return f"c{self.consistency_scale:g}_p{self.prior_scale:g}{prior}"


@dataclass(frozen=True)
class SamplingPlan:
    """What all settings share, beside the seeds.

    Attributes:
        num_inference_steps: Steps.
        convention: Meaning of the scales, `"variance"` or `"plain"`; `"own"` for the pipeline's, see `of`.
        reduction: Of the losses over pixels, `"sum"` or `"mean"`, or `"own"`.
        guidance_every: Guide every so many steps.
        eta: Noise of DDIM steps.
        on_nonfinite: `"error"` or `"skip"`.
        bf16: Draw under bfloat16 autocast, which CPUs with AMX and GPUs are much faster with; what reads the images later is not.
    """

    num_inference_steps: int = 50
    convention: str = OWN
    reduction: str = OWN
    guidance_every: int = 1
    eta: float = 0.0
    on_nonfinite: str = "error"
    bf16: bool = False

    def of(self, pipe: DepthGuidedPipeline) -> "SamplingPlan":
        """The plan with the pipeline's own convention and reduction where it says `"own"`."""
        own = {name: pipe.config[name] for name in ("convention", "reduction") if getattr(self, name) == OWN}
        return replace(self, **own)

    def arguments(self) -> dict[str, Any]:
        """Of a call of the pipeline."""
        return {name: value for name, value in asdict(self).items() if name != "bf16"}


def draw_images(
    pipe: DepthGuidedPipeline,
    setting: GuidanceSetting,
    seeds: Sequence[int],
    out: Path,
    plan: SamplingPlan,
    *,
    batch_size: int = 8,
    generator_name: str = "",
    on_images: Callable[[int], object] = lambda count: None,
) -> OutputFolder:
    """Draw the images of some seeds that are not there yet; an image follows from its seed and the setting alone.

    Args:
        pipe: The generator, with the prior of the setting.
        setting: Scales.
        seeds: Of the images.
        out: Folder of all settings. `out/KEY_DIGITS` gets the images, `SEED.png`; the digits stand for all that decides an image.
        plan: What all settings share.
        batch_size: Images at a time.
        generator_name: Recorded.
        on_images: Called with the number of images done.

    Returns:
        The folder; its `done` tells seconds for each image.

    Raises:
        OSError: If something cannot be written.
        ValueError: If a gradient is not finite.
    """
    plan = plan.of(pipe)
    settings = {"generator": generator_name, **_what_decides(pipe, setting, plan)}
    digits = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:6]
    folder = OutputFolder(out / f"{setting.key}_{digits}", settings)
    missing = [seed for seed in seeds if not folder.is_done(str(seed), {})]
    on_images(len(seeds) - len(missing))
    for start in range(0, len(missing), batch_size):
        part = missing[start : start + batch_size]
        began = perf_counter()
        with torch.autocast(pipe.device.type, torch.bfloat16) if plan.bf16 else nullcontext():
            result = pipe(
                batch_size=len(part),
                generator=[torch.Generator().manual_seed(seed) for seed in part],
                consistency_scale=setting.consistency_scale,
                prior_scale=setting.prior_scale,
                output_type="pt",
                **plan.arguments(),
            )
        pixels = (result.images.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        seconds = (perf_counter() - began) / len(part)
        skipped = result.skipped.tolist() if result.skipped is not None else [0] * len(part)
        for seed, picture, count in zip(part, pixels, skipped):
            name = f"{seed:06d}.png"
            line = {"id": str(seed), "source": {}, "files": {"image": name}, "seconds": seconds, "skipped_steps": count}
            folder.write(line, {name: encode_image(Image.fromarray(picture))})
        on_images(len(part))
    folder.close()
    return folder


def _what_decides(pipe: DepthGuidedPipeline, setting: GuidanceSetting, plan: SamplingPlan) -> dict[str, Any]:
    """All that an image depends on beside its seed; of guidance only where there is any."""
    found: dict[str, Any] = {
        "signature": _signature_of(pipe),
        "scheduler": type(pipe.scheduler).__name__,
        "num_inference_steps": plan.num_inference_steps,
        "eta": plan.eta,
    }
    if setting.consistency_scale or setting.prior_scale:
        found |= {"setting": setting.key, "predictor": _digits(pipe.depth_predictor), **plan.arguments()}
    if setting.prior_scale:
        found["prior"] = _digits(pipe.depth_prior)
    if plan.bf16:
        found["bf16"] = True
    return found


def prior_name(prior: DepthPrior | None) -> str:
    """A depth prior by resolution and weights, empty for none: what a setting calls it."""
    return "" if prior is None else f"{prior.image_size[0]}px-{_digits(prior)[:4]}"


SHEET_FILE = "pairs.png"

_SHEET_ROWS = 16

_UNIT = 65535


@dataclass(frozen=True)
class SamplingSettings:
    """Whatever decides what the pictures look like.

    Attributes:
        model: the generator's name.
        depth_predictor: folder of the predictor, or None for the generator's own.
        depth_prior: folder of the prior, or None for the generator's own.
        sampler: ``"ddim"`` or ``"ddpm"``.
        steps: sampling steps.
        consistency_scale: see `DepthGuidedPipeline`.
        prior_scale: see `DepthGuidedPipeline`.
        convention: meaning of the scales.
        reduction: of the losses over pixels.
        guidance_every: guide every so many steps.
        eta: noise of DDIM steps.
        on_nonfinite: ``"error"`` or ``"skip"``.
        dtype: of the weights.
        intrinsics_px: ``fx, fy, cx, cy`` of the pictures.
        camera: where they come from.
        pair: whether unguided pictures of the same seeds are drawn, too.
    """

    model: str
    depth_predictor: str | None = None
    depth_prior: str | None = None
    sampler: str = "ddim"
    steps: int = 50
    consistency_scale: float = 0.0
    prior_scale: float = 0.0
    convention: str = "variance"
    reduction: str = "sum"
    guidance_every: int = 1
    eta: float = 0.0
    on_nonfinite: str = "error"
    dtype: str = "float32"
    intrinsics_px: tuple[float, ...] = ()
    camera: str = "assumed"
    pair: bool = True

    @property
    def guided(self) -> bool:
        """Whether anything guides."""
        return self.consistency_scale > 0 or self.prior_scale > 0


@dataclass
class SamplingReport:
    """What a run did.

    Attributes:
        written: seeds drawn now.
        kept: seeds that an earlier run had drawn.
        metric: whether depth is in metres (else there are no normals and point clouds).
        with_depth: whether there is any depth.
    """

    written: list[int]
    kept: list[int]
    metric: bool
    with_depth: bool


def parse_seeds(text: str) -> list[int]:
    """``"0-15"``, ``"3"``, ``"0-3,8,10-11"`` -> seeds in that order, each once.

    Raises:
        ValueError: if it is something else.
    """
    seeds: list[int] = []
    for word in text.replace(" ", "").split(","):
        first, dash, last = word.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"seeds must be whole numbers and ranges such as 0-15 or 0,3,7, got {text!r}")
        low, high = int(first), int(last or first)
        if high < low or high - low > 1_000_000:
            raise ValueError(f"seeds {word!r} are no range; expected the smaller number first, at most a million seeds")
        seeds += range(low, high + 1)
    return list(dict.fromkeys(seeds))


def run_sampling(
    pipe: DepthGuidedPipeline,
    settings: SamplingSettings,
    seeds: Sequence[int],
    out: Path,
    *,
    batch_size: int = 8,
    overwrite: bool = False,
    tick: Callable[[int], object] = lambda count: None,
) -> SamplingReport:
    """Draw the pictures of seeds; what an earlier run with the same settings has finished is kept.

    A seed gives the same picture in any batch. An unguided picture of the same seed starts from the same noise.

    Args:
        pipe: the generator with the parts that the settings need.
        settings: how to draw.
        seeds: one picture each.
        out: folder to write to.
        batch_size: pictures at a time.
        overwrite: replace pictures of other settings.
        tick: called with the number of pictures that have come one step further.

    Raises:
        OSError: if the folder cannot be written.
        ValueError: if the folder holds pictures of other settings, or the pipeline refuses an argument.
    """
    guidance = GuidanceConfig.from_scales(
        settings.consistency_scale,
        settings.prior_scale,
        convention=settings.convention,
        reduction=settings.reduction,
        every=settings.guidance_every,
        on_nonfinite=settings.on_nonfinite,
    )
    # Before the folder says that it holds images of these settings.
    pipe.check_call(guidance, batch_size=batch_size, num_inference_steps=settings.steps, eta=settings.eta)
    folder = OutputFolder(out, asdict(settings), overwrite=overwrite)
    kept = [seed for seed in seeds if folder.is_done(_name(seed), {"seed": seed})]
    todo = [seed for seed in seeds if seed not in set(kept)]
    with_depth = pipe.depth_predictor is not None
    metric = with_depth and pipe.depth_predictor.depth_range.metric
    for start in range(0, len(todo), batch_size):
        part = todo[start : start + batch_size]
        drawn = {"": _draw(pipe, settings, part, settings.guided, tick)}
        if settings.guided and settings.pair:
            drawn["unguided/"] = _draw(pipe, settings, part, False, tick)
        for index, seed in enumerate(part):
            maps = {prefix: (found.images[index], _one(found, index)) for prefix, found in drawn.items()}
            _write(folder, settings, seed, maps, pipe, int(drawn[""].skipped[index]))
    if with_depth:
        write_image(out / SHEET_FILE, pair_sheet(out, list(seeds)[:_SHEET_ROWS], settings, metric))
    folder.close()
    return SamplingReport(todo, kept, metric, with_depth)


def _name(seed: int) -> str:
    return f"{seed:06d}"


def _one(output: Any, index: int) -> np.ndarray | None:
    return None if output.depths is None else np.asarray(output.depths[index], np.float32)


def _draw(pipe: DepthGuidedPipeline, settings: SamplingSettings, seeds: list[int], guided: bool, tick: Callable) -> Any:
    def step_end(pipeline: Any, index: int, timestep: Any, tensors: dict) -> dict:
        tick(len(seeds))
        return {}

    return pipe(
        batch_size=len(seeds),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        num_inference_steps=settings.steps,
        consistency_scale=settings.consistency_scale if guided else 0.0,
        prior_scale=settings.prior_scale if guided else 0.0,
        convention=settings.convention,
        reduction=settings.reduction,
        guidance_every=settings.guidance_every,
        on_nonfinite=settings.on_nonfinite,
        eta=settings.eta,
        output_depth=pipe.depth_predictor is not None,
        callback_on_step_end=step_end,
    )


def _write(
    folder: OutputFolder,
    settings: SamplingSettings,
    seed: int,
    drawn: dict[str, tuple[Image.Image, np.ndarray | None]],
    pipe: DepthGuidedPipeline,
    skipped: int,
) -> None:
    """All files of one seed, then its line in the record."""
    folder.begin()  # the clouds are written before the other files
    name, files, paths = _name(seed), {}, {}
    numbers: dict[str, float] = {"skipped_steps": skipped} if skipped else {}
    for prefix, (image, depth) in drawn.items():
        kind = prefix.rstrip("/") or "guided" if settings.guided else "unguided"
        paths[f"{kind}_image"] = f"{prefix}images/{name}.png"
        files[paths[f"{kind}_image"]] = encode_image(image)
        if depth is None:
            continue
        codec = pipe.depth_predictor.depth_range.codec
        scale = depth_png_scale(codec.max_depth) if codec else _UNIT
        units = np.rint(depth.astype(np.float64) * scale).clip(0, _UNIT).astype(np.uint16)
        arrays = BytesIO()
        np.savez_compressed(arrays, **{"depth_m" if codec else "depth": depth})
        paths |= {f"{kind}_depth": f"{prefix}depth/{name}.png", f"{kind}_arrays": f"{prefix}depth/{name}.npz"}
        files[paths[f"{kind}_depth"]], files[paths[f"{kind}_arrays"]] = encode_image(Image.fromarray(units)), arrays.getvalue()
        numbers[f"{kind}_depth_median"] = round(float(np.median(depth)), 4)
        numbers["depth_png_units"] = scale
        if codec:
            paths[f"{kind}_normals"], paths[f"{kind}_cloud"] = f"{prefix}normals/{name}.png", f"{prefix}clouds/{name}.ply"
            normals = write_cloud(folder.root / paths[f"{kind}_cloud"], image, depth, settings.intrinsics_px, codec.max_depth)
            files[paths[f"{kind}_normals"]] = encode_image(Image.fromarray(colorize_normals(normals)))
    folder.write({"id": name, "source": {"seed": seed}, "files": paths, **numbers}, files)


def pair_sheet(out: Path, seeds: Sequence[int], settings: SamplingSettings, metric: bool) -> Image.Image:
    """A row for each seed: image and depth without guidance, and with it if there is any."""
    pair = settings.guided and settings.pair
    kinds = ["unguided/", ""] if pair else [""]
    key = "depth_m" if metric else "depth"
    depths = {
        (prefix, seed): np.load(out / f"{prefix}depth/{_name(seed)}.npz", allow_pickle=False)[key]
        for seed in seeds
        for prefix in kinds
    }
    limits = depth_range(*depths.values()) if metric else (0.0, 1.0)
    cells = []
    for seed in seeds:
        for prefix in kinds:
            word = "guided" if settings.guided and not prefix else "unguided"
            image = Image.open(out / f"{prefix}images/{_name(seed)}.png").convert("RGB")
            cells.append(Cell(f"seed {seed}, {word}", np.asarray(image)))
            depth = depths[prefix, seed]
            cells.append(depth_cell(depth, "its depth", limits) if metric else Cell("its depth", colorize(depth, 0.0, 1.0)))
    scales = f"consistency {settings.consistency_scale:g}, prior {settings.prior_scale:g} ({settings.convention})"
    heading = f"{label_of(settings.model)}: {settings.steps} steps" + (f", {scales}" if settings.guided else ", unguided")
    return render(Panel(cells, columns=2 * len(kinds), heading=heading))
