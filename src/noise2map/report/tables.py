"""Tables: aligned text for the screen, markdown for pages, CSV on disk; numbers in a README come from a CSV."""

import csv
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from noise2map.runs.files import write_text

Row = Mapping[str, Any]


def format_value(value: Any, digits: int = 4) -> str:
    """A cell's text: floats with ``digits`` significant digits and no exponent where short, None and NaN as a dash."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and math.isfinite(value):
        magnitude = math.floor(math.log10(abs(value))) if value else 0
        if -5 < magnitude < 7:
            return f"{value:.{max(digits - 1 - max(magnitude, -2), 0)}f}"
        return f"{value:.{digits - 1}e}"
    return str(value)


def column_names(rows: Sequence[Row]) -> list[str]:
    """Every key of the rows, in order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def text_table(rows: Sequence[Row], columns: Sequence[str] | None = None, digits: int = 4) -> str:
    """An aligned table for a terminal: numbers to the right, words to the left.

    Args:
        rows: One mapping per row.
        columns: Which keys, in which order; by default all.
        digits: Significant digits of floats.

    Returns:
        Lines joined by newlines, no newline at the end.
    """
    columns = list(columns or column_names(rows))
    cells = [[format_value(row.get(name), digits) for name in columns] for row in rows]
    numeric = _numeric_columns(rows, columns)
    widths = [max([len(name), *(len(line[index]) for line in cells)]) for index, name in enumerate(columns)]

    def line(parts: Sequence[str]) -> str:
        padded = (part.rjust(w) if right else part.ljust(w) for part, w, right in zip(parts, widths, numeric))
        return "  ".join(padded).rstrip()

    return "\n".join([line(columns), "  ".join("─" * width for width in widths), *map(line, cells)])


def markdown_table(rows: Sequence[Row], columns: Sequence[str] | None = None, digits: int = 4) -> str:
    """The same as a markdown table; ``|`` in a cell is escaped.

    Args:
        rows: One mapping per row.
        columns: Which keys, in which order; by default all.
        digits: Significant digits of floats.

    Returns:
        Lines joined by newlines, no newline at the end.
    """
    columns = list(columns or column_names(rows))

    def line(parts: Sequence[str]) -> str:
        return "| " + " | ".join(part.replace("|", "\\|").replace("\n", " ") for part in parts) + " |"

    rule = "|" + "|".join(" ---: " if right else " --- " for right in _numeric_columns(rows, columns)) + "|"
    body = [line([format_value(row.get(name), digits) for name in columns]) for row in rows]
    return "\n".join([line(columns), rule, *body])


def _numeric_columns(rows: Sequence[Row], columns: Sequence[str]) -> list[bool]:
    def is_number(value: Any) -> bool:
        return value is None or value == "" or (isinstance(value, (int, float)) and not isinstance(value, bool))

    return [bool(rows) and all(is_number(row.get(name)) for row in rows) for name in columns]


def write_csv(path: str | os.PathLike[str], rows: Sequence[Row], columns: Sequence[str] | None = None) -> None:
    """Write rows as CSV with a header, at once.

    Args:
        path: The file to make or to replace.
        rows: One mapping per row; keys that a row lacks are left empty.
        columns: Which keys, in which order; by default all.

    Raises:
        OSError: If the file cannot be written.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(columns or column_names(rows)), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def read_csv(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read a CSV with a header; cells that are numbers become numbers, empty ones None.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If a line has more cells than the header.
    """
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, start=2):
        if None in row:
            raise ValueError(f"{path}, line {number}: more cells than the header has columns")
    return [{name: _parse(cell) for name, cell in row.items()} for row in rows]


def _parse(cell: str | None) -> Any:
    if cell is None or cell == "":
        return None
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell


def replace_block(path: str | os.PathLike[str], name: str, content: str) -> bool:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->`` in a markdown file.

    Args:
        path: The markdown file.
        name: The name of the block.
        content: The new lines between the two marks.

    Returns:
        Whether the file changed.

    Raises:
        OSError: If the file cannot be read or written.
        ValueError: If the marks are not there exactly once.
    """
    text = Path(path).read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"{path} must hold <!-- {name} --> and, below it, <!-- /{name} --> exactly once")
    changed = pattern.sub(lambda match: match[1] + content.rstrip("\n") + "\n" + match[2], text)
    if changed == text:
        return False
    write_text(path, changed)
    return True


def read_rows(path: Path, identity: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a file that `merge_rows` wrote, as text; none if there is no file.

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


def merge_rows(path: Path, rows: Sequence[Row], identity: Sequence[str]) -> None:
    """Write rows to a CSV file, floats to three decimals, in place of those in it that agree in the columns of `identity`.

    Raises:
        ValueError: If there is a file that is not a table of such rows.
    """
    fresh: list[dict[str, Any]] = [
        {name: "" if value is None else f"{value:.3f}" if isinstance(value, float) else value for name, value in row.items()}
        for row in rows
    ]

    def key(row: Row) -> tuple[str, ...]:
        return tuple(str(row.get(name, "")) for name in identity)

    replaced = {key(row) for row in fresh}
    merged = [row for row in read_rows(path, identity) if key(row) not in replaced] + fresh
    write_csv(path, merged, column_names([*fresh, *merged]))


def titled_table(rows: Sequence[Row], columns: Mapping[str, str], digits: int = 3) -> str:
    """A `text_table` whose columns have titles of their own; columns without a value in any row are left out.

    Args:
        rows: One mapping per row.
        columns: Title of each column -> its key in the rows.
        digits: Significant digits of floats.
    """
    shown = {title: name for title, name in columns.items() if any(row.get(name) is not None for row in rows)}
    return text_table([{title: row.get(name) for title, name in shown.items()} for row in rows], list(shown), digits)
