"""A split rendered by several engines at once: what single frames and surround samples share.

What is drawn depends on the seed, the split and its index only: not on the number of workers, of items, or of interruptions.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from noise2map.data.freedoom.catalog import SPLITS
from noise2map.rendering.engine import check_size, end_stray_engines, import_vizdoom, wad_path
from noise2map.rendering.level import Level
from noise2map.rendering.raycast import Camera
from noise2map.rendering.wad import Wad
from noise2map.rendering.workers import Task, Worker, run_tasks

SUPERSAMPLES = (1, 2, 4)

_RECORD_EVERY_S = 5.0

Records = dict[int, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Which split to make, and how.

    Attributes:
        out: Folder to write to; made if missing, gone on with if it holds an unfinished split of the same kind.
        split: ``train``, ``val`` or ``test``: different maps.
        width: Image width in pixels.
        height: Image height in pixels.
        supersample: The engine draws at this many times the size (1, 2 or 4), and colors are averaged: no glitter, no stairs.
        seed: Seed, at least 0.
        workers: Engines at a time.
        keep_gore: Keep views with corpses and gibs.
        command: The command line, recorded with the data.

    Raises:
        ValueError: If the split is unknown or a number cannot work.
    """

    out: Path
    split: str = "train"
    width: int = 160
    height: int = 120
    supersample: int = 1
    seed: int = 0
    workers: int = 2
    keep_gore: bool = False
    command: str = ""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        self.check_range("workers", 1, 10**4)
        self.check_range("seed", 0, 2**63)
        if self.supersample not in SUPERSAMPLES:
            raise ValueError(f"supersample must be one of {', '.join(map(str, SUPERSAMPLES))}, got {self.supersample!r}")

    def check_range(self, name: str, least: int, most: int) -> None:
        """Refuse a number outside its range.

        Raises:
            ValueError: Naming it, its value and the range.
        """
        if not least <= getattr(self, name) <= most:
            raise ValueError(f"{name} must be between {least} and {most}, got {getattr(self, name)}")

    @property
    def camera(self) -> Camera:
        """The camera of this image size."""
        return Camera(self.width, self.height, self.supersample)


def check_engine(options: SplitOptions) -> None:
    """Refuse what the engine cannot do.

    Raises:
        ImportError: If ViZDoom is missing.
        ValueError: If the image size is not one of the engine's.
    """
    import_vizdoom()
    check_size(options.camera)


def open_level(map_name: str) -> Level:
    """The geometry of a map of Freedoom."""
    return Level(Wad(wad_path(map_name)).read_map(map_name))


def run_split(
    work: Worker,
    options: SplitOptions,
    tasks: Sequence[Task],
    records: Records,
    write_records: Callable[[Records], object],
    bar: tqdm,
) -> None:
    """Work on all tasks of a split; what is finished is recorded every few seconds and at the end, whatever happens.

    Args:
        work: See :func:`noise2map.rendering.workers.run_tasks`.
        options: Handed to ``work``.
        tasks: What is missing.
        records: The record of each item that is finished, by index; new ones are added.
        write_records: Writes all of them.
        bar: Advanced with each item, and closed.

    Raises:
        OSError: If a file cannot be written; finished items are kept.
        KeyboardInterrupt: After engines are closed and finished items recorded.
    """
    recorded_at = time.monotonic()

    def receive(record: dict[str, Any]) -> None:
        nonlocal recorded_at
        records[record["index"]] = record
        bar.update()
        if time.monotonic() - recorded_at > _RECORD_EVERY_S:  # so that a killed run, or an early reader, has most of it
            write_records(records)
            recorded_at = time.monotonic()

    scratch = Path(tempfile.mkdtemp(prefix="noise2map-render-"))
    try:
        try:
            run_tasks(work, options, tasks, options.workers, scratch, receive)
        finally:
            write_records(records)
    finally:
        bar.close()
        end_stray_engines(scratch)
        shutil.rmtree(scratch, ignore_errors=True)
