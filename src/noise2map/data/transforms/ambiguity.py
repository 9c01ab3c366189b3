"""A dial from a plain sample to one that leaves much open: less of the image, less light, another lens, fewer cameras."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

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
        noise: Standard deviation of normal noise in every value of the image, as a share of white, at least 0.
        blur: Standard deviation of a Gaussian blur, pixels, at least 0.
        cameras: Of a sample with ``images`` of several cameras, the first so many show something and the others are grey, as models
            are made for a number of cameras; None for all.

    Raises:
        ValueError: If a knob is out of range.
    """

    hide_share: float = 0.0
    darkness: float = 0.0
    zoom: float = 1.0
    noise: float = 0.0
    blur: float = 0.0
    cameras: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.hide_share <= MAX_HIDE_SHARE:
            raise ValueError(f"hide_share is {self.hide_share}; expected 0 to {MAX_HIDE_SHARE}")
        if not 0 <= self.darkness < 1:
            raise ValueError(f"darkness is {self.darkness}; expected at least 0 and below 1")
        if not (np.isfinite(self.zoom) and self.zoom >= 1):
            raise ValueError(f"zoom is {self.zoom}; expected a number, at least 1")
        for name in ("noise", "blur"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number of at least 0")
        if self.cameras is not None and self.cameras < 1:
            raise ValueError(f"cameras is {self.cameras}; expected at least 1, or None for all")

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator) -> Sample:
        """The sample with less to go by; without ``image`` only ``darkness``, ``noise``, ``blur`` and ``cameras`` do anything.

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
        if "image" in result:
            result["image"] = self._seen(result["image"], rng)
        if "images" in result:
            result["images"] = [self._seen(view, rng) for view in result["images"]]
        if self.cameras is not None and "images" in result:
            if len(result["images"]) < self.cameras:
                raise ValueError(f"sample {result.get('id', '?')!r} has {len(result['images'])} cameras; expected {self.cameras}")
            blind = [Image.new("RGB", view.size, MEAN_COLOR) for view in result["images"][self.cameras :]]
            result["images"] = [*result["images"][: self.cameras], *blind]
        if "image" in result and self.hide_share:
            width, height = result["image"].size
            result = cover(result, self._rectangle(width, height, across, down))
        return result

    def _seen(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """What a camera out of focus, in the dark, with a noisy sensor makes of an image."""
        if self.blur:
            image = image.filter(ImageFilter.GaussianBlur(self.blur))
        if self.darkness:
            image = image.point(np.rint(np.arange(256) * (1 - self.darkness)).astype(int).tolist() * 3)
        if self.noise:
            values = np.asarray(image, np.float32) + 255 * self.noise * rng.standard_normal(
                (image.height, image.width, 3), np.float32
            )
            image = Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8))
        return image

    def _rectangle(self, width: int, height: int, across: float, down: float) -> np.ndarray:
        mask, side = np.zeros((height, width), bool), self.hide_share**0.5
        left, top = across * (1 - side), down * (1 - side)
        rows, columns = (
            slice(round(start * length), round((start + side) * length)) for start, length in ((top, height), (left, width))
        )
        mask[rows, columns] = True
        return mask
