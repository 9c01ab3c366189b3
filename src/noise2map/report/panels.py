"""Panels: image, map, uncertainty, truth and error beside each other, with a legend and color bars, as one image.

Drawn with Pillow: a panel takes some tens of milliseconds, so that a folder of thousands of images can have one each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from noise2map.report.canvas import THEMES, ColorBar, Theme, draw_color_bar, draw_legend, fit_text, load_font, printable
from noise2map.report.palettes import (
    DEPTH_MAP,
    INVALID_COLOR,
    UNCERTAINTY_MAP,
    colorize,
    colorize_depth,
    colorize_labels,
    depth_range,
    legend_entries,
)

WRONG_COLOR = (255, 96, 32)

PANEL_WIDTH = 1520

_LONGEST_CELL = 1200

_SHORTEST_CELL = 24

_GAP = 12

_MARGIN = 16

_GRID_GAP = 4

_NICE = [digit * 10.0**power for power in range(-6, 0) for digit in (1, 2, 5)] + [1.0]


@dataclass
class Cell:
    """One image of a panel.

    Attributes:
        title: Written above it.
        image: ``(H, W, 3)`` uint8.
        bar: The color bar drawn below it, if its colors stand for numbers.
        note: A short text right of the title, e.g. a score.
    """

    title: str
    image: np.ndarray
    bar: ColorBar | None = None
    note: str = ""


@dataclass
class Panel:
    """Cells in rows, and what is written around them.

    Attributes:
        cells: The images, row by row.
        columns: Images per row; by default what suits their number and shape.
        heading: A line above all.
        legend: Pairs of color and class name, drawn below all.
    """

    cells: Sequence[Cell]
    columns: int | None = None
    heading: str = ""
    legend: Sequence[tuple[tuple[int, int, int], str]] = field(default_factory=list)


def render(panel: Panel, width: int = PANEL_WIDTH, theme: str = "light") -> Image.Image:
    """Draw a panel.

    Small frames are enlarged by whole pixels (nearest neighbour), so that what the model saw stays visible; large ones
    are shrunk.

    Args:
        panel: What to draw.
        width: The width to aim at, in pixels; whole-pixel enlargement makes it a little less.
        theme: ``"light"`` or ``"dark"``.

    Returns:
        An RGB image.

    Raises:
        ValueError: If there is no cell, a cell is not ``(H, W, 3)`` uint8, or the theme is unknown.
    """
    _check(panel, theme)
    colors = THEMES[theme]
    height, frame_width = panel.cells[0].image.shape[:2]
    columns = panel.columns or default_columns(len(panel.cells), frame_width / height)
    cell_width, cell_height = _cell_size(frame_width, height, (width - 2 * _MARGIN - (columns - 1) * _GAP) // columns)
    rows = [panel.cells[start : start + columns] for start in range(0, len(panel.cells), columns)]
    canvas_width = max(columns * cell_width + (columns - 1) * _GAP + 2 * _MARGIN, 360)
    title_font, bar_height = load_font(15, bold=True), 40
    heading_height = 34 if panel.heading else 0
    row_heights = [24 + cell_height + (bar_height if any(c.bar for c in row) else 0) + _GAP for row in rows]
    legend_height = draw_legend(None, panel.legend, (_MARGIN, 0), canvas_width - 2 * _MARGIN, colors)
    total = 2 * _MARGIN + heading_height + sum(row_heights) + legend_height - _GAP
    canvas = Image.new("RGB", (canvas_width, total), colors.background)
    draw = ImageDraw.Draw(canvas)
    top = _MARGIN
    if panel.heading:
        font = load_font(19, bold=True)
        draw.text((_MARGIN, top), fit_text(panel.heading, font, canvas_width - 2 * _MARGIN), colors.text, font)
        top += heading_height
    for row, row_height in zip(rows, row_heights):
        for index, cell in enumerate(row):
            left = _MARGIN + index * (cell_width + _GAP)
            _draw_cell(canvas, cell, (left, top), (cell_width, cell_height), colors, title_font)
        top += row_height
    draw_legend(draw, panel.legend, (_MARGIN, top), canvas_width - 2 * _MARGIN, colors)
    return canvas


def _check(panel: Panel, theme: str) -> None:
    if not panel.cells:
        raise ValueError("a panel needs at least one cell, got none")
    if theme not in THEMES:
        raise ValueError(f"theme must be one of {sorted(THEMES)}, got {theme!r}")
    for cell in panel.cells:
        if cell.image.ndim != 3 or cell.image.shape[2] != 3 or cell.image.dtype != np.uint8 or cell.image.size == 0:
            raise ValueError(f"cell {cell.title!r} must be (H, W, 3) uint8, got {cell.image.shape} {cell.image.dtype}")


def default_columns(count: int, aspect: float) -> int:
    """Number of images in a row: one for wide strips, three for more than four, else all."""
    if aspect >= 2.5:
        return 1
    return count if count <= 4 else 3


def _cell_size(width: int, height: int, room: int) -> tuple[int, int]:
    """The size in which a ``width x height`` image is shown where ``room`` pixels of width are free."""
    room = max(min(room, _LONGEST_CELL), _SHORTEST_CELL)
    scale = min(room / width, _LONGEST_CELL / height)
    if scale >= 1:
        scale = int(scale)
    return max(round(width * scale), _SHORTEST_CELL), max(round(height * scale), _SHORTEST_CELL)


def _draw_cell(
    canvas: Image.Image, cell: Cell, corner: tuple[int, int], size: tuple[int, int], colors: Theme, font: ImageFont.FreeTypeFont
) -> None:
    left, top = corner
    draw = ImageDraw.Draw(canvas)
    note_font = load_font(14)
    note = printable(cell.note)
    note_width = int(note_font.getlength(note)) + 8 if note else 0
    draw.text((left, top), fit_text(cell.title, font, size[0] - note_width), colors.text, font)
    if note:
        draw.text((left + size[0] - note_width + 8, top + 1), note, colors.muted, note_font)
    image = Image.fromarray(cell.image)
    shrinks = image.width > size[0] or image.height > size[1]
    canvas.paste(image.resize(size, Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST), (left, top + 22))
    if cell.bar is not None:
        draw_color_bar(canvas, cell.bar, (left, top + 22 + size[1] + 6), size[0], colors)


def uncertainty_limit(*uncertainties: np.ndarray) -> float:
    """The end of the color scale for uncertainties in [0, 1]: the least round number above 99 % of the values."""
    quantile = max(float(np.percentile(np.nan_to_num(one), 99)) for one in uncertainties)
    return next((nice for nice in _NICE if nice >= quantile), 1.0)


def uncertainty_cell(uncertainty: np.ndarray, title: str = "uncertainty", limit: float | None = None) -> Cell:
    """Uncertainty ``(H, W)`` in [0, 1] as a cell, with a color bar from 0 to ``limit``."""
    limit = limit or uncertainty_limit(uncertainty)
    return Cell(title, colorize(uncertainty, 0.0, limit), ColorBar(0.0, limit, UNCERTAINTY_MAP))


def depth_cell(depth_m: np.ndarray, title: str = "depth", limits_m: tuple[float, float] | None = None) -> Cell:
    """Depth ``(H, W)`` in metres as a cell, near warm, with a color bar in metres; 0 is "no depth"."""
    near, far = limits_m or depth_range(depth_m)
    return Cell(title, colorize_depth(depth_m, near, far), ColorBar(near, far, DEPTH_MAP, log=True, unit="m"))


def label_error_cell(image: np.ndarray, labels: np.ndarray, truth: np.ndarray, title: str = "errors") -> Cell:
    """Wrong pixels in orange on the darkened image; pixels without truth (255) are dark grey.

    Args:
        image: ``(H, W, 3)`` uint8.
        labels: Predicted ids ``(H, W)``.
        truth: True ids ``(H, W)``, 255 where unknown.
        title: Written above the image.
    """
    known = truth != 255
    gray = (image.astype(np.float32).mean(axis=-1, keepdims=True) * 0.45).astype(np.uint8).repeat(3, axis=-1)
    wrong = known & (labels != truth)
    gray[wrong] = WRONG_COLOR
    gray[~known] = INVALID_COLOR
    share = float(wrong.sum() / max(int(known.sum()), 1))
    return Cell(title, gray, note=f"{share:.1%} wrong")


def depth_error_cell(depth_m: np.ndarray, truth_m: np.ndarray, title: str = "relative error", limit: float = 0.5) -> Cell:
    """``|depth - truth| / truth`` as a cell, 0 .. ``limit``; pixels without truth (0) are dark grey."""
    known = np.isfinite(truth_m) & (truth_m > 0)
    relative = np.where(known, np.abs(depth_m - truth_m) / np.where(known, truth_m, 1.0), np.nan)
    bar = ColorBar(0.0, limit, UNCERTAINTY_MAP, open_end=True)
    note = f"mean {relative[known].mean():.1%}" if known.any() else "no truth"
    return Cell(title, colorize(relative, 0.0, limit), bar, note=note)


def segmentation_panel(
    image: np.ndarray,
    labels: np.ndarray,
    uncertainty: np.ndarray | None,
    id2label: Mapping[int, str],
    palette: np.ndarray,
    *,
    truth: np.ndarray | None = None,
    heading: str = "",
    kind: str = "uncertainty",
) -> Panel:
    """Image, class map, uncertainty and, where the truth is known, truth and errors; the classes in a legend.

    Args:
        image: ``(H, W, 3)`` uint8.
        labels: Class ids ``(H, W)``.
        uncertainty: ``(H, W)`` in [0, 1], or None to leave it out.
        id2label: Class id to name.
        palette: ``(K, 3)`` uint8.
        truth: True ids ``(H, W)``, 255 where unknown.
        heading: A line above all.
        kind: The title of the uncertainty.
    """
    cells = [Cell("image", image), Cell("map", colorize_labels(labels, palette))]
    if uncertainty is not None:
        cells.append(uncertainty_cell(uncertainty, kind))
    shown = [labels]
    if truth is not None:
        cells += [Cell("truth", colorize_labels(truth, palette)), label_error_cell(image, labels, truth)]
        shown.append(truth)
    return Panel(cells, heading=heading, legend=legend_entries(shown, id2label, palette))


def depth_panel(
    image: np.ndarray,
    depth_m: np.ndarray,
    uncertainty: np.ndarray | None,
    *,
    truth_m: np.ndarray | None = None,
    heading: str = "",
    kind: str = "uncertainty",
) -> Panel:
    """Image, depth, uncertainty and, where the truth is known, truth and relative error, with color bars.

    Args:
        image: ``(H, W, 3)`` uint8.
        depth_m: Metres ``(H, W)``.
        uncertainty: ``(H, W)`` in [0, 1], or None to leave it out.
        truth_m: True metres ``(H, W)``, 0 where unknown.
        heading: A line above all.
        kind: The title of the uncertainty.
    """
    limits = depth_range(depth_m) if truth_m is None else depth_range(truth_m)
    cells = [Cell("image", image), depth_cell(depth_m, limits_m=limits)]
    if uncertainty is not None:
        cells.append(uncertainty_cell(uncertainty, kind))
    if truth_m is not None:
        cells += [depth_cell(truth_m, "truth", limits), depth_error_cell(depth_m, truth_m)]
    return Panel(cells, heading=heading)


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
        palette: Their colors, ``(K, 3)`` uint8.
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
    """An image ``(H, W, 3)`` uint8 scaled into a cell of fixed size, on grey: images of a dataset differ in shape."""
    image = Image.fromarray(pixels)
    scale = min(_CELL[0] / image.width, _CELL[1] / image.height)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    kind = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    canvas = Image.new("RGB", _CELL, (_AROUND, _AROUND, _AROUND))
    canvas.paste(image.resize(size, kind), ((_CELL[0] - size[0]) // 2, (_CELL[1] - size[1]) // 2))
    return np.asarray(canvas)


def image_grid(rows: Sequence[Sequence[np.ndarray]]) -> Image.Image:
    """Rows of RGB images as one image with thin white gaps; the images ``(H, W, 3)`` uint8 of a row have one size."""
    heights = [row[0].shape[0] for row in rows]
    widths = [len(row) * (row[0].shape[1] + _GRID_GAP) - _GRID_GAP for row in rows]
    sheet = np.full((sum(heights) + (len(rows) - 1) * _GRID_GAP, max(widths), 3), 255, dtype=np.uint8)
    top = 0
    for height, row in zip(heights, rows):
        width = row[0].shape[1]
        for column, image in enumerate(row):
            left = column * (width + _GRID_GAP)
            sheet[top : top + height, left : left + width] = image
        top += height + _GRID_GAP
    return Image.fromarray(sheet)
