import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_level import make_lumps

from noise2map.data.freedoom import catalog
from noise2map.geometry import normals_from_depth
from noise2map.rendering.frames import surface_labels, surface_normals
from noise2map.rendering.level import Level
from noise2map.rendering.raycast import CEILING, FLOOR, LOWER, SKY, UPPER, WALL, Camera, Pose, cast
from noise2map.rendering.wad import Wad

CAMERA = Camera(160, 120)  # focal lengths 80 and 96 px, horizon at row 60
EYE = 41.0


def looking_east(**level) -> tuple[Level, np.ndarray, object]:
    room = Level(make_lumps(**level))
    surfaces = cast(room, Pose(64.0, 256.0, EYE, 0.0), CAMERA)
    return room, surface_labels(room, surfaces), surfaces


def test_planes_and_walls_have_the_depth_of_similar_triangles():
    _, labels, seen = looking_east()
    rows = np.arange(82, 120)
    assert np.allclose(seen.depth[rows, 80], EYE * 96 / (rows + 0.5 - 60), rtol=1e-6)
    assert (seen.kind[rows, 80] == FLOOR).all()
    assert (labels[rows, 80] == catalog.FLOOR).all()
    rows = np.arange(0, 40)
    assert np.allclose(seen.depth[rows, 80], (128 - EYE) * 96 / (60 - rows - 0.5), rtol=1e-6)
    assert (labels[rows, 80] == catalog.CEILING).all()
    assert seen.depth[60, 80] == pytest.approx(448)  # the far wall, x = 512 from x = 64
    assert seen.kind[60, 80] == WALL


def test_a_platform_of_one_step_shows_its_front_and_its_top():
    # front at depth 192: from eye height - 16 = 25 to 41 below the horizon, that is rows 72.5 to 80.5
    _, labels, seen = looking_east()
    assert (seen.kind[74:79, 80] == LOWER).all()
    assert np.allclose(seen.depth[74:79, 80], 192)
    assert (labels[74:79, 80] == catalog.STEP).all()
    top = np.arange(69, 72)
    assert np.allclose(seen.depth[top, 80], 25 * 96 / (top + 0.5 - 60), rtol=1e-6)
    assert (seen.sector[top, 80] == 1).all()


@pytest.mark.parametrize(("height", "label"), [(24, catalog.STEP), (25, catalog.WALL)])
def test_a_step_is_what_a_player_walks_up(height, label):
    _, labels, _ = looking_east(platform_floor=height)
    assert (labels[76:79, 80] == label).all()


def test_sky_is_infinite_and_a_lowered_open_air_sector_keeps_it():
    _, labels, seen = looking_east(ceiling_flat=b"F_SKY1", platform_ceiling=64)
    # the platform's ceiling is lower, but between two open-air sectors no upper wall is drawn
    upper = seen.kind[:45, 80]
    assert (upper == SKY).all()
    assert np.isinf(seen.depth[:45, 80]).all()
    assert (labels[:45, 80] == catalog.SKY).all()


def test_an_upper_wall_hangs_where_the_ceiling_falls_and_is_a_door_if_it_opens():
    # ceiling 64 over the platform: lintel at depth 192 from 23 to 87 above the eye, rows 48.5 down to 16.5
    for special, label in ((0, catalog.WALL), (1, catalog.DOOR)):
        _, labels, seen = looking_east(platform_ceiling=64, special=special)
        assert (seen.kind[20:46, 80] == UPPER).all()
        assert np.allclose(seen.depth[20:46, 80], 192)
        assert (labels[20:46, 80] == label).all()


def test_door_specials_mark_the_sector_behind_the_line():
    assert Level(make_lumps(special=1)).door.tolist() == [False, True]
    assert Level(make_lumps(special=0)).door.tolist() == [False, False]


def test_liquid_is_a_floor_with_a_liquid_flat():
    _, labels, _ = looking_east(platform_flat=b"NUKAGE1")
    assert (labels[69:72, 80] == catalog.LIQUID).all()


