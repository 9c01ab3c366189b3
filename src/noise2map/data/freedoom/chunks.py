"""What is missing of a split, shared out by map: samples come in chunks of 20 of one map, the maps take turns.

A chunk has random numbers of its own and begins with a restart of the map, so a sample depends on the seed, the split and its index
only.
"""

import errno
import math
import shutil
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from noise2map.data.freedoom.catalog import SPLITS

CHUNK = 20


@dataclass(frozen=True)
class Task:
    """Chunks of one map; of each, the indices that are missing."""

    map_name: str
    chunks: tuple[tuple[int, frozenset[int]], ...]


def plan(split: str, count: int, finished: Container[int]) -> list[Task]:
    """What is missing of the first ``count`` samples of a split, by map."""
    maps = SPLITS[split]
    by_map: dict[str, list[tuple[int, frozenset[int]]]] = {}
    for chunk in range(math.ceil(count / CHUNK)):
        indices = range(chunk * CHUNK, min((chunk + 1) * CHUNK, count))
        wanted = frozenset(index for index in indices if index not in finished)
        if wanted:
            by_map.setdefault(maps[chunk % len(maps)], []).append((chunk, wanted))
    return [Task(name, tuple(chunks)) for name, chunks in by_map.items()]


def missing(tasks: list[Task]) -> int:
    """How many samples the tasks will make."""
    return sum(len(wanted) for task in tasks for _, wanted in task.chunks)


def chunk_generator(seed: int, split: str, chunk: int, *kind: int) -> np.random.Generator:
    """The random numbers of a chunk; other ``kind`` of samples, other numbers."""
    return np.random.default_rng([seed, list(SPLITS).index(split), chunk, *kind])


def check_space(folder: Path, bytes_needed: int, what: str) -> None:
    """Refuse to begin what will not fit.

    Raises:
        OSError: If the disk has less room than is needed.
    """
    free = shutil.disk_usage(folder).free
    if free < bytes_needed:
        text = f"not enough disk space: {what} need about {bytes_needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free"
        raise OSError(errno.ENOSPC, text, str(folder))
