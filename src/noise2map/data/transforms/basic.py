"""Flip, small scale change and colours: the default augmentation. Sizes stay the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from noise2map.data.transforms.sample import MAPS, Compose, Sample, Transform, check_probability, map_picture, map_values


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
                result[key] = np.ascontiguousarray(result[key][:, ::-1])
        if "image" in result:  # a prior of depth maps is trained on maps alone
            width = result["image"].width
            result["image"] = result["image"].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if "intrinsics" in result:
            fx, fy, cx, cy = result["intrinsics"]
            result["intrinsics"] = np.array([fx, fy, width - cx, cy], dtype=np.float32)
        return result


@dataclass(frozen=True)
class RandomResizedCrop:
    """Cuts a window with the picture's aspect ratio and scales it back to the picture's size.

    The image is resampled bilinearly, maps take the nearest pixel. Depth values stay as they are and the intrinsics change:
    see the note of the package before using it for depth.

    Attributes:
        scale: range of the window's side as a fraction of the picture's, within (0, 1].
    """

    scale: tuple[float, float] = (0.7, 1.0)

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop scale is {tuple(self.scale)}; expected 0 < low <= high <= 1")

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator) -> Sample:
        """A random window of the sample."""
        result = dict(sample)
        width, height = result["image"].size
        side = rng.uniform(*self.scale)
        left, top = rng.uniform(0, 1 - side) * width, rng.uniform(0, 1 - side) * height
        box = (left, top, left + side * width, top + side * height)
        result["image"] = result["image"].resize((width, height), Image.Resampling.BILINEAR, box=box)
        for key in MAPS:
            if key in result:
                result[key] = _crop_map(result[key], (width, height), box)
        if "intrinsics" in result:
            fx, fy, cx, cy = result["intrinsics"]
            result["intrinsics"] = np.array([fx / side, fy / side, (cx - left) / side, (cy - top) / side], dtype=np.float32)
        return result


def _crop_map(values: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float]) -> np.ndarray:
    """Nearest-pixel crop and scale of an ``(H, W)`` map of integers, floats or booleans."""
    return map_values(map_picture(values).resize(size, Image.Resampling.NEAREST, box=box), values.dtype)


@dataclass(frozen=True)
class Photometric:
    """Random gamma, brightness, contrast and saturation of the image; maps are untouched.

    Each attribute is the half-width of a factor's range: 0.2 draws from [0.8, 1.2]. Contrast is about the picture's mean.
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
        """The sample with other colours."""
        result = dict(sample)
        gamma, brightness, contrast, saturation = (
            1 + rng.uniform(-1, 1) * half for half in (self.gamma, self.brightness, self.contrast, self.saturation)
        )
        image: Image.Image = result["image"]
        mean = float(np.asarray(image.convert("L"), dtype=np.float32).mean())
        level = np.arange(256, dtype=np.float32)
        level = 255 * (level / 255) ** gamma * brightness
        level = mean + (level - mean) * contrast
        table = np.clip(np.rint(level), 0, 255).astype(np.uint8).tolist()
        image = image.point(table * len(image.getbands()))
        result["image"] = ImageEnhance.Color(image).enhance(saturation)
        return result


def default_transform(
    task: str, flip: float = 0.5, crop_scale: tuple[float, float] | None = (0.7, 1.0), photometric: float = 0.2
) -> Compose:
    """The augmentation of a task: flip, small scale change (segmentation only), colours.

    Args:
        task: ``"segmentation"`` or ``"depth"``.
        flip: probability of mirroring.
        crop_scale: range of :class:`RandomResizedCrop`; ``None`` for none. Not applied to depth.
        photometric: half-width of the brightness, contrast and saturation factors (gamma takes half of it); 0 for none.

    Raises:
        ValueError: if the task is unknown or a number is out of range.
    """
    if task not in ("segmentation", "depth"):
        raise ValueError(f"task is {task!r}; expected 'segmentation' or 'depth'")
    transforms: list[Transform] = []
    if flip:
        transforms.append(HorizontalFlip(flip))
    if crop_scale is not None and task == "segmentation":
        low, high = crop_scale
        transforms.append(RandomResizedCrop((low, high)))
    if photometric:
        transforms.append(Photometric(photometric, photometric, photometric, photometric / 2))
    return Compose(transforms)
