"""What all transforms share: the sample, its maps, the generator of its draws, and transforms in a row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

Sample = dict[str, Any]
Transform = Callable[[Mapping[str, Any], np.random.Generator], Sample]

MAPS = ("labels", "depth_m", "valid")
UNKNOWN = {"labels": 255, "depth_m": 0.0, "valid": False}
"""What a map holds where there is no picture."""


def sample_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one sample in one epoch: the same in any worker, batch, process or resumed run."""
    return np.random.default_rng([int(seed), int(epoch), int(index)])


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


def map_picture(values: np.ndarray) -> Image.Image:
    """An ``(H, W)`` map of bytes, booleans or floats as a picture that Pillow can move; see :func:`map_values`."""
    return Image.fromarray(values.astype(np.uint8) if values.dtype == np.bool_ else values)


def map_values(picture: Image.Image, kind: np.dtype) -> np.ndarray:
    """The map ``(H, W)`` of a picture made by :func:`map_picture`, in its own type."""
    return np.asarray(picture).astype(kind)


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
