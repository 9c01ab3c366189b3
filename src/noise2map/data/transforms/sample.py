"""Base of all transforms: the sample, its maps, the generator of its draws, and transforms in a row."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from noise2map.data.maps import MAP_KINDS

Sample = dict[str, Any]
Transform = Callable[[Mapping[str, Any], np.random.Generator], Sample]

UNKNOWN: dict[str, Any] = {**{kind.key: kind.unknown for kind in MAP_KINDS.values()}, "valid": False, "hidden": False}
UNKNOWN["object_labels"] = 0  # of NYU-Depth V2, which has them beside its depth
"""Value of a map where there is no image."""
MAPS = tuple(UNKNOWN)
VECTORS = frozenset(kind.key for kind in MAP_KINDS.values() if kind.vectors)
"""Maps ``(H, W, 3)`` of vectors, x to the right and y up, which turn with the image."""


def sample_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one sample in one epoch: the same in any worker, batch, process or resumed run."""
    return np.random.default_rng([int(seed), int(epoch), int(index)])


def identity_generator(seed: int, identity: str) -> np.random.Generator:
    """The generator of a sample in evaluations: the same whatever the dataset's order and the batches."""
    digest = hashlib.sha256(identity.encode()).digest()
    return np.random.default_rng([int(seed), *np.frombuffer(digest, np.uint32).tolist()])


@dataclass(frozen=True)
class Compose:
    """Transforms one after another, all drawing from the same generator in turn."""

    transforms: Sequence[Transform]

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator) -> Sample:
        """The sample after all transforms."""
        result = dict(sample)
        for transform in self.transforms:
            result = transform(result, rng)
        return result


def move_map(values: np.ndarray, move: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """A map ``(H, W)`` or ``(H, W, C)`` of bytes, booleans or floats, moved as Pillow moves an image, in its own type."""
    if values.ndim == 3:
        return np.stack([move_map(np.ascontiguousarray(channel), move) for channel in np.moveaxis(values, -1, 0)], -1)
    image = Image.fromarray(values.astype(np.uint8) if values.dtype == np.bool_ else values)
    return np.asarray(move(image)).astype(values.dtype)


def mirror_map(key: str, values: np.ndarray) -> np.ndarray:
    """A map with left and right exchanged; vectors change the sign of x."""
    mirrored = np.ascontiguousarray(values[:, ::-1])
    return mirrored * np.array([-1, 1, 1], values.dtype) if key in VECTORS else mirrored


def turn_map(key: str, values: np.ndarray, degrees: float) -> np.ndarray:
    """A map turned anticlockwise about its middle by the nearest pixel; vectors turn with it."""
    turned = move_map(values, lambda image: image.rotate(degrees, Image.Resampling.NEAREST, fillcolor=UNKNOWN[key]))
    if key not in VECTORS:
        return turned
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]], values.dtype)
    return turned @ turn


def resize_intrinsics(intrinsics: Any, across: float, down: float) -> np.ndarray:
    """``fx, fy, cx, cy`` in pixels, ``(4,)`` float32, of an image whose width was scaled by ``across`` and height by ``down``."""
    return (np.asarray(intrinsics, np.float64) * (across, down, across, down)).astype(np.float32)


def crop_intrinsics(intrinsics: Any, left: float, top: float) -> np.ndarray:
    """``fx, fy, cx, cy`` in pixels, ``(4,)`` float32, of an image without its first ``left`` columns and ``top`` rows."""
    return (np.asarray(intrinsics, np.float64) - (0, 0, left, top)).astype(np.float32)


def mirror_intrinsics(intrinsics: Any, width: float) -> np.ndarray:
    """``fx, fy, cx, cy`` in pixels, ``(4,)`` float32, of an image of ``width`` pixels with left and right exchanged."""
    fx, fy, cx, cy = np.asarray(intrinsics, np.float64)
    return np.array([fx, fy, width - cx, cy], np.float32)


def rotate_intrinsics(intrinsics: Any, width: float, height: float, degrees: float) -> np.ndarray:
    """``fx, fy, cx, cy`` in pixels, ``(4,)`` float32, of an image turned anticlockwise about its middle."""
    fx, fy, cx, cy = np.asarray(intrinsics, np.float64)
    right, below = cx - width / 2, cy - height / 2
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([fx, fy, width / 2 + cos * right + sin * below, height / 2 - sin * right + cos * below], np.float32)


def check_probability(value: float, what: str) -> None:
    """Refuse what is not a probability.

    Raises:
        ValueError: Naming ``what``.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{what} probability is {value}; expected a number in [0, 1]")


def check_size(size: tuple[int, int], what: str) -> None:
    """Refuse a ``(height, width)`` that is not two positive whole numbers.

    Raises:
        ValueError: Naming ``what``.
    """
    if len(size) != 2 or any(side != int(side) or side < 1 for side in size):
        raise ValueError(f"{what} is {size!r}; expected (height, width) in pixels")


def check_range(values: tuple[float, float], what: str) -> None:
    """Refuse a range of factors that is not positive and increasing.

    Raises:
        ValueError: Naming ``what``.
    """
    if len(values) != 2 or not 0 < values[0] <= values[1]:
        raise ValueError(f"{what} is {values!r}; expected 0 < low <= high")
