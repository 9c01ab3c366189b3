"""Exact flow against a second way to know it: the surface that a ray meets, and the colors that the engine draws."""

import numpy as np
import pytest
from PIL import Image
from synthetic_level import make_lumps

from noise2map.data.freedoom import format as store
from noise2map.data.freedoom.motion import Motion, backward_flow, pixel_rays
from noise2map.rendering.frames import surface_normals
from noise2map.rendering.level import Level
from noise2map.rendering.raycast import Camera, Pose, cast

CAMERA = Camera(80, 60)
POSES = [Pose(100.0, 200.0, 41.0, 10.0), Pose(112.0, 206.0, 41.0, 13.0)]


def motion_of(before, now):
    return Motion.between(np.array([before.x, before.y, before.z]), before.yaw_deg, np.array([now.x, now.y, now.z]), now.yaw_deg)


def test_flow_leads_to_the_pixel_that_shows_the_same_surface():
    level = Level(make_lumps())
    before, now = (cast(level, pose, CAMERA) for pose in POSES)
    flow = backward_flow(now.depth, before.depth, motion_of(*POSES), np.array(CAMERA.intrinsics), (CAMERA.ray_offset[0], 0.5))
    rows, columns = np.nonzero(flow.visible)
    offsets = np.rint(flow.offset_px[rows, columns]).astype(int)
    there = rows + offsets[:, 1], columns + offsets[:, 0]
    same = np.ones(len(rows), bool)
    for part in ("kind", "sector", "line"):
        same &= getattr(before, part)[there] == getattr(now, part)[rows, columns]
    assert flow.visible.mean() > 0.85 and same.mean() > 0.98  # the rest lies within half a pixel of an edge


def test_flow_is_what_moving_each_point_through_the_world_gives():
    """Point by point in coordinates of the world, without matrices of cameras."""
    level = Level(make_lumps())
    before, now = (cast(level, pose, CAMERA) for pose in POSES)
    flow = backward_flow(now.depth, before.depth, motion_of(*POSES), np.array(CAMERA.intrinsics))
    fx, fy, cx, cy = CAMERA.intrinsics
    old, new = POSES
    for row, column in [(50, 10), (40, 60), (10, 40), (55, 70), (31, 33)]:
        depth, heading = float(now.depth[row, column]), np.deg2rad(new.yaw_deg)
        right, down = (column + 0.5 - cx) / fx * depth, (row + 0.5 - cy) / fy * depth
        x = new.x + depth * np.cos(heading) + right * np.sin(heading)
        y = new.y + depth * np.sin(heading) - right * np.cos(heading)
        heading = np.deg2rad(old.yaw_deg)
        ahead = (x - old.x) * np.cos(heading) + (y - old.y) * np.sin(heading)
        aside = (x - old.x) * np.sin(heading) - (y - old.y) * np.cos(heading)
        place = aside / ahead * fx + cx - 0.5 - column, (old.z - (new.z - down)) / ahead * fy + cy - 0.5 - row
        np.testing.assert_allclose(flow.offset_px[row, column], place, atol=1e-3)
        moved = motion_of(old, new).move_depth(np.array(ahead), np.array([aside / ahead, (old.z - new.z + down) / ahead, 1]))
        assert float(moved) == pytest.approx(depth, rel=1e-6)


def test_normals_turn_with_the_camera():
    """The normals of one map at two yaws, each worked out from the lines of the map alone."""
    level = Level(make_lumps())
    old, new = POSES
    turned_only = Pose(old.x, old.y, old.z, old.yaw_deg + 25)
    for later in (new, turned_only):
        before, now = (surface_normals(level, cast(level, pose, CAMERA), pose) for pose in (old, later))
        moved = motion_of(old, later).turn_normals(before).reshape(-1, 3)
        missing = np.linalg.norm(moved[:, None] - np.unique(now.reshape(-1, 3), axis=0)[None], axis=-1).min(1)
        assert (
            np.mean(missing < 1e-6) > 0.6
            and np.abs(np.linalg.norm(moved, axis=-1) - np.linalg.norm(before.reshape(-1, 3), axis=-1)).max() < 1e-6
        )


def test_what_was_hidden_is_not_visible():
    """A screen at 2 m before a wall at 6 m: stepping aside uncovers wall that the screen hid."""
    rays = pixel_rays((20, 40), np.array([40.0, 40.0, 20.0, 10.0]))
    motion = Motion.between(np.array([0.0, 0, 1]), 0.0, np.array([0.0, -1.0, 1]), 0.0)  # one metre to the right

    def view(aside_m):
        screen = np.abs(rays[..., 0] * 2 + aside_m) < 0.5
        return np.where(screen, 2.0, 6.0)

    flow = backward_flow(view(1.0), view(0.0), motion, np.array([40.0, 40.0, 20.0, 10.0]))
    row = flow.visible[10]
    at_wall = rays[10, :, 0] * 6 + 1  # where a ray of the wall meets it, from the first camera's axis
    hidden = (np.abs(at_wall) < 1.5 - 0.2) & (view(1.0)[10] == 6)
    seen = (np.abs(at_wall) > 1.5 + 0.2) & (np.abs(at_wall) < 2.8) & (view(1.0)[10] == 6)
    assert hidden.sum() >= 5 and not row[hidden].any() and seen.sum() >= 3 and row[seen].all()


def test_a_walk_of_the_engine_moves_as_its_flow_says(tmp_path):
    pytest.importorskip("vizdoom")
    from noise2map.rendering.frames import RenderOptions, render
    from noise2map.rendering.walks import WalkOptions, render_walks

    options = WalkOptions(out=tmp_path / "walks", split="test", walks=1, frames=3, supersample=4, seed=3)
    assert render_walks(options, progress=False) == 1 and render_walks(options, progress=False) == 0
    records = store.finished_records(options.out)
    assert [(records[i]["walk"], records[i]["step"]) for i in range(3)] == [(0, 0), (0, 1), (0, 2)]
    images = [np.asarray(Image.open(store.file_of(options.out, "image", i)), np.float32) for i in range(3)]
    with np.load(options.out / "flow" / "000002.npz") as flow:
        offset, visible = flow["offset_px"], flow["visible"]
    rows, columns = np.nonzero(visible)
    there = np.rint(offset[rows, columns]).astype(int)
    warped = images[1][rows + there[:, 1], columns + there[:, 0]]
    error = np.abs(warped - images[2][rows, columns]).mean()
    still = np.abs(images[1][rows, columns] - images[2][rows, columns]).mean()
    assert visible.mean() > 0.3 and error < 0.7 * still
    more = WalkOptions(out=options.out, split="test", walks=2, frames=3, supersample=4, seed=3)
    assert render_walks(more, progress=False) == 1 and render_walks(options, progress=False) == 0
    assert store.read_description(options.out)["frames"] == 6  # fewer walks than there are take none away
    with pytest.raises(ValueError, match="walk_frames = 3, not None"):  # frames of anywhere do not go among them
        render(RenderOptions(out=options.out, split="test", frames=9, supersample=4, seed=3), progress=False)
    with pytest.raises(ValueError, match="walk_frames = 3, not 4"):
        render_walks(WalkOptions(out=options.out, split="test", walks=1, frames=4, supersample=4, seed=3), progress=False)
