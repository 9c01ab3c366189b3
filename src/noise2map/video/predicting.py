"""Predicts clips: map, overlay and uncertainty as clips of the same frames, resumed segment by segment."""

import logging
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from fractions import Fraction
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from noise2map.inference.folder import FolderReport, run_settings
from noise2map.inference.predictor import Predictor
from noise2map.inference.resuming import PlannedImage, plan_images
from noise2map.inference.sources import FoundImages, find_images
from noise2map.inference.stored.images import StoredImage
from noise2map.models.decoding import PredictionOptions, check_count
from noise2map.runs.files import encode_arrays, writing
from noise2map.runs.output_folder import OutputFolder
from noise2map.runs.words import printable
from noise2map.video.clip import ClipPredictor, Flow
from noise2map.video.flows import FlowFolder
from noise2map.video.painting import Painter
from noise2map.video.reading import VideoReader, import_av
from noise2map.video.writing import VideoWriter, join_videos

logger = logging.getLogger(__name__)

SEGMENT = 64
"""Frames that are written together: an interrupted run goes on at the segment that it did not finish."""

_SEGMENTS = "segments"  # folder of what is taken away when the clip is finished


def predict_video(
    source: str | Path | list[str | Path] | FoundImages,
    out: str | Path | OutputFolder,
    predictor: Predictor,
    options: PredictionOptions | None = None,
    *,
    warm_start: float | None = None,
    flow: FlowFolder | None = None,
    model_name: str = "",
    batch_size: int = 8,
    overwrite: bool = False,
    progress: bool = True,
) -> FolderReport:
    """Predict the frames of clips and write ``map/``, ``overlay/`` and, where it is defined, ``uncertainty/NAME.mp4``.

    Size, number, rate and times of the frames are those of the clip; it has no sound. Colors mean the same in all frames: their
    range is that of five frames spread over the clip. Memory does not grow with the length of a clip. Run again with the same
    settings, it goes on at the segment of 64 frames where it was stopped. A clip that cannot be read to its end is reported,
    nothing of it is kept, and the others are done.

    Args:
        source: A clip, several of them, or what :func:`noise2map.inference.sources.find_images` found.
        out: The folder to write to, which keeps the contract of :class:`noise2map.runs.output_folder.OutputFolder`.
        predictor: The model with its processor.
        options: Steps, samples, averaging, seed, size.
        warm_start: Noise level at which a frame begins from the map of the one before, see `ClipPredictor`.
        flow: Of a warm start and one clip: how its frames moved, along which the map before is moved.
        model_name: What the model is called in the records.
        batch_size: The most frames at a time; with a warm start one.
        overwrite: Replace what an earlier run with other settings wrote, and write among foreign files.
        progress: Whether to show a progress bar on standard error.

    Returns:
        Which clips were written, skipped, failed.

    Raises:
        ImportError: If PyAV is not installed.
        OSError: If ``source`` does not exist or ``out`` cannot be written.
        ValueError: If options are invalid, or ``out`` holds foreign files or maps of other settings.
    """
    check_count("batch_size", batch_size)
    import_av()
    if not isinstance(out, OutputFolder):
        found = source if isinstance(source, FoundImages) else find_images(source, leave_out=Path(out))
        with OutputFolder(out, overwrite=overwrite) as folder:
            return predict_video(
                found, folder, predictor, options, warm_start=warm_start, flow=flow, model_name=model_name,
                batch_size=batch_size, progress=progress,
            )  # fmt: skip
    found = source if isinstance(source, FoundImages) else find_images(source, leave_out=out.root)
    options = (options or PredictionOptions()).resolved(predictor.model.config)
    if options.interval is not None:
        raise ValueError(f"interval is {options.interval!r}; expected None: it is not drawn into videos, see predict_frames")
    ClipPredictor(predictor, "", options, warm_start)  # refuses what cannot work
    if flow is not None and (warm_start is None or len(found.images) != 1):
        raise ValueError(f"flow is that of one clip with a warm_start; got {len(found.images)} clips and warm_start {warm_start}")
    model_name = model_name or str(predictor.model.config.name_or_path)
    out.use(video_settings(predictor, options, model_name, warm_start, flow))
    plan = plan_images(found, out)
    report = FolderReport(skipped=plan.done, failed=dict(plan.failed), left_out=found.skipped)
    for done in plan.done:
        _take_away(out, done)  # what a run left that was killed when all but this was done
    for one in plan.images:
        try:
            if isinstance(one.source, StoredImage):
                raise ValueError(f"{one.id} lies in a tar or a table; a video is read from a file of its own")
            clip = ClipPredictor(predictor, one.id, options, warm_start)
            line = _predict_clip(one, VideoReader(one.source), out, clip, flow, model_name, batch_size, progress)
        except ValueError as error:
            report.failed[one.id] = printable(str(error))
            logger.warning("%s", report.failed[one.id])
            _take_away(out, one.id)
            continue
        report.written.append(one.id)
        report.lines.append(line)
    return report


