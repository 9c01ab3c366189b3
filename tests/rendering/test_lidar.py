"""The LiDAR and the line of sight in a room whose every distance is known."""

import numpy as np
import pytest
from synthetic_level import make_lumps

from noise2map.data.freedoom.catalog import UNITS_PER_METRE
from noise2map.rendering.level import Level
from noise2map.rendering.lidar import LidarSpec, scan, sight
from noise2map.rendering.raycast import Pose

# The room is 512 x 512, 128 high; a platform of 128 x 128 has its near edge at x = 256.
EYE = Pose(128.0, 256.0, 41.0, 0.0)
SPEC = LidarSpec(beams=9, azimuths=360, lowest_deg=-40.0, highest_deg=40.0, range_m=40.0)


def box_distance(pose, direction):
    """Distance along a unit direction to the inside of the room's box, by slabs; and the axis that is hit."""
    low, high = np.zeros(3), np.array([512.0, 512.0, 128.0])
    start = np.array([pose.x, pose.y, pose.z])
    with np.errstate(divide="ignore"):
        each = np.where(direction > 0, (high - start) / direction, np.where(direction < 0, (low - start) / direction, np.inf))
    return each.min(), int(each.argmin())


def directions(points, yaw_deg):
    """World directions and ranges of points in the sensor's frame: x to the right, y forward."""
    yaw = np.deg2rad(yaw_deg)
    forward, right = np.array([np.cos(yaw), np.sin(yaw), 0]), np.array([np.sin(yaw), -np.cos(yaw), 0])
    world = points[:, :1] * right + points[:, 1:2] * forward + points[:, 2:3] * np.array([0, 0, 1.0])
    distance = np.linalg.norm(world, axis=1)
    return world / distance[:, None], distance


@pytest.mark.parametrize("yaw_deg", [0.0, 37.0, -151.5])
def test_every_beam_ends_where_the_box_does(yaw_deg):
    level = Level(make_lumps(platform_floor=0))  # a flat floor: the platform's lines are crossed without being met
    pose = Pose(128.0, 256.0, 41.0, yaw_deg)
    points = scan(level, pose, SPEC)
    assert len(points) == SPEC.beams * SPEC.azimuths
    found, distance = directions(points.astype(np.float64), yaw_deg)
    for way, length, intensity in zip(found, distance, points[:, 3]):
        expected, axis = box_distance(pose, way)
        assert length * UNITS_PER_METRE == pytest.approx(expected, rel=1e-5)
        assert intensity == pytest.approx(255 * abs(way[axis]), abs=0.1)
    elevation = np.rad2deg(np.arcsin(found[:, 2]))
    np.testing.assert_allclose(elevation, np.linspace(-40, 40, 9)[points[:, 4].astype(int)], atol=1e-3)


def test_a_platform_stops_low_beams_and_a_low_ceiling_high_ones():
    level = Level(make_lumps(platform_floor=26, platform_ceiling=60))
    spec = LidarSpec(beams=5, azimuths=4, lowest_deg=-10.0, highest_deg=10.0)
    points = scan(level, EYE, spec)
    ahead = points[(np.abs(points[:, 0]) < 1e-4) & (points[:, 1] > 0)]
    # straight ahead lies the platform: its front (128 units away) from below 26, its lintel from above 60
    heights = 41 + np.tan(np.deg2rad(np.linspace(-10, 10, 5))) * 128
    assert [bool(h < 26 or h > 60) for h in heights] == [True, False, False, False, True]
    np.testing.assert_allclose(ahead[[0, 4], 1] * UNITS_PER_METRE, 128, rtol=1e-5)
    # between, beams fly in: one lands on the platform, one goes through to the far wall, one ends under the low ceiling
    slope = np.tan(np.deg2rad(5))
    np.testing.assert_allclose(ahead[1:4, 1] * UNITS_PER_METRE, [(41 - 26) / slope, 384, (60 - 41) / slope], rtol=1e-5)


def test_the_sky_and_what_is_too_far_give_no_point():
    outdoors = scan(Level(make_lumps(platform_floor=0, ceiling_flat=b"F_SKY1")), EYE, SPEC)
    indoors = scan(Level(make_lumps(platform_floor=0)), EYE, SPEC)
    assert (outdoors[:, 2] * UNITS_PER_METRE < 128 - 41 - 0.1).all()
    np.testing.assert_array_equal(outdoors, indoors[indoors[:, 2] * UNITS_PER_METRE < 128 - 41 - 0.1])
    near = scan(Level(make_lumps(platform_floor=0)), EYE, LidarSpec(9, 360, -40.0, 40.0, range_m=5.0))
    inside = np.linalg.norm(indoors[:, :3], axis=1) <= 5.0
    np.testing.assert_array_equal(near, indoors[inside])


def test_sight_reaches_the_last_surface_that_shows():
    flat, high = Level(make_lumps(platform_floor=0)), Level(make_lumps(platform_floor=128))
    ways = np.deg2rad(np.arange(360.0))
    box = [box_distance(EYE, np.array([np.cos(way), -np.sin(way), 0.0]))[0] for way in ways]
    np.testing.assert_allclose(sight(flat, EYE, 360, 0.625) * UNITS_PER_METRE, box, rtol=1e-6)
    blocked = sight(high, EYE, 360, 0.625) * UNITS_PER_METRE
    assert blocked[0] == pytest.approx(128)  # a pillar up to the ceiling
    assert blocked[90] == pytest.approx(256) and blocked[180] == pytest.approx(128)
    assert sight(Level(make_lumps(platform_floor=32)), EYE, 360, 0.625)[0] * UNITS_PER_METRE == pytest.approx(384)  # seen over


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams must be at least 1, got 0"),
        ({"azimuths": 90}, "azimuths must be a multiple of 4, got 90"),
        ({"lowest_deg": 10.0, "highest_deg": -10.0}, "between -90 and 90 in this order"),
        ({"range_m": 0.0}, "range_m must be positive"),
    ],
)
def test_impossible_sensors_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LidarSpec(**options)