def test_every_column_agrees_with_a_ray_against_the_box():
    level = Level(make_lumps(platform_floor=0))  # a platform of height 0 leaves an empty box
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.uniform(30, 480, 2)
        yaw = rng.uniform(0, 360)
        seen = cast(level, Pose(x, y, EYE, yaw), CAMERA)
        angle = np.deg2rad(yaw)
        tan = (np.arange(160) + 0.25 - 80) / 80
        dx, dy = np.cos(angle) + tan * np.sin(angle), np.sin(angle) - tan * np.cos(angle)  # right is clockwise
        with np.errstate(divide="ignore"):
            depth = np.minimum(np.where(dx > 0, (512 - x) / dx, -x / dx), np.where(dy > 0, (512 - y) / dy, -y / dy))
        assert np.allclose(seen.depth[60], depth, rtol=1e-5)
        assert (seen.kind[60] == WALL).all()
        rows = np.arange(120)[:, None]
        floor_from, ceiling_to = 60 + EYE * 96 / depth, 60 - (128 - EYE) * 96 / depth  # where floor and ceiling meet the wall
        assert (seen.kind[rows > floor_from[None] + 0.5] == FLOOR).all()
        assert (seen.kind[rows < ceiling_to[None] - 1.5] == CEILING).all()
        assert (seen.kind[(rows < floor_from[None] - 1.5) & (rows > ceiling_to[None] + 0.5)] == WALL).all()


def test_pitch_moves_the_horizon_and_not_the_depth_of_walls():
    level = Level(make_lumps())
    level_view, tilted = (cast(level, Pose(64.0, 256.0, EYE, 0.0, pitch), CAMERA) for pitch in (0.0, 10.0))
    shift = round(np.tan(np.deg2rad(10)) * 96)  # looking down raises the horizon
    assert tilted.depth[60 - shift, 80] == level_view.depth[60, 80] == pytest.approx(448)
    assert (tilted.kind == FLOOR).sum() > (level_view.kind == FLOOR).sum()


def test_grid_names_the_sector_and_clearance_the_distance():
    level = Level(make_lumps(platform_floor=100))
    x, y = np.meshgrid(np.arange(5, 512, 7.0), np.arange(5, 512, 7.0))
    inside = (x > 256) & (x < 384) & (y > 192) & (y < 320)
    edge = (np.abs(x - 256) < 8) | (np.abs(x - 384) < 8) | (np.abs(y - 192) < 8) | (np.abs(y - 320) < 8)
    assert (level.sector_at(x, y) == inside)[~edge].all()
    assert level.sector_at(-100.0, -100.0) == -1
    assert level.clearance(64, 256) == pytest.approx(64)
    assert level.clearance(200, 256) == pytest.approx(56)  # the platform is too high to walk up


def test_only_floor_that_can_be_walked_to_is_stood_on():
    assert Level(make_lumps(platform_floor=24)).reachable.tolist() == [True, True]
    high = Level(make_lumps(platform_floor=25))
    assert high.reachable.tolist() == [True, False]
    rng = np.random.default_rng(0)
    points = np.array([high.draw_viewpoint(rng) for _ in range(300)])
    assert ((points >= 24) & (points <= 488)).all()
    on_platform = (points[:, 0] > 256) & (points[:, 0] < 384) & (points[:, 1] > 192) & (points[:, 1] < 320)
    assert not on_platform.any()
    assert np.hypot(points[:, 0] - 64, points[:, 1] - 256).min() >= 48  # the player start is a thing
    # uniform over the floor: the west half, free of the platform, gets at least its share
    assert 0.45 < (points[:, 0] < 256).mean() < 0.7


def write_wad(path: Path, lumps: list[tuple[str, bytes]], magic: bytes = b"IWAD") -> Path:
    body, directory = b"", b""
    for name, data in lumps:
        directory += struct.pack("<ii8s", 12 + len(body), len(data), name.encode())
        body += data
    path.write_bytes(magic + struct.pack("<ii", len(lumps), 12 + len(body)) + body + directory)
    return path


