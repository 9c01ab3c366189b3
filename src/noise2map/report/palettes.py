"""Colors: classes by name or by number, depth in metres (near is warm), uncertainty and error (unsure is bright)."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import hsv_to_rgb

from noise2map.runs.strips import by_strips

# The classes of the rendered Freedoom rooms, in the colors of that dataset (a test compares them): large surfaces are
# muted, small things are vivid.
CLASS_COLORS: dict[str, tuple[int, int, int]] = {
    "floor": (140, 110, 80),
    "wall": (120, 120, 130),
    "ceiling": (70, 70, 110),
    "sky": (130, 200, 255),
    "door": (230, 160, 40),
    "step": (200, 200, 120),
    "liquid": (40, 160, 90),
    "item": (255, 80, 200),
    "decor": (90, 200, 60),
    "monster": (230, 40, 40),
}
IGNORE_LABEL = 255
IGNORE_COLOR = (0, 0, 0)
INVALID_COLOR = (52, 52, 56)

# Perceptually uniform maps: equal steps of the value look equal. Reversed for depth, so that near is warm and light.
DEPTH_MAP = "plasma_r"
UNCERTAINTY_MAP = "magma"

_GOLDEN_RATIO = 0.6180339887498949


def generic_palette(num_classes: int) -> np.ndarray:
    """Colors for classes without a convention, e.g. the 150 of ADE20K; the first ``n`` do not depend on the count.

    Hues walk by the golden ratio, which spreads any number of them; saturation and value change with other periods.

    Args:
        num_classes: How many colors, 1 .. 65536.

    Returns:
        ``(num_classes, 3)`` uint8.

    Raises:
        ValueError: If ``num_classes`` is out of range.
    """
    if not 1 <= num_classes <= 65536:
        raise ValueError(f"num_classes must be 1 .. 65536, got {num_classes}")
    index = np.arange(num_classes)
    hue = (0.07 + index * _GOLDEN_RATIO) % 1.0
    saturation = np.array([0.72, 0.45, 0.9])[index % 3]
    value = np.array([0.92, 0.68, 0.98, 0.52])[index % 4]
    return np.round(hsv_to_rgb(np.stack([hue, saturation, value], axis=-1)) * 255).astype(np.uint8)


def class_palette(id2label: Mapping[int, str], colors: Sequence[str] | None = None) -> np.ndarray:
    """One color per class: the one given, or conventional where the name is known, else from :func:`generic_palette`.

    Args:
        id2label: Class id to name, ids 0 .. K - 1.
        colors: ``"#rrggbb"`` of each class, as a checkpoint's configuration has them.

    Returns:
        ``(K, 3)`` uint8.

    Raises:
        ValueError: If the ids are not 0 .. K - 1, or a color is none.
    """
    if sorted(id2label) != list(range(len(id2label))):
        raise ValueError(f"class ids must be 0 .. {len(id2label) - 1} without gaps, got {sorted(id2label)[:8]}")
    if colors is not None:
        return np.array([list(bytes.fromhex(color.removeprefix("#"))) for color in colors], np.uint8)
    palette = generic_palette(len(id2label))
    known = [CLASS_COLORS.get(id2label[index].lower()) for index in range(len(id2label))]
    if sum(color is not None for color in known) >= len(known) / 2:  # else a conventional color could clash
        for index, color in enumerate(known):
            if color is not None:
                palette[index] = color
    return palette


def colorize_labels(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Paint class ids.

    Args:
        labels: ``(H, W)`` integer ids; 255 and ids outside the palette become the color of "ignore".
        palette: ``(K, 3)`` uint8.

    Returns:
        ``(H, W, 3)`` uint8.
    """
    labels = np.asarray(labels)
    table = np.concatenate([np.asarray(palette, dtype=np.uint8), np.array([IGNORE_COLOR], dtype=np.uint8)])
    inside = (labels >= 0) & (labels < len(palette))
    return table[np.where(inside, labels, len(palette))]


