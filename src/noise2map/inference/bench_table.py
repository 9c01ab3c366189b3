"""Benchmark rows as a CSV file that grows and as a table to read."""

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from noise2map.report.files import write_text

# Two rows that agree in these are the same measurement; the newer one stays.
_SETTING = ("size", "batch_size", "device", "threads", "dtype", "stage", "clock")
MODEL_IDENTITY = ("model", "mode", *_SETTING)
ATTENTION_IDENTITY = ("heads", "channels", "points", "formulation", *_SETTING)


def read_rows(path: Path, identity: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a file that `merge_rows` wrote; none if there is no file.

    Raises:
        ValueError: If it is not a table of such rows.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if not set(identity) <= set(reader.fieldnames or ()):
        raise ValueError(f"{path} is not a table of such rows; expected the columns {', '.join(identity)}")
    return rows


def merge_rows(path: Path, rows: Sequence[dict[str, Any]], identity: Sequence[str]) -> None:
    """Write rows to a CSV file, in place of those in it that agree in the columns of `identity`; others are kept.

    Raises:
        ValueError: If there is a file that is not a table of such rows.
    """

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(_cell(row.get(name))) for name in identity)

    fresh = {key(row) for row in rows}
    merged = [row for row in read_rows(path, identity) if key(row) not in fresh] + list(rows)
    columns = list(dict.fromkeys(name for row in (*rows, *merged) for name in row))
    text = StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in merged)
    write_text(path, text.getvalue())


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else value


def format_table(rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> str:
    """Rows as aligned text, words to the left and figures to the right.

    Args:
        rows: What was measured.
        columns: Title of each column to show -> its name in the rows.
    """
    lines = [list(columns)]
    for row in rows:
        values = (row.get(name, "") for name in columns.values())
        lines.append([_figure(value) if isinstance(value, float) else str(value) for value in values])
    widths = [max(map(len, column)) for column in zip(*lines)]
    words = [all(isinstance(row.get(name), str) for row in rows) for name in columns.values()]
    aligned = (
        "  ".join(cell.ljust(width) if is_word else cell.rjust(width) for cell, width, is_word in zip(line, widths, words))
        for line in lines
    )
    return "\n".join(line.rstrip() for line in aligned)


def _figure(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


MODEL_COLUMNS = {
    "type": "dtype",
    "mode": "mode",
    "stage": "stage",
    "ms": "ms",
    "x floor": "step_over_floor",
    "x torch floor": "step_over_torch_floor",
    "grid_sample ms": "grid_sample_ms",
    "faster by": "grid_sample_over_step",
    "peak MiB": "peak_mb",
    "working MiB": "working_mb",
}
ATTENTION_COLUMNS = {
    "type": "dtype",
    "stage": "stage",
    "formulation": "formulation",
    "ms": "ms",
    "faster than grid_sample by": "grid_sample_over_this",
}
