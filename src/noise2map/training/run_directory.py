"""The run directory: ``config.json``, ``metrics.jsonl``, ``checkpoint-N/`` (with ``ema/``), ``samples/``, ``final/``.

Everything that reads a run (plots, tables, resume) relies on these names. Nothing here is ever half-written: files and the final
export go to a temporary name and are renamed, and a checkpoint counts only once its marker is there.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from noise2map.runs.files import json_values, write_json, write_text

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
SAMPLES_DIRECTORY = "samples"
FINAL_DIRECTORY = "final"
EMA_DIRECTORY = "ema"
COMPLETE_MARKER = "complete"

_CHECKPOINT = re.compile(r"checkpoint-(\d+)$")


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


def rewind_metrics(run_directory: str | Path, step: int) -> None:
    """Drop the records after ``step``: a resumed run writes them again, and the curve stays one curve."""
    path = Path(run_directory) / METRICS_FILE
    if path.exists():
        kept = [record for record in read_metrics(run_directory) if record.get("step", 0) <= step]
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))


def mark_complete(checkpoint: str | Path) -> None:
    """Say that everything of a checkpoint has been written."""
    write_text(Path(checkpoint) / COMPLETE_MARKER, "")


def last_checkpoint(run_directory: str | Path) -> Path | None:
    """The newest checkpoint that was written to its end, or ``None``. A checkpoint cut off by a crash is passed over."""
    directory = Path(run_directory)
    if not directory.is_dir():
        return None
    found = [(int(match[1]), path) for path in directory.iterdir() if (match := _CHECKPOINT.search(path.name))]
    complete = [(step, path) for step, path in found if (path / COMPLETE_MARKER).exists()]
    return max(complete)[1] if complete else None
