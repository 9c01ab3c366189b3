"""Sparse convolution against dense conv3d on the active sites, and voxels against a loop over points."""

import pytest
import torch
from tiny_bev import tiny_config
from torch.nn import functional

from noise2map.models.bev.lidar import LidarBranch, voxelise
from noise2map.models.bev.sparse_conv import SiteNorm, Sites, SparseConv3d, to_dense

SHAPE = (6, 7, 5)


def sites(seed=0, count=40, batch_size=2):
    total = batch_size * SHAPE[0] * SHAPE[1] * SHAPE[2]
    ranks = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].sort().values
    return Sites(ranks, SHAPE, batch_size)


def features(channels, seed=1, count=40):
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def dense_weight(conv):
    return conv.weight.permute(4, 3, 0, 1, 2)


def test_coordinates_undo_ranks():
    where = sites()
    sample, x, y, z = where.coordinates().unbind(-1)
    assert torch.equal(((sample * 6 + x) * 7 + y) * 5 + z, where.ranks) and int(sample.max()) == 1


def test_submanifold_convolution_is_conv3d_at_the_active_sites():
    where, values, conv = sites(), features(3), SparseConv3d(3, 4).double()
    out, after = conv(values, where)
    assert after is where
    mask = to_dense(torch.ones(40, 1, dtype=torch.float64), where)
    dense = functional.conv3d(to_dense(values, where), dense_weight(conv), padding=1) * mask
    torch.testing.assert_close(to_dense(out, where), dense)
    check_gradients(out, to_dense(out, where), dense, values, conv)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((3, 3, 3), (2, 2, 2), (1, 1, 1)), ((3, 3, 3), (2, 2, 2), (1, 1, 0)), ((1, 1, 3), (1, 1, 2), (0, 0, 0))],
)
def test_strided_convolution_is_conv3d_and_activates_what_its_window_touches(kernel, stride, padding):
    where, values = sites(), features(3)
    conv = SparseConv3d(3, 4, kernel, stride, padding).double()
    out, after = conv(values, where)
    dense = functional.conv3d(to_dense(values, where), dense_weight(conv), stride=stride, padding=padding)
    assert after.shape == tuple(dense.shape[2:])
    torch.testing.assert_close(to_dense(out, after), dense)
    ones = to_dense(torch.ones(40, 1, dtype=torch.float64), where)
    touched = functional.conv3d(ones, torch.ones(1, 1, *kernel, dtype=torch.float64), stride=stride, padding=padding) > 0
    assert torch.equal(to_dense(torch.ones_like(out[:, :1]), after) > 0, touched)
    check_gradients(out, to_dense(out, after), dense, values, conv)