def colorize(values: np.ndarray, low: float, high: float, color_map: str = UNCERTAINTY_MAP, *, log: bool = False) -> np.ndarray:
    """Paint numbers through a matplotlib color map; non-finite ones are dark grey.

    Args:
        values: ``(H, W)`` floats.
        low: The value at the start of the map.
        high: The value at its end; values outside are clipped.
        color_map: A name that matplotlib knows.
        log: Space the colors by the logarithm of the value, which needs ``low > 0``.

    Returns:
        ``(H, W, 3)`` uint8.

    Raises:
        ValueError: If ``low >= high``, or ``low <= 0`` with ``log``.
    """
    if not low < high or (log and low <= 0):
        raise ValueError(f"the range of colors must be increasing{' and positive' if log else ''}, got {low} .. {high}")
    table = (colormaps[color_map](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)

    def paint(part: np.ndarray) -> np.ndarray:
        part = np.asarray(part, dtype=np.float64)
        valid = np.isfinite(part)
        filled = np.clip(np.where(valid, part, low), low, high)
        if log:
            unit = (np.log(filled) - np.log(low)) / (np.log(high) - np.log(low))
        else:
            unit = (filled - low) / (high - low)
        colors = table[np.round(unit * 255).astype(np.uint8)]
        colors[~valid] = INVALID_COLOR
        return colors

    return by_strips(paint, np.asarray(values))


def colorize_depth(depth_m: np.ndarray, near_m: float, far_m: float) -> np.ndarray:
    """Paint metres, near warm and far cold, by the logarithm of the depth; zero (no depth) is dark grey.

    Args:
        depth_m: ``(H, W)`` metres, 0 or non-finite where there is none.
        near_m: The depth of the warmest color, > 0.
        far_m: The depth of the coldest.

    Returns:
        ``(H, W, 3)`` uint8.
    """
    depth_m = np.asarray(depth_m)
    if depth_m.dtype.kind != "f":
        depth_m = depth_m.astype(np.float64)
    return colorize(np.where(depth_m > 0, depth_m, np.nan), near_m, far_m, DEPTH_MAP, log=True)


def depth_range(*depths_m: np.ndarray) -> tuple[float, float]:
    """The range of metres to color so that maps of one scene share a scale: 1st to 99th percentile, rounded outwards.

    Args:
        *depths_m: Arrays of metres; zeros and non-finite values do not count.

    Returns:
        ``(near_m, far_m)``, with ``far_m >= 1.2 * near_m``; ``(1.0, 10.0)`` if there is no depth at all.
    """
    values = [np.asarray(depth) for depth in depths_m]
    known = [depth[np.isfinite(depth) & (depth > 0)].astype(np.float64) for depth in values]
    valid = np.concatenate(known) if len(known) > 1 else known[0] if known else np.zeros(0)
    if valid.size == 0:
        return 1.0, 10.0
    near, far = np.percentile(valid, [1, 99], overwrite_input=True)
    step = 10.0 ** np.floor(np.log10(near)) / 10
    near = max(np.floor(near / step) * step, 1e-3)
    return float(near), float(max(far, near * 1.2))


def colorize_normals(normals: np.ndarray) -> np.ndarray:
    """Paint unit normals in the usual way: x to red, y to green, z to blue, each from [-1, 1] to [0, 255].

    Args:
        normals: ``(H, W, 3)`` unit vectors in camera axes (x right, y down, z forward), zero or NaN where unknown.

    Returns:
        ``(H, W, 3)`` uint8; a surface that faces the camera is blue-violet, a floor green, as in other tools.
    """

    def paint(part: np.ndarray) -> np.ndarray:
        part = np.nan_to_num(np.asarray(part, dtype=np.float64))
        known = np.linalg.norm(part, axis=-1) > 0.5
        flipped = part * np.array([1.0, -1.0, -1.0])  # to x right, y up, z towards the viewer
        colors = np.round((np.clip(flipped, -1, 1) + 1) * 127.5).astype(np.uint8)
        colors[~known] = INVALID_COLOR
        return colors

    return by_strips(paint, np.asarray(normals))


def legend_entries(
    labels: Sequence[np.ndarray], id2label: Mapping[int, str], palette: np.ndarray, limit: int = 12
) -> list[tuple[tuple[int, int, int], str]]:
    """The classes that occur in some maps, most frequent first.

    Args:
        labels: Maps of class ids, ``(H, W)`` each.
        id2label: Class id to name.
        palette: ``(K, 3)`` uint8.
        limit: How many classes to name; the others are counted in a last entry.

    Returns:
        Pairs of color and text.
    """
    counts = np.zeros(len(palette), dtype=np.int64)
    ignored = False
    for one in labels:
        one = np.asarray(one)
        inside = (one >= 0) & (one < len(palette))
        counts += np.bincount(one[inside].astype(np.int64), minlength=len(palette))
        ignored |= not inside.all()
    order = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]
    entries = [(_color(palette[index]), str(id2label.get(index, index))) for index in order[:limit]]
    if len(order) > limit:
        entries.append(((128, 128, 128), f"and {len(order) - limit} more"))
    if ignored:
        entries.append((IGNORE_COLOR, "ignored"))
    return entries


def _color(row: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in row)
    return red, green, blue
