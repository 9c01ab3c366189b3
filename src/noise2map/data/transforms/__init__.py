"""Joint transforms of raw samples: the image, its maps and its camera move together, and every draw has an explicit generator.

A transform is a callable ``transform(sample, rng) -> sample`` on the dictionaries that the datasets return (``image`` a
Pillow RGB image, ``labels`` / ``depth_m`` / ``valid`` arrays ``(H, W)``, ``intrinsics`` fx, fy, cx, cy in pixels). The
input sample is not changed.

Depth is metric: scaling an image by ``s`` looks like a camera with another focal length at the *same* distances. A model that
is not told the focal length cannot know that, so :func:`default_transform` crops and scales for segmentation only; for depth
it flips and changes colors. The published depth recipes (:mod:`~noise2map.data.transforms.presets`) do not scale either.
"""

from noise2map.data.transforms.ambiguity import Ambiguity
from noise2map.data.transforms.covering import Hide, cover
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
from noise2map.data.transforms.photometric import ColorAugmentation, ColourAugmentation, Photometric, PhotometricDistortion
from noise2map.data.transforms.presets import PUBLISHED, default_transform, published_transform
from noise2map.data.transforms.sample import Compose, Sample, Transform, identity_generator, sample_generator

__all__ = [
    "PUBLISHED",
    "Ambiguity",
    "BottomCrop",
    "BoxCrop",
    "ColorAugmentation",
    "ColourAugmentation",
    "Compose",
    "Hide",
    "HorizontalFlip",
    "PadTo",
    "Photometric",
    "PhotometricDistortion",
    "RandomCrop",
    "RandomResizedCrop",
    "RandomRotation",
    "RatioResize",
    "Sample",
    "Transform",
    "cover",
    "default_transform",
    "identity_generator",
    "published_transform",
    "sample_generator",
]
