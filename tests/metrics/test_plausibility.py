"""Plausibility scores on scenes whose answer is known."""

import math

import pytest
import torch

from noise2map.geometry import intrinsics_from_fov, pixel_rays
from noise2map.metrics import (
    PLAUSIBILITY_SCORES,
    PlausibilityScores,
    depth_correlation,
    depth_disagreement,
    edge_alignment,
    plane_residual,
)

HEIGHT, WIDTH = 24, 32


def plane(normal, distance, fov=70.0):
    """Depth of the plane `n . p = d` seen through each pixel."""
    rays = pixel_rays(intrinsics_from_fov(fov, HEIGHT, WIDTH).double(), HEIGHT, WIDTH)
    return distance / (rays @ torch.tensor(normal, dtype=torch.float64))


# ---- planes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fov", [40.0, 100.0])
@pytest.mark.parametrize("normal", [(0.0, 0.0, 1.0), (0.3, -0.2, 0.9), (0.0, 0.1, 0.995)])
def test_any_plane_seen_by_any_camera_has_no_residual(normal, fov):
    assert plane_residual(plane(normal, 3.0, fov)[None]).max() < 1e-12


def test_residual_of_noise_on_a_wall_is_what_a_fit_of_three_numbers_leaves():
    noise = torch.randn(1, 100, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inverse = 0.5 * (1 + 0.01 * noise)
    found = plane_residual(1 / inverse, 5).square().mean().sqrt().item()
    assert found == pytest.approx(0.01 * math.sqrt(1 - 3 / 25), rel=0.04)


def test_residual_does_not_depend_on_the_unit_of_depth():
    depth = 2 + torch.rand(1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(plane_residual(depth), plane_residual(depth * 1000), rtol=1e-5, atol=1e-9)


def test_a_fold_is_found_where_it_is_and_nowhere_else():
    left, right = plane((0.6, 0.0, 0.8), 3.0), plane((-0.6, 0.0, 0.8), 3.0)
    folded = torch.maximum(left, right)[None]
    bent = plane_residual(folded, 5)[0] > 1e-9
    columns = bent.any(0).nonzero().flatten()
    assert bent[:, columns].all()  # the whole height of the fold
    # Windows of five columns that hold pixels of both walls: four of them.
    assert len(columns) == 4 and columns.double().mean() + 2 == pytest.approx(WIDTH / 2 - 0.5)


def test_unknown_depth_makes_patches_unknown():
    depth = torch.full((1, 9, 9), 2.0)
    depth[0, 4, 4], depth[0, 0, 0] = 0, math.inf
    residual = plane_residual(depth, 3)[0]
    assert residual.isnan().sum() == 9 + 1 and residual.nansum() == 0


def test_impossible_windows_are_refused():
    for window in (4, 1, 25):
        with pytest.raises(ValueError, match="window must be odd"):
            plane_residual(torch.ones(1, HEIGHT, WIDTH), window)


# ---- edges -----------------------------------------------------------------------------------------------------------------


def box(left=10, near=1.0):
    depth = torch.full((1, HEIGHT, WIDTH), 4.0)
    depth[:, 6:16, left : left + 10] = near
    return depth


def picture_of(depth, noise=0):
    shade = (depth / depth.amax() * 200)[:, None].expand(-1, 3, -1, -1)
    grain = torch.randint(0, noise + 1, shade.shape, generator=torch.Generator().manual_seed(0))
    return (shade + grain).to(torch.uint8)


def test_edges_that_coincide_score_one_and_moved_ones_less():
    depth = box()
    score = edge_alignment(picture_of(depth, 10), depth)
    assert score.item() > 0.9
    moved = edge_alignment(picture_of(box(left=20), 10), depth)
    assert moved.item() < score.item() - 0.2


def test_a_picture_of_noise_scores_one_half():
    noise = torch.randint(0, 256, (30, 3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    score = edge_alignment(noise, box().expand(30, -1, -1))
    assert abs(score.mean().item() - 0.5) < 3 * score.std().item() / math.sqrt(30)
    flat = edge_alignment(torch.full((1, 3, HEIGHT, WIDTH), 90, dtype=torch.uint8), box())
    assert flat.item() == 0.5  # ties count half


def test_edges_by_brute_force():
    images = torch.randint(0, 256, (1, 3, 9, 11), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    depth = torch.ones(1, 9, 11)
    depth[0, :, 6:] = 3.0
    score = edge_alignment(images, depth, 3)
    values = images[0].double()
    strength = torch.zeros(9, 11)
    for i in range(9):
        for j in range(11):
            near = values[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            strength[i, j] = (near - values[:, i : i + 1, j : j + 1]).abs().max()
    at_edge, inside = [], []
    for i in range(1, 8):
        for j in range(1, 10):
            both = 1 <= 6 - (j - 1) <= 2  # columns 5 and 6: the window holds both depths
            (at_edge if both else inside).append(strength[i - 1 : i + 2, j - 1 : j + 2].max().item())
    wins = sum((a > b) + (a == b) / 2 for a in at_edge for b in inside) / (len(at_edge) * len(inside))
    assert score.item() == pytest.approx(wins) and len(at_edge) == 14


def test_floor_to_the_horizon_has_no_edges():
    rays = pixel_rays(intrinsics_from_fov(80, HEIGHT, WIDTH), HEIGHT, WIDTH)
    floor = torch.where(rays[..., 1] > 0.02, 1.5 / rays[..., 1].clamp_min(1e-3), 0)[None]  # far pixels jump by half
    assert edge_alignment(picture_of(floor), floor).isnan()


# ---- two readings ----------------------------------------------------------------------------------------------------------


def test_disagreement_and_correlation_of_known_maps():
    ramp = torch.linspace(-1, 1, 9).expand(1, 1, 5, 9)
    maps = torch.cat([ramp, ramp + 0.5, -ramp, torch.zeros_like(ramp)])
    strong = ramp.expand(4, -1, -1, -1)
    # The mean of |x| over the nine steps is 5/9.
    expected = [0.0, 0.25, 5 / 9, 5 / 18]
    assert depth_disagreement(strong, maps).tolist() == pytest.approx(expected, abs=1e-7)
    found = depth_correlation(strong, maps)
    assert found[:3].tolist() == pytest.approx([1.0, 1.0, -1.0]) and found[3].isnan()
    with pytest.raises(ValueError, match="one shape"):
        depth_disagreement(ramp, ramp[..., 1:])


def test_scores_are_means_over_images_without_the_undefined():
    depth = torch.cat([plane((0.1, 0.2, 0.97), 3.0)[None].float(), box()])
    images = picture_of(depth)
    metric = PlausibilityScores()
    metric.update(images[:1], depth[:1])
    metric.update(images[1:], depth[1:], torch.zeros(1, 1, 6, 8), torch.full((1, 1, 6, 8), 0.2))
    scores = metric.compute()
    assert list(scores) == list(PLAUSIBILITY_SCORES)
    assert scores["disagreement"].item() == pytest.approx(0.1, abs=1e-7)
    assert scores["edge_alignment"].item() == pytest.approx(edge_alignment(images[1:], depth[1:]).item())
    assert metric.per_image()[0, 3] == 1 and 0.3 < metric.per_image()[1, 3] < 1
    assert scores["planar_share"].item() == pytest.approx(metric.per_image()[:, 3].mean().item())
    with pytest.raises(ValueError, match="together"):
        metric.update(images, depth, strong=depth[:, None])


@pytest.mark.parametrize(
    "shape", [(2, 3, HEIGHT, WIDTH), (1, 4, HEIGHT, WIDTH), (1, 2, HEIGHT, WIDTH), (1, 3, HEIGHT, WIDTH - 1), (3, HEIGHT, WIDTH)]
)
def test_edge_alignment_refuses_images_that_do_not_fit(shape):
    with pytest.raises(ValueError, match="must fit"):
        edge_alignment(torch.zeros(shape, dtype=torch.uint8), box())
