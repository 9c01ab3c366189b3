"""`benchmarks/depth_grid.py`: bilinear maps bend at the middles of their cells alone, planes nowhere."""

import depth_grid
import pytest
import torch
from torch.nn import functional

ALL = torch.ones(2, 24, 32, dtype=torch.bool)


def test_a_plane_in_log_depth_has_no_cells():
    x, y = torch.meshgrid(torch.arange(24), torch.arange(32), indexing="ij")
    plane = (1 + 0.02 * x + 0.02 * y).exp().expand(2, 24, 32)
    found = depth_grid.slopes(plane, plane, ALL)
    assert found.pop("across_over_inside") == pytest.approx(1, abs=1e-4)
    assert all(bend < 1e-6 for bend in found.values())


def test_bilinear_maps_bend_beside_the_middle_of_a_cell_and_nearest_ones_step_between_cells():
    cells = torch.rand(2, 1, 6, 8, generator=torch.Generator().manual_seed(0))
    flat = torch.ones(2, 24, 32)
    smooth = functional.interpolate(cells, scale_factor=4, mode="bilinear")[:, 0].exp()
    found = depth_grid.slopes(smooth, flat, ALL)
    assert found["bend_0"] < 1e-6 and found["bend_3"] < 1e-6 < 0.01 < min(found["bend_1"], found["bend_2"])
    assert depth_grid.slopes(functional.interpolate(cells, scale_factor=4)[:, 0].exp(), flat, ALL)["across_over_inside"] > 1e6


def test_what_is_not_flat_or_not_known_does_not_count():
    generator = torch.Generator().manual_seed(0)
    depth_m, noise = (torch.rand(2, 24, 32, generator=generator) + 1 for _ in range(2))
    valid = torch.rand(2, 24, 32, generator=generator) > 0.1
    flat = torch.ones(2, 24, 32)
    found = depth_grid.slopes(depth_m, torch.where(valid, flat, noise), valid)
    assert found == depth_grid.slopes(depth_m, torch.where(valid, flat, -noise), valid)
    assert found != depth_grid.slopes(depth_m, flat, ALL)
    steep = flat.clone()
    steep[:, :, 16:] = 2  # an edge of the truth: what is predicted there is no bend of a surface
    moved = torch.where(steep > 1, 5 * depth_m, depth_m)
    edge = depth_grid.slopes(moved, steep, valid)
    assert max(edge[f"bend_{k}"] for k in range(4)) < 1.2 * max(found[f"bend_{k}"] for k in range(4))
