"""A level as a vector map: what the nuScenes reader draws of it is what the level says."""

import json

import numpy as np
import pytest
from synthetic_level import make_lumps

pytest.importorskip("shapely")
pytest.importorskip("cv2")

from noise2map.data.freedoom.surround import SURROUND_LAYERS
from noise2map.data.nuscenes import MapExpansion
from noise2map.rendering.level import Level
from noise2map.rendering.surround.vector_map import map_expansion

WALKABLE, DOOR, STEP, LEDGE, LIQUID, WALL = range(6)


def draw(folder, lumps, center=(8.0, 8.0), yaw_deg=0.0, size=25.6, cells=64):
    """Layers around a LiDAR that looks along ``yaw_deg``, through the file; ``[layer, x, y]``, x to its right."""
    path = folder / "map.json"
    path.write_text(json.dumps(map_expansion(Level(lumps))))
    yaw = np.deg2rad(yaw_deg - 90)  # of the LiDAR's x
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    matrix[:2, 3] = center
    return MapExpansion(path).labels(matrix, (size, size), (cells, cells))


def cell(x, y, center=(8.0, 8.0), size=25.6, cells=64):
    """Cell of a map position for a LiDAR whose x is the map's (it looks north)."""
    return int((x - center[0]) / size * cells + cells / 2), int((y - center[1]) / size * cells + cells / 2)


def test_a_room_with_a_pool_on_a_step(tmp_path):
    layers = draw(tmp_path, make_lumps(platform_floor=16, platform_flat=b"NUKAGE1"), yaw_deg=90.0)
    middle, platform = cell(3, 3), cell(10, 8)  # the room is 16 x 16 m, the platform reaches from (8, 6) to (12, 10)
    assert layers[WALKABLE][middle] and layers[WALKABLE][platform]
    assert layers[LIQUID][platform] and not layers[LIQUID][middle]
    assert not layers[DOOR].any() and not layers[LEDGE].any()
    edge, wall = cell(8, 8), cell(0, 5)
    assert layers[STEP][edge] and not layers[STEP][platform] and not layers[STEP][middle]
    assert layers[WALL][wall] and not layers[WALL][edge] and not layers[WALL][middle]
    area = 0.4 * 0.4
    assert layers[LIQUID].sum() * area == pytest.approx(16, rel=0.25)  # outlines count: half a cell more on each side
    assert layers[WALKABLE].sum() * area == pytest.approx(256, rel=0.1)


def test_heights_tell_steps_ledges_and_walls_apart(tmp_path):
    edge, platform = cell(8, 8), cell(10, 8)
    step = draw(tmp_path, make_lumps(platform_floor=24), yaw_deg=90.0)
    ledge = draw(tmp_path, make_lumps(platform_floor=25), yaw_deg=90.0)
    closed = draw(tmp_path, make_lumps(platform_floor=0, platform_ceiling=40), yaw_deg=90.0)
    assert step[STEP][edge] and not step[LEDGE].any()
    assert ledge[LEDGE][edge] and not ledge[STEP].any()
    assert not ledge[WALKABLE][platform]  # nobody can climb it
    assert closed[WALL][edge] and not closed[STEP].any() and not closed[WALKABLE][platform]
    assert closed[WALKABLE][cell(3, 3)]


def test_a_closed_door_is_a_door_and_can_be_walked_through(tmp_path):
    layers = draw(tmp_path, make_lumps(platform_floor=0, platform_ceiling=0, special=1), yaw_deg=90.0)
    edge, platform = cell(8, 8), cell(10, 8)
    assert layers[DOOR][platform] and layers[WALKABLE][platform] and not layers[WALL][edge]
    assert not layers[DOOR][cell(3, 3)]


def test_the_map_turns_with_the_car(tmp_path):
    """Looking east, what was to the east lies ahead: x to the right is south, y forward is east."""
    lumps = make_lumps(platform_floor=16, platform_flat=b"LAVA1")
    north, east = draw(tmp_path, lumps, yaw_deg=90.0), draw(tmp_path, lumps, yaw_deg=0.0)
    turned = np.swapaxes(north, 1, 2)[:, ::-1]  # right <- -y, forward <- x
    overlap = (turned[LIQUID] & east[LIQUID]).sum() / (turned[LIQUID] | east[LIQUID]).sum()
    assert overlap > 0.8
    x, y = (positions.mean() for positions in np.nonzero(east[LIQUID]))
    assert y > 34 and 28 < x < 36  # the platform's centre lies 2 m ahead, on the axis


def test_layers_have_names_for_all_six():
    from noise2map.data.freedoom.surround import SURROUND_PALETTE
    from noise2map.report.bev_panels import layer_palette

    names = dict(enumerate(SURROUND_LAYERS))
    assert len(set(SURROUND_LAYERS)) == 6
    np.testing.assert_array_equal(layer_palette(names), SURROUND_PALETTE)
