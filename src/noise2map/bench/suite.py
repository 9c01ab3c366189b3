"""Everything about one device in one call: is it right, how fast is it, what does it take; a row at a time, never lost.

Each job is measured by itself and its rows are written at once. A job that fails becomes a row that says why, and the others go
on; one that is done is not measured again; what does not fit into the given minutes is left for the next call.
"""

import copy
import functools
import gc
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor
from tqdm import tqdm

from noise2map.bench.bev import BevBenchOptions, make_scene
from noise2map.bench.guidance import GuidanceBenchOptions, guidance_calls, guided_parts
from noise2map.bench.model import ModelBenchOptions, build_model, compiled, possible_steps, stage_calls
from noise2map.bench.timing import MIB, machine_facts, name_of
from noise2map.guidance import guided_step
from noise2map.models import MapModel
from noise2map.models.bev.camera import plan_pooling, pool
from noise2map.models.bev.lidar import voxelise
from noise2map.report.html import Page
from noise2map.report.tables import column_names, merge_rows, read_rows, write_csv
from noise2map.runs.files import settings_checksum
from noise2map.runs.peak_memory import read_peak, reset_peak
from noise2map.runs.provenance import provenance
from noise2map.tasks import task_of

logger = logging.getLogger(__name__)

Row = dict[str, Any]
SUITE_FILE, PAGE_FILE = "suite.csv", "index.html"
SUITE_IDENTITY = ("job", "stage", "device", "options")
_MEASURED_WITH = (("device", None), ("commit", None), ("date", 10), ("torch", None))  # columns, and how much of each
COLUMNS = ("job", "stage", "ms", "images_per_s", "peak_mb", "max_difference", "label_flips", "x", "error")