def video_settings(
    predictor: Predictor, options: PredictionOptions, model_name: str, warm_start: float | None, flow: FlowFolder | None = None
) -> dict[str, Any]:
    """Settings that decide the maps of a clip: runs that agree on them agree on their videos."""
    video: dict[str, Any] = {"warm_start": warm_start, "segment_frames": SEGMENT}
    if flow is not None:
        video["flow"] = flow.checksum
    return {**run_settings(predictor, options, model_name), "video": video}


def _segment_id(clip: str, number: int) -> str:
    return f"{clip}#{number:06d}"


def _predict_clip(
    one: PlannedImage,
    reader: VideoReader,
    out: OutputFolder,
    clip: ClipPredictor,
    flow: FlowFolder | None,
    model_name: str,
    batch_size: int,
    progress: bool,
) -> dict[str, Any]:
    if flow is not None:
        flow.check(reader.size)
    painter = Painter(clip, [clip.predict_alone(image) for image in reader.overview()])
    segments: list[dict[str, Any]] = []
    while out.is_done(name := _segment_id(one.id, len(segments)), one.record):
        segments.append(out.done[name])
    done = sum(segment["frames"] for segment in segments)
    if segments and "state" in segments[-1]["files"]:
        with np.load(BytesIO((out.root / segments[-1]["files"]["state"]).read_bytes())) as arrays:
            clip.restore(dict(arrays))
    frames = reader.frames(done)
    flows = None if flow is None else flow.frames(done, reader.size)
    with tqdm(total=reader.expected or None, initial=done, unit="frame", disable=not progress, file=sys.stderr, desc=one.id) as bar:
        while segment := _predict_segment(islice(frames, SEGMENT), reader, clip, painter, batch_size, bar, flows):
            record, data = segment
            stem = f"{_SEGMENTS}/{one.name}-{len(segments):06d}"
            files = {kind: f"{stem}-{kind}{'.npz' if kind == 'state' else '.mp4'}" for kind in data}
            line = {"id": _segment_id(one.id, len(segments)), "source": one.record, "files": files, **record}
            out.write(line, {files[kind]: content for kind, content in data.items()})
            segments.append(line)
    return _finish(one, reader, out, clip, painter, segments, model_name)


def _predict_segment(
    frames: Iterator[Any],
    reader: VideoReader,
    clip: ClipPredictor,
    painter: Painter,
    batch_size: int,
    bar: Any,
    flows: Iterator[Flow] | None,
) -> tuple[dict[str, Any], dict[str, bytes]] | None:
    """Record and files by kind of the next frames; None at the end of the clip."""
    times: list[int] = []

    def images() -> Iterator[Image.Image]:
        for frame in frames:
            times.append(frame.time)
            yield frame.image

    writers: dict[str, VideoWriter] = {}
    count = calls = 0
    for prediction in clip.predict_frames(images(), batch_size, flows):
        for kind, pixels in painter.paint(prediction).items():
            if kind not in writers:
                writers[kind] = VideoWriter(reader)
            writers[kind].add(pixels, times[count] - times[0])
        count, calls = count + 1, calls + prediction.num_steps
        bar.update()
    if not count:
        return None
    data = {kind: writer.finish() for kind, writer in writers.items()}
    if state := clip.saved_state():
        data["state"] = encode_arrays(state)
    return {"frames": count, "calls": calls, "begin": times[0]}, data


def _finish(
    one: PlannedImage,
    reader: VideoReader,
    out: OutputFolder,
    clip: ClipPredictor,
    painter: Painter,
    segments: list[dict[str, Any]],
    model_name: str,
) -> dict[str, Any]:
    """Joins the segments, writes the line of the clip, and takes the segments away."""
    files: dict[str, str] = {}
    for kind in painter.kinds:
        files[kind] = f"{kind}/{one.name}.mp4"
        parts = [(out.root / segment["files"][kind], Fraction(segment["begin"]) * reader.tick) for segment in segments]
        with writing(out.root / files[kind]) as file:
            join_videos(parts, file)
    line = {
        "model": model_name,
        "id": one.id,
        "size": list(reader.size),
        "processed_size": list(clip.processed_size(*reader.size, clip.options.size)),
        "frames": sum(segment["frames"] for segment in segments),
        "frames_per_second": round(float(reader.rate), 6),
        "decoder_calls": sum(segment["calls"] for segment in segments),
        "options": asdict(clip.options),
        "warm_start": clip.warm_start,
        "colors": painter.ranges,
        "source": one.record,
        "files": files,
    }
    out.write(line, {})
    _take_away(out, one.id)
    return line


def _take_away(out: OutputFolder, clip: str) -> None:
    """Segments of a clip, lines and files."""
    names = [name for name in out.done if name.rpartition("#")[0] == clip and out.done[name]["files"]]
    paths = [out.root / path for name in names for path in out.done[name]["files"].values()]
    out.forget(names)
    for path in paths:
        path.unlink(missing_ok=True)
        with suppress(OSError):  # segments of other clips are in it
            path.parent.rmdir()
    with suppress(OSError):
        (out.root / _SEGMENTS).rmdir()
