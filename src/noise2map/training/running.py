"""One training run from a trainer to the exported model, the same for maps and for generators."""

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from noise2map.data.subsets import sample_ids
from noise2map.report.tables import text_table
from noise2map.runs.data_split import SPLIT_FILE, DataSplit
from noise2map.runs.files import content_checksum
from noise2map.runs.memory import keep_freed_memory
from noise2map.runs.output_folder import locked
from noise2map.runs.run_directory import RunStart, mark_finished, read_config, run_config, write_config

logger = logging.getLogger(__name__)


def run_training(
    trainer: Any,
    directory: str | Path,
    start: RunStart,
    recipe: Any,
    name: str,
    *,
    score_all: bool = False,
    split: DataSplit | None = None,
    write_card: Callable[[Path, Mapping[str, float]], object] | None = None,
) -> Path:
    """Train, score, export.

    Args:
        trainer: a ``SeededTrainer``; its ``evaluate`` scores the model at the end.
        directory: its run directory.
        start: what was found there.
        recipe: of maps or of a generator; recorded in ``config.json``.
        name: what the recipe is called.
        score_all: score on all validation images in the end, not only on those that were looked at during training.
        split: which images of a folder are held out; recorded in the run and with the model.
        write_card: called with the exported model's folder and its scores.

    Returns:
        The folder of the exported model.

    Raises:
        OSError: if something cannot be written, or another process trains in the directory.
        ValueError: if the loss is not finite, or the images are no longer those that the run began with.
    """
    keep_freed_memory()
    directory, first = Path(directory), trainer.is_world_process_zero()
    try:
        trainer.check_training_set()  # before anything is written: the mended command would meet the settings of this one
    except ValueError:
        with suppress(OSError):  # the trainer has made the folder; one that holds anything stays
            directory.rmdir()
        raise
    with locked(directory) if first else nullcontext():
        return _run(trainer, directory, start, recipe, name, score_all, split, write_card)


def _run(
    trainer: Any,
    directory: Path,
    start: RunStart,
    recipe: Any,
    name: str,
    score_all: bool,
    split: DataSplit | None,
    write_card: Callable[[Path, Mapping[str, float]], object] | None,
) -> Path:
    first = trainer.is_world_process_zero()
    _check_split(directory, start, split)
    data = {"train": _content(trainer.train_dataset), "val": _content(trainer.eval_dataset)}
    if start.state == "resume":
        _check_data(directory, data)
    if first:
        logger.info("%s, into %s", describe(trainer), directory)
        if start.state != "new":
            logger.info(start.text(directory))
    if first and (start.state != "resume" or start.longer):
        before = read_config(directory) if start.longer else {}
        config = run_config(recipe.to_dict(), trainer.model.config.to_dict(), name)
        write_config(directory, {**before, **config, "data": data, "finished_steps": 0})
        if split is not None:
            split.write(directory)
        else:  # that of a run that was begun here before
            (directory / SPLIT_FILE).unlink(missing_ok=True)
    trainer.train(resume_from_checkpoint=start.state == "resume")
    if score_all:
        trainer.eval_images = None
    scores = trainer.evaluate(metric_key_prefix="final")
    final = trainer.export_final()
    if first:
        if split is not None:
            split.write(final)
        if write_card is not None:
            write_card(final, scores)
        mark_finished(directory, trainer.args.max_steps)
        logger.info("%s\nmodel written to %s", score_table(scores), final)
    return final


def describe(trainer: Any) -> str:
    """Summary of model and data, in one line."""
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    arguments = trainer.args
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    samples = f"{len(trainer.train_dataset)} training and {len(trainer.eval_dataset)} validation samples"
    return f"{trainer.title}: {parameters / 1e6:.2f}M parameters, {samples}, {arguments.max_steps} steps of {batch}"


def _check_split(directory: Path, start: RunStart, split: DataSplit | None) -> None:
    """Refuse to go on with other images than the run began with."""
    before = DataSplit.read(directory) if split is not None and start.state == "resume" else None
    if split is None or before is None:
        return
    for part, then, now in (("training", before.train, split.train), ("held-out", before.val, split.val)):
        other = sorted({*then.items()} ^ {*now.items()})
        if other:
            names = ", ".join(dict.fromkeys(name for name, _ in other[:4]))
            raise ValueError(f"the {part} images are not those that {directory} began with ({names}); choose another --out")


def _content(dataset: Any) -> dict[str, Any]:
    """Number of samples, and a checksum of their ids where the dataset knows them without reading one."""
    if dataset is None:
        return {"samples": 0}
    names = sample_ids(dataset)
    checksum = {} if names is None else {"ids": content_checksum(f"{name}\n" for name in names)}
    return {"samples": len(dataset), **checksum}


def _check_data(directory: Path, data: Mapping[str, Any]) -> None:
    """Refuse to go on with other samples than the run began with: what was held out might be learnt, the order would be another."""
    before = read_config(directory).get("data", data)  # runs of before it was recorded
    for part, word in (("train", "training"), ("val", "validation")):
        if before.get(part) != data[part]:
            then, now = before.get(part, {}).get("samples"), data[part]["samples"]
            raise ValueError(f"{directory} began with {then} {word} samples and finds {now}, or others; choose another --out")


def score_table(scores: Mapping[str, float]) -> str:
    """Scores such as ``final_mIoU_3`` as a table with a row for each number of steps; the others (``final_loss``) in one row."""
    rows: dict[str, dict[str, Any]] = {}
    for name, value in scores.items():
        word, _, steps = name.removeprefix("final_").rpartition("_")
        if steps.isdecimal() and word:
            rows.setdefault(steps, {"steps": int(steps)})[word] = value
        elif name.startswith("final_"):
            rows.setdefault("", {})[name.removeprefix("final_")] = value
    return "\n\n".join(text_table(part) for part in ([row for key, row in rows.items() if key], [rows.get("", {})]) if any(part))
