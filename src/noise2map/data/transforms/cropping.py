"""Windows of whole pixels and padding."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from noise2map.data.transforms.sample import MAPS, UNKNOWN, Sample, check_size

_IGNORE = 255
MEAN_COLOUR = (124, 116, 104)
"""The mean of the usual normalisation (123.675, 116.28, 103.53), so that padding is close to 0 for the network."""


def cut(sample: Mapping[str, Any], left: int, top: int, width: int, height: int) -> Sample:
    """The window of a sample: image and maps cut, principal point moved."""
    result = dict(sample)
    result["image"] = result["image"].crop((left, top, left + width, top + height))
    for key in MAPS:
        if key in result:
            result[key] = np.ascontiguousarray(result[key][top : top + height, left : left + width])
    if "intrinsics" in result:
        fx, fy, cx, cy = result["intrinsics"]
        result["intrinsics"] = np.array([fx, fy, cx - left, cy - top], np.float32)
    return result


@dataclass(frozen=True)
class RandomCrop:
    """Cuts a random window; with a limit on how much of it one class may cover.

    Up to ``tries`` windows are drawn until the most frequent class covers less than ``cat_max_ratio`` of the known pixels
    and there are at least two classes; after that the last one is taken. A picture smaller than the window is cut where
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
        picture_width, picture_height = sample["image"].size
        height, width = min(self.size[0], picture_height), min(self.size[1], picture_width)
        limited = self.cat_max_ratio < 1 and "labels" in sample
        left = top = 0
        for _ in range(self.tries if limited else 1):
            top = int(rng.integers(0, picture_height - height + 1))
            left = int(rng.integers(0, picture_width - width + 1))
            if not limited or self._varied(sample["labels"][top : top + height, left : left + width]):
                break
        return cut(sample, left, top, width, height)

    def _varied(self, labels: np.ndarray) -> bool:
        counts = np.bincount(labels.reshape(-1), minlength=_IGNORE + 1)[:_IGNORE]
        return np.count_nonzero(counts) > 1 and bool(counts.max() < self.cat_max_ratio * counts.sum())


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
            ValueError: If the picture is smaller than the window.
        """
        (height, width), (picture_width, picture_height) = self.size, sample["image"].size
        if picture_width < width or picture_height < height:
            raise ValueError(
                f"sample {sample.get('id', '?')!r} is {picture_width}x{picture_height}, smaller than the crop of {width}x{height}"
            )
        return cut(sample, (picture_width - width) // 2, picture_height - height, width, height)


@dataclass(frozen=True)
class BoxCrop:
    """A fixed window, by default what is left of a NYU-Depth V2 picture without its white frame.

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
            ValueError: If the picture does not hold the window.
        """
        (top, bottom), (left, right) = self.rows, self.columns
        width, height = sample["image"].size
        if bottom > height or right > width:
            raise ValueError(
                f"sample {sample.get('id', '?')!r} is {width}x{height}; the crop of rows {top}:{bottom}, columns {left}:{right} "
                "is made for larger pictures"
            )
        return cut(sample, left, top, right - left, bottom - top)


@dataclass(frozen=True)
class PadTo:
    """Adds pixels right and below until the picture has a size: mean colour, ignored labels, invalid depth.

    Attributes:
        size: ``(height, width)`` to reach; larger pictures are left alone.
        colour: The colour of the new pixels.
    """

    size: tuple[int, int]
    colour: tuple[int, int, int] = MEAN_COLOUR

    def __post_init__(self) -> None:
        check_size(self.size, "padded size")

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator | None = None) -> Sample:
        """The padded sample; nothing is drawn."""
        result = dict(sample)
        image: Image.Image = result["image"]
        height, width = max(self.size[0], image.height), max(self.size[1], image.width)
        if (width, height) == image.size:
            return result
        canvas = Image.new("RGB", (width, height), self.colour)
        canvas.paste(image, (0, 0))
        result["image"] = canvas
        for key in MAPS:
            if key in result:
                room = ((0, height - image.height), (0, width - image.width))
                result[key] = np.pad(result[key], room, constant_values=UNKNOWN[key])
        return result
