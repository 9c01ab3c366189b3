"""Makes a split of surround samples with several engines at once, straight into a folder in nuScenes' format.

A sample depends on the seed, the split and its index only. The folder may hold several splits; their ledgers say what is finished,
and the tables are written from them when a run ends, also when it is interrupted.
"""

import json
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from noise2map.data.freedoom.catalog import SPLITS
from noise2map.data.nuscenes.map_expansion import require_map_packages
from noise2map.rendering.engine import Engine, end_stray_engines, import_vizdoom, supported_sizes, wad_path
from noise2map.rendering.level import Level
from noise2map.rendering.lidar import LidarSpec
from noise2map.rendering.raycast import Camera
from noise2map.rendering.surround import files as store
from noise2map.rendering.surround.capture import VIEWS, draw_surround
from noise2map.rendering.surround.tables import write_tables
from noise2map.rendering.wad import Wad
from noise2map.rendering.workers import CHUNK, Task, check_space, chunk_generator, missing, plan, run_tasks
from noise2map.runs.files import write_file, write_text

FORMAT = 1

_KIND = 6  # sets the random numbers apart from those of single frames

_BYTES_PER_PIXEL, _BYTES_PER_POINT = 0.6, 20

_RECORD_EVERY_S = 5.0


@dataclass(frozen=True)
class SurroundJob:
    """What to make.

    Attributes:
        out: Folder of the data set; made if missing, gone on with if it holds an unfinished one of the same kind.
        split: ``train``, ``val`` or ``test``: different maps.
        samples: Number of samples.
        width: Picture width in pixels.
        height: Picture height in pixels.
        seed: Seed, at least 0.
        workers: Engines at a time.
        keep_gore: Keep places with corpses and gibs in view.
        lidar: What the LiDAR shoots.
        sweeps: Readings of the LiDAR before each key frame.
        command: The command line, recorded with the data.

    Raises:
        ValueError: If a number or the split cannot work.
    """

    out: Path
    split: str = "train"
    samples: int = 2000
    width: int = 160
    height: int = 120
    seed: int = 0
    workers: int = 2
    keep_gore: bool = False
    lidar: LidarSpec = field(default_factory=LidarSpec)
    sweeps: int = 2
    command: str = ""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        for name, least, most in (("samples", 1, 10**6), ("workers", 1, 10**4), ("seed", 0, 2**63), ("sweeps", 0, 9)):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be between {least} and {most}, got {getattr(self, name)}")

    @property
    def camera(self) -> Camera:
        """The camera of this picture size."""
        return Camera(self.width, self.height)


def make_surround(job: SurroundJob, progress: bool = True) -> int:
    """Make what is missing of a split, and the tables.

    Returns:
        The number of samples made now.

    Raises:
        ImportError: If ViZDoom or shapely is missing.
        ValueError: If the picture size is not one of the engine's, or ``job.out`` holds something else.
        OSError: If the folder cannot be written or the disk is (or would be) full; finished samples are kept.
        KeyboardInterrupt: After engines are closed, finished samples recorded and tables written.
    """
    import_vizdoom()
    require_map_packages()
    if (job.width, job.height) not in supported_sizes():
        sizes = ", ".join(f"{width}x{height}" for width, height in supported_sizes())
        raise ValueError(f"the engine cannot render {job.width}x{job.height}; it has {sizes}")
    records = _open_folder(job)
    tasks = plan(job.split, job.samples, records)
    left = missing(tasks)
    points = job.lidar.beams * job.lidar.azimuths * (job.sweeps + 1)
    each = VIEWS * job.width * job.height * _BYTES_PER_PIXEL + points * _BYTES_PER_POINT
    check_space(job.out, int(left * each), f"{left} samples")
    scratch = Path(tempfile.mkdtemp(prefix="noise2map-surround-"))
    title = f"freedoom-surround {job.split}"
    bar = tqdm(total=job.samples, initial=job.samples - left, unit="sample", desc=title, disable=not progress or not left)
    try:
        if tasks:
            _run(job, tasks, records, scratch, bar)
    finally:
        bar.close()
        end_stray_engines(scratch)
        store.remove_partial_files(job.out, job.sweeps)
        shutil.rmtree(scratch, ignore_errors=True)
        for name in sorted({record["map"] for record in records.values()}):
            if not store.map_path(job.out, name).exists():
                store.write_map(job.out, name, _open_level(name))
        write_tables(job.out, job.split, job.camera, job.sweeps)
    return left


def _open_folder(job: SurroundJob) -> dict[int, dict[str, Any]]:
    """Make or check the folder; returns the records of the samples that are done."""
    kind = {
        "format": FORMAT,
        "seed": job.seed,
        "size": [job.width, job.height],
        "gore": job.keep_gore,
        "lidar": asdict(job.lidar),
        "sweeps": job.sweeps,
    }
    there = {split: path for split in SPLITS if (path := store.description_path(job.out, split)).exists()}
    if job.out.is_dir() and not there and any(job.out.iterdir()):
        raise ValueError(f"{job.out} is not empty and no Freedoom surround set; choose another folder")
    for split, path in there.items():  # splits may differ in their seeds only: the tables have one rig
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        for name, value in kind.items():
            if found.get(name) != value and (name != "seed" or split == job.split):
                raise ValueError(
                    f"{job.out} holds {split} samples with {name} = {found.get(name)!r}, not {value!r}; choose another folder"
                )
    store.make_folders(job.out, job.sweeps)
    store.remove_partial_files(job.out, job.sweeps)
    description = {**kind, "split": job.split, "maps": list(SPLITS[job.split]), "vizdoom": import_vizdoom().__version__}
    if job.split in there:
        write_file(job.out / ".writable", lambda file: None)
        (job.out / ".writable").unlink()
    else:
        text = json.dumps({**description, "command": job.command}, indent=1) + "\n"
        write_text(store.description_path(job.out, job.split), text)
    return store.finished_records(job.out, job.split, job.sweeps)


def _run(job: SurroundJob, tasks: list[Task], records: dict[int, dict[str, Any]], scratch: Path, bar: tqdm) -> None:
    recorded_at = time.monotonic()

    def receive(record: dict[str, Any]) -> None:
        nonlocal recorded_at
        records[record["index"]] = record
        bar.update()
        if time.monotonic() - recorded_at > _RECORD_EVERY_S:  # so that a killed run has most of it
            store.write_ledger(job.out, job.split, records)
            recorded_at = time.monotonic()

    try:
        run_tasks(_make_map, job, tasks, job.workers, scratch, receive)
    finally:
        store.write_ledger(job.out, job.split, records)


def _open_level(map_name: str) -> Level:
    return Level(Wad(wad_path(map_name)).read_map(map_name))


def _make_map(job: SurroundJob, task: Task, results: Any, stopped: Any, scratch: Path) -> None:
    level = _open_level(task.map_name)
    store.write_map(job.out, task.map_name, level)
    with Engine(task.map_name, job.camera, scratch) as engine:
        for chunk, wanted in task.chunks:
            rng = chunk_generator(job.seed, job.split, chunk, _KIND)
            engine.restart(int(rng.integers(1, 2**31)))
            for index in range(chunk * CHUNK, max(wanted) + 1):
                if stopped():
                    return
                surround = draw_surround(level, engine, rng, job.lidar, job.sweeps, job.keep_gore)
                if index in wanted:
                    store.write_sample(job.out, store.sample_id(job.split, index), surround, engine.palette)
                    results.put(store.make_record(surround, job.split, index, task.map_name, level))
