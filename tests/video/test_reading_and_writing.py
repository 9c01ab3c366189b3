"""Clips as streams: times, rotation and size survive, broken files are told in one sentence."""

from fractions import Fraction
from io import BytesIO

import av
import numpy as np
import pytest
from clips import flat_frames, write_clip
from PIL import Image

from noise2map.video.reading import VideoReader
from noise2map.video.writing import VideoWriter, join_videos


def decoded(data):
    with av.open(BytesIO(data)) as container:
        stream = container.streams.video[0]
        frames = [(float(one.pts * one.time_base), one.to_ndarray(format="rgb24")) for one in container.decode(stream)]
        return frames, Fraction(stream.average_rate), container


def test_frames_come_one_by_one_with_their_times(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", flat_frames(5), rate=Fraction(30000, 1001))
    reader = VideoReader(path)
    frames = list(reader.frames())
    assert (reader.rate, reader.size, reader.expected, len(frames)) == (Fraction(30000, 1001), (64, 48), 5, 5)
    assert [float(one.time * reader.tick) for one in frames] == pytest.approx([i * 1001 / 30000 for i in range(5)])
    for wanted, found in zip(flat_frames(5), frames):
        assert np.abs(np.asarray(found.image).astype(int) - wanted).max() <= 6
    assert [one.time for one in reader.frames(3)] == [one.time for one in frames][3:]


def test_rotated_clips_are_read_upright(tmp_path):
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:, :32] = 255  # bright on the left: on top after a quarter turn clockwise
    reader = VideoReader(write_clip(tmp_path / "clip.mp4", [frame] * 2, turn_clockwise=True))
    image = np.asarray(next(reader.frames()).image).astype(int)
    assert (reader.size, image.shape) == ((48, 64), (64, 48, 3))
    assert image[:30].min() > 200 and image[34:].max() < 50


@pytest.mark.parametrize(
    ("matrix", "upright"),
    [
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((-1, 0, 0, -1), lambda one: np.rot90(one, 2)),
        ((0, 1, 1, 0), lambda one: one.swapaxes(0, 1)),
        ((0, -1, -1, 0), lambda one: np.rot90(one, 2).swapaxes(0, 1)),
    ],
)
def test_mirrored_clips_are_read_as_they_are_shown(tmp_path, matrix, upright):
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:24, :32], frame[24:, :32] = 255, 120
    reader = VideoReader(write_clip(tmp_path / "clip.mp4", [frame] * 2, matrix=matrix))
    image, wanted = np.asarray(next(reader.frames()).image).astype(int), upright(frame)
    assert (reader.size[1], reader.size[0]) == wanted.shape[:2] == image.shape[:2]
    assert np.abs(image - wanted).mean() < 8


def test_an_overview_is_spread_over_a_clip_of_one_key_frame(tmp_path):
    reader = VideoReader(write_clip(tmp_path / "clip.mp4", flat_frames(60)))
    found = [float(np.asarray(one).mean()) for one in reader.overview()]
    assert found == pytest.approx([20 + 3 * place for place in (0, 12, 24, 36, 48)], abs=4)


@pytest.mark.parametrize("size", [(64, 48), (1280, 720)])
def test_colors_of_what_is_written_are_told(tmp_path, size):
    reader = VideoReader(write_clip(tmp_path / "clip.mp4", [np.zeros((size[1], size[0], 3), np.uint8)] * 2))
    writer = VideoWriter(reader)
    for one in reader.frames():
        writer.add(np.full((size[1], size[0], 3), (200, 40, 40), np.uint8), one.time)
    with av.open(BytesIO(writer.finish())) as container:
        frame = next(container.decode(container.streams.video[0]))
        y, _, v = (float(part.mean()) for part in (frame.to_ndarray(format="yuv444p")[k] for k in range(3)))
    assert frame.colorspace == 1  # BT.709, as players take it
    red = (y - 16) * 255 / 219 + (v - 128) * 255 / 224 * 1.5748
    assert red == pytest.approx(200, abs=4)


