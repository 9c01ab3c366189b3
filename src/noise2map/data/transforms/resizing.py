"""Scale and rotation: the image bilinear, maps by the nearest pixel."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from noise2map.data.transforms.sample import MAPS, UNKNOWN, Sample, check_probability, check_range, map_picture, map_values


def fit_size(width: int, height: int, box: tuple[int, int]) -> tuple[int, int]:
    """The largest size of the same ratio that fits into a box, whichever way the box lies.

    Args:
        width: Of the picture.
        height: Of the picture.
        box: Two sides in any order: the long side of the picture fits the longer, the short one the shorter.

    Returns:
        Width and height, rounded to whole pixels.
    """
    scale = min(max(box) / max(width, height), min(box) / min(width, height))
    return max(int(width * scale + 0.5), 1), max(int(height * scale + 0.5), 1)


def resized(sample: Mapping[str, Any], width: int, height: int) -> Sample:
    """The sample at another size. Depth values stay as they are and the intrinsics change."""
    result = dict(sample)
    old_width, old_height = result["image"].size
    result["image"] = result["image"].resize((width, height), Image.Resampling.BILINEAR)
    for key in MAPS:
        if key in result:
            picture = map_picture(result[key]).resize((width, height), Image.Resampling.NEAREST)
            result[key] = map_values(picture, result[key].dtype)
    if "intrinsics" in result:
        across, down = width / old_width, height / old_height
        result["intrinsics"] = (result["intrinsics"] * np.array([across, down, across, down])).astype(np.float32)
    return result


@dataclass(frozen=True)
class RatioResize:
    """Scales a picture, its ratio kept, to fit a box that is itself scaled by a random factor.

    Attributes:
        box: Sides of the box in pixels, in any order: ``(2048, 512)`` for ADE20K, ``(2048, 1024)`` for Cityscapes.
        ratio: Range of the factor.
    """

    box: tuple[int, int]
    ratio: tuple[float, float] = (0.5, 2.0)

    def __post_init__(self) -> None:
        if min(self.box) < 1:
            raise ValueError(f"resize box is {self.box!r}; expected two sides in pixels")
        check_range(self.ratio, "resize ratio")

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator) -> Sample:
        """The sample at a random size."""
        factor = rng.uniform(*self.ratio)
        box = (max(int(self.box[0] * factor), 1), max(int(self.box[1] * factor), 1))
        return resized(sample, *fit_size(*sample["image"].size, box))


@dataclass(frozen=True)
class RandomRotation:
    """Turns a picture about its middle, as if the camera were rolled; corners that come into view are not known.

    The depth along the axis does not change. The principal point turns with the picture; the focal lengths stay, which is
    exact for square pixels.

    Attributes:
        degrees: Largest angle, to either side.
        p: Probability of turning at all.
    """

    degrees: float = 2.5
    p: float = 0.5

    def __post_init__(self) -> None:
        check_probability(self.p, "rotation")
        if not 0 <= self.degrees <= 180:
            raise ValueError(f"rotation is by up to {self.degrees} degrees; expected 0 to 180")

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator) -> Sample:
        """The sample, turned or as it was."""
        result = dict(sample)
        if rng.random() >= self.p:
            return result
        angle = rng.uniform(-self.degrees, self.degrees)
        width, height = result["image"].size
        result["image"] = result["image"].rotate(angle, Image.Resampling.BILINEAR, fillcolor=(0, 0, 0))
        for key in MAPS:
            if key in result:
                turned = map_picture(result[key]).rotate(angle, Image.Resampling.NEAREST, fillcolor=UNKNOWN[key])
                result[key] = map_values(turned, result[key].dtype)
        if "intrinsics" in result:
            fx, fy, cx, cy = (float(value) for value in result["intrinsics"])
            right, down = cx - width / 2, cy - height / 2
            cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            turned_x, turned_y = width / 2 + cos * right + sin * down, height / 2 - sin * right + cos * down
            result["intrinsics"] = np.array([fx, fy, turned_x, turned_y], np.float32)
        return result
