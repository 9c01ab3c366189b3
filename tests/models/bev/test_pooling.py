"""Pooling against the plain definition: multiply out the volume, add every point to its cell."""

import pytest
import torch
from tiny_bev import rig_inputs, tiny_config

from noise2map.models.bev import CameraRig
from noise2map.models.bev.camera import LiftSplat, plan_pooling, pool
from noise2map.models.bev.grid import Bounds, GridTransform

GRID = (Bounds(-4, 4, 1.0), Bounds(-3, 3, 0.5), Bounds(-2, 2, 2.0))


def points(seed=0, shape=(2, 5, 3, 4)):
    return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(seed)) * 14 - 7


def factors(seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    depth = torch.rand(2, 5, 3, 4, generator=generator, dtype=dtype).requires_grad_()
    context = torch.randn(2, 6, 3, 4, generator=generator, dtype=dtype).requires_grad_()
    return depth, context


def multiplied_out(points, depth, context):
    """Sum over all points, one by one, with C's truncation of the index."""
    out = torch.zeros(2, 6, 8, 12, dtype=depth.dtype)
    for n, d, h, w in torch.cartesian_prod(*map(torch.arange, points.shape[:-1])).tolist():
        x, y, z = points[n, d, h, w].tolist()
        i, j, k = int(x + 4), int((y + 3) / 0.5), int((z + 2) / 2)
        if 0 <= i < 8 and 0 <= j < 12 and 0 <= k < 2:
            place = torch.zeros(2, 1, 8, 12, dtype=depth.dtype)
            place[k, 0, i, j] = 1
            out = out + place * (depth[n, d, h, w] * context[n, :, h, w]).view(1, 6, 1, 1)
    return out.flatten(0, 1)


def test_pooling_is_the_sum_over_points_and_so_are_its_gradients():
    where, (depth, context) = points(), factors()
    pooled = pool(plan_pooling(where, GRID), depth, context)
    expected = multiplied_out(where, depth, context)
    torch.testing.assert_close(pooled, expected)
    weight = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ours = torch.autograd.grad((pooled * weight).sum(), (depth, context))
    theirs = torch.autograd.grad((expected * weight).sum(), (depth, context))
    torch.testing.assert_close(ours, theirs)


def test_indices_are_truncated_not_rounded_down():
    """A point up to one cell below the grid counts as its first cell; one cell further it is lost, as it is at the top."""
    coordinate = torch.tensor([-5.1, -4.9, -4.1, -3.9, 3.9, 4.1])
    where = torch.zeros(1, 6, 1, 1, 3)
    where[0, :, 0, 0, 0] = coordinate
    plan = plan_pooling(where, GRID)
    assert plan.point.tolist() == [1, 2, 3, 4]
    assert plan.counts()[1, 0].sum() == 3 and plan.counts()[1, 7].sum() == 1


def test_empty_cells_are_zero_and_a_rig_that_sees_nothing_gives_zeros():
    depth, context = factors()
    plan = plan_pooling(torch.full((2, 5, 3, 4, 3), 100.0), GRID)
    assert len(plan.point) == 0
    pooled = pool(plan, depth, context)
    assert pooled.shape == (12, 8, 12) and not pooled.any()
    pooled.sum().backward()
    assert not context.grad.any()


def test_plans_are_remembered_while_cameras_do_not_move():
    lift = LiftSplat(tiny_config())
    rig = CameraRig.create(**rig_inputs())
    moved = CameraRig.create(rig.intrinsics, rig.camera_to_lidar + 0.1 * torch.eye(4)[3].diag().flip(1))
    first = lift.plan(rig, (4, 8))
    assert lift.plan(CameraRig.create(**rig_inputs()), (4, 8)) is first
    assert lift.plan(moved, (4, 8)) is not first and lift.plan(rig, (8, 16)) is not first
    for i in range(20):
        lift.plan(CameraRig.create(rig.intrinsics + i + 1, rig.camera_to_lidar), (4, 8))
    assert len(lift._plans) == 8


def test_frustum_spans_the_image():
    frustum = LiftSplat(tiny_config()).frustum((4, 8))
    assert frustum.shape == (8, 4, 8, 3)
    assert frustum[0, 0, 0].tolist() == [0, 0, 1] and frustum[-1, -1, -1].tolist() == [63, 31, 8]


def test_grid_transform_reads_cell_centres():
    """A ramp over the source's coordinates comes out as the target's coordinates."""
    source, target = (Bounds(-51.2, 51.2, 0.8),) * 2, (Bounds(-50, 50, 0.5), Bounds(-40, 30, 1.0))
    x, y = (axis.centers() for axis in source)
    ramp = torch.stack([x[:, None].expand(-1, 128), y[None].expand(128, -1)])[None]
    out = GridTransform(source, target)(ramp)
    assert out.shape == (1, 2, 200, 70)
    torch.testing.assert_close(out[0, 0, :, 3], target[0].centers(), atol=1e-4, rtol=0)
    torch.testing.assert_close(out[0, 1, 5], target[1].centers(), atol=1e-4, rtol=0)


def test_grid_transform_places_cells_exactly_in_half_precision():
    source, target = (Bounds(-51.2, 51.2, 0.8),) * 2, (Bounds(-50, 50, 0.5),) * 2
    features = torch.randn(1, 2, 128, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    out, exact = (GridTransform(source, target)(x) for x in (features, features.float()))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, atol=0, rtol=2**-8)


def test_grid_transform_is_zero_outside():
    out = GridTransform((Bounds(0, 4, 1),) * 2, (Bounds(4, 8, 1),) * 2)(torch.ones(1, 1, 4, 4))
    assert out[0, 0, 1:, 1:].abs().max() == 0


@pytest.mark.parametrize("axis", [Bounds(-51.2, 51.2, 0.4), Bounds(1, 60, 0.5)])
def test_bounds_count_cells(axis):
    assert axis.count == {0.4: 256, 0.5: 118}[axis.step] and len(axis.centers()) == axis.count
    assert axis.centers()[0] == pytest.approx(axis.lower + axis.step / 2)