def test_wad_round_trip(tmp_path):
    lumps = make_lumps()
    parts = [("THINGS", lumps.things), ("LINEDEFS", lumps.lines), ("SIDEDEFS", lumps.sides), ("VERTEXES", lumps.vertices)]
    palette = bytes(range(256)) * 3
    entries = [("PLAYPAL", palette), ("E1M1", b"")] + [
        (name, array.tobytes()) for name, array in [*parts, ("SECTORS", lumps.sectors)]
    ]
    wad = Wad(write_wad(tmp_path / "a.wad", entries))
    assert wad.map_names() == ["E1M1"]
    read = wad.read_map("E1M1")
    for name in ("things", "lines", "sides", "vertices", "sectors"):
        assert (getattr(read, name) == getattr(lumps, name)).all()
    assert wad.palette().tobytes() == palette
    with pytest.raises(ValueError, match="no map 'E9M9'; it has E1M1"):
        wad.read_map("E9M9")
    with pytest.raises(ValueError, match="no lump 'DEMO1'"):
        wad.lump("DEMO1")


def test_wad_refuses_what_is_not_one(tmp_path):
    (tmp_path / "text.wad").write_bytes(b"hello, this is not a WAD")
    with pytest.raises(ValueError, match=r"text\.wad is not a WAD"):
        Wad(tmp_path / "text.wad")
    whole = write_wad(tmp_path / "b.wad", [("PLAYPAL", bytes(768))])
    whole.write_bytes(whole.read_bytes()[:-4])
    with pytest.raises(ValueError, match="truncated"):
        Wad(whole)
    with pytest.raises(FileNotFoundError):
        Wad(tmp_path / "none.wad")


def test_normals_of_floor_ceiling_and_walls_by_hand():
    """Looking east: the far wall faces the viewer, the wall to the north faces right, the step's front faces the viewer."""
    room, _, seen = looking_east()
    normals = surface_normals(room, seen, Pose(64.0, 256.0, EYE, 0.0))
    assert (normals[110:, 80] == (0, 1, 0)).all() and (normals[:10, 80] == (0, -1, 0)).all()
    assert np.allclose(normals[60, 80], (0, 0, 1))
    assert np.allclose(normals[74:79, 80], (0, 0, 1))
    assert seen.kind[60, 0] == WALL and seen.kind[60, 159] == WALL
    assert np.allclose(normals[60, 0], (1, 0, 0)) and np.allclose(normals[60, 159], (-1, 0, 0))
    turned = Pose(64.0, 256.0, EYE, 30.0)  # anticlockwise: the east wall now faces to the right of the viewer
    seen = cast(room, turned, CAMERA)
    normals = surface_normals(room, seen, turned)
    east = np.abs(normals - (np.sin(np.radians(-30)), 0, np.cos(np.radians(30)))).max(-1) < 1e-6
    assert east[60].any()


@pytest.mark.parametrize("yaw", [0.0, 33.0, 160.0, -71.0])
def test_normals_are_those_of_the_depth(yaw):
    """Differences of the exact inverse depth give the same planes, but for the pixels at edges."""
    room, pose = Level(make_lumps()), Pose(200.0, 200.0, EYE, yaw)
    seen = cast(room, pose, CAMERA)
    normals = surface_normals(room, seen, pose)
    assert np.allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-6)
    intrinsics = np.array(CAMERA.intrinsics, np.float32)
    intrinsics[2] += 0.25  # a column looks a quarter of a pixel to the right of its left edge, not half
    depth = torch.from_numpy(seen.depth.astype(np.float64))
    found = normals_from_depth(depth, torch.from_numpy(intrinsics).double()).numpy() * (1, -1, -1)
    inside = np.zeros((120, 160), bool)  # all eight neighbours on the same surface
    same = lambda a, b: (seen.kind[a] == seen.kind[b]) & (seen.line[a] == seen.line[b]) & (seen.sector[a] == seen.sector[b])  # noqa: E731
    middle = (slice(1, -1), slice(1, -1))
    inside[middle] = True
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            inside[middle] &= same(middle, (slice(1 + down, 119 + down), slice(1 + right, 159 + right)))
    angles = np.degrees(np.arccos(np.clip((normals * found).sum(-1), -1, 1)))[inside]
    assert len(angles) > 10_000 and angles.max() < 0.5