@dataclass(frozen=True, kw_only=True)
class SuiteOptions:
    """What is measured; the defaults take less than nine minutes on one data-centre GPU.

    Attributes:
        model: A preset, shipped name, folder or hub id, see `noise2map.bench.model.PRESETS`.
        sizes: Width and height of the images, pixels.
        steps: Step counts of whole runs.
        batch_sizes: Of the throughput.
        training_batch: Images of a training step.
        guided: Side of guided images and width of the U-Net's finest level.
        points: Of a LiDAR cloud.
        compile: Also measure compiled models.
        device: Where.
        rounds: Timed calls of each stage; figures are medians.
        minutes: No job begins after them.
        seed: Of everything that is drawn.
    """

    model: str = "swin-t-ade20k"
    sizes: Sequence[tuple[int, int]] = ((512, 512), (2048, 1024))
    steps: Sequence[int] = (1, 3, 10)
    batch_sizes: Sequence[int] = (1, 2, 4, 8, 16)
    training_batch: int = 4
    guided: Sequence[tuple[int, int]] = ((64, 64), (256, 256))
    points: int = 250_000
    compile: bool = True
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rounds: int = 7
    minutes: float = 9.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: Naming the value that is impossible.
        """
        for name in ("sizes", "steps", "batch_sizes", "guided"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; expected at least one")
        if self.rounds < 1 or not self.minutes > 0:
            raise ValueError(f"rounds is {self.rounds} and minutes {self.minutes}; expected at least 1, and more than 0")

    @property
    def words(self) -> str:
        """What else decides a row, in a cell: rows of other options stay in the table."""
        names = ("sizes", "steps", "batch_sizes", "training_batch", "guided", "points")
        plan = settings_checksum({name: getattr(self, name) for name in names}, 4)
        return f"{self.model}, {self.rounds} rounds, seed {self.seed}, {torch.get_num_threads()} threads, sizes {plan}"


@dataclass(frozen=True)
class Job:
    """A part of the suite.

    Attributes:
        name: Of its rows.
        measure: Gives them.
        dtype: What is measured computes in it.
    """

    name: str
    measure: Callable[[], Iterator[Row]]
    dtype: torch.dtype = torch.float32


def make_jobs(options: SuiteOptions) -> list[Job]:
    """All jobs: first whether the device is right, then what is quick, last what is compiled."""
    jobs = [Job(f"agreement {name_of(dtype)}", lambda dtype=dtype: _agreement(options, dtype), dtype) for dtype in _TYPES]
    for size in options.sizes:
        for dtype in _TYPES:
            measure = functools.partial(_model, options, size, dtype, False)
            jobs.append(Job(_named("model", size, dtype), measure, dtype))
    first = options.sizes[0]
    jobs.append(Job(_named("training step", first, torch.bfloat16), lambda: _training(options, first), torch.bfloat16))
    jobs.append(Job(_named("throughput", first, torch.bfloat16), lambda: _throughput(options, first), torch.bfloat16))
    jobs.append(Job(_named("one sample", first, torch.float32), lambda: _one_sample(options, first)))
    for side, width in options.guided:
        jobs.append(Job(f"guided step {side} px", lambda side=side, width=width: _guided(options, side, width)))
    jobs.append(Job("pooling of cameras and LiDAR", lambda: _pooling(options)))
    if options.compile:
        jobs += [
            Job(f"{_named('model', size, dtype)}, compiled", functools.partial(_model, options, size, dtype, True), dtype)
            for size in options.sizes
            for dtype in _TYPES
        ]
    return jobs


_TYPES = (torch.float32, torch.bfloat16)


def _named(what: str, size: tuple[int, int], dtype: torch.dtype) -> str:
    return f"{what} {size[0]}x{size[1]} {name_of(dtype)}"


def run_suite(options: SuiteOptions, out: Path, jobs: Sequence[Job] | None = None) -> list[Row]:
    """Measure what is missing, write ``suite.csv`` after each job and ``index.html`` at the end.

    Args:
        options: What to measure.
        out: Folder of both files; rows of other devices and options in it are kept.
        jobs: By default all of `make_jobs`.

    Returns:
        All rows of this device and these options.

    Raises:
        OSError: If a file cannot be written.
        ValueError: If ``suite.csv`` is the table of something else.
    """
    out.mkdir(parents=True, exist_ok=True)
    path, facts = out / SUITE_FILE, provenance(options.device, torch.float32, options.seed) | machine_facts(options.device)
    same = {"device": facts["device"], "options": options.words}
    before = _rows(path, same)
    done = {row["job"] for row in before} - {row["job"] for row in before if row.get("error")}
    todo = [job for job in (make_jobs(options) if jobs is None else jobs) if job.name not in done]
    began, left = time.monotonic(), []
    with tqdm(todo, desc="suite", unit="job") as bar:
        for job in bar:
            if time.monotonic() - began > 60 * options.minutes:
                left.append(job.name)
                continue
            bar.set_postfix_str(job.name)
            rows = [{"job": job.name, **row, **facts, "dtype": name_of(job.dtype), **same} for row in _measured(job)]
            _drop(path, job.name, same)
            merge_rows(path, rows, SUITE_IDENTITY)
            _free(options.device)
    if left:
        logger.warning("not measured within %g minutes (run again to go on): %s", options.minutes, ", ".join(left))
    found = _rows(path, same)
    _page(found).write(out / PAGE_FILE)
    return found


def _measured(job: Job) -> list[Row]:
    """Rows of a job; where it fails, those before and one that says why."""
    rows: list[Row] = []
    try:
        rows.extend(job.measure())
    except (RuntimeError, ValueError, NotImplementedError, MemoryError, AssertionError, TypeError) as error:
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        rows.append({"stage": "failed", "error": f"{type(error).__name__}: {first[0][:200]}"})
        logger.warning("%s failed: %s", job.name, rows[-1]["error"])
    return rows


def _rows(path: Path, same: Mapping[str, str]) -> list[Row]:
    return [row for row in read_rows(path, SUITE_IDENTITY) if all(row[name] == value for name, value in same.items())]


def _drop(path: Path, job: str, same: Mapping[str, str]) -> None:
    """Removes what an earlier call found before the job failed."""
    rows = read_rows(path, SUITE_IDENTITY)
    kept = [row for row in rows if row["job"] != job or any(row[name] != value for name, value in same.items())]
    if len(kept) < len(rows):
        write_csv(path, kept, column_names(rows))


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _page(rows: Sequence[Row]) -> Page:
    """Rows of earlier runs are theirs: the page names every commit, day and torch that one was measured with."""
    device, commits, days, versions = (
        ", ".join(dict.fromkeys(str(row.get(name, ""))[:length] for row in rows)) for name, length in _MEASURED_WITH
    )
    page = Page("One device", f"{device}, commit {commits}, {days}.")
    for job in dict.fromkeys(row["job"] for row in rows):
        own = [row for row in rows if row["job"] == job]
        page.table(own, [name for name in COLUMNS[1:] if any(row.get(name) for row in own)], heading=job)
    page.footer(f"noise2map bench gpu, torch {versions}")
    return page


def timed(call: Callable[[], Any], options: SuiteOptions) -> Row:
    """``ms``, the median over rounds after one that does not count, and ``peak_mb`` of the device, of the process on a CPU."""
    call()
    _wait(options.device)
    reset_peak(options.device)
    found = []
    for _ in range(options.rounds):
        start = time.perf_counter()
        call()
        _wait(options.device)
        found.append((time.perf_counter() - start) * 1000)
    return {"ms": median(found), "peak_mb": round(read_peak(options.device) / MIB, 1)}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _model_options(options: SuiteOptions, size: tuple[int, int], dtype: torch.dtype, batch_size: int = 1) -> ModelBenchOptions:
    return ModelBenchOptions(
        model=options.model, width=size[0], height=size[1], steps=tuple(options.steps), modes=("eager",), batch_size=batch_size,
        dtypes=(dtype,), device=options.device, rounds=options.rounds, seed=options.seed, memory=False,
    )  # fmt: skip


def _agreement(options: SuiteOptions, dtype: torch.dtype) -> Iterator[Row]:
    """Logits of three steps on the device against those of the CPU in float32: same weights, image and noise."""
    width, height = options.sizes[0]
    cpu = torch.device("cpu")
    reference = build_model(options.model, cpu, torch.float32, options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    pixels = torch.randn(1, 3, height, width, generator=generator)
    noise = torch.randn(1, 1, reference.codec.channels, height // 4, width // 4, generator=generator)
    model = copy.deepcopy(reference).to(options.device, dtype)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.no_grad():
            for steps in possible_steps(reference, options.steps):
                expected = _map_of(reference, pixels, noise, steps)
                found = _map_of(model, pixels.to(options.device, dtype), noise.to(options.device), steps).float().cpu()
                difference = float((found - expected).abs().max() / expected.abs().max())
                row = {"stage": f"{steps} steps", "max_difference": f"{difference:.3g}"}
                if task_of(reference).has_classes:
                    row["label_flips"] = f"{float((found.argmax(1) != expected.argmax(1)).float().mean()):.3g}"
                yield row
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _map_of(model: MapModel, pixels: Tensor, noise: Tensor, steps: int) -> Tensor:
    return model.decode_map(model.encode_image(pixels), num_inference_steps=steps, noise=noise).prediction


@torch.no_grad()
def _model(options: SuiteOptions, size: tuple[int, int], dtype: torch.dtype, with_compiler: bool) -> Iterator[Row]:
    model = build_model(options.model, options.device, dtype, options.seed)
    options = replace(options, steps=possible_steps(model, options.steps))
    if with_compiler:
        model = compiled(model)
    stages = ["encode", "step", *(f"all {count}" for count in options.steps)]
    for stage, call in stage_calls(model, _model_options(options, size, dtype), stages).items():
        yield {"stage": stage, **timed(call, options)}


def _training(options: SuiteOptions, size: tuple[int, int]) -> Iterator[Row]:
    """Forward, backward and AdamW under autocast, as training does it."""
    model = build_model(options.model, options.device, torch.float32, options.seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    pixels = torch.randn(options.training_batch, 3, size[1], size[0], device=options.device)
    labels = _labels(model, (options.training_batch, size[1], size[0])).to(options.device)

    def step() -> None:
        with torch.autocast(options.device.type, torch.bfloat16):
            loss = model(pixel_values=pixels, labels=labels, generator=torch.Generator().manual_seed(0)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    row = timed(step, options)
    yield {"stage": f"{options.training_batch} images", **row, "images_per_s": 1000 * options.training_batch / row["ms"]}


def _labels(model: MapModel, shape: tuple[int, int, int]) -> Tensor:
    """Labels of the model's task that say nothing: one class, the nearest depth, walls that face the camera."""
    task = task_of(model)
    if task.has_classes:
        return torch.zeros(shape, dtype=torch.long)
    if task.in_metres:
        return torch.full(shape, float(model.config.min_depth))
    return torch.tensor([0.0, 0.0, -1.0]).view(1, 3, 1, 1).expand(shape[0], 3, *shape[1:]).contiguous()


