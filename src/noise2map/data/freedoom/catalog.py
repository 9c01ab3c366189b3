"""Contents of Freedoom frames: splits by map, classes, palettes, units, and the brightening of its dark images."""

import numpy as np
from PIL import Image

UNITS_PER_METRE = 32.0
IGNORE = 255

FLOOR, WALL, CEILING, SKY, DOOR, STEP, LIQUID, ITEM, DECOR, MONSTER = range(10)
_NAMES_10 = ("floor", "wall", "ceiling", "sky", "door", "step", "liquid", "item", "decor", "monster")
_COLORS_10 = (
    (140, 110, 80),
    (120, 120, 130),
    (70, 70, 110),
    (130, 200, 255),
    (230, 160, 40),
    (200, 200, 120),
    (40, 160, 90),
    (255, 80, 200),
    (90, 200, 60),
    (230, 40, 40),
)
_KEPT_IN_8 = (FLOOR, WALL, CEILING, SKY, DOOR, LIQUID, DECOR, MONSTER)
_MERGED_INTO = {STEP: WALL, ITEM: DECOR}

# What the engine calls its objects, and the class of each.
OBJECT_CLASS = {
    "Monster": MONSTER,
    "Player": MONSTER,
    "Health": ITEM,
    "Armor": ITEM,
    "Ammo": ITEM,
    "Weapon": ITEM,
    "Key": ITEM,
    "Powerup": ITEM,
    "Decoration": DECOR,
    "Vegetation": DECOR,
    "LightSource": DECOR,
    "Hazard": DECOR,
    "Gore": DECOR,
    "Gibs": DECOR,
}
GORE_CATEGORIES = frozenset({"Gore", "Gibs"})

_ALL_MAPS = tuple(f"E{episode}M{number}" for episode in range(1, 5) for number in range(1, 10)) + tuple(
    f"MAP{number:02d}" for number in range(1, 33)
)
_VAL_MAPS = ("E1M3", "E2M6", "E3M5", "E4M4", "MAP03", "MAP09", "MAP15", "MAP21", "MAP27")
_TEST_MAPS = ("E1M6", "E2M3", "E3M7", "E4M8", "MAP05", "MAP11", "MAP17", "MAP23", "MAP29")

# No map is in two splits: a test frame shows rooms that were never trained on, in textures that were.
SPLITS: dict[str, tuple[str, ...]] = {
    "train": tuple(name for name in _ALL_MAPS if name not in _VAL_MAPS + _TEST_MAPS),
    "val": _VAL_MAPS,
    "test": _TEST_MAPS,
}


def check_classes(classes: int) -> int:
    """Return ``classes`` if it is 10 or 8, the two label sets of a frame."""
    if classes not in (10, 8):
        raise ValueError(f"classes must be 10 (all) or 8 (step is wall, item is decor), got {classes!r}")
    return classes


def class_names(classes: int = 10) -> dict[int, str]:
    """Id to name for the ten classes, or for the eight in which step is wall and item is decor."""
    kept = range(10) if check_classes(classes) == 10 else _KEPT_IN_8
    return {index: _NAMES_10[original] for index, original in enumerate(kept)}


def class_palette(classes: int = 10) -> np.ndarray:
    """Colors ``(classes, 3)`` uint8, the same color for the same name in both label sets."""
    kept = range(10) if check_classes(classes) == 10 else _KEPT_IN_8
    return np.array([_COLORS_10[original] for original in kept], np.uint8)


def merge_classes(labels: np.ndarray) -> np.ndarray:
    """Ten-class labels ``(H, W)`` uint8 to eight classes; 255 stays 255."""
    table = np.full(256, IGNORE, np.uint8)
    for index, original in enumerate(_KEPT_IN_8):
        table[original] = index
    for original, target in _MERGED_INTO.items():
        table[original] = _KEPT_IN_8.index(target)
    return table[labels]


DEFAULT_GAIN = 1.8
"""Exponent of :func:`brighten`: mean luma of a raw frame is about 35 of 255, of a brightened one about 80."""


def brighten(image: Image.Image, gain: float = DEFAULT_GAIN) -> Image.Image:
    """Lift the dark tones of a frame: ``255 * (v / 255) ** (1 / gain)`` for each channel value ``v``.

    Freedoom's rooms are dark. The curve is fixed (it does not look at the image), so a frame is brightened the same
    way in training, evaluation and prediction; black and white stay where they are.

    Args:
        image: An RGB image.
        gain: 1 changes nothing; larger is brighter. Must be positive.

    Raises:
        ValueError: If ``gain`` is not a positive number.
    """
    if not (np.isfinite(gain) and gain > 0):
        raise ValueError(f"gain must be a positive number, got {gain!r}")
    if gain == 1:
        return image
    curve = np.rint(255 * (np.arange(256) / 255) ** (1 / gain)).astype(int).tolist()
    return image.point(curve * len(image.getbands()))
