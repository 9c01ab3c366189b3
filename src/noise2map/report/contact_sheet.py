"""A contact sheet of a data set: samples beside their maps, on one scale, to see at a glance what is wrong."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from noise2map.report.canvas import ColorBar
from noise2map.report.palettes import DEPTH_MAP, colorize_depth, colorize_labels, depth_range, legend_entries
from noise2map.report.panels import Cell, Panel, render

_PAIRS_IN_A_ROW = 3
_CELL = (320, 240)
_AROUND = 235


def contact_sheet(
    samples: Sequence[Mapping[str, Any]], id2label: Mapping[int, str], palette: np.ndarray, heading: str = ""
) -> Image.Image:
    """Draw samples.

    Args:
        samples: Raw samples: ``image``, ``id`` and ``labels`` or ``depth_m`` or neither.
        id2label: Names of the classes.
        palette: Their colours, ``(K, 3)`` uint8.
        heading: A line above all.

    Raises:
        ValueError: If there is no sample.
    """
    if not samples:
        raise ValueError("a contact sheet needs at least one sample, got none")
    depths = [sample["depth_m"] for sample in samples if "depth_m" in sample]
    near, far = depth_range(*depths)
    columns = _PAIRS_IN_A_ROW * 2 if "labels" in samples[0] or depths else _PAIRS_IN_A_ROW * 2 - 1
    cells = []
    for sample in samples:
        cells.append(Cell(str(sample["id"]), _fitted(np.asarray(sample["image"]), smooth=True)))
        if "labels" in sample:
            cells.append(Cell("classes", _fitted(colorize_labels(sample["labels"], palette), smooth=False)))
        elif "depth_m" in sample:
            bar = ColorBar(near, far, DEPTH_MAP, log=True, unit="m")
            cells.append(Cell("depth", _fitted(colorize_depth(sample["depth_m"], near, far), smooth=False), bar))
    labels = [sample["labels"] for sample in samples if "labels" in sample]
    legend = legend_entries(labels, id2label, palette, limit=24) if labels else []
    return render(Panel(cells, columns, heading, legend))


def _fitted(pixels: np.ndarray, smooth: bool) -> np.ndarray:
    """A picture ``(H, W, 3)`` uint8 scaled into a cell of fixed size, on grey: pictures of a data set differ in shape."""
    picture = Image.fromarray(pixels)
    scale = min(_CELL[0] / picture.width, _CELL[1] / picture.height)
    size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
    kind = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    canvas = Image.new("RGB", _CELL, (_AROUND, _AROUND, _AROUND))
    canvas.paste(picture.resize(size, kind), ((_CELL[0] - size[0]) // 2, (_CELL[1] - size[1]) // 2))
    return np.asarray(canvas)
