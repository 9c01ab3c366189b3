"""Writes clips frame by frame, and joins parts of a clip without coding them again."""

from collections.abc import Sequence
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from noise2map.video.reading import VideoReader, import_av

_BT709, _LIMITED = 1, 1  # of ITU-T H.273: said in the file, since players differ in what they take where nothing is

# What players know best, where FFmpeg was built with it; else what every build has. No frame refers to a later one: parts of a clip
# can be joined as they are.
_CODECS = (("libx264", {"crf": "18", "preset": "veryfast", "bf": "0"}), ("mpeg4", {"qscale": "2"}))


class VideoWriter:
    """An MP4 file in memory with the rate, size and times of a clip.

    Args:
        like: The clip.
    """

    def __init__(self, like: VideoReader) -> None:
        av = import_av()
        self._frame_of, self._buffer = av.VideoFrame.from_ndarray, BytesIO()
        name, options = next((name, options) for name, options in _CODECS if name in av.codecs_available)
        self._container = av.open(self._buffer, "w", format="mp4")
        stream = self._container.add_stream(name, rate=like.rate, options=options)
        odd = any(side % 2 for side in like.size)  # halved colors need even sides, where the codec is H.264
        stream.width, stream.height = like.size
        stream.pix_fmt = "yuv444p" if odd and name == "libx264" else "yuv420p"
        stream.codec_context.time_base = stream.time_base = like.tick
        stream.codec_context.sample_aspect_ratio = like.aspect
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED
        self._stream, self._tick = stream, like.tick
        self._duration = max(1, round(1 / like.rate / like.tick))

    def add(self, pixels: np.ndarray, time: int) -> None:
        """Appends a frame.

        Args:
            pixels: ``(H, W, 3)`` uint8.
            time: Ticks of the clip, counted from the first frame of this file on.
        """
        frame = self._frame_of(np.ascontiguousarray(pixels), format="rgb24")
        frame = frame.reformat(format=self._stream.pix_fmt, dst_colorspace=_BT709, dst_color_range=_LIMITED)
        frame.pts, frame.time_base = time, self._tick
        self._mux(frame)

    def _mux(self, frame: Any) -> None:
        for packet in self._stream.encode(frame):
            packet.duration = self._duration
            self._container.mux(packet)

    def finish(self) -> bytes:
        """Ends the file, and returns its content."""
        self._mux(None)
        self._container.close()
        return self._buffer.getvalue()


def join_videos(parts: Sequence[tuple[Path, Fraction]], target: BinaryIO) -> None:
    """Writes files of `VideoWriter` one after the other into one.

    Args:
        parts: Files, and when each begins, seconds.
        target: Where to, an open file that can be sought in.
    """
    av = import_av()
    with av.open(target, "w", format="mp4") as joined:
        stream = None
        for path, begin in parts:
            with av.open(str(path)) as container:
                source = container.streams.video[0]
                if stream is None:
                    stream = joined.add_stream_from_template(source)
                for packet in container.demux(source):
                    if packet.dts is None:  # the end
                        continue
                    offset = round(begin / packet.time_base)
                    packet.pts, packet.dts, packet.stream = packet.pts + offset, packet.dts + offset, stream
                    joined.mux(packet)
