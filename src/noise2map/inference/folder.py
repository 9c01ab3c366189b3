"""Predicts a folder of images of mixed sizes and kinds, in batches; a broken file does not stop the others."""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from noise2map.data.images import IMAGE_SUFFIXES, is_image_name, open_image
from noise2map.inference.maps_on_disk import encode_maps, map_summary, prediction_panel
from noise2map.inference.predictor import Predictor
from noise2map.models.decoding import Dials
from noise2map.report.panels import render
from noise2map.runs.files import encode_image
from noise2map.runs.output_folder import OutputFolder, output_names

# Images of many sizes wait for company of their own size; no more than this many batches of them.
_WAITING_BATCHES = 4


@dataclass
class FolderReport:
    """What became of the images.

    Attributes:
        written: Ids predicted now.
        skipped: Ids that an earlier run had done.
        failed: Id to message, for images that could not be read or processed.
        lines: The JSON lines of ``written``, in the order of completion.
    """

    written: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class _Waiting:
    id: str
    image: Image.Image
    source: dict[str, Any]


def find_images(source: str | Path, leave_out: Path | None = None) -> dict[str, Path]:
    """Images by id: the path below the folder, or the name of a single file.

    Args:
        source: An image file, or a folder, which is searched with its sub-folders; hidden ones are passed over.
        leave_out: A folder not to search, such as the one written to.

    Returns:
        Id to path, in the order of the ids.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If a folder holds no image.
    """
    source = Path(source)
    if source.is_file():
        return {source.name: source}
    if not source.is_dir():
        raise FileNotFoundError(f"there is no image or folder {str(source)!r}")
    excluded = leave_out.resolve() if leave_out is not None else None
    found = {}
    for path in source.rglob("*"):
        below = path.relative_to(source)
        hidden = any(part.startswith(".") for part in below.parts)
        if hidden or not is_image_name(path) or not path.is_file():
            continue
        if excluded is None or excluded not in path.resolve().parents:
            found[below.as_posix()] = path
    if not found:
        raise ValueError(f"folder {str(source)!r} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return dict(sorted(found.items()))


def predict_folder(
    source: str | Path,
    out: str | Path,
    predictor: Predictor,
    dials: Dials | None = None,
    *,
    model_name: str = "",
    batch_size: int = 8,
    overwrite: bool = False,
    panels: bool = True,
    progress: bool = True,
) -> FolderReport:
    """Predict an image or every image of a folder, and write maps, uncertainty, panels and ``predictions.jsonl``.

    Run again with the same settings, it goes on where it was stopped. Images that cannot be read or do not fit in memory
    are reported and the others done; what cannot be *written* stops the run.

    Args:
        source: An image or a folder.
        out: The folder to write to.
        predictor: The model with its processor.
        dials: Steps, samples, averaging, seed, size.
        model_name: What the model is called in the records.
        batch_size: The most images at a time.
        overwrite: Replace what an earlier run with other settings wrote.
        panels: Whether to draw a panel per image.
        progress: Whether to show a progress bar on standard error.

    Returns:
        Which images were written, skipped, failed.

    Raises:
        OSError: If ``source`` does not exist or ``out`` cannot be written.
        ValueError: If there is no image, a dial is impossible, or ``out`` holds maps of other settings.
    """
    out = Path(out)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    images = find_images(source, leave_out=out)
    dials = (dials or Dials()).resolved(predictor.model.config)
    model_name = model_name or str(predictor.model.config.name_or_path)
    folder = OutputFolder(out, run_settings(predictor, dials, model_name), overwrite=overwrite)
    names, report = output_names(list(images)), FolderReport()
    with tqdm(total=len(images), unit="image", disable=not progress, file=sys.stderr, dynamic_ncols=True) as bar:

        def fail(image_id: str, message: str) -> None:
            report.failed[image_id] = message
            bar.write(f"noise2map: {image_id}: {message}", file=sys.stderr)
            bar.update()

        waiting = _readable(images, folder, report, fail, bar)
        for group in _batches(waiting, predictor, dials, batch_size, fail):
            predictions = predictor([w.image for w in group], [w.id for w in group], dials, batch_size=batch_size)
            for one, prediction in zip(group, predictions):
                maps = encode_maps(prediction, predictor, names[one.id])
                if panels:
                    panel = prediction_panel(prediction, predictor, np.asarray(one.image), _describe(one.id, prediction, dials))
                    maps["panel"] = (f"panels/{names[one.id]}.png", encode_image(render(panel)))
                line = {
                    "id": one.id,
                    "size": list(one.image.size),
                    "processed_size": list(prediction.processed_size),
                    "model": model_name,
                    "num_steps": prediction.num_steps,
                    "dials": asdict(dials),
                    **map_summary(prediction, predictor),
                    "files": {kind: path for kind, (path, _) in maps.items()},
                    "source": one.source,
                }
                folder.write(line, dict(maps.values()))
                report.written.append(one.id)
                report.lines.append(line)
                bar.update()
    folder.close()
    return report


def run_settings(predictor: Predictor, dials: Dials, model_name: str) -> dict[str, Any]:
    """What decides how a map looks, apart from the image: runs that agree on it agree on their maps."""
    digest = hashlib.blake2b(digest_size=8)
    for key, value in sorted(predictor.model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    digest.update(json.dumps(predictor.processor.to_dict(), sort_keys=True, default=str).encode())
    return {
        "model": model_name,
        "weights": digest.hexdigest(),
        "task": predictor.task,
        "dtype": str(predictor.model.dtype).removeprefix("torch."),
        **asdict(dials),
    }


def _readable(images: dict[str, Path], folder: OutputFolder, report: FolderReport, fail: Any, bar: Any) -> Iterator[_Waiting]:
    for image_id, path in images.items():
        try:
            status = path.stat()
            source = {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}
            if folder.is_done(image_id, source):
                report.skipped.append(image_id)
                bar.update()
                continue
            image = open_image(path)
        except (OSError, ValueError, MemoryError) as error:
            fail(image_id, str(error) or type(error).__name__)
            continue
        yield _Waiting(image_id, image, source)


def _batches(
    waiting: Iterable[_Waiting], predictor: Predictor, dials: Dials, batch_size: int, fail: Any
) -> Iterator[list[_Waiting]]:
    """Images that are processed at one size, as many together as wanted and as fit in memory."""
    groups: dict[tuple[int, int], list[_Waiting]] = {}
    for one in waiting:
        size = predictor.processed_size(*one.image.size, dials.size)
        try:
            room = predictor.check_fits(*one.image.size, dials, batch_size)
        except ValueError as error:
            fail(one.id, str(error))
            continue
        group = groups.setdefault(size, [])
        group.append(one)
        if len(group) >= room:
            yield groups.pop(size)
        elif sum(map(len, groups.values())) >= _WAITING_BATCHES * batch_size:
            yield groups.pop(max(groups, key=lambda key: len(groups[key])))
    yield from groups.values()


def _describe(image_id: str, prediction: Any, dials: Dials) -> str:
    steps, samples = prediction.num_steps, dials.ensemble_size or 1
    counted = f"{steps} step{'s' if steps > 1 else ''}" + (" (auto)" if dials.num_inference_steps == "auto" else "")
    return f"{image_id}  ·  {counted}, {samples} sample{'s' if samples > 1 else ''}, {dials.average}  ·  seed {dials.seed}"
