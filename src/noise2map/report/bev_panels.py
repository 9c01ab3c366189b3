"""Images of bird's-eye-view samples: the views around, map layers, uncertainty, LiDAR points; forward is up."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from noise2map.report.animation import denoising_steps, noisy_images
from noise2map.report.canvas import THEMES, Color
from noise2map.report.palettes import UNCERTAINTY_MAP, colorize, generic_palette
from noise2map.report.panels import WRONG_COLOR, Cell, Panel, render, uncertainty_cell

# Layers by name. Those of the rooms are compared with the dataset's in a test.
LAYER_COLORS: dict[str, Color] = {
    "walkable": (150, 122, 92),
    "door": (238, 150, 30),
    "step": (214, 206, 120),
    "ledge": (232, 88, 186),
    "liquid": (44, 160, 120),
    "wall": (62, 66, 84),
    "drivable_area": (166, 190, 214),
    "ped_crossing": (240, 120, 120),
    "walkway": (236, 178, 96),
    "stop_line": (200, 40, 60),
    "carpark_area": (120, 176, 110),
    "divider": (104, 70, 160),
}
# Areas first, then bands, then lines: what is painted later lies on top.
_PAINT_ORDER = (0, 4, 2, 3, 1, 5)
_EMPTY = (236, 236, 232)
_UNKNOWN = (168, 170, 176)  # grey, neither like the walls nor like empty cells
_CAR = (230, 30, 40)
_PALE = 0.6
_ENLARGED = 320  # pixels of the longer side of a map before a panel scales it
_VIEW_WIDTH = 440
UNKNOWN = 255

# How the views are shown: those to the front above those to the back, left to right.
_SHOWN = ("FRONT_LEFT", "FRONT", "FRONT_RIGHT", "BACK_LEFT", "BACK", "BACK_RIGHT")


def layer_palette(id2label: Mapping[int, str]) -> np.ndarray:
    """A color for each layer, ``(K, 3)`` uint8: the conventional one where the name is known."""
    generic = generic_palette(len(id2label))
    return np.array([LAYER_COLORS.get(id2label[index], generic[index]) for index in range(len(id2label))], np.uint8)


def paint_layers(
    layers: np.ndarray, palette: np.ndarray, known: np.ndarray | None = None, faded: np.ndarray | None = None
) -> np.ndarray:
    """Layers on top of each other, seen from above.

    Args:
        layers: ``(K, X, Y)`` of 0, 1 and 255 (not known), or probabilities, painted from 0.5 on.
        palette: ``(K, 3)`` uint8.
        known: ``(X, Y)``, cells to paint; by default those without a 255.
        faded: ``(X, Y)``, cells to paint pale, so that the others stand out.

    Returns:
        ``(Y, X, 3)`` uint8: columns to the right, rows backward.
    """
    layers = np.asarray(layers)
    known = ~(layers == UNKNOWN).any(0) if known is None else known
    image = np.empty((*layers.shape[1:], 3), np.uint8)
    image[:] = _EMPTY
    order = _PAINT_ORDER if len(layers) == len(_PAINT_ORDER) else range(len(layers))
    for layer in order:
        image[(layers[layer] >= 0.5) & (layers[layer] != UNKNOWN)] = palette[layer]
    if faded is not None:
        image[faded] = (_PALE * 255 + (1 - _PALE) * image[faded]).round().astype(np.uint8)
    image[~known] = _UNKNOWN
    return from_above(image)


def cut_layers(values: np.ndarray, threshold: float | Sequence[float]) -> np.ndarray:
    """Where layers count as present, bool like ``values`` ``(K, ...)``: from a number on, or from one for each layer."""
    least = np.asarray(threshold, values.dtype)
    return values >= (least.reshape(-1, *[1] * (values.ndim - 1)) if least.ndim else least)


def from_above(cells: np.ndarray) -> np.ndarray:
    """``(X, Y, ...)`` with x to the right and y forward -> ``(Y, X, ...)`` as an image, forward up."""
    return np.ascontiguousarray(np.swapaxes(cells, 0, 1)[::-1])


def map_cell(title: str, image: np.ndarray, note: str = "", car: bool = True) -> Cell:
    """A painted map ``(h, w, 3)`` as a cell, enlarged without smoothing, with a mark where the car is."""
    factor = max(_ENLARGED // max(image.shape[:2]), 1)
    large = Image.fromarray(np.repeat(np.repeat(image, factor, 0), factor, 1))
    if car:
        x, y, r = large.width / 2, large.height / 2, max(large.width // 60, 4)
        triangle = [(x, y - 1.5 * r), (x + r, y + r), (x - r, y + r)]
        ImageDraw.Draw(large).polygon(triangle, fill=_CAR, outline=(255, 255, 255))
    return Cell(title, np.asarray(large), note=note)


def uncertainty_map_cell(uncertainty: np.ndarray, known: np.ndarray, limit: float, title: str = "uncertainty") -> Cell:
    """Uncertainty ``(X, Y)`` in [0, 1] as a cell with a color bar; cells that nobody knows are grey."""
    bar = uncertainty_cell(uncertainty, title, limit).bar
    cell = map_cell(title, paint_uncertainty(uncertainty, known, limit))
    return Cell(title, cell.image, bar)


def paint_uncertainty(uncertainty: np.ndarray, known: np.ndarray, limit: float) -> np.ndarray:
    """Uncertainty ``(X, Y)`` from 0 to ``limit`` seen from above, ``(Y, X, 3)`` uint8; cells that nobody knows are grey."""
    image = colorize(uncertainty, 0.0, limit, UNCERTAINTY_MAP)
    image[~known] = _UNKNOWN
    return from_above(image)


def error_cell(layers: np.ndarray, truth: np.ndarray, title: str = "errors") -> Cell:
    """Cells where any layer is wrong in orange; those that nobody knows grey.

    Args:
        layers: Predicted, ``(K, X, Y)`` bool.
        truth: ``(K, X, Y)`` of 0, 1 and 255.
        title: Written above the image.
    """
    known = ~(truth == UNKNOWN).any(0)
    wrong = ((layers != (truth == 1)) & (truth != UNKNOWN)).any(0)
    image = np.empty((*known.shape, 3), np.uint8)
    image[:] = (248, 248, 245)
    image[(truth == 1).any(0)] = (222, 220, 212)
    image[wrong] = WRONG_COLOR
    image[~known] = _UNKNOWN
    share = wrong.sum() / max(int(known.sum()), 1)
    return map_cell(title, from_above(image), f"{share:.1%} of cells")


def points_image(points: np.ndarray, size_m: tuple[float, float], side: int = _ENLARGED) -> np.ndarray:
    """LiDAR points from above, colored by height.

    Args:
        points: ``(P, 3+)`` metres, x to the right, y forward, z up.
        size_m: Extent along x and y, centred on the sensor.
        side: Height of the image in pixels.

    Returns:
        ``(h, w, 3)`` uint8.
    """
    height, width = side, round(side * size_m[0] / size_m[1])
    column = np.floor((points[:, 0] / size_m[0] + 0.5) * width).astype(int)
    row = np.floor((0.5 - points[:, 1] / size_m[1]) * height).astype(int)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    order = np.argsort(points[inside, 2], kind="stable")  # the highest on top
    image = np.full((height, width, 3), THEMES["dark"].background, np.uint8)
    colors = colorize(points[inside, 2][order][None], -2.0, 1.5, "viridis")[0]
    for dy in (0, 1):
        for dx in (0, 1):
            image[(row[inside][order] + dy).clip(max=height - 1), (column[inside][order] + dx).clip(max=width - 1)] = colors
    return image


def denoising_cells(
    steps: Sequence[Any],
    known: np.ndarray,
    palette: np.ndarray,
    threshold: float | Sequence[float] = 0.5,
    truth: np.ndarray | None = None,
) -> list[list[Cell]]:
    """A row of maps for each denoising step: the noisy map, what the model reads in it, what changed so far.

    Args:
        steps: ``noise2map.diffusion.Step`` of one sample of one noise.
        known: Cells to paint ``(X, Y)``.
        palette: Colors of the layers.
        threshold: Probability from which a layer counts as present, of all or of each.
        truth: True layers ``(K, X, Y)``, shown at the end of each row.
    """
    sequence = denoising_steps(steps)
    odds = np.asarray(threshold) / (1 - np.asarray(threshold))
    layers = [cut_layers(step.prediction, np.log(odds)) for step in sequence]  # what is read out are logits
    changes, rows = np.zeros(layers[0].shape[1:]), []
    for index, (step, noisy) in enumerate(zip(sequence, noisy_images(sequence))):
        if index:
            changes = changes + (layers[index] != layers[index - 1]).any(0) / max(len(sequence) - 1, 1)
        cells = [
            map_cell("noisy map", from_above(noisy), f"t = {step.t:.2f}", car=False),
            map_cell("prediction", paint_layers(layers[index], palette, known), f"step {index + 1} of {len(sequence)}"),
            uncertainty_map_cell(changes, known, 1.0, "changes so far"),
        ]
        rows.append(cells if truth is None else [*cells, map_cell("truth", paint_layers(truth, palette))])
    return rows


def denoising_animation(
    steps: Sequence[Any],
    known: np.ndarray,
    palette: np.ndarray,
    id2label: Mapping[int, str],
    threshold: float | Sequence[float] = 0.5,
    theme: str = "light",
    width: int = 1000,
) -> list[Image.Image]:
    """The rows of `denoising_cells`, each as an image with the legend.

    Args:
        steps: As there.
        known: As there.
        palette: As there.
        id2label: Names of the layers.
        threshold: As there.
        theme: ``"light"`` or ``"dark"``.
        width: Width to aim at, in pixels.
    """
    rows = denoising_cells(steps, known, palette, threshold)
    return [bev_panel([], cells, id2label, palette, theme=theme, width=width) for cells in rows]


def view_cells(images: Sequence[np.ndarray], names: Sequence[str]) -> list[Cell]:
    """The views around, in the order of the rig, as cells: front row, back row.

    Args:
        images: ``(H, W, 3)`` uint8 each.
        names: Channels such as ``CAM_FRONT_LEFT``.
    """
    plain = [name.removeprefix("CAM_") for name in names]
    images = [_enlarged(image) for image in images]
    order = sorted(range(len(plain)), key=lambda i: (_SHOWN.index(plain[i]) if plain[i] in _SHOWN else len(_SHOWN), i))
    return [Cell(plain[i].replace("_", " ").lower(), images[i]) for i in order]


def _enlarged(image: np.ndarray) -> np.ndarray:
    factor = -(-_VIEW_WIDTH // image.shape[1])  # whole pixels; the panel shrinks what is too large
    return np.repeat(np.repeat(image, factor, 0), factor, 1)


def layer_legend(id2label: Mapping[int, str], palette: np.ndarray, unknown: bool = True) -> list[tuple[Color, str]]:
    """Colors and names of the layers and, with ``unknown``, of what cannot be seen."""
    legend = [((int(r), int(g), int(b)), id2label[i].replace("_", " ")) for i, (r, g, b) in enumerate(palette)]
    return [*legend, (_UNKNOWN, "cannot be seen")] if unknown else legend


def bev_panel(
    views: Sequence[Cell],
    maps: Sequence[Cell],
    id2label: Mapping[int, str],
    palette: np.ndarray,
    heading: str = "",
    theme: str = "light",
    width: int = 1400,
    guesses: Sequence[Cell] = (),
    unknown: bool = True,
) -> Image.Image:
    """The views above the maps, with the layers' colors in a legend.

    Args:
        views: Camera images, see `view_cells`; may be empty.
        maps: Maps.
        id2label: Names of the layers.
        palette: Their colors.
        heading: A line above all.
        theme: ``"light"`` or ``"dark"``.
        width: Width to aim at, in pixels.
        guesses: Further maps, in rows below.
        unknown: The maps have cells that cannot be seen: the legend says so.
    """
    legend = layer_legend(id2label, palette, unknown)
    below = render(Panel([*maps, *guesses], len(maps), "" if views else heading, legend), width, theme)
    if not views:
        return below
    above = render(Panel(list(views), 3, heading), width, theme)
    image = Image.new("RGB", (max(above.width, below.width), above.height + below.height), THEMES[theme].background)
    image.paste(above, (0, 0))
    image.paste(below, (0, above.height))
    return image
