"""The list files of the depth toolboxes: one line ``image depth focal`` per pair, paths relative to the data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ALL = "all"
"""The split of every pair that the folders hold, for which no list is needed."""


@dataclass(frozen=True)
class ListLine:
    """A line of a list.

    Attributes:
        image: Relative path of the image.
        depth: Relative path of the depth, None where the list says that there is none.
        focal_px: Focal length in pixels, None if the line does not give it.
    """

    image: str
    depth: str | None
    focal_px: float | None


def read_split_list(path: Path) -> list[ListLine]:
    """Read a list. Leading slashes are dropped, as the lists of NYU-Depth V2 have them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: Naming file and line, if a line is not ``image depth [focal]``.
    """
    lines = []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: {error}") from error
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        focal = _focal(words[2]) if len(words) == 3 else None
        if len(words) not in (2, 3) or (len(words) == 3 and focal is None):
            raise ValueError(f"{path}, line {number} is {line!r}; expected: image depth [focal length in pixels]")
        lines.append(ListLine(words[0].lstrip("/"), None if words[1] == "None" else words[1].lstrip("/"), focal))
    return lines


def _focal(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def find_split_list(root: Path, split: str, names: Sequence[str], what: str) -> Path:
    """The list file of a split.

    Args:
        root: Folder of the data.
        split: Name of the split, or a list file of the user's own (ending in ``.txt``), relative to ``root`` or not.
        names: File names under which the list of this split is known; empty if the split is unknown.
        what: The data set, for messages.

    Raises:
        FileNotFoundError: Naming the files that were looked for, if there is none.
        ValueError: If the split is unknown.
    """
    if split.endswith(".txt"):
        names = [split]
    elif not names:
        raise ValueError(f"{what} has no split {split!r}; expected train, test, {ALL}, or a list file ending in .txt")
    for name in names:
        if (root / name).is_file():
            return root / name
    raise FileNotFoundError(
        f"{what} needs the list of its split in {root}: {' or '.join(names)}, lines of: image depth focal "
        f"(split {ALL!r} takes every pair that is there, without a list)"
    )
