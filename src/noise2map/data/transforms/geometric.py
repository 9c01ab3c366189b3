"""Geometric transforms of image, maps and camera together: flip, resize, crop, pad, rotate."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from noise2map.data.transforms.sample import (
    MAPS,
    UNKNOWN,
    Sample,
    check_probability,
    check_range,
    check_size,
    crop_intrinsics,
    mirror_intrinsics,
    mirror_map,
    move_map,
    resize_intrinsics,
    rotate_intrinsics,
    turn_map,
)

_IGNORE = 255

MEAN_COLOR = (124, 116, 104)

"""The mean of the usual normalisation (123.675, 116.28, 103.53), so that padding is close to 0 for the network."""


def cut(sample: Mapping[str, Any], left: int, top: int, width: int, height: int) -> Sample:
    """The window of a sample: image and maps cut, principal point moved."""
    result = dict(sample)
    result["image"] = result["image"].crop((left, top, left + width, top + height))
    for key in MAPS:
        if key in result:
            result[key] = np.ascontiguousarray(result[key][top : top + height, left : left + width])
    if "intrinsics" in result:
        result["intrinsics"] = crop_intrinsics(result["intrinsics"], left, top)
    return result


@dataclass(frozen=True)
class RandomCrop:
    """Cuts a random window; with a limit on how much of it one class may cover.

    Up to ``tries`` windows are drawn until the most frequent class covers less than ``cat_max_ratio`` of the known pixels
    and there are at least two classes; after that the last one is taken. An image smaller than the window is cut where
    it is larger and left as it is elsewhere (see :class:`PadTo`).

    Attributes:
        size: ``(height, width)`` of the window.
        cat_max_ratio: The limit; 1 for none. Samples without ``labels`` have none.
        tries: Windows to draw.
    """

    size: tuple[int, int]
    cat_max_ratio: float = 1.0
    tries: int = 10

    def __post_init__(self) -> None:
        check_size(self.size, "crop size")
        if not 0 < self.cat_max_ratio <= 1:
            raise ValueError(f"cat_max_ratio is {self.cat_max_ratio}; expected a share in (0, 1]")
        if self.tries < 1:
            raise ValueError(f"tries is {self.tries}; expected at least 1")

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator) -> Sample:
        """A random window of the sample."""
        image_width, image_height = sample["image"].size
        height, width = min(self.size[0], image_height), min(self.size[1], image_width)
        limited = self.cat_max_ratio < 1 and "labels" in sample
        left = top = 0
        for _ in range(self.tries if limited else 1):
            top = int(rng.integers(0, image_height - height + 1))
            left = int(rng.integers(0, image_width - width + 1))
            if not limited or self._varied(sample["labels"][top : top + height, left : left + width]):
                break
        return cut(sample, left, top, width, height)

    def _varied(self, labels: np.ndarray) -> bool:
        counts = np.bincount(labels.reshape(-1), minlength=_IGNORE + 1)[:_IGNORE]
        return bool(np.count_nonzero(counts) > 1 and counts.max() < self.cat_max_ratio * counts.sum())


@dataclass(frozen=True)
class BottomCrop:
    """The lowest rows and middle columns: what the laser of KITTI sees (352 x 1216, the crop of its depth benchmark).

    Attributes:
        size: ``(height, width)`` of the window.
    """

    size: tuple[int, int] = (352, 1216)

    def __post_init__(self) -> None:
        check_size(self.size, "bottom crop")

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator | None = None) -> Sample:
        """The window; nothing is drawn.

        Raises:
            ValueError: If the image is smaller than the window.
        """
        (height, width), (image_width, image_height) = self.size, sample["image"].size
        if image_width < width or image_height < height:
            raise ValueError(
                f"sample {sample.get('id', '?')!r} is {image_width}x{image_height}, smaller than the crop of {width}x{height}"
            )
        return cut(sample, (image_width - width) // 2, image_height - height, width, height)


@dataclass(frozen=True)
class BoxCrop:
    """A fixed window, by default what is left of a NYU-Depth V2 image without its white frame.

    Attributes:
        rows: First row, and the row after the last.
        columns: First column, and the column after the last.
    """

    rows: tuple[int, int] = (45, 472)
    columns: tuple[int, int] = (43, 608)

    def __post_init__(self) -> None:
        for name in ("rows", "columns"):
            low, high = getattr(self, name)
            if not 0 <= low < high:
                raise ValueError(f"box crop's {name} are {(low, high)}; expected 0 <= first < end")

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator | None = None) -> Sample:
        """The window; nothing is drawn.

        Raises:
            ValueError: If the image does not hold the window.
        """
        (top, bottom), (left, right) = self.rows, self.columns
        width, height = sample["image"].size
        if bottom > height or right > width:
            raise ValueError(
                f"sample {sample.get('id', '?')!r} is {width}x{height}; the crop of rows {top}:{bottom}, columns {left}:{right} "
                "is made for larger images"
            )
        return cut(sample, left, top, right - left, bottom - top)


@dataclass(frozen=True)
class PadTo:
    """Adds pixels right and below until the image has a size: mean color, ignored labels, invalid depth.

    Attributes:
        size: ``(height, width)`` to reach; larger images are left alone.
        color: The color of the new pixels.
    """

    size: tuple[int, int]
    color: tuple[int, int, int] = MEAN_COLOR

    def __post_init__(self) -> None:
        check_size(self.size, "padded size")

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator | None = None) -> Sample:
        """The padded sample; nothing is drawn."""
        result = dict(sample)
        image: Image.Image = result["image"]
        height, width = max(self.size[0], image.height), max(self.size[1], image.width)
        if (width, height) == image.size:
            return result
        canvas = Image.new("RGB", (width, height), self.color)
        canvas.paste(image, (0, 0))
        result["image"] = canvas
        for key in MAPS:
            if key in result:
                room = ((0, height - image.height), (0, width - image.width), (0, 0))[: result[key].ndim]
                result[key] = np.pad(result[key], room, constant_values=UNKNOWN[key])
        return result


def fit_size(width: int, height: int, box: tuple[int, int]) -> tuple[int, int]:
    """The largest size of the same ratio that fits into a box, whichever way the box lies.

    Args:
        width: Of the image.
        height: Of the image.
        box: Two sides in any order: the long side of the image fits the longer, the short one the shorter.

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
            result[key] = move_map(result[key], lambda image: image.resize((width, height), Image.Resampling.NEAREST))
    if "intrinsics" in result:
        result["intrinsics"] = resize_intrinsics(result["intrinsics"], width / old_width, height / old_height)
    return result


