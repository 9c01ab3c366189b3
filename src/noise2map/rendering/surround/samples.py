"""Makes a split of surround samples with several engines at once, straight into a folder in nuScenes' format.

A sample depends on the seed, the split and its index only. The folder may hold several splits; their manifests say what is
finished, and the tables are written from them when a run ends, also when it is interrupted.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from noise2map.data.freedoom.catalog import SPLITS
from noise2map.data.nuscenes.map_expansion import require_map_packages
from noise2map.rendering.engine import Engine, import_vizdoom
from noise2map.rendering.lidar import LidarSpec
from noise2map.rendering.render_run import Records, SplitOptions, check_engine, open_level, run_split
from noise2map.rendering.surround import files as store
from noise2map.rendering.surround.capture import VIEWS, draw_surround
from noise2map.rendering.surround.tables import write_tables
from noise2map.rendering.workers import CHUNK, Task, check_space, chunk_generator, missing, plan
from noise2map.runs.files import check_writable, write_text

FORMAT = 1

_KIND = 6  # sets the random numbers apart from those of single frames

_BYTES_PER_PIXEL, _BYTES_PER_AVERAGED_PIXEL, _BYTES_PER_POINT = 0.6, 1.8, 20


@dataclass(frozen=True, kw_only=True)
class SurroundOptions(SplitOptions):
    """A split of surround samples, see :class:`SplitOptions`; one folder holds all splits.

    Attributes:
        samples: Number of samples.
        lidar: What the LiDAR shoots.
        sweeps: Readings of the LiDAR before each key frame.
    """

    samples: int = 2000
    lidar: LidarSpec = field(default_factory=LidarSpec)
    sweeps: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("samples", 1, 10**6)
        self.check_range("sweeps", 0, 9)


def make_surround(options: SurroundOptions, progress: bool = True) -> int:
    """Make what is missing of a split, and the tables.

    Returns:
        The number of samples made now.

    Raises:
        ImportError: If ViZDoom, shapely or OpenCV is missing.
        ValueError: If the image size is not one of the engine's, or ``options.out`` holds something else.
        OSError: If the folder cannot be written or the disk is (or would be) full; finished samples are kept.
        KeyboardInterrupt: After engines are closed, finished samples recorded and tables written.
    """
    check_engine(options)
    require_map_packages()
    records = _open_folder(options)
    tasks = plan(options.split, options.samples, records)
    left = missing(tasks)
    points = options.lidar.beams * options.lidar.azimuths * (options.sweeps + 1)
    per_pixel = _BYTES_PER_PIXEL if options.supersample == 1 else _BYTES_PER_AVERAGED_PIXEL
    each = VIEWS * options.width * options.height * per_pixel + points * _BYTES_PER_POINT
    check_space(options.out, int(left * each), f"{left} samples")
    title = f"freedoom-surround {options.split}"
    try:
        if tasks:
            bar = tqdm(total=options.samples, initial=options.samples - left, unit="sample", desc=title, disable=not progress)
            run_split(_make_map, options, tasks, records, lambda done: store.write_manifest(options.out, options.split, done), bar)
    finally:
        store.remove_partial_files(options.out, options.sweeps)
        for name in sorted({record["map"] for record in records.values()}):
            if not store.map_path(options.out, name).exists():
                store.write_map(options.out, name, open_level(name))
        write_tables(options.out, options.split, options.camera, options.sweeps)
    return left


def _open_folder(options: SurroundOptions) -> Records:
    """Make or check the folder; returns the records of the samples that are done."""
    kind = {
        "format": FORMAT,
        "seed": options.seed,
        "size": [options.width, options.height],
        "gore": options.keep_gore,
        "lidar": asdict(options.lidar),
        "sweeps": options.sweeps,
        "supersample": options.supersample,
    }
    there = {split: path for split in SPLITS if (path := store.description_path(options.out, split)).exists()}
    if options.out.is_dir() and not there and any(options.out.iterdir()):
        raise ValueError(f"{options.out} is not empty and no Freedoom surround set; choose another folder")
    for split, path in there.items():  # splits may differ in their seeds only: the tables have one rig
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        for name, value in kind.items():
            held = found.get(name, 1) if name == "supersample" else found.get(name)  # older versions do not name it
            if held != value and (name != "seed" or split == options.split):
                raise ValueError(
                    f"{options.out} holds {split} samples with {name} = {held!r}, not {value!r}; choose another folder"
                )
    store.make_folders(options.out, options.sweeps)
    store.remove_partial_files(options.out, options.sweeps)
    description = {**kind, "split": options.split, "maps": list(SPLITS[options.split]), "vizdoom": import_vizdoom().__version__}
    if options.split in there:
        check_writable(options.out)
    else:
        text = json.dumps({**description, "command": options.command}, indent=1) + "\n"
        write_text(store.description_path(options.out, options.split), text)
    return store.finished_records(options.out, options.split, options.sweeps)


def _make_map(options: SurroundOptions, task: Task, results: Any, stopped: Any, scratch: Path) -> None:
    level = open_level(task.map_name)
    store.write_map(options.out, task.map_name, level)
    with Engine(task.map_name, options.camera, scratch) as engine:
        for chunk, wanted in task.chunks:
            rng = chunk_generator(options.seed, options.split, chunk, _KIND)
            engine.restart(int(rng.integers(1, 2**31)))
            for index in range(chunk * CHUNK, max(wanted) + 1):
                if stopped():
                    return
                surround = draw_surround(level, engine, rng, options.lidar, options.sweeps, options.keep_gore)
                if index in wanted:
                    store.write_sample(options.out, store.sample_id(options.split, index), surround, engine.palette)
                    results.put(store.make_record(surround, options.split, index, task.map_name, level))
