"""Benchmark rows as a CSV file that grows and as a table to read."""

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from noise2map.report.files import write_text

# Two rows that agree in these are the same measurement; the newer one stays.
_IDENTITY = ("model", "size", "batch_size", "device", "threads", "dtype", "mode", "stage", "clock")


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a file that `merge_rows` wrote; none if there is no file.

    Raises:
        ValueError: If it is not a table of such rows.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if not set(_IDENTITY) <= set(reader.fieldnames or ()):
        raise ValueError(f"{path} is not a table of benchmark rows; expected the columns {', '.join(_IDENTITY)}")
    return rows


def merge_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows to a CSV file, in place of the same measurements in it; others are kept.

    Raises:
        ValueError: If there is a file that is not a table of such rows.
    """
    kept = read_rows(path)
    fresh = {_identity(row) for row in rows}
    merged = [row for row in kept if _identity(row) not in fresh] + list(rows)
    columns = list(dict.fromkeys(name for row in (*rows, *merged) for name in row))
    text = StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in merged)
    write_text(path, text.getvalue())


def _identity(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(_cell(row.get(name))) for name in _IDENTITY)


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else value


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as aligned text: milliseconds, memory, and a step's ratios to its yardsticks."""
    titles = ("type", "mode", "stage", "ms", "x floor", "x torch floor", "grid_sample ms", "faster by", "peak MiB", "working MiB")
    names = ("dtype", "mode", "stage", "ms", "step_over_floor", "step_over_torch_floor", "grid_sample_ms", "grid_sample_over_step")
    places = {"ms": 1, "grid_sample_ms": 1, "peak_mb": 0, "working_mb": 0}
    lines = [list(titles)]
    for row in rows:
        cells = []
        for name in (*names, "peak_mb", "working_mb"):
            value = row.get(name, "")
            cells.append(f"{value:.{places.get(name, 2)}f}" if isinstance(value, float) else str(value))
        lines.append(cells)
    widths = [max(map(len, column)) for column in zip(*lines)]
    aligned = (
        "  ".join(cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))) for line in lines
    )
    return "\n".join(line.rstrip() for line in aligned)
