"""Flow of a clip from files: how each of its frames moved since the one before."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np

from noise2map.runs.files import content_checksum

if TYPE_CHECKING:
    from noise2map.video.clip import Flow


class FlowFolder:
    """A folder with ``000012.npz`` for frame 12 of a clip, counted from 0, as `noise2map data freedoom --walks` writes them.

    A file holds ``offset_px`` ``(H, W, 2)``, columns and rows from a pixel to its place in the frame before, in pixels, and
    ``visible`` ``(H, W)``, whether it was seen there. A frame without a file, such as the first of a scene, was not seen before.

    Args:
        folder: Where the files are.

    Raises:
        ValueError: If there is no such folder, or it holds none of these files.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        paths = sorted(self.folder.glob("*.npz")) if self.folder.is_dir() else []
        self._paths = {int(path.stem): path for path in paths if path.stem.isdecimal()}
        if not self._paths:
            raise ValueError(
                f"{str(folder)!r} is no folder of flow; expected files 000001.npz and so on, named by frames of the clip"
            )

    @property
    def checksum(self) -> str:
        """Of the content of all files, with their numbers."""
        return content_checksum(
            part for number, path in sorted(self._paths.items()) for part in (b"%d" % number, path.read_bytes())
        )

    def check(self, size: tuple[int, int]) -> None:
        """Refuses flow that is not a clip's, by its first file.

        Args:
            size: Width and height of the frames.

        Raises:
            ValueError: Saying which file does not fit.
        """
        self.read(min(self._paths), size)

    def read(self, number: int, size: tuple[int, int]) -> "Flow":
        """Flow of a frame; one of which nothing was seen before, where there is no file.

        Args:
            number: Of the frame in the clip, from 0.
            size: Width and height of the frames.

        Raises:
            ValueError: If the file cannot be read or is of another size.
        """
        width, height = size
        if (path := self._paths.get(number)) is None:
            return np.zeros((height, width, 2), np.float32), np.zeros((height, width), bool)
        try:
            with np.load(path) as arrays:
                offset, visible = arrays["offset_px"], arrays["visible"]
        except (OSError, ValueError, KeyError, BadZipFile, AttributeError, TypeError) as error:
            raise ValueError(f"{path} is no file of flow; expected arrays 'offset_px' and 'visible'") from error
        if offset.shape != (height, width, 2) or visible.shape != (height, width):
            raise ValueError(
                f"{path} has offset_px of shape {offset.shape} and visible of shape {visible.shape}; expected those of the frames, "
                f"{(height, width, 2)} and {(height, width)}"
            )
        return offset.astype(np.float32), visible.astype(bool)

    def frames(self, first: int, size: tuple[int, int]) -> "Iterator[Flow]":
        """Flow of a frame and of all that follow, read one by one, without an end."""
        return (self.read(number, size) for number in count(first))
