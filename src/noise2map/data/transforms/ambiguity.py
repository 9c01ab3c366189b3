"""A dial from a plain sample to one that leaves much open: less of the image, less light, another lens, fewer cameras."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from noise2map.data.transforms.covering import cover
from noise2map.data.transforms.geometric import MEAN_COLOR, window
from noise2map.data.transforms.sample import Sample

MAX_HIDE_SHARE = 0.75


@dataclass(frozen=True)
class Ambiguity:
    """Takes away what a map could be told from: an honest uncertainty has to follow the error along each knob.

    A draw of the generator decides where; with the same draw more of a knob takes away more of the same: rectangles of larger
    shares contain those of smaller ones.

    Attributes:
        hide_share: Share of the image's area under a grey rectangle of its shape, 0 to 0.75; the sample then has ``hidden``.
        darkness: Share of the light that is missing, 0 to below 1; values are rounded to 8 bits as a camera's are.
        zoom: The middle of the image is magnified by this, at least 1, and nobody is told: depth and ``intrinsics`` stay those of
            the lens that one would assume.
        cameras: Of a sample with ``images`` of several cameras, the first so many show something and the others are grey, as models
            are made for a number of cameras; None for all.

    Raises:
        ValueError: If a knob is out of range.
    """

    hide_share: float = 0.0
    darkness: float = 0.0
    zoom: float = 1.0
    cameras: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.hide_share <= MAX_HIDE_SHARE:
            raise ValueError(f"hide_share is {self.hide_share}; expected 0 to {MAX_HIDE_SHARE}")
        if not 0 <= self.darkness < 1:
            raise ValueError(f"darkness is {self.darkness}; expected at least 0 and below 1")
        if not (np.isfinite(self.zoom) and self.zoom >= 1):
            raise ValueError(f"zoom is {self.zoom}; expected a number, at least 1")
        if self.cameras is not None and self.cameras < 1:
            raise ValueError(f"cameras is {self.cameras}; expected at least 1, or None for all")

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator) -> Sample:
        """The sample with less to go by; without ``image`` only ``darkness`` and ``cameras`` do anything.

        Raises:
            ValueError: If the sample has fewer cameras than are to be left.
        """
        result = dict(sample)
        across, down = rng.random(2)
        if "image" in result and self.zoom > 1:
            side = 1 / self.zoom
            result = window(result, (1 - side) / 2, (1 - side) / 2, side)
            if "intrinsics" in sample:
                result["intrinsics"] = sample["intrinsics"]
        if self.darkness:
            dim = np.rint(np.arange(256) * (1 - self.darkness)).astype(int).tolist()
            if "image" in result:
                result["image"] = result["image"].point(dim * 3)
            if "images" in result:
                result["images"] = [view.point(dim * 3) for view in result["images"]]
        if self.cameras is not None and "images" in result:
            if len(result["images"]) < self.cameras:
                raise ValueError(f"sample {result.get('id', '?')!r} has {len(result['images'])} cameras; expected {self.cameras}")
            blind = [Image.new("RGB", view.size, MEAN_COLOR) for view in result["images"][self.cameras :]]
            result["images"] = [*result["images"][: self.cameras], *blind]
        if "image" in result and self.hide_share:
            result = cover(result, self._rectangle(*result["image"].size, across, down))
        return result

    def _rectangle(self, width: int, height: int, across: float, down: float) -> np.ndarray:
        mask, side = np.zeros((height, width), bool), self.hide_share**0.5
        left, top = across * (1 - side), down * (1 - side)
        rows, columns = (
            slice(round(start * length), round((start + side) * length)) for start, length in ((top, height), (left, width))
        )
        mask[rows, columns] = True
        return mask
