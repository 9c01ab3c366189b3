"""Datasets of pairs of files, and the list files that name them."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from noise2map.data.images import list_images, open_class_map, open_depth_map, open_image
from noise2map.data.subsets import UNREADABLE

IGNORE = 255

_SHOWN, _NAMED = 5, 20


@dataclass(frozen=True)
class Pair:
    """An image and its map.

    Attributes:
        id: Unique name, without slashes.
        image: File of the image.
        map: File of the class ids or of the depth.
        camera: File of the camera, which need not be there.
        focal_px: Focal length in pixels, if it is known without that file.
    """

    id: str
    image: Path
    map: Path
    camera: Path | None = None
    focal_px: float | None = None


Intrinsics = tuple[float, float, float, float]


class PairedDataset:
    """Raw samples from pairs of files, in the order given. Sub-classes say what the maps mean (:meth:`read_map`)
    and what the camera files hold (:meth:`read_camera`).

    Args:
        pairs: All pairs that should be there.
        what: The dataset and split, for messages.
        expected: Where files are expected, for messages.
        missing: ``"raise"`` refuses an incomplete dataset, ``"drop"`` leaves out incomplete pairs.

    Attributes:
        pairs: The pairs whose two files are there.
        ids: Their ids.
        missing: The files that are not there.
        id2label: Names of the classes; empty for depth.
        palette: Their colors, ``(K, 3)`` uint8.

    Raises:
        FileNotFoundError: If files are missing (unless dropped), naming the first of them.
        ValueError: If there is no pair at all, two pairs have one id, or ``missing`` is unknown.
    """

    id2label: dict[int, str] = {}
    palette: np.ndarray = np.zeros((0, 3), np.uint8)

    def __init__(self, pairs: Sequence[Pair], what: str, expected: str, missing: str = "raise") -> None:
        if missing not in ("raise", "drop"):
            raise ValueError(f"missing is {missing!r}; expected 'raise' or 'drop'")
        absent = [(pair, [path for path in (pair.image, pair.map) if not path.is_file()]) for pair in pairs]
        self.missing = [path for _, paths in absent for path in paths]
        self.pairs = [pair for pair, paths in absent if not paths]
        if not pairs:
            raise ValueError(f"{what} holds no image; expected {expected}")
        if self.missing and (missing == "raise" or not self.pairs):
            raise FileNotFoundError(
                f"{what} lacks {len(self.missing)} of {2 * len(pairs)} files: {name_some(self.missing)}; expected {expected}"
            )
        self.ids = [pair.id for pair in self.pairs]
        twice = [identity for identity, count in Counter(self.ids).items() if count > 1]
        if twice:
            raise ValueError(f"{what} lists {name_some(twice)} more than once")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The raw sample: ``image``, ``id``, ``labels`` or ``depth_m`` with ``valid``, and ``intrinsics`` where they are known.

        Raises:
            OSError: Naming the file, if it cannot be decoded.
            ValueError: Naming the file, if its values make no sense or the two images of the pair differ in size.
        """
        pair = self.pairs[index]
        image = open_image(pair.image)
        sample: dict[str, Any] = {"image": image, "id": pair.id, **self.read_map(pair)}
        height, width = sample["labels" if "labels" in sample else "depth_m"].shape
        if image.size != (width, height):
            sizes = f"{pair.image} is {image.width}x{image.height} and its map {pair.map} is {width}x{height}"
            raise ValueError(f"{sizes}; they must be equal")
        intrinsics = self.read_camera(pair, width, height)
        if intrinsics is not None:
            sample["intrinsics"] = np.array(intrinsics, np.float32)
        return sample

    def read_map(self, pair: Pair) -> dict[str, np.ndarray]:
        """The arrays of a pair's map, by their names in the raw sample."""
        raise NotImplementedError

    def read_camera(self, pair: Pair, width: int, height: int) -> Intrinsics | None:
        """``fx, fy, cx, cy`` in pixels of a ``width`` x ``height`` image, pixel centres at 0.5; None if they are not known.

        With nothing but a focal length, the principal point is taken to be the middle.
        """
        return None if pair.focal_px is None else (pair.focal_px, pair.focal_px, width / 2, height / 2)


def read_labels(path: Path, table: np.ndarray) -> np.ndarray:
    """Class ids ``(H, W)`` uint8 from a file with ids of its own.

    Args:
        path: The file.
        table: What each id of the file means, ``(256,)`` int: a class id, 255 for "ignore", -1 for ids that cannot be.

    Raises:
        OSError: If the file cannot be decoded.
        ValueError: If it holds ids that cannot be.
    """
    stored = open_class_map(path)
    inside = (stored >= 0) & (stored < len(table))
    labels = table[np.where(inside, stored, 0)]
    wrong = ~inside | (labels < 0)
    if wrong.any():
        known = np.flatnonzero(table >= 0)
        last = int(known[known < IGNORE].max())
        raise ValueError(
            f"{path} has unknown class ids {name_some([int(value) for value in np.unique(stored[wrong])])}; "
            f"known are {int(known.min())} to {last}, and {IGNORE} for pixels to ignore"
        )
    return labels.astype(np.uint8)


