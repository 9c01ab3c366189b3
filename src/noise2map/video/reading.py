"""Reads a clip as a stream of upright frames: a few are in memory at a time, however long it is."""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from noise2map.runs.words import printable

_DEFAULT_RATE = Fraction(25)
# MPEG-4 Part 2 counts at most 65535 ticks in a second; 60000 hold all usual rates exactly, 30000/1001 among them.
_MOST_TICKS, _TICK = 65535, Fraction(1, 60000)


def import_av() -> Any:
    """PyAV.

    Raises:
        ImportError: Saying how it is installed.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("video needs the package av (PyAV); install noise2map[video]") from error
    return av


@dataclass
class Frame:
    """A frame of a clip.

    Attributes:
        image: RGB, upright.
        time: When it is shown, in ticks of `VideoReader.tick` from the first frame on.
    """

    image: Image.Image
    time: int


class VideoReader:
    """The frames of a clip, one after the other. What sounds in it is not looked at.

    Args:
        path: The file.

    Attributes:
        path: The file.
        rate: Mean number of frames in a second.
        tick: Unit of the times, seconds.
        size: Width and height of the upright frames.
        aspect: Width of a pixel by its height.
        expected: Number of frames as far as the file tells it, else 0.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If PyAV is not installed.
        ValueError: If it is no video, is cut off, or holds no frame that can be decoded.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self._av = Path(path), import_av()
        self._name = printable(str(path))
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no video '{self._name}'")
        with self._open() as container:
            stream = container.streams.video[0]
            self._check_whole(container, stream)
            self.rate = Fraction(stream.average_rate or stream.guessed_rate or _DEFAULT_RATE)
            base = Fraction(stream.time_base or 1 / self.rate)
            self.tick = base if base.denominator <= _MOST_TICKS else _TICK
            seconds = float(stream.duration * base if stream.duration else (container.duration or 0) / self._av.time_base)
            self.expected = int(stream.frames) or round(seconds * self.rate)
            aspect = Fraction(stream.sample_aspect_ratio or 1)
        first = next(self._decoded(), None)
        if first is None:
            raise ValueError(f"'{self._name}' holds no frame that can be decoded")
        self.size = _upright(first).size
        self.aspect = 1 / aspect if _turn_of(first)[0] % 180 else aspect

    def _open(self) -> Any:
        try:
            container = self._av.open(str(self.path), metadata_errors="replace")
        except (self._av.error.FFmpegError, OSError, ValueError) as error:
            raise ValueError(f"'{self._name}' is no video that can be read: {_reason(error)}") from error
        if container.format.name.endswith("_pipe") or container.format.name == "image2":
            container.close()
            raise ValueError(f"'{self._name}' is no video but a single image")
        context = container.streams.video[0].codec_context if container.streams.video else None
        if not container.streams.video or (context is not None and not context.width):
            container.close()
            raise ValueError(f"'{self._name}' holds no video stream")
        if context is None:
            container.close()
            raise ValueError(f"'{self._name}' has a codec that cannot be decoded here")
        return container

    def _check_whole(self, container: Any, stream: Any) -> None:
        """Refuses a file that is shorter than its own table says; others break off where they are decoded, or just end."""
        entries = getattr(stream, "index_entries", None)  # newer versions of PyAV know it
        if entries and (size := container.size) and entries[-1].pos + entries[-1].size > size:
            kept = sum(one.pos + one.size <= size for one in entries)
            container.close()
            raise ValueError(f"'{self._name}' is cut off: the file ends after {kept} of {len(entries)} frames")

    def _decoded(self) -> Iterator[Any]:
        count = 0
        with self._open() as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            try:
                for frame in container.decode(stream):
                    yield frame
                    count += 1
            except (self._av.error.FFmpegError, OSError, ValueError) as error:
                raise ValueError(f"'{self._name}' breaks off after {count} frames: {_reason(error)}") from error

    def frames(self, first: int = 0) -> Iterator[Frame]:
        """The frames from one on.

        Args:
            first: Number of the first frame wanted; those before are decoded and dropped.

        Yields:
            Frames of one size: should it change within the clip, the others are resized to that of the first.

        Raises:
            ValueError: If the clip breaks off; what could be decoded was yielded before.
        """
        begin, last = None, -1
        for number, frame in enumerate(self._decoded()):
            if frame.pts is None:
                time = round(number / self.rate / self.tick)
            else:
                ticks = round(frame.pts * Fraction(frame.time_base) / self.tick)
                begin = ticks if begin is None else begin
                time = ticks - begin
            last = time = max(time, last + 1)  # broken clips tell times twice
            if number >= first:
                image = _upright(frame)
                yield Frame(image if image.size == self.size else image.resize(self.size, Image.Resampling.BILINEAR), time)

    def overview(self, count: int = 5) -> list[Image.Image]:
        """Frames spread over the clip, the first among them; fewer where it cannot be sought in."""
        found: list[Image.Image] = []
        with self._open() as container:
            stream = container.streams.video[0]
            length, start = stream.duration, stream.start_time or 0
            if not length and container.duration:  # Matroska and others tell the length of the file alone
                length = round(Fraction(container.duration, self._av.time_base) / stream.time_base)
            for index in range(count):
                try:
                    wanted = start + length * index // count if length else start
                    if index and length:
                        container.seek(wanted, stream=stream)  # to the key frame before it
                    later = (one for one in container.decode(stream) if not index or one.pts is None or one.pts >= wanted)
                    image = _upright(next(later))
                except (self._av.error.FFmpegError, OSError, ValueError, StopIteration):
                    break  # a broken end is told when it is reached
                found.append(image if image.size == self.size else image.resize(self.size))
        return found or [frame.image for frame in islice(self.frames(), 1)]


def _upright(frame: Any) -> Image.Image:
    image, (turn, mirrored) = frame.to_image(), _turn_of(frame)
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image
    return image.rotate(turn, expand=True) if turn else image


def _turn_of(frame: Any) -> tuple[float, bool]:
    """Degrees counterclockwise that make a frame upright, after it was mirrored left to right if the clip is mirrored."""
    matrix = next((one for one in frame.side_data if one.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return frame.rotation, False
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix)[:36])
    if a * d - b * c >= 0:
        return frame.rotation, False
    # [a b; c d] takes a row (x, y), y downwards; with x mirrored first, what is left is a rotation
    return -round(math.degrees(math.atan2(-b, -a))), True


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error).lower()
