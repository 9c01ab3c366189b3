"""Laws of rooms on ray-cast boxes, whose floor, horizon and walls are known in closed form."""

import math

import pytest
import torch

from noise2map.metrics import EYE_HEIGHT_M, ROOM_SCORES, room_scores

SIDE = 64
CAMERA = (42.6667, 51.2, 32.0, 32.0)


def directions(pitch_deg=0.0, roll_deg=0.0, camera=CAMERA, side=SIDE):
    """Rays of a camera that looks `pitch_deg` down and is rolled, in a room's axes: x right, y down, z ahead."""
    fx, fy, cx, cy = camera
    y, x = torch.meshgrid(*[torch.arange(side, dtype=torch.float64) + 0.5] * 2, indexing="ij")
    rays = torch.stack([(x - cx) / fx, (y - cy) / fy, torch.ones_like(x)], dim=-1)
    roll, pitch = math.radians(roll_deg), math.radians(pitch_deg)
    turned = torch.tensor([[math.cos(roll), -math.sin(roll), 0], [math.sin(roll), math.cos(roll), 0], [0, 0, 1]])
    dipped = torch.tensor([[1, 0, 0], [0, math.cos(pitch), math.sin(pitch)], [0, -math.sin(pitch), math.cos(pitch)]])
    return rays @ (dipped @ turned).double().T


def room(eye=EYE_HEIGHT_M, ceiling=1.7, left=2.5, right=3.0, far=9.0, **camera):
    """Depth `(1, H, W)` of a box around a camera: the nearest of five planes that a ray meets."""
    rays = directions(**camera)
    walls = [(1, eye), (1, -ceiling), (0, right), (0, -left), (2, far)]
    meets = [torch.where(place / rays[..., axis] > 0, place / rays[..., axis], torch.inf) for axis, place in walls]
    return torch.stack(meets).amin(0)[None]  # rays have z = 1, so this is depth


def scores(depth, **options):
    return {name: value.tolist() for name, value in room_scores(depth, CAMERA, **options).items()}


def test_a_level_room_keeps_all_laws():
    found = scores(room())
    assert list(found) == list(ROOM_SCORES)
    assert found["floor_height_m"] == pytest.approx([EYE_HEIGHT_M], rel=2e-3)
    assert found["floor_at_eye"] == found["order_share"] == [1.0]
    assert found["horizon_deg"] == pytest.approx([0], abs=0.05) and found["roll_deg"] == pytest.approx([0], abs=0.05)
    # Pixels that the floor covers: below the rows and within the columns in which no wall is nearer.
    rays = directions()
    floor = (rays[..., 1] > 0) & (EYE_HEIGHT_M / rays[..., 1] < 9)
    depth = EYE_HEIGHT_M / rays[..., 1]
    floor &= (rays[..., 0] * depth < 3.0) & (rays[..., 0] * depth > -2.5)
    assert found["floor_share"][0] == pytest.approx(floor.double().mean().item(), abs=0.04)  # patches over an edge have no normal
    assert found["upright_share"][0] > 0.95


@pytest.mark.parametrize("pitch_deg", [-6.0, 4.0, 8.0])
@pytest.mark.parametrize("roll_deg", [-10.0, 0.0, 7.0])
def test_pitch_and_roll_are_read_off_the_floor(pitch_deg, roll_deg):
    found = scores(room(pitch_deg=pitch_deg, roll_deg=roll_deg))
    # The floor's normal in the camera's axes, by hand.
    roll, pitch = math.radians(roll_deg), math.radians(pitch_deg)
    normal = math.sin(roll) * math.cos(pitch), math.cos(roll) * math.cos(pitch), math.sin(pitch)
    assert found["horizon_deg"] == pytest.approx([math.degrees(abs(math.atan(normal[2] / normal[1])))], abs=0.25)
    assert found["roll_deg"] == pytest.approx([math.degrees(abs(math.atan(normal[0] / normal[1])))], abs=0.25)
    assert found["floor_height_m"] == pytest.approx([EYE_HEIGHT_M], rel=0.015)  # patches over the edge to the wall are level enough


@pytest.mark.parametrize(("scale", "kept"), [(1.0, 1.0), (1.08, 1.0), (0.92, 1.0), (1.3, 0.0), (0.8, 0.0)])
def test_scaled_depth_scales_the_height_and_nothing_else(scale, kept):
    real, found = scores(room()), scores(room() * scale)
    assert found["floor_height_m"] == pytest.approx([scale * real["floor_height_m"][0]], rel=1e-6)
    assert found["floor_at_eye"] == [kept]
    for name in set(ROOM_SCORES) - {"floor_height_m", "floor_at_eye"}:
        assert found[name] == pytest.approx(real[name], abs=1e-3)


def test_another_eye_height_is_asked_of_another_camera():
    depth = room(eye=0.8)
    assert scores(depth)["floor_at_eye"] == [0.0] and scores(depth, eye_height_m=0.8)["floor_at_eye"] == [1.0]


def test_a_rolled_camera_makes_slanted_surfaces():
    level, tilted = scores(room()), scores(room(roll_deg=15.0))
    assert tilted["upright_share"][0] < 0.3 < level["upright_share"][0]