@torch.no_grad()
def _throughput(options: SuiteOptions, size: tuple[int, int]) -> Iterator[Row]:
    model = build_model(options.model, options.device, torch.bfloat16, options.seed)
    options = replace(options, steps=possible_steps(model, options.steps))
    stage = f"all {sorted(options.steps)[len(options.steps) // 2]}"
    for count in options.batch_sizes:
        call = stage_calls(model, _model_options(options, size, torch.bfloat16, count), [stage])[stage]
        row = timed(call, options)
        yield {"stage": f"{stage}, batch of {count}", **row, "images_per_s": 1000 * count / row["ms"]}
        _free(options.device)


@torch.no_grad()
def _one_sample(options: SuiteOptions, size: tuple[int, int]) -> Iterator[Row]:
    """A coherent sample by one call and a smooth field, against a step of the diffusion."""
    model = build_model(options.model, options.device, torch.float32, options.seed)
    features = torch.randn(1, model.config.hidden_size, size[1] // 4, size[0] // 4, device=options.device)
    rows = {
        sampling: timed(
            lambda sampling=sampling: model.decode_map(
                features, num_inference_steps=1, sampling=sampling, generator=torch.Generator().manual_seed(0)
            ),
            options,
        )
        for sampling in ("diffusion", "field")
    }
    for sampling, row in rows.items():
        yield {"stage": sampling, **row, "x": row["ms"] / rows["diffusion"]["ms"]}


def _guided(options: SuiteOptions, side: int, width: int) -> Iterator[Row]:
    """Steps of a U-Net with the proportions of the published one; each convention's own update beside them."""
    chosen = GuidanceBenchOptions(
        channels=width, size=side, prior_size=max(32, side // 2), prior_channels=0, batch_size=1, dtypes=(torch.float32,),
        device=options.device, rounds=options.rounds, seed=options.seed,
    )  # fmt: skip
    calls, _ = guidance_calls(chosen, torch.float32, guided_parts(chosen))
    first: float | None = None
    for stage in ("unguided", "consistency", "prior", "both"):
        row = timed(calls[stage], options)
        first = first or row["ms"]
        yield {"stage": stage, **row, "x": row["ms"] / first}
    scheduler = DDPMScheduler()
    scheduler.set_timesteps(50)
    x, gradient = (torch.randn(1, 3, side, side, device=options.device) for _ in range(2))
    for convention in ("variance", "plain"):
        call = lambda kind=convention: guided_step(scheduler, x, 400, x, gradient, convention=kind)  # noqa: E731
        yield {"stage": f"update, {convention}", **timed(call, options)}


@torch.no_grad()
def _pooling(options: SuiteOptions) -> Iterator[Row]:
    chosen = BevBenchOptions(
        cameras=6, width=704, height=256, channels=80, cells=256, dtypes=(torch.float32,), device=options.device, seed=options.seed
    )
    scene = make_scene(chosen, torch.float32)
    yield {"stage": "cameras, plan", **timed(lambda: plan_pooling(scene.points, scene.grid), options)}
    yield {"stage": "cameras, pool", **timed(lambda: pool(scene.plan, scene.depth, scene.context), options)}
    extent = torch.tensor([102.4, 102.4, 8.0, 1.0, 0.5], device=options.device)
    cloud = (torch.rand(options.points, 5, device=options.device) - 0.5) * extent
    arguments = ((-51.2, -51.2, -5.0), (0.1, 0.1, 0.2), (1024, 1024, 40), 10, 160_000)
    yield {"stage": f"LiDAR, {options.points} points to voxels", **timed(lambda: voxelise(cloud, *arguments), options)}
