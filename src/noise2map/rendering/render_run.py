"""Renders a split of Freedoom frames with several engines at once; deterministic, interruptible, resumable.

A frame depends on the seed, the split and its index only: not on the number of workers, of frames, or of interruptions.
"""

import json
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from noise2map.data.freedoom import format as store
from noise2map.data.freedoom.catalog import SPLITS
from noise2map.rendering.engine import Engine, end_stray_engines, import_vizdoom, supported_sizes, wad_path
from noise2map.rendering.frames import draw_frame, make_record, write_frame
from noise2map.rendering.level import Level
from noise2map.rendering.raycast import Camera
from noise2map.rendering.wad import Wad
from noise2map.rendering.workers import CHUNK, Task, check_space, chunk_generator, missing, plan, run_tasks
from noise2map.runs.files import write_file, write_text

_BYTES_PER_PIXEL = 0.75  # measured: 0.55 on average

_RECORD_EVERY_S = 5.0

_FREEDOOM_VERSION = "0.13.0"


@dataclass(frozen=True)
class RenderJob:
    """What to render.

    Attributes:
        out: Folder of the split; made if missing, gone on with if it holds an unfinished render of the same kind.
        split: ``train``, ``val`` or ``test``.
        frames: Number of frames.
        width: Picture width in pixels.
        height: Picture height in pixels.
        seed: Seed, at least 0.
        workers: Engines at a time.
        keep_gore: Keep views with corpses and gibs.
        command: The command line, recorded in ``dataset.json``.
    """

    out: Path
    split: str = "train"
    frames: int = 20000
    width: int = 160
    height: int = 120
    seed: int = 0
    workers: int = 2
    keep_gore: bool = False
    command: str = ""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        for name, least in (("frames", 1), ("workers", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    @property
    def camera(self) -> Camera:
        """The camera of this picture size."""
        return Camera(self.width, self.height)


def render(job: RenderJob, progress: bool = True) -> int:
    """Render what is missing of a split.

    Returns:
        The number of frames rendered now.

    Raises:
        ImportError: If ViZDoom is missing.
        ValueError: If the picture size is not one of the engine's, or ``job.out`` holds something else.
        OSError: If the folder cannot be written or the disk is (or would be) full; finished frames are kept.
        KeyboardInterrupt: After engines are closed and finished frames recorded.
    """
    import_vizdoom()
    if (job.width, job.height) not in supported_sizes():
        sizes = ", ".join(f"{width}x{height}" for width, height in supported_sizes())
        raise ValueError(f"the engine cannot render {job.width}x{job.height}; it has {sizes}")
    records = _open_folder(job)
    tasks = plan(job.split, job.frames, records)
    left = missing(tasks)
    if left == 0:
        return 0
    check_space(job.out, int(left * job.width * job.height * _BYTES_PER_PIXEL), f"{left} frames")
    scratch = Path(tempfile.mkdtemp(prefix="noise2map-render-"))
    bar = tqdm(total=job.frames, initial=job.frames - left, unit="frame", desc=f"freedoom {job.split}", disable=not progress)
    try:
        _run(job, tasks, records, scratch, bar)
    finally:
        bar.close()
        end_stray_engines(scratch)
        store.remove_partial_files(job.out)
        shutil.rmtree(scratch, ignore_errors=True)
    return left


def _open_folder(job: RenderJob) -> dict[int, dict[str, Any]]:
    """Make or check the folder; returns the records of the frames that are done."""
    kind = {"format": store.FORMAT, "split": job.split, "seed": job.seed, "size": [job.width, job.height], "gore": job.keep_gore}
    path = job.out / "dataset.json"
    if job.out.is_dir() and not path.exists() and any(job.out.iterdir()):
        raise ValueError(f"{job.out} is not empty and not a Freedoom split; choose another folder")
    described = 0
    if path.exists():
        there = store.read_description(job.out)
        for name, value in kind.items():
            if there.get(name) != value:
                raise ValueError(f"{job.out} holds frames with {name} = {there.get(name)!r}, not {value!r}; choose another folder")
        described = int(there.get("frames", 0))
    for part in store.PARTS:
        (job.out / part).mkdir(parents=True, exist_ok=True)
    store.remove_partial_files(job.out)
    description = {
        **kind,
        "frames": max(job.frames, described),
        "maps": list(SPLITS[job.split]),
        "depth": {"unit": "m", "scale": 1 / store.CENTIMETRES, "invalid": 0},
        "freedoom": _FREEDOOM_VERSION,
        "vizdoom": import_vizdoom().__version__,
        "command": job.command,
    }
    if described < job.frames:
        write_text(path, json.dumps(description, indent=1) + "\n")
    else:
        write_file(job.out / ".writable", lambda file: None)
        (job.out / ".writable").unlink()
    return store.finished_records(job.out)


def _run(job: RenderJob, tasks: list[Task], records: dict[int, dict[str, Any]], scratch: Path, bar: tqdm) -> None:
    recorded_at = time.monotonic()

    def receive(record: dict[str, Any]) -> None:
        nonlocal recorded_at
        records[record["index"]] = record
        bar.update()
        if time.monotonic() - recorded_at > _RECORD_EVERY_S:  # so that a killed run, or an early reader, has most of it
            store.write_records(job.out, records)
            recorded_at = time.monotonic()

    try:
        run_tasks(_render_map, job, tasks, job.workers, scratch, receive)
    finally:
        store.write_records(job.out, records)


def _render_map(job: RenderJob, task: Task, results: Any, stopped: Any, scratch: Path) -> None:
    level = Level(Wad(wad_path(task.map_name)).read_map(task.map_name))
    with Engine(task.map_name, job.camera, scratch) as engine:
        for chunk, wanted in task.chunks:
            rng = chunk_generator(job.seed, job.split, chunk)
            engine.restart(int(rng.integers(1, 2**31)))
            for index in range(chunk * CHUNK, max(wanted) + 1):
                if stopped():
                    return
                frame = draw_frame(level, engine, rng, job.keep_gore)
                if index in wanted:
                    write_frame(job.out, index, frame, engine.palette)
                    results.put(make_record(frame, job.split, index, task.map_name, job.camera))
