"""The run directory: ``config.json``, ``metrics.jsonl``, ``checkpoint-N/`` (with ``ema/``), ``samples/``, ``final/``.

Everything that reads a run (plots, tables, resume) relies on these names. Nothing here is ever half-written: files and the final
export go to a temporary name and are renamed, and a checkpoint counts only once its marker is there.
"""

import datetime
import json
import logging
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noise2map.runs.files import json_values, write_json, write_text
from noise2map.runs.output_folder import locked

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"

METRICS_FILE = "metrics.jsonl"

SAMPLES_DIRECTORY = "samples"

FINAL_DIRECTORY = "final"

EMA_DIRECTORY = "ema"

COMPLETE_MARKER = "complete"

# What may differ when a run is gone on with: nothing that is learnt depends on it.
_FREE_OF_RUN = (
    *("threads", "log_every", "save_every", "keep"),
    *("eval_every", "eval_steps", "eval_images", "sample_images", "sample_steps"),
)

FREE_FIELDS = frozenset({"data.workers", *(f"train.{name}" for name in _FREE_OF_RUN)})

ITERATIONS = "train.iterations"

_PLACES = ("data.root", "data.train", "data.val", "train.cache_features")

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")

_SHOWN = 4

# PyTorch's zip writer reports a full disk as a RuntimeError with one of these words, safetensors as an error of its own.
_FAILED_WRITES = ("inline_container", "PytorchStreamWriter", "Error while serializing")


def write_config(run_directory: str | Path, config: dict[str, Any]) -> None:
    """Write ``config.json``: all that made the run (recipe, model, versions, command)."""
    write_json(Path(run_directory) / CONFIG_FILE, json_values(config))


def read_metrics(run_directory: str | Path) -> list[dict[str, Any]]:
    """All records of ``metrics.jsonl`` in order; a last line cut off by a crash is left out.

    Raises:
        ValueError: if a line other than the last is not a JSON object.
    """
    path = Path(run_directory) / METRICS_FILE
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return list(_records(path, lines))


def _records(path: Path, lines: list[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                return
            raise ValueError(f"{path}, line {number}: not JSON ({error.msg})") from None
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object, got {type(record).__name__}")
        yield record


def append_metrics(run_directory: str | Path, record: dict[str, Any]) -> None:
    """Append one JSON line."""
    path = Path(run_directory) / METRICS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(json_values(record)) + "\n")


def rewind_metrics(run_directory: str | Path, step: int, *, rescored: bool = False) -> None:
    """Drop the records after ``step``: a resumed run writes them again, and the curve stays one curve.

    Args:
        run_directory: the run.
        step: where it goes on.
        rescored: drop the final scores of that step, too, which are taken once more.
    """
    path = Path(run_directory) / METRICS_FILE
    if path.exists():
        records = [record for record in read_metrics(run_directory) if record.get("step", 0) <= step]
        kept = [record for record in records if not (rescored and record.get("step") == step and _is_final(record))]
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))


def _is_final(record: Mapping[str, Any]) -> bool:
    return any(name.startswith("final_") for name in record)


def mark_complete(checkpoint: str | Path) -> None:
    """Say that everything of a checkpoint has been written."""
    write_text(Path(checkpoint) / COMPLETE_MARKER, "")


def last_checkpoint(run_directory: str | Path) -> Path | None:
    """The newest checkpoint that was written to its end, or ``None``. A checkpoint cut off by a crash is passed over."""
    directory = Path(run_directory)
    if not directory.is_dir():
        return None
    found = [(int(match[1]), path) for path in directory.iterdir() if (match := _CHECKPOINT.fullmatch(path.name))]
    complete = [(step, path) for step, path in found if (path / COMPLETE_MARKER).exists()]
    return max(complete)[1] if complete else None


@contextmanager
def writing_checkpoint(checkpoint: str | Path) -> Iterator[None]:
    """Inside, a checkpoint is written; if that fails it is removed, and what the writers raised becomes one ``OSError``.

    Raises:
        OSError: if the disk is full or cannot be written, naming the checkpoint and what the run can go on from.
    """
    checkpoint = Path(checkpoint)
    try:
        yield
    except Exception as error:
        known = isinstance(error, OSError) or any(word in str(error) for word in _FAILED_WRITES)
        if not known:
            raise
        shutil.rmtree(checkpoint, ignore_errors=True)
        before = last_checkpoint(checkpoint.parent)
        rest = (
            "there is no earlier checkpoint" if before is None else f"{before.name} is whole; run the same command to go on from it"
        )
        reason = getattr(error, "strerror", None) or "is the disk full?"
        raise OSError(f"{checkpoint} could not be written ({reason}); {rest}") from error


@dataclass(frozen=True)
class RunStart:
    """State of a run directory at the start of a training command.

    Attributes:
        state: ``"new"``, ``"restart"`` (a run that ended before its first checkpoint), ``"resume"`` or ``"finished"``.
        checkpoint: the newest complete checkpoint, where a run is resumed.
        longer: whether the run is resumed to become longer than it was to be.
    """

    state: str
    checkpoint: Path | None = None
    longer: bool = False

    def text(self, directory: str | Path) -> str:
        """One line for the user; empty for a new run."""
        return {
            "new": "",
            "restart": f"{directory} holds a run without a checkpoint: it starts over",
            "resume": f"{directory} goes on from {self.checkpoint.name if self.checkpoint else ''}",
            "finished": f"{directory} is finished, its model is {Path(directory) / FINAL_DIRECTORY}; nothing was done. "
            "Choose another --out to train again, or --resume with more train.iterations to go on",
        }[self.state]


