"""Rooms rendered from Freedoom: RGB images with exact depth and surface classes.

Reading frames (:class:`FreedoomDataset`, :func:`load_samples`) needs numpy and Pillow only. New ones are
made by :mod:`noise2map.rendering`.
"""

from noise2map.data.freedoom.catalog import SPLITS, brighten, class_names, class_palette, merge_classes
from noise2map.data.freedoom.dataset import FreedoomDataset
from noise2map.data.freedoom.shipped import SAMPLES_ROOT, SURROUND_SAMPLES_ROOT, load_samples, load_surround_samples

__all__ = [
    "SAMPLES_ROOT",
    "SPLITS",
    "SURROUND_SAMPLES_ROOT",
    "FreedoomDataset",
    "brighten",
    "class_names",
    "class_palette",
    "load_samples",
    "load_surround_samples",
    "merge_classes",
]
