"""Crops and outlines of the audit's page."""

import numpy as np
import pytest
from scipy import ndimage

from noise2map.audit.page import HALO, OUTLINE, crop_around, outlined


@pytest.mark.parametrize("size", [(160, 120), (7, 500), (640, 480)])
def test_a_crop_holds_its_box_and_stays_inside(size):
    generator = np.random.default_rng(0)
    for _ in range(200):
        left, top = generator.integers(0, size[0]), generator.integers(0, size[1])
        box = (left, top, generator.integers(left, size[0]) + 1, generator.integers(top, size[1]) + 1)
        crop = crop_around(box, size)
        assert 0 <= crop[0] <= box[0] < box[2] <= crop[2] <= size[0]
        assert 0 <= crop[1] <= box[1] < box[3] <= crop[3] <= size[1]
        width, height = crop[2] - crop[0], crop[3] - crop[1]
        assert width / size[0] == pytest.approx(height / size[1], abs=1 / min(size))
        assert width >= round(0.4 * size[0]) and height >= round(0.4 * size[1])


def test_the_outline_is_the_border_of_the_region():
    mask = np.zeros((40, 60), bool)
    mask[10:20, 15:40] = True
    mask[14, 20] = False
    shown = outlined(np.full((40, 60, 3), 128, np.uint8), mask, (0, 0, 60, 40))
    inside = mask.repeat(5, 0).repeat(5, 1)
    square = np.ones((3, 3), bool)
    yellow, dark = (shown == OUTLINE).all(-1), (shown == HALO).all(-1)
    assert shown.shape == (200, 300, 3)
    assert (yellow == (inside & ndimage.binary_dilation(~inside, square))).all()
    assert (dark == (~inside & ndimage.binary_dilation(inside, square))).all()
    assert (shown[~yellow & ~dark] == 128).all()
