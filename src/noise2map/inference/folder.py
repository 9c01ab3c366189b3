"""Predicts a folder of images of mixed sizes and kinds, in batches; a broken file does not stop the others."""

import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from noise2map.inference.predictor import Predictor
from noise2map.inference.resuming import plan_images
from noise2map.inference.settings import config_settings
from noise2map.inference.shards import Engine, Job, ShardPredictor, cut_shards
from noise2map.inference.sources import FoundImages, find_images
from noise2map.models.decoding import PredictionOptions, check_count
from noise2map.runs.files import settings_checksum, weights_checksum
from noise2map.runs.output_folder import OutputFolder

logger = logging.getLogger(__name__)


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

    def fail(self, image_id: str, message: str) -> None:
        """Record and log that an image failed."""
        self.failed[image_id] = message
        logger.warning("%s: %s", image_id, message)


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
    engine: Engine | None = None,
) -> FolderReport:
    """Predict images and write maps, uncertainty, panels and ``predictions.jsonl``.

    Run again with the same settings, it goes on where it was stopped. Images that cannot be read or do not fit in memory
    are reported and the others done; what cannot be *written* stops the run.

    Args:
        source: An image, a folder, a tar, an address, several of them, or what :func:`find_images` found.
        out: The folder to write to, which keeps the contract of :class:`noise2map.runs.output_folder.OutputFolder`.
        predictor: The model with its processor.
        options: Steps, samples, averaging, seed, size.
        model_name: What the model is called in the records.
        batch_size: The most images at a time.
        overwrite: Replace what an earlier run with other settings wrote, and write among foreign files.
        panels: Whether to draw a panel per image.
        arrays: Whether to store depth and uncertainty as floats, too.
        progress: Whether to show a progress bar on standard error.
        engine: Does the shards elsewhere, such as `noise2map.cluster.RayEngine`; ``predictor`` is only asked for its settings then,
            and an interrupted run goes on with the shard, not with the image, that it did not finish.

    Returns:
        Which images were written, skipped, failed.

    Raises:
        OSError: If ``source`` does not exist or ``out`` cannot be written.
        ValueError: If there is no image, decoding options are invalid, or ``out`` holds foreign files or maps of other settings.
    """
    check_count("batch_size", batch_size)
    root = out.root if isinstance(out, OutputFolder) else Path(out)
    found = source if isinstance(source, FoundImages) else find_images(source, leave_out=root)
    with nullcontext(out) if isinstance(out, OutputFolder) else OutputFolder(out, overwrite=overwrite) as folder:
        options = (options or PredictionOptions()).resolved(predictor.model.config)
        if options.interval is not None:
            predictor.check_interval(options)
        model_name = model_name or str(predictor.model.config.name_or_path)
        job = Job(options, model_name, batch_size, panels, arrays, run_settings(predictor, options, model_name))
        return _finish(job, found, folder, predictor, engine, progress)


def _finish(
    job: Job, found: FoundImages, out: OutputFolder, predictor: Predictor, engine: Engine | None, progress: bool
) -> FolderReport:
    """Does what is left of a job: predicts the images that are new or have changed, and writes each as it comes."""
    out.use(job.settings)
    plan = plan_images(found, out, [kind for kind, wanted in (("panels", job.panels), ("arrays", job.arrays)) if wanted])
    if changed := [one.id for one in plan.images if one.id in out.done]:
        out.forget(changed)
    report = FolderReport(skipped=plan.done, left_out=found.skipped)
    shards = cut_shards(found, plan.images, job.batch_size)
    predict = ShardPredictor(predictor, job)
    outcomes = engine(shards, job) if engine is not None else chain.from_iterable(map(predict, shards))
    left = {shard.number: len(shard.images) for shard in shards}
    lines: dict[int, list[dict[str, Any]]] = {number: [] for number in left}
    with tqdm(total=len(found.images), unit="image", disable=not progress, file=sys.stderr, dynamic_ncols=True) as bar:
        for image_id, message in plan.failed.items():
            report.fail(image_id, message)
        bar.update(len(found.images) - len(plan.images))
        for one in outcomes:
            if one.line is None:
                report.fail(one.id, one.failure)
            else:
                out.write_files(one.id, one.files)
                lines[one.shard].append(one.line)
            left[one.shard] -= 1
            if engine is None or not left[one.shard]:  # elsewhere a shard is done as a whole, or again
                done, lines[one.shard] = lines[one.shard], []
                out.write_lines(done)
                report.written += [line["id"] for line in done]
                report.lines += done
            bar.update()
    return report


def run_settings(predictor: Predictor, options: PredictionOptions, model_name: str) -> dict[str, Any]:
    """Settings that decide a map, apart from the image: runs that agree on them agree on their maps."""
    chosen = asdict(options)
    for name in ("interval", "refine_threshold"):
        if chosen[name] is None:
            del chosen[name]  # folders of before there were any
    if predictor.tiling is not None:
        chosen |= {"memory": predictor.tiling.memory, "tile": predictor.tiling.tile}
    return {
        "model": model_name,
        "weights": weights_checksum(predictor.model),
        **config_settings(predictor.model.config),
        "processor": settings_checksum(predictor.processor.to_dict()),
        "task": predictor.task,
        "dtype": str(predictor.model.dtype).removeprefix("torch."),
        **chosen,
    }
