"""The files of an exported frame, and what a layout has to do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from noise2map.data.freedoom.catalog import class_names
from noise2map.data.paired import IGNORE
from noise2map.runs.files import write_file

_JPEG = {"quality": 95, "subsampling": 0}

_MAX_16_BITS = 65535


class FrameWriter:
    """A layout: where the parts of a frame go and in which format.

    Args:
        root: Folder to write to.

    Attributes:
        splits: What the layout calls its training and its evaluation split.
        classes: Freedoom class to class of the dataset; empty if it has no classes.
        lost_pixels: Pixels with depth so far that the format cannot hold; they are stored as "not known".
    """

    splits: tuple[str, str] = ("train", "test")
    classes: Mapping[str, str] = {}

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lost_pixels = 0

    def write(self, split: str, number: int, frame: dict[str, Any], record: dict[str, Any]) -> str:
        """Write a frame.

        Args:
            split: One of ``splits``.
            number: Count of the frame in its split, from 0.
            frame: Raw sample with ``image``, ``labels``, ``depth_m``, ``intrinsics`` and ``id``.
            record: Metadata of the frame: ``map``, ``index``.

        Returns:
            The id under which the dataset will know it.
        """
        raise NotImplementedError

    def finish(self) -> None:
        """Write what belongs to all frames: lists, cameras."""

    def close(self) -> None:
        """Let go of what is open, also after an error."""


def classes_of_frames(classes: Mapping[str, str], file_ids: Mapping[str, int], other: int) -> np.ndarray:
    """File id of each Freedoom label, ``(256,)`` uint8; ``other`` for "not known".

    Args:
        classes: Freedoom class to class of the dataset.
        file_ids: Class of the dataset to id in its files.
        other: The id of pixels that are not scored.
    """
    table = np.full(IGNORE + 1, other, np.uint8)
    for index, name in class_names(10).items():
        table[index] = file_ids[classes[name]]
    return table


def to_16_bits(depth_m: np.ndarray, units_per_metre: float) -> np.ndarray:
    """Depth in metres ``(H, W)`` to the nearest unit, uint16; 0 where it is not known or beyond what 16 bits hold."""
    units = np.rint(depth_m.astype(np.float64) * units_per_metre)
    return np.where(units <= _MAX_16_BITS, units, 0).astype(np.uint16)


def save_image(path: Path, image: Image.Image) -> None:
    """Write an image as its suffix says: ``.jpg`` (quality 95, full color resolution) or ``.png``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind, options = ("JPEG", _JPEG) if path.suffix == ".jpg" else ("PNG", {})
    write_file(path, lambda file: image.save(file, kind, **options))


def save_array(path: Path, values: np.ndarray) -> None:
    """Write ``(H, W)`` uint8 or uint16 as a grey PNG."""
    save_image(path, Image.fromarray(values))
