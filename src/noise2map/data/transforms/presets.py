"""Augmentations by name: the default one and those of the published recipes."""

from collections.abc import Callable

from noise2map.data.maps import map_kind
from noise2map.data.transforms.geometric import (
    BottomCrop,
    BoxCrop,
    HorizontalFlip,
    PadTo,
    RandomCrop,
    RandomResizedCrop,
    RandomRotation,
    RatioResize,
)
from noise2map.data.transforms.photometric import ColorAugmentation, Photometric, PhotometricDistortion
from noise2map.data.transforms.sample import Compose, Transform


def default_transform(
    task: str, flip: float = 0.5, crop_scale: tuple[float, float] | None = (0.7, 1.0), photometric: float = 0.2
) -> Compose:
    """The augmentation of a task: flip, small scale change (not of depth), colors.

    Args:
        task: A key of `MAP_KINDS`.
        flip: probability of mirroring.
        crop_scale: range of :class:`RandomResizedCrop`; ``None`` for none. Not applied to depth.
        photometric: half-width of the brightness, contrast and saturation factors (gamma takes half of it); 0 for none.

    Raises:
        ValueError: if the task is unknown or a number is out of range.
    """
    may_zoom = map_kind(task).may_zoom
    transforms: list[Transform] = []
    if flip:
        transforms.append(HorizontalFlip(flip))
    if crop_scale is not None and may_zoom:
        low, high = crop_scale
        transforms.append(RandomResizedCrop((low, high)))
    if photometric:
        transforms.append(Photometric(photometric, photometric, photometric, photometric / 2))
    return Compose(transforms)


Size = tuple[int, int]


def _segmentation(box: Size, crop: Size) -> Compose:
    return Compose([RatioResize(box), RandomCrop(crop, 0.75), HorizontalFlip(), PhotometricDistortion(), PadTo(crop)])


def _depth(first: Transform, crop: Size, brightness: tuple[float, float]) -> Compose:
    return Compose([first, RandomRotation(), HorizontalFlip(), RandomCrop(crop), ColorAugmentation(brightness=brightness)])


PUBLISHED: dict[str, tuple[Size, Callable[[Size], Compose]]] = {
    "ade20k": ((512, 512), lambda crop: _segmentation((2048, 512), crop)),
    "cityscapes": ((512, 1024), lambda crop: _segmentation((2048, 1024), crop)),
    "kitti": ((352, 704), lambda crop: _depth(BottomCrop(), crop, (0.9, 1.1))),
    "nyu": ((416, 544), lambda crop: _depth(BoxCrop(), crop, (0.75, 1.25))),
}

"""Dataset to the size ``(height, width)`` of its training crops, and what makes its transform."""


def published_transform(name: str, crop_size: Size | None = None) -> Compose:
    """The augmentation with which the published models were trained.

    Args:
        name: ``"ade20k"``, ``"cityscapes"``, ``"kitti"`` or ``"nyu"``.
        crop_size: ``(height, width)`` of the crops, if not the published one.

    Raises:
        ValueError: If there is none for the dataset, or the size is impossible.
    """
    if name not in PUBLISHED:
        raise ValueError(f"there is no published augmentation for {name!r}; expected one of {', '.join(PUBLISHED)}")
    size, build = PUBLISHED[name]
    return build(size if crop_size is None else crop_size)
