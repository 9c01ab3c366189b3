"""Rooms rendered from Freedoom: RGB images with exact depth and surface classes.

Reading frames (:class:`FreedoomDataset`, :func:`load_samples`) needs numpy and Pillow only. Rendering new ones
(:func:`render`) needs the ``render`` extra, ``pip install "noise2map[render]"``.
"""

from noise2map.data.freedoom.catalog import SPLITS, brighten, class_names, class_palette, merge_classes
from noise2map.data.freedoom.dataset import FreedoomDataset
from noise2map.data.freedoom.render import RenderJob, render
from noise2map.data.freedoom.samples import SAMPLES_ROOT, SURROUND_SAMPLES_ROOT, load_samples, load_surround_samples

__all__ = [
    "SAMPLES_ROOT",
    "SPLITS",
    "SURROUND_SAMPLES_ROOT",
    "FreedoomDataset",
    "RenderJob",
    "brighten",
    "class_names",
    "class_palette",
    "load_samples",
    "load_surround_samples",
    "merge_classes",
    "render",
]