def read_depth(path: Path, metres_per_unit: float) -> dict[str, np.ndarray]:
    """``depth_m`` ``(H, W)`` float32 and ``valid`` ``(H, W)`` bool of a 16-bit depth file, 0 being "not known"."""
    depth_m = open_depth_map(path, metres_per_unit)
    return {"depth_m": depth_m, "valid": depth_m > 0}


def count_classes(map_folders: Sequence[Path], strict: bool = True) -> tuple[list[str], list[str]]:
    """Names of as many classes as the ids in class maps need, and warnings where that looks wrong.

    Files that cannot be read are passed over; whoever reads them later will say so.

    Args:
        map_folders: Folders of class maps.
        strict: Refuse maps that do not hold two classes; else that is a warning.

    Raises:
        FileNotFoundError: If a folder is missing.
        OSError: If no file can be read.
        ValueError: If an id is out of range, or the maps do not hold two classes.
    """
    files_of: dict[int, list[Path]] = {}
    errors: list[Exception] = []
    for path in (path for folder in map_folders for path in list_images(folder)):
        try:
            found = np.unique(open_class_map(path))
        except UNREADABLE as error:
            errors.append(error)
            continue
        for value in found.tolist():
            files_of.setdefault(value, []).append(path)
    wrong = sorted(value for value in files_of if not 0 <= value <= IGNORE)
    if wrong:
        path = files_of[wrong[-1]][0]
        raise ValueError(f"{path} has the class id {wrong[-1]}; expected 0 to {IGNORE - 1}, and {IGNORE} for unknown")
    ids = sorted(files_of.keys() - {IGNORE})
    warnings = []
    if not ids or ids[-1] < 1:
        advice = f"; {IGNORE} means 'not known': for a mask of two classes write 0 and 1" if IGNORE in files_of else ""
        text = f"the maps in {map_folders[0]} hold no two classes, only {name_some(sorted(files_of)) or 'unreadable files'}{advice}"
        if strict:
            raise_together(errors)
            raise ValueError(f"{text}; expected ids from 0 on in single-channel images")
        return ["class 0"], [text]
    count, last = ids[-1] + 1, files_of[ids[-1]]
    if count > 2 * len(ids):
        more = f" and {len(last) - 1} more" if len(last) > 1 else ""
        warnings.append(
            f"class ids reach {ids[-1]}, which makes {count} classes, but only {len(ids)} of them occur ({name_some(ids)}); "
            f"id {ids[-1]} is in {last[0]}{more}: is it meant?"
        )
    return [f"class {index}" for index in range(count)], warnings


def require_folder(root: str | Path, what: str, expected: str) -> Path:
    """Return ``root`` as a path if it is a folder.

    Raises:
        FileNotFoundError: Saying what was expected there, if it is not.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}; {what} needs {expected}")
    return root


def pick_split(split: str, names: dict[str, str], what: str) -> str:
    """The folder of a split; ``names`` maps what a user may write to it.

    Raises:
        ValueError: If the split is unknown.
    """
    if split not in names:
        raise ValueError(f"{what} has no split {split!r}; expected one of {', '.join(names)}")
    return names[split]


def name_some(values: Sequence[object]) -> str:
    """The first few values, and how many more there are."""
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return ", ".join(str(value) for value in values[:_SHOWN]) + more


def raise_together(errors: Sequence[Exception]) -> None:
    """Raise what is wrong with several files as one error that names each (the first few of many); one error as it is.

    Raises:
        OSError: If any of them is one.
        ValueError: If not.
    """
    if len(errors) == 1:
        raise errors[0]
    if errors:
        kind = OSError if any(isinstance(error, OSError) for error in errors) else ValueError
        more = [f"and {len(errors) - _NAMED} more"] if len(errors) > _NAMED else []
        raise kind("\n  ".join([f"{len(errors)} files are at fault:", *map(str, errors[:_NAMED]), *more]))


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
        what: The dataset, for messages.

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
    if split.endswith(".txt") and Path(split).is_file():
        return Path(split)
    raise FileNotFoundError(
        f"{what} needs the list of its split in {root}: {' or '.join(names)}, lines of: image depth focal "
        f"(split {ALL!r} takes every pair that is there, without a list)"
    )