@pytest.mark.parametrize("size", [(64, 48), (63, 47)])
def test_what_is_written_in_parts_is_one_clip_with_the_same_times(tmp_path, size):
    frames = [np.full((size[1], size[0], 3), value, np.uint8) for value in (10, 60, 110, 160, 210, 240)]
    reader = VideoReader(write_clip(tmp_path / "clip.mkv", frames, times=[0, 40, 80, 200, 240, 280], rate=25))
    read, parts = list(reader.frames()), []
    for begin, end in ((0, 4), (4, 6)):
        writer = VideoWriter(reader)
        for one in read[begin:end]:
            writer.add(np.asarray(one.image), one.time - read[begin].time)
        (tmp_path / f"{begin}.mp4").write_bytes(writer.finish())
        parts.append((tmp_path / f"{begin}.mp4", read[begin].time * reader.tick))
    buffer = BytesIO()
    join_videos(parts, buffer)
    found, _, _ = decoded(buffer.getvalue())
    assert [time for time, _ in found] == pytest.approx([0, 0.04, 0.08, 0.2, 0.24, 0.28])
    for wanted, (_, pixels) in zip(frames, found):
        assert pixels.shape == wanted.shape and np.abs(pixels.astype(int) - wanted).max() <= 6


def test_the_rate_is_kept(tmp_path):
    for rate in (Fraction(24000, 1001), Fraction(60)):
        reader = VideoReader(write_clip(tmp_path / "clip.mp4", flat_frames(6), rate=rate))
        writer = VideoWriter(reader)
        for one in reader.frames():
            writer.add(np.asarray(one.image), one.time)
        assert decoded(writer.finish())[1] == rate


def test_what_is_no_clip_is_told(tmp_path):
    whole = write_clip(tmp_path / "whole.mp4", flat_frames(60), noise=True, faststart=True).read_bytes()
    files = {"cut.mp4": whole[: len(whole) // 2], "text.mp4": b"hello" * 99, "empty.mp4": b""}
    knows_places = hasattr(av.stream.Stream, "index_entries")  # of frames in the file: newer versions of PyAV
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    if knows_places:
        with pytest.raises(ValueError, match=r"cut.mp4' is cut off: the file ends after (29|30|31) of 60 frames"):
            VideoReader(tmp_path / "cut.mp4")
    for name in ("text.mp4", "empty.mp4"):
        with pytest.raises(ValueError, match=f"{name}' is no video that can be read"):
            VideoReader(tmp_path / name)
    Image.new("RGB", (64, 48)).save(tmp_path / "image.png")
    (tmp_path / "image.png").rename(tmp_path / "image.mp4")
    with pytest.raises(ValueError, match="no video but a single image"):
        VideoReader(tmp_path / "image.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match="holds no video stream"):
        VideoReader(tmp_path / "sound.mp4")
    with pytest.raises(FileNotFoundError, match="there is no video"):
        VideoReader(tmp_path / "none.mp4")


def encoded(path, codec, frames, **options):
    """A clip of frames ``(48, 64, 3)`` by any codec, written without the library."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        for name, value in {"width": 64, "height": 48, "pix_fmt": "yuv420p", **options}.items():
            setattr(stream, name, value)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode(None))
    return path


def test_a_stream_that_ends_before_its_first_frame_is_told(tmp_path):
    """FFmpeg calls it the end of the file, Python's `EOFError`, which a command line takes for Ctrl-D."""
    path = encoded(tmp_path / "whole.ts", "mpeg2video", flat_frames(60))
    assert sum(1 for _ in VideoReader(path).frames()) == 60
    (tmp_path / "cut.ts").write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"cut\.ts'"):
        VideoReader(tmp_path / "cut.ts")


def test_without_the_package_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ImportError, match=r"install noise2map\[video\]"):
        VideoReader("clip.mp4")


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm"])
def test_an_overview_is_spread_over_clips_of_every_container(tmp_path, suffix):
    frames = [np.full((48, 64, 3), 5 * index, np.uint8) for index in range(50)]
    path = encoded(tmp_path / f"clip.{suffix}", "libvpx" if suffix == "webm" else "mpeg4", frames, gop_size=5)
    means = [float(np.asarray(image).mean()) / 5 for image in VideoReader(path).overview()]
    assert means == pytest.approx([0, 10, 20, 30, 40], abs=1.6)


def test_a_codec_that_nobody_knows_is_told(tmp_path):
    path = encoded(tmp_path / "clip.avi", "mpeg4", flat_frames(3))
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"ZZZZ"))
    with pytest.raises(ValueError, match=r"clip\.avi' has a codec that cannot be decoded here"):
        VideoReader(path)
