"""Color transforms of images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from noise2map.data.transforms.sample import Sample, check_probability, check_range

_LEVELS = np.arange(256, dtype=np.float64)


def _table(levels: np.ndarray) -> list[int]:
    return np.clip(np.rint(levels), 0, 255).astype(int).tolist()


@dataclass(frozen=True)
class PhotometricDistortion:
    """Brightness, contrast, saturation and hue, each with probability 1/2; the contrast is changed before or after the last two.

    Attributes:
        brightness: Largest number added to or taken from the values, of 255.
        contrast: Range of the factor of the values.
        saturation: Range of the factor of the saturation.
        hue_degrees: Largest turn of the color circle, degrees.
    """

    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue_degrees: float = 36.0

    def __post_init__(self) -> None:
        check_range(self.contrast, "contrast")
        check_range(self.saturation, "saturation")
        if not 0 <= self.brightness <= 255 or not 0 <= self.hue_degrees <= 180:
            raise ValueError(f"brightness is {self.brightness}, hue {self.hue_degrees}; expected 0 to 255 and 0 to 180 degrees")

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator) -> Sample:
        """The sample with other colors."""
        result = dict(sample)
        image: Image.Image = result["image"]
        if rng.random() < 0.5:
            image = image.point(_table(_LEVELS + rng.uniform(-self.brightness, self.brightness)) * 3)
        contrast_first = rng.random() < 0.5
        if contrast_first:
            image = self._contrast(image, rng)
        image = self._saturation_and_hue(image, rng)
        if not contrast_first:
            image = self._contrast(image, rng)
        result["image"] = image
        return result

    def _contrast(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return image.point(_table(_LEVELS * rng.uniform(*self.contrast)) * 3) if rng.random() < 0.5 else image

    def _saturation_and_hue(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        saturation = rng.uniform(*self.saturation) if rng.random() < 0.5 else 1.0
        turn = rng.uniform(-self.hue_degrees, self.hue_degrees) if rng.random() < 0.5 else 0.0
        if saturation == 1.0 and turn == 0.0:
            return image
        hues = ((_LEVELS + np.rint(turn * 256 / 360)) % 256).astype(int).tolist()
        tables = hues + _table(_LEVELS * saturation) + _LEVELS.astype(int).tolist()
        return image.convert("HSV").point(tables).convert("RGB")


@dataclass(frozen=True)
class ColorAugmentation:
    """Gamma, brightness and a factor for each channel, as the published depth recipes have it.

    The gamma is an exponent of the values 0 to 255 themselves, not of 0 to 1: 1.1 makes a value of 100 to 158.

    Attributes:
        p: Probability of changing anything.
        gamma: Range of the exponent.
        brightness: Range of the factor of all channels.
        color: Range of the factor of each channel.
    """

    p: float = 0.5
    gamma: tuple[float, float] = (0.9, 1.1)
    brightness: tuple[float, float] = (0.9, 1.1)
    color: tuple[float, float] = (0.9, 1.1)

    def __post_init__(self) -> None:
        check_probability(self.p, "color")
        for name in ("gamma", "brightness", "color"):
            check_range(getattr(self, name), name)

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator) -> Sample:
        """The sample with other colors, or as it was."""
        result = dict(sample)
        if rng.random() >= self.p:
            return result
        levels = _LEVELS ** rng.uniform(*self.gamma) * rng.uniform(*self.brightness)
        tables = [entry for factor in rng.uniform(*self.color, size=3) for entry in _table(levels * factor)]
        result["image"] = result["image"].point(tables)
        return result


ColourAugmentation = ColorAugmentation


@dataclass(frozen=True)
class Photometric:
    """Random gamma, brightness, contrast and saturation of the image; maps are untouched.

    Each attribute is the half-width of a factor's range: 0.2 draws from [0.8, 1.2]. Contrast is about the image's mean.
    """

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    gamma: float = 0.1

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation", "gamma"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"photometric {name} is {value}; expected a number in [0, 1)")

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator) -> Sample:
        """The sample with other colors."""
        result = dict(sample)
        gamma, brightness, contrast, saturation = (
            1 + rng.uniform(-1, 1) * half for half in (self.gamma, self.brightness, self.contrast, self.saturation)
        )
        image: Image.Image = result["image"]
        mean = float(np.asarray(image.convert("L"), dtype=np.float32).mean())
        level: np.ndarray = np.arange(256, dtype=np.float32)
        level = 255 * (level / 255) ** gamma * brightness
        level = mean + (level - mean) * contrast
        table = np.clip(np.rint(level), 0, 255).astype(np.uint8).tolist()
        image = image.point(table * len(image.getbands()))
        result["image"] = ImageEnhance.Color(image).enhance(saturation)
        return result


@dataclass(frozen=True)
class SurroundColors:
    """The same color change for all views of a sample.

    Attributes:
        change: a transform of ``image``.
    """

    change: Any

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The sample with other colors."""
        result = dict(sample)
        if "images" in result:
            seed = int(rng.integers(2**62))
            result["images"] = [self.change({"image": view}, np.random.default_rng(seed))["image"] for view in result["images"]]
        return result