def check_gradients(out, sparse, dense, values, conv):
    weight = torch.randn(sparse.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ours = torch.autograd.grad((sparse * weight).sum(), (values, conv.weight), retain_graph=True)
    theirs = torch.autograd.grad((dense * weight).sum(), (values, conv.weight))
    torch.testing.assert_close(ours, theirs)


def test_fresh_weights_have_the_published_bound():
    assert SparseConv3d(5, 16).bound == pytest.approx(0.0372678, abs=1e-6)
    assert SparseConv3d(128, 128, (1, 1, 3), (1, 1, 2)).bound == pytest.approx(0.0045105, abs=1e-6)


def voxels_by_hand(points, lower, size, shape, max_points, max_voxels):
    kept = {}
    for point in points.tolist():
        index = tuple(int((value - low) // step) for value, low, step in zip(point, lower, size))
        if not all(0 <= i < n for i, n in zip(index, shape)):
            continue
        if index not in kept:
            if len(kept) >= max_voxels:
                continue
            kept[index] = []
        if len(kept[index]) < max_points:
            kept[index].append(point)
    means = [torch.tensor(group, dtype=points.dtype).mean(0) for group in kept.values()]
    return torch.stack(means), torch.tensor(list(kept))


@pytest.mark.parametrize(("max_points", "max_voxels"), [(10, 1000), (2, 1000), (3, 17)])
def test_voxels_are_first_come_first_served(max_points, max_voxels):
    points = torch.rand(400, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5 - 0.5
    arguments = ((0, 0, 0), (1, 1, 2), (4, 4, 2), max_points, max_voxels)
    means, index = voxelise(points, *arguments)
    expected_means, expected_index = voxels_by_hand(points, *arguments)
    assert torch.equal(index, expected_index) and len(index) == min(32, max_voxels)
    torch.testing.assert_close(means, expected_means)


def branch(**fields):
    torch.manual_seed(0)
    return LidarBranch(tiny_config(("lidar",), **fields)).eval()


def test_branch_makes_a_map_of_each_cloud_whatever_its_neighbours():
    lidar = branch()
    clouds = [torch.randn(n, 5) * torch.tensor([4.0, 4, 1, 50, 0.2]) for n in (150, 90)]
    both = lidar(clouds)
    assert both.shape == (2, lidar.out_channels, 8, 8)
    for i, cloud in enumerate(clouds):
        torch.testing.assert_close(both[i], lidar([cloud])[0], atol=1e-5, rtol=1e-5)


def test_a_lone_point_lights_up_its_own_cell():
    """A point at x = -7.9, y = 7.9 belongs into the first row and the last column."""
    lidar = branch()
    for name, parameter in lidar.named_parameters():
        parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)
    out = lidar([torch.tensor([[-7.9, 7.9, 0.0, 1.0, 0.0]])])
    assert out[0, :, 0, 7].max() > 0 and out[0].sum((0,))[1:, :7].max() == 0


@pytest.mark.parametrize(
    ("cloud", "message"),
    [
        (torch.zeros(0, 5), "none of its 0 points inside the range"),
        (torch.full((4, 5), 99.0), r"none of its 4 points inside the range \[-8.0, -8.0, -5.0\] to \[8.0, 8.0, 3.0\] m"),
        (torch.tensor([[0.0, 0, float("nan"), 0, 0]]), "point cloud 0 holds NaN"),
        (torch.zeros(4, 3), r"shape \(4, 3\); expected \(P, 5\)"),
    ],
)
def test_clouds_that_cannot_be_used_are_refused(cloud, message):
    with pytest.raises(ValueError, match=message):
        branch().check([cloud])


def test_points_outside_the_range_do_not_matter():
    lidar = branch()
    cloud = torch.rand(50, 5) * torch.tensor([6.0, 6, 2, 50, 0.2])
    outside = torch.tensor([[50.0, 0, 0, 1, 0], [0, 0, 30, 1, 0]])
    assert torch.equal(lidar([cloud]), lidar([torch.cat([cloud, outside])]))


def normalised(norm, values, upstream):
    norm, values = norm.to(values.dtype).train(), values.clone().requires_grad_()
    out = norm(values)
    out.backward(upstream.to(values.dtype))
    return [out.detach(), values.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]


def test_normalisation_of_many_sites_is_as_exact_as_float32_can_be():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(80_000, 8, generator=generator) * 8 + 5
    upstream = torch.randn(80_000, 8, generator=generator) + 0.1
    expected = normalised(torch.nn.BatchNorm1d(8), values.double(), upstream)

    def worst(norm):
        found = normalised(norm, values, upstream)
        return max(float((one.double() - truth).norm() / truth.norm()) for one, truth in zip(found, expected, strict=True))

    assert worst(SiteNorm(8)) < 1e-5 < worst(torch.nn.BatchNorm1d(8))


def test_normalisation_is_that_of_torch():
    values, ours, theirs = features(4, count=30).detach().float(), SiteNorm(4, eps=1e-3), torch.nn.BatchNorm1d(4, eps=1e-3)
    for training in (True, False):
        torch.testing.assert_close(ours.train(training)(values), theirs.train(training)(values))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    out = ours.train()(values)
    assert out.is_contiguous() and ours(values.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="more than 1 value"):
        ours(values[:1])
