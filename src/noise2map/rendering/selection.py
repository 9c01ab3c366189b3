"""Picks the frames of a rendered split that show a place: bright enough, and deep enough to have a geometry."""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from noise2map.data.freedoom import format as store
from noise2map.data.images import open_depth_map, open_image
from noise2map.runs.files import write_file, write_text
from noise2map.runs.progress import progress_bar

_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class View:
    """Statistics of a frame's center crop.

    Attributes:
        brightness: mean luma of the image as drawn, in [0, 255].
        redness: mean of red minus luma of the image as drawn; lava and red skies are above 20.
        median_depth_m: metres, where depth is known.
        depth_contrast: the 95th over the 5th percentile of known depth; a wall seen from the front has 1.
    """

    brightness: float
    redness: float
    median_depth_m: float
    depth_contrast: float


@dataclass(frozen=True)
class Selection:
    """Bounds on a :class:`View`; the defaults let everything pass.

    Attributes:
        min_brightness: of ``brightness``.
        max_redness: of ``redness``.
        min_median_depth_m: of ``median_depth_m``.
        min_depth_contrast: of ``depth_contrast``.

    Raises:
        ValueError: if a bound is not a finite number that a view can have.
    """

    min_brightness: float = 0.0
    max_redness: float = 255.0
    min_median_depth_m: float = 0.0
    min_depth_contrast: float = 1.0

    def __post_init__(self) -> None:
        lowest = {"min_depth_contrast": 1.0}
        for name, value in asdict(self).items():
            bound = lowest.get(name, 0.0)
            if not (np.isfinite(value) and value >= bound):
                raise ValueError(f"{name} is {value!r}; expected a finite number, at least {bound:g}")

    def takes(self, view: View) -> bool:
        """True if a view is within all bounds."""
        return (
            view.brightness >= self.min_brightness
            and view.redness <= self.max_redness
            and view.median_depth_m >= self.min_median_depth_m
            and view.depth_contrast >= self.min_depth_contrast
        )


def view_of(image: Image.Image, depth_m: np.ndarray) -> View:
    """Measure the center crop of a frame.

    Args:
        image: as drawn.
        depth_m: ``(H, W)`` metres, 0 where it is not known. A frame without any known depth has median 0 and contrast 1.

    Raises:
        ValueError: if the two differ in size.
    """
    if depth_m.shape != image.size[::-1]:
        raise ValueError(f"depth_m is {depth_m.shape}, the image {image.size[::-1]}; expected one size")
    height, width = depth_m.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    crop = np.s_[top : top + side, left : left + side]
    colors = np.asarray(image.convert("RGB"))[crop].astype(np.float64)
    luma = colors @ _LUMA
    known = depth_m[crop][depth_m[crop] > 0]
    near, median, far = np.percentile(known, (5, 50, 95)) if known.size else (1.0, 0.0, 1.0)
    return View(float(luma.mean()), float((colors[..., 0] - luma).mean()), float(median), float(far / near))


def select_frames(source: Path, out: Path, selection: Selection, command: str = "", progress: bool = False) -> tuple[int, int]:
    """Make a split of the frames that a selection takes: files linked, or copied where links cannot be made.

    Frames keep their numbers and ids. A call that was interrupted is made again and finishes the work; ``dataset.json`` is
    written last.

    Args:
        source: a rendered split.
        out: where to; must not hold a finished split.
        selection: what to take.
        command: recorded in ``dataset.json``.
        progress: show a bar on a terminal.

    Returns:
        Frames taken and frames in all.

    Raises:
        FileNotFoundError: if ``source`` is not a rendered split.
        FileExistsError: if ``out`` is a finished split already.
        ValueError: if nothing is taken.
    """
    description = store.read_description(source)
    if (out / store.DESCRIPTION).exists():
        raise FileExistsError(f"{out} is a finished split already; remove it or name another folder")
    records = store.finished_records(source)
    taken = {}
    for index in progress_bar(sorted(records), unit="frame", desc="looking at frames", shown=progress):
        depth_m = open_depth_map(store.file_of(source, "depth", index), 1 / store.CENTIMETRES)
        if selection.takes(view_of(open_image(store.file_of(source, "image", index)), depth_m)):
            taken[index] = records[index]
    if not taken:
        raise ValueError(f"no frame of {len(records)} in {source} is within {selection}")
    parts = [*store.PARTS, *([store.NORMALS] if (source / store.NORMALS).is_dir() else [])]
    for part in parts:
        (out / part).mkdir(parents=True, exist_ok=True)
        for index in taken:
            _link(store.file_of(source, part, index), store.file_of(out, part, index))
    store.write_records(out, taken)
    fields = {**description, "frames": len(taken), "selection": {**asdict(selection), "of": len(records), "command": command}}
    write_text(out / store.DESCRIPTION, json.dumps(fields, indent=2) + "\n")
    return len(taken), len(records)


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        with source.open("rb") as original:
            write_file(target, lambda file: shutil.copyfileobj(original, file))
