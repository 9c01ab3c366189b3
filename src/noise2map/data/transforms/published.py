"""The augmentation of the published recipes, by data set."""

from collections.abc import Callable

from noise2map.data.transforms.basic import HorizontalFlip
from noise2map.data.transforms.colour import ColourAugmentation, PhotometricDistortion
from noise2map.data.transforms.cropping import BottomCrop, BoxCrop, PadTo, RandomCrop
from noise2map.data.transforms.resizing import RandomRotation, RatioResize
from noise2map.data.transforms.sample import Compose, Transform

Size = tuple[int, int]


def _segmentation(box: Size, crop: Size) -> Compose:
    return Compose([RatioResize(box), RandomCrop(crop, 0.75), HorizontalFlip(), PhotometricDistortion(), PadTo(crop)])


def _depth(first: Transform, crop: Size, brightness: tuple[float, float]) -> Compose:
    return Compose([first, RandomRotation(), HorizontalFlip(), RandomCrop(crop), ColourAugmentation(brightness=brightness)])


PUBLISHED: dict[str, tuple[Size, Callable[[Size], Compose]]] = {
    "ade20k": ((512, 512), lambda crop: _segmentation((2048, 512), crop)),
    "cityscapes": ((512, 1024), lambda crop: _segmentation((2048, 1024), crop)),
    "kitti": ((352, 704), lambda crop: _depth(BottomCrop(), crop, (0.9, 1.1))),
    "nyu": ((416, 544), lambda crop: _depth(BoxCrop(), crop, (0.75, 1.25))),
}
"""Data set to the size ``(height, width)`` of its training crops, and what makes its transform."""


def published_transform(name: str, crop_size: Size | None = None) -> Compose:
    """The augmentation with which the published models were trained.

    Args:
        name: ``"ade20k"``, ``"cityscapes"``, ``"kitti"`` or ``"nyu"``.
        crop_size: ``(height, width)`` of the crops, if not the published one.

    Raises:
        ValueError: If there is none for the data set, or the size is impossible.
    """
    if name not in PUBLISHED:
        raise ValueError(f"there is no published augmentation for {name!r}; expected one of {', '.join(PUBLISHED)}")
    size, build = PUBLISHED[name]
    return build(size if crop_size is None else crop_size)
