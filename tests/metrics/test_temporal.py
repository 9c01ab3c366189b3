"""Agreement over time, where every number can be counted by hand."""

import math

import pytest
import torch

from noise2map.metrics.temporal.agreement import class_disagreement, depth_disagreement, normals_disagreement, warp_nearest


def test_maps_that_move_with_the_flow_agree():
    before = torch.arange(12).view(3, 4)
    offset = torch.zeros(3, 4, 2)
    offset[..., 0], offset[..., 1] = 1.2, -0.7  # from one column further right, one row further up
    warped = warp_nearest(before, offset)
    assert warped[1:, :3].tolist() == [[1, 2, 3], [5, 6, 7]]
    visible = torch.zeros(3, 4, dtype=torch.bool)
    visible[1:, :3] = True
    now = warped.clone()
    assert class_disagreement(before, now, offset, visible) == (0, 6)
    now[1, 0], now[0, 0] = 99, 99  # the second one is not visible
    assert class_disagreement(before, now, offset, visible) == (1, 6)
    with pytest.raises(ValueError, match=r"expected \(H, W, 2\)"):
        warp_nearest(before, offset[:2])


def test_depth_is_compared_after_it_was_moved():
    moved = torch.tensor([[2.0, 4.0, -1.0]])
    now = torch.tensor([[4.0, 4.0, 5.0]])
    total, count = depth_disagreement(moved, now, torch.zeros(1, 3, 2), torch.ones(1, 3, dtype=torch.bool))
    assert (total, count) == (pytest.approx(math.log(2)), 2)


def test_angles_between_normals_where_both_are_known():
    turned = torch.tensor([[[0.0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0]]])
    now = torch.tensor([[[1.0, 0, 0], [0, 0.6, 0.8], [0, 1, 0], [0, 0, 0]]])  # 90 and acos 0.8 degrees; then one of them is unknown
    total, count = normals_disagreement(turned, now, torch.zeros(1, 4, 2), torch.ones(1, 4, dtype=torch.bool))
    assert (total, count) == (pytest.approx(90 + math.degrees(math.acos(0.8))), 2)
