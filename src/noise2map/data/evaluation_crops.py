"""Crops of the published depth evaluations: cut windows, pixels that count, farthest depth.

An evaluation crop is a function from raw sample to raw sample. It leaves pixels in the image that do not count and
marks their depth as "not known", so that any evaluation that honours ``valid`` scores the same pixels.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from noise2map.data.transforms import BottomCrop

Sample = dict[str, Any]

EvaluationCrop = Callable[[Mapping[str, Any]], Sample]

SUN_RGBD_FARTHEST_M = 8.0


def garg_window(height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns that count on KITTI (Garg et al. 2016), as fractions of the cut image."""
    rows = slice(int(0.40810811 * height), int(0.99189189 * height))
    return rows, slice(int(0.03594771 * width), int(0.96405229 * width))


def eigen_window(height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns that count on NYU-Depth V2 (Eigen et al. 2014), in pixels whatever the size of the image."""
    return slice(45, 471), slice(41, 601)


def count_only(sample: Mapping[str, Any], window: Callable[[int, int], tuple[slice, slice]]) -> Sample:
    """The sample with depth marked "not known" outside a window."""
    depth_m = np.asarray(sample["depth_m"], np.float32)
    inside = np.zeros(depth_m.shape, bool)
    inside[window(*depth_m.shape)] = True
    valid = inside & np.asarray(sample.get("valid", depth_m > 0), bool)
    return {**sample, "depth_m": np.where(valid, depth_m, np.float32(0)), "valid": valid}


def cut_off(sample: Mapping[str, Any], farthest_m: float) -> Sample:
    """The sample with all depth beyond ``farthest_m`` at ``farthest_m``."""
    return {**sample, "depth_m": np.minimum(np.asarray(sample["depth_m"], np.float32), np.float32(farthest_m))}


def kitti_crop(sample: Mapping[str, Any]) -> Sample:
    """The window of the KITTI benchmark (lowest 352 rows, middle 1216 columns), scored in the Garg crop.

    Raises:
        ValueError: If the image is smaller than that window.
    """
    return count_only(BottomCrop()(sample), garg_window)


def nyu_crop(sample: Mapping[str, Any]) -> Sample:
    """The whole image, scored in the Eigen crop."""
    return count_only(sample, eigen_window)


def sun_rgbd_crop(sample: Mapping[str, Any]) -> Sample:
    """The whole image with depth up to 8 m, scored in the Eigen crop."""
    return count_only(cut_off(sample, SUN_RGBD_FARTHEST_M), eigen_window)


EVALUATION_CROPS: dict[str, EvaluationCrop] = {
    "kitti": kitti_crop,
    "nyu": nyu_crop,
    "nyu-labelled": nyu_crop,
    "sun-rgbd": sun_rgbd_crop,
}
