import numpy as np
import pytest
from PIL import Image

from noise2map.data.evaluation_crops import EVALUATION_CROPS, eigen_window, garg_window


def sample(width, height, depth_m=5.0):
    column, row = np.meshgrid(np.arange(width), np.arange(height))
    picture = np.stack([column % 256, row % 256, column // 256], -1).astype(np.uint8)
    depth = np.full((height, width), depth_m, np.float32)
    return {
        "image": Image.fromarray(picture),
        "depth_m": depth,
        "valid": depth > 0,
        "id": "a",
        "intrinsics": np.array([700, 700, 600, 180.0]),
    }


def test_kitti_counts_the_garg_crop_of_the_benchmark_window():
    seen = EVALUATION_CROPS["kitti"](sample(1242, 375))
    assert seen["image"].size == (1216, 352) and seen["depth_m"].shape == (352, 1216)
    assert seen["image"].getpixel((0, 0)) == (13, 23, 0)  # column (1242 - 1216) / 2, row 375 - 352
    rows, columns = np.nonzero(seen["valid"])
    # Garg et al. 2016 with 352 x 1216: 0.40810811 x 352 = 143.7 .. 349.1, 0.03594771 x 1216 = 43.7 .. 1172.3
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (143, 349, 43, 1172)
    assert len(rows) == (349 - 143) * (1172 - 43) and (seen["depth_m"][~seen["valid"]] == 0).all()
    assert seen["intrinsics"][2:] == pytest.approx([600 - 13, 180 - 23])
    with pytest.raises(ValueError, match="640x480"):
        EVALUATION_CROPS["kitti"](sample(640, 480))


@pytest.mark.parametrize("name", ["nyu", "nyu-labelled", "sun-rgbd"])
def test_rooms_count_the_eigen_crop(name):
    whole = sample(640, 480)
    whole["valid"][100, 100] = False
    seen = EVALUATION_CROPS[name](whole)
    assert seen["image"].size == (640, 480)
    rows, columns = np.nonzero(seen["valid"])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (45, 470, 41, 600)
    assert seen["valid"].sum() == 426 * 560 - 1 and seen["depth_m"][100, 100] == 0
    assert whole["depth_m"].min() == 5.0  # the sample that came in is as it was


def test_sun_rgbd_ends_at_eight_metres():
    assert EVALUATION_CROPS["sun-rgbd"](sample(640, 480, 9.5))["depth_m"].max() == 8.0
    assert EVALUATION_CROPS["nyu"](sample(640, 480, 9.5))["depth_m"].max() == 9.5


def test_windows_stay_inside_small_pictures():
    for window in (garg_window, eigen_window):
        mask = np.zeros((60, 80), bool)
        mask[window(60, 80)] = True
        assert 0 < mask.sum() < mask.size
