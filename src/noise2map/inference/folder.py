"""Predicts a folder of images of mixed sizes and kinds, in batches; a broken file does not stop the others."""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from noise2map.inference.maps_on_disk import encode_maps, map_summary
from noise2map.inference.predictor import Predictor
from noise2map.inference.resuming import PlannedImage, plan_images
from noise2map.inference.sources import FoundImages, find_images, printable, read_image
from noise2map.models.decoding import PredictionOptions, check_count
from noise2map.report.panels import render
from noise2map.runs.files import encode_image, settings_checksum, weights_checksum
from noise2map.runs.output_folder import OutputFolder

logger = logging.getLogger(__name__)

# Images of many sizes wait for company of their own size; no more than this many batches of them.
_WAITING_BATCHES = 4


@dataclass
class FolderReport:
    """Result of `predict_folder`: ids of the images by outcome.

    Attributes:
        written: Ids predicted now.
        skipped: Ids that an earlier run had done.
        failed: Id to message, for images that could not be read or processed.
        lines: The JSON lines of ``written``, in the order of completion.
        left_out: What the search for images met and left out, name to reason.
    """

    written: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass
class _Waiting:
    plan: PlannedImage
    image: Image.Image


def predict_folder(
    source: str | Path | Sequence[str | Path] | FoundImages,
    out: str | Path | OutputFolder,
    predictor: Predictor,
    options: PredictionOptions | None = None,
    *,
    model_name: str = "",
    batch_size: int = 8,
    overwrite: bool = False,
    panels: bool = True,
    arrays: bool = True,
    progress: bool = True,
) -> FolderReport:
    """Predict images and write maps, uncertainty, panels and ``predictions.jsonl``.

    Run again with the same settings, it goes on where it was stopped. Images that cannot be read or do not fit in memory
    are reported and the others done; what cannot be *written* stops the run.

    Args:
        source: An image, a folder, an http(s) address, several of them, or what :func:`find_images` found.
        out: The folder to write to, which keeps the contract of :class:`noise2map.runs.output_folder.OutputFolder`.
        predictor: The model with its processor.
        options: Steps, samples, averaging, seed, size.
        model_name: What the model is called in the records.
        batch_size: The most images at a time.
        overwrite: Replace what an earlier run with other settings wrote, and write among foreign files.
        panels: Whether to draw a panel per image.
        arrays: Whether to store depth and uncertainty as floats, too.
        progress: Whether to show a progress bar on standard error.

    Returns:
        Which images were written, skipped, failed.

    Raises:
        OSError: If ``source`` does not exist or ``out`` cannot be written.
        ValueError: If there is no image, decoding options are invalid, or ``out`` holds foreign files or maps of other settings.
    """
    check_count("batch_size", batch_size)
    if not isinstance(out, OutputFolder):
        found = source if isinstance(source, FoundImages) else find_images(source, leave_out=Path(out))
        with OutputFolder(out, overwrite=overwrite) as folder:
            return predict_folder(
                found, folder, predictor, options, model_name=model_name, batch_size=batch_size, panels=panels, arrays=arrays,
                progress=progress,
            )  # fmt: skip
    found = source if isinstance(source, FoundImages) else find_images(source, leave_out=out.root)
    options = (options or PredictionOptions()).resolved(predictor.model.config)
    model_name = model_name or str(predictor.model.config.name_or_path)
    out.use(run_settings(predictor, options, model_name))
    plan = plan_images(found, out)
    out.forget([one.id for one in plan.images])
    report = FolderReport(skipped=plan.done, left_out=found.skipped)
    with tqdm(total=len(found.images), unit="image", disable=not progress, file=sys.stderr, dynamic_ncols=True) as bar:

        def fail(image_id: str, message: str) -> None:
            report.failed[image_id] = message
            logger.warning("%s: %s", image_id, message)
            bar.update()

        bar.update(len(plan.done))
        for image_id, message in plan.failed.items():
            fail(image_id, message)
        for group in _batches(_readable(plan.images, fail), predictor, options, batch_size, fail):
            ids = [one.plan.id for one in group]
            predictions = predictor([one.image for one in group], ids, options, batch_size=batch_size)
            for one, prediction in zip(group, predictions):
                maps = encode_maps(prediction, predictor, one.plan.name, arrays=arrays)
                if panels:
                    panel = prediction.panel(_describe(one.plan.id, prediction, options))
                    maps["panel"] = (f"panels/{one.plan.name}.png", encode_image(render(panel)))
                line = {
                    "id": one.plan.id,
                    "size": list(one.image.size),
                    "processed_size": list(prediction.processed_size),
                    "model": model_name,
                    "num_steps": prediction.num_steps,
                    "options": asdict(options),
                    **map_summary(prediction, predictor),
                    "files": {kind: path for kind, (path, _) in maps.items()},
                    "source": one.plan.record,
                }
                out.write(line, dict(maps.values()))
                report.written.append(one.plan.id)
                report.lines.append(line)
                bar.update()
    return report


def run_settings(predictor: Predictor, options: PredictionOptions, model_name: str) -> dict[str, Any]:
    """Settings that decide a map, apart from the image: runs that agree on them agree on their maps."""
    return {
        "model": model_name,
        "weights": weights_checksum(predictor.model),
        "processor": settings_checksum(predictor.processor.to_dict()),
        "task": predictor.task,
        "dtype": str(predictor.model.dtype).removeprefix("torch."),
        **asdict(options),
    }


def _readable(planned: Iterable[PlannedImage], fail: Callable[[str, str], None]) -> Iterator[_Waiting]:
    for one in planned:
        try:
            image = read_image(one.source)
        except (OSError, ValueError, MemoryError) as error:
            fail(one.id, printable(str(error)) or type(error).__name__)
            continue
        yield _Waiting(one, image)


def _batches(
    waiting: Iterable[_Waiting], predictor: Predictor, options: PredictionOptions, batch_size: int, fail: Any
) -> Iterator[list[_Waiting]]:
    """Images that are processed at one size, as many together as wanted and as fit in memory."""
    groups: dict[tuple[int, int], list[_Waiting]] = {}
    for one in waiting:
        size = predictor.processed_size(*one.image.size, options.size)
        try:
            room = predictor.check_fits(*one.image.size, options, batch_size)
        except ValueError as error:
            fail(one.plan.id, str(error))
            continue
        group = groups.setdefault(size, [])
        group.append(one)
        if len(group) >= room:
            yield groups.pop(size)
        elif sum(map(len, groups.values())) >= _WAITING_BATCHES * batch_size:
            yield groups.pop(max(groups, key=lambda key: len(groups[key])))
    yield from groups.values()


def _describe(image_id: str, prediction: Any, options: PredictionOptions) -> str:
    steps, samples = prediction.num_steps, options.ensemble_size or 1
    counted = f"{steps} step{'s' if steps > 1 else ''}" + (" (auto)" if options.num_inference_steps == "auto" else "")
    return f"{image_id}  ·  {counted}, {samples} sample{'s' if samples > 1 else ''}, {options.average}  ·  seed {options.seed}"