def find_start(
    directory: str | Path,
    recipe: Mapping[str, Any],
    *,
    resume: bool = False,
    advice: str | None = None,
    complete: Callable[[dict[str, Any]], Mapping[str, Any]] = lambda tree: tree,
) -> RunStart:
    """Decide from a run directory how a run of this recipe starts; nothing is written.

    Args:
        directory: the run directory.
        recipe: all fields of the recipe, as nested mappings.
        resume: the user asked for a run to be gone on with: it may then become longer.
        advice: what the user may do about a run of another recipe, for the message; by default as `noise2map train` has it.
        complete: gives a recorded recipe the fields that it lacks because they are newer than the run.

    Raises:
        ValueError: if the directory holds a run of another recipe (naming the fields), something that is no run, or a finished
            run without a checkpoint that is to become longer.
    """
    directory = Path(directory)
    if not directory.is_dir() or not any(not path.name.startswith(".") for path in directory.iterdir()):
        return RunStart("new")
    config = read_config(directory)
    recorded = config.get("recipe")
    if not isinstance(recorded, dict):
        raise ValueError(f"{directory} holds files, but no run of this command; choose another --out")
    with suppress(ValueError):  # a field of then that is none of now is compared as it stands
        recorded = complete(recorded)
    before, now = _flat(json_values(dict(recorded))), _flat(json_values(dict(recipe)))
    checkpoint = last_checkpoint(directory)
    if checkpoint is None and not (directory / FINAL_DIRECTORY).exists():
        return RunStart("restart")  # whatever its settings: nothing was learnt that could be lost
    longer = resume and before.get(ITERATIONS, 0) < now.get(ITERATIONS, 0)
    _check_same(directory, before, now, FREE_FIELDS | ({ITERATIONS} if longer else set()), advice)
    if not longer and _is_finished(directory, config, now.get(ITERATIONS, 0)):
        return RunStart("finished", checkpoint)
    if checkpoint is None and _is_finished(directory, config, 1):
        raise ValueError(f"{directory} is finished and holds no checkpoint to go on from; choose another --out")
    return RunStart("restart") if checkpoint is None else RunStart("resume", checkpoint, longer)


def read_config(run_directory: str | Path) -> dict[str, Any]:
    """Content of ``config.json``; empty where there is none.

    Raises:
        ValueError: if it is not a JSON object.
    """
    path = Path(run_directory) / CONFIG_FILE
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def mark_finished(run_directory: str | Path, steps: int) -> None:
    """Record that a run has been trained to its end and exported."""
    write_config(run_directory, {**read_config(run_directory), "finished_steps": steps})


def _is_finished(directory: Path, config: Mapping[str, Any], iterations: int) -> bool:
    if not (directory / FINAL_DIRECTORY).is_dir():
        return False
    steps = config.get("finished_steps")
    if steps is not None:
        return int(steps) >= iterations
    scored = [record["step"] for record in read_metrics(directory) if _is_final(record)]
    return bool(scored) and max(scored) >= iterations


def _check_same(
    directory: Path, before: Mapping[str, Any], now: Mapping[str, Any], free: frozenset[str] | set[str], advice: str | None
) -> None:
    names = [name for name in dict.fromkeys((*now, *before)) if name not in free]
    missing = object()
    changed = [name for name in names if _place(name, before.get(name, missing)) != _place(name, now.get(name, missing))]
    if not changed:
        return
    shown = [f"{name} {_word(before, name)} there, {_word(now, name)} here" for name in changed[:_SHOWN]]
    more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    longer = "a longer run needs --resume; " if changed == [ITERATIONS] and before[ITERATIONS] < now[ITERATIONS] else ""
    advice = advice or f"{longer}choose another --out"
    raise ValueError(f"{directory} holds a run of other settings ({'; '.join(shown)}{more}); {advice}")


def _place(name: str, value: Any) -> Any:
    """A folder however it is spelt."""
    return os.path.abspath(value) if name in _PLACES and isinstance(value, str) else value


def _word(fields: Mapping[str, Any], name: str) -> str:
    return "absent" if name not in fields else json.dumps(fields[name])


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"optim": {"lr": 1}}`` -> ``{"optim.lr": 1}``."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return flat


def check_directory(directory: Path, recipe: Any, resume: bool, complete: Callable[[dict[str, Any]], dict]) -> RunStart:
    """State of the directory for a run of this recipe, logged. Its data must be there, the directory writable.

    Args:
        directory: the run directory.
        recipe: of maps or of a generator.
        resume: ``--resume``: a finished run may be trained further.
        complete: fills fields into a recorded recipe that are newer than the run.

    Raises:
        OSError: if data is missing, or the directory cannot be written or is in use by another process.
        ValueError: as of :func:`find_start`.
    """
    start = find_start(directory, recipe.to_dict(), resume=resume, complete=complete)
    first = int(os.environ.get("RANK", "0")) == 0
    if start.state == "finished":
        if first:
            logger.info(start.text(directory))
        return start
    recipe.check_folders()
    if first:
        with locked(directory):  # now for a moment, and again when the run begins: between the two much is imported and read
            pass
    return start


def run_config(recipe: dict, model: dict, name: str) -> dict:
    """Content of ``config.json`` for a run."""
    import torch
    import transformers

    import noise2map

    return {
        "recipe_name": name,
        "recipe": recipe,
        "model": model,
        "command": shlex.join(["noise2map", *sys.argv[1:]]),
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "noise2map": noise2map.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }
