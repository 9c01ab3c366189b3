"""Kinds of maps that belong to images: how a file of one is read, and what moving the image does to it.

A further kind needs its row in `MAP_KINDS` and nothing else of `data`: folders, rendered splits and all transforms read it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from noise2map.data.images import open_class_map, open_depth_map
from noise2map.data.maps.normals import open_normals_map


@dataclass(frozen=True, kw_only=True)
class MapKind:
    """A kind of maps that lie on the pixels of an image.

    Attributes:
        key: Where a raw sample holds the map, ``(H, W)`` or ``(H, W, C)``.
        read: Path of a file, and metres per unit, which only depth needs -> the map.
        unknown: Its value where there is no image or nobody knows.
        folder: What a rendered split calls the folder of its files.
        has_classes: Ids of named classes.
        vectors: Vectors, x to the right and y up, which turn with the image.
        may_zoom: What is magnified has the same map as before.
        has_valid: Where it is known stands beside it, as ``valid`` ``(H, W)`` bool.
    """

    key: str
    read: Callable[[Path, float], np.ndarray]
    unknown: float
    folder: str
    has_classes: bool = False
    vectors: bool = False
    may_zoom: bool = True
    has_valid: bool = False

    def read_into(self, sample: dict[str, object], path: Path, metres_per_unit: float = 1.0) -> None:
        """Put the map of a file into a raw sample.

        Raises:
            OSError: Naming the file, if it cannot be decoded.
            ValueError: Naming the file, if it holds no such map.
        """
        sample[self.key] = values = self.read(path, metres_per_unit)
        if self.has_valid:
            sample["valid"] = values != self.unknown


MAP_KINDS: dict[str, MapKind] = {
    "segmentation": MapKind(
        key="labels", read=lambda path, _: open_class_map(path), unknown=255, folder="labels", has_classes=True
    ),
    # What is magnified looks nearer than it is.
    "depth": MapKind(key="depth_m", read=open_depth_map, unknown=0.0, folder="depth", may_zoom=False, has_valid=True),
    "normals": MapKind(key="normals", read=lambda path, _: open_normals_map(path), unknown=0.0, folder="normals", vectors=True),
}
"""Task to the kind of its maps."""


def map_kind(task: str) -> MapKind:
    """The kind of maps of a task.

    Raises:
        ValueError: If there is no such task of images.
    """
    if task not in MAP_KINDS:
        raise ValueError(f"task is {task!r}; expected one of {', '.join(map(repr, MAP_KINDS))}")
    return MAP_KINDS[task]