@dataclass(frozen=True)
class RatioResize:
    """Scales an image, its ratio kept, to fit a box that is itself scaled by a random factor.

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
        width, height = sample["image"].size
        return resized(sample, *fit_size(width, height, box))


@dataclass(frozen=True)
class RandomRotation:
    """Turns an image about its middle, as if the camera were rolled; corners that come into view are not known.

    The depth along the axis does not change. The principal point turns with the image; the focal lengths stay, which is
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
                result[key] = turn_map(key, result[key], angle)
        if "intrinsics" in result:
            result["intrinsics"] = rotate_intrinsics(result["intrinsics"], width, height, angle)
        return result


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirrors left and right with probability ``p``; the principal point moves to ``W - cx``."""

    p: float = 0.5

    def __post_init__(self) -> None:
        check_probability(self.p, "flip")

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator) -> Sample:
        """The sample, mirrored or as it was."""
        result = dict(sample)
        if rng.random() >= self.p:
            return result
        width = 0
        for key in MAPS:
            if key in result:
                width = result[key].shape[1]
                result[key] = mirror_map(key, result[key])
        if "image" in result:  # a prior of depth maps is trained on maps alone
            width = result["image"].width
            result["image"] = result["image"].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if "intrinsics" in result:
            result["intrinsics"] = mirror_intrinsics(result["intrinsics"], width)
        return result


@dataclass(frozen=True)
class RandomResizedCrop:
    """Cuts a window with the image's aspect ratio and scales it back to the image's size.

    The image is resampled bilinearly, maps take the nearest pixel. Depth values stay as they are and the intrinsics change:
    see the note of the package before using it for depth.

    Attributes:
        scale: range of the window's side as a fraction of the image's, within (0, 1].
    """

    scale: tuple[float, float] = (0.7, 1.0)

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop scale is {tuple(self.scale)}; expected 0 < low <= high <= 1")

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator) -> Sample:
        """A random window of the sample."""
        side = rng.uniform(*self.scale)
        return window(sample, rng.uniform(0, 1 - side), rng.uniform(0, 1 - side), side)


def window(sample: Mapping[str, Any], left: float, top: float, side: float) -> Sample:
    """A window with the image's aspect ratio, scaled back to the image's size; depth values stay and the intrinsics change.

    Args:
        sample: A raw sample.
        left: Of the window, as a share of the image's width.
        top: Likewise, of the height.
        side: Of the window as a share of the image's.
    """
    result = dict(sample)
    width, height = result["image"].size
    left, top = left * width, top * height
    box = (left, top, left + side * width, top + side * height)
    result["image"] = result["image"].resize((width, height), Image.Resampling.BILINEAR, box=box)
    for key in MAPS:
        if key in result:
            result[key] = _crop_map(result[key], (width, height), box)
    if "intrinsics" in result:
        result["intrinsics"] = resize_intrinsics(crop_intrinsics(result["intrinsics"], left, top), 1 / side, 1 / side)
    return result


def _crop_map(values: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float]) -> np.ndarray:
    """Nearest-pixel crop and scale of a map of integers, floats or booleans."""
    return move_map(values, lambda image: image.resize(size, Image.Resampling.NEAREST, box=box))