def test_upright_surfaces_of_random_direction():
    """A sphere around the camera shows each direction by its area: sin 10° of it is upright, 1 - cos 10° level."""
    x, y = (torch.linspace(-1, 1, 402, dtype=torch.float64)[1:-1],) * 2
    grid = torch.meshgrid(y, x, indexing="ij")
    # A half sphere 100 away seen by a camera so narrow that rays are parallel.
    height = (1 - grid[0].square() - grid[1].square()).clamp(min=0).sqrt()
    depth = torch.where(height > 0, 1e4 - height, torch.nan)[None]
    camera = (200 * 1e4, 200 * 1e4, 200.0, 200.0)
    upright = room_scores(depth, camera)["upright_share"].item()
    # Seen from afar a direction shows by its projected area: the normal's y is the image's y, uniform in the disk.
    inside = grid[0].square() + grid[1].square() < 1
    angle = torch.rad2deg(torch.asin(grid[0][inside].abs()))
    assert upright == pytest.approx(((angle < 10) | (angle > 80)).double().mean().item(), abs=0.01)


def test_order_counts_pairs_whose_depth_grows_away_from_the_horizon():
    depth = torch.full((1, 8, 4), 5.0)
    depth[0, 5], depth[0, 1] = 4.0, 4.0  # rows 5 and 1 are nearer than what follows them: 6 grows again, 0 grows again
    camera = (8.0, 8.0, 2.0, 4.0)
    assert room_scores(depth, camera)["order_share"].item() == pytest.approx(1 - 2 / 6)
    depth[0, 0] = 0  # unknown: its pairs leave
    assert room_scores(depth, camera)["order_share"].item() == pytest.approx(1 - 1 / 5)


def test_swapped_halves_break_floor_and_order():
    swapped = room().roll(SIDE // 2, 1)
    found = scores(swapped)
    assert found["floor_at_eye"] == [0.0] and found["order_share"][0] < 0.7
    assert math.isnan(found["floor_height_m"][0]) and math.isnan(found["horizon_deg"][0])


def test_what_has_no_depth_is_left_out():
    whole = room()
    sky = whole.clone()
    sky[:, :28] = 0
    capped = whole.clone()
    capped[:, :28] = 40.0
    left, cut = scores(sky), scores(capped, far_m=39.5)
    assert left == cut and left["floor_at_eye"] == [1.0] and left["upright_share"][0] > 0.95
    assert scores(capped)["upright_share"] != cut["upright_share"]
    nothing = scores(torch.zeros(1, SIDE, SIDE))
    assert all(math.isnan(value[0]) for value in nothing.values())


def test_a_wall_has_no_floor():
    found = scores(torch.full((1, SIDE, SIDE), 1.0))
    assert math.isnan(found["floor_height_m"][0]) and found["floor_at_eye"] == found["floor_share"] == [0.0]
    assert found["upright_share"] == found["order_share"] == [1.0]


def test_stairs_do_not_bend_the_floor():
    """A landing that is lower or higher than the floor is no part of it, unless it covers more of the image."""
    rays = directions()
    depth = room(far=20.0)
    step = (0.8 / rays[..., 1])[None]  # a level 0.48 m higher that begins 5 m ahead
    depth = torch.where((step > 5) & (rays[..., 1] > 0), torch.minimum(depth, step), depth)
    found = scores(depth)
    assert found["floor_height_m"] == pytest.approx([EYE_HEIGHT_M], rel=1e-3) and found["horizon_deg"][0] < 0.1


def test_noise_of_an_estimator_moves_the_floor_little():
    noise = 1 + 0.002 * torch.randn(8, SIDE, SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = room_scores(room() * noise, CAMERA)
    torch.testing.assert_close(found["floor_height_m"], torch.full((8,), EYE_HEIGHT_M).double(), rtol=0.01, atol=0)
    assert found["horizon_deg"].max() < 0.3


def test_scores_of_an_image_do_not_depend_on_its_batch():
    depth = torch.cat([room(), room(roll_deg=5.0, eye=2.0), room(far=3.0, left=1.0).roll(20, 1)])
    together = room_scores(depth, CAMERA)
    for place in range(3):
        for name, value in room_scores(depth[place : place + 1], CAMERA).items():
            torch.testing.assert_close(together[name][place], value[0], rtol=1e-9, atol=1e-9, equal_nan=True)


def test_the_size_of_the_image_does_not_matter():
    half = tuple(value / 2 for value in CAMERA)
    small = room_scores(room(camera=half, side=32, roll_deg=4.0), half)
    torch.testing.assert_close(small["roll_deg"], torch.tensor([4.0]).double(), rtol=0, atol=0.01)
    torch.testing.assert_close(small["floor_height_m"], torch.tensor([EYE_HEIGHT_M]).double(), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("depth", "camera", "options", "message"),
    [
        (torch.ones(8, 8), CAMERA, {}, r"depth must be \(B, H, W\).*\(8, 8\)"),
        (torch.ones(1, 2, 8), CAMERA, {}, "at least 3 x 3"),
        (torch.ones(1, 8, 8), CAMERA[:3], {}, "fx, fy, cx, cy"),
        (torch.ones(1, 8, 8), (0.0, 1.0, 2.0, 2.0), {}, "positive focal lengths"),
        (torch.ones(1, 8, 8), CAMERA, {"eye_height_m": 0.0}, "eye_height_m must be positive, got 0"),
        (torch.ones(1, 8, 8), CAMERA, {"far_m": -1.0}, "far_m must be positive"),
    ],
)
def test_bad_input_is_named(depth, camera, options, message):
    with pytest.raises(ValueError, match=message):
        room_scores(depth, camera, **options)
