import os
from pathlib import Path

import numpy as np
import pytest

from noise2map.data.freedoom import catalog
from noise2map.rendering.engine import Engine, wad_path
from noise2map.rendering.frames import disagreement, draw_frame, label_view
from noise2map.rendering.level import Level
from noise2map.rendering.raycast import CEILING, SKY, Camera, cast
from noise2map.rendering.wad import Wad

vizdoom = pytest.importorskip("vizdoom")

CAMERA = Camera(160, 120)
STEP_UNITS = 7.16  # what one step of the engine's depth buffer is worth


def open_level(name: str) -> Level:
    return Level(Wad(wad_path(name)).read_map(name))


def views(level: Level, engine: Engine, count: int, seed: int = 0) -> list:
    rng = np.random.default_rng(seed)
    engine.restart(seed + 1)
    seen = []
    while len(seen) < count:
        x, y = level.draw_viewpoint(rng)
        view = engine.look_from(x, y, rng.uniform(-180, 180))
        if view is not None:
            seen.append(view)
    return seen


@pytest.mark.parametrize("name", ["E1M2", "E3M7", "MAP05", "MAP12"])
def test_geometry_agrees_with_the_engines_own_buffers(name, tmp_path):
    level = open_level(name)
    agree, steps_off, heights = [], [], []
    with Engine(name, CAMERA, tmp_path) as engine:
        for view in views(level, engine, 12):
            surfaces = cast(level, view.pose, CAMERA)
            if disagreement(surfaces, view, CAMERA).mean() > 0.1:
                continue  # a grating before the camera: see-through textures are not ray-cast, such views are not kept
            free = view.labels <= 1  # no object in front
            plane = surfaces.kind <= CEILING
            agree.append(((view.labels == 1) == plane)[free])
            # the engine clips the depth of walls at 63 steps at this size, and has none for sky
            compared = free & ((view.labels == 1) == plane) & (view.depth < 62) & (view.depth > 1) & (surfaces.kind != SKY)
            engine_depth = (view.depth + np.where(plane, 1.93, 1.2)) * STEP_UNITS
            steps_off.append(((surfaces.depth - engine_depth) / STEP_UNITS)[compared])
            heights.append(view.pose.z - level.floor[level.sector_at(view.pose.x, view.pose.y)])
    assert len(agree) >= 8
    assert np.concatenate(agree).mean() > 0.99
    error = np.abs(np.concatenate(steps_off))
    assert np.median(error) < 0.5  # within quantisation
    assert np.quantile(error, 0.95) < 1.0
    assert np.mean(np.abs(np.array(heights) - 41.0) < 0.5) > 0.8  # the eye stands on the floor (grid cells at edges may miss)


def test_labels_keep_the_objects_and_ignore_little(tmp_path):
    level = open_level("MAP05")
    ignored, agree = [], []
    with Engine("MAP05", CAMERA, tmp_path) as engine:
        for view in views(level, engine, 15):
            frame = label_view(level, view, CAMERA)
            ignored.append((frame.labels == catalog.IGNORE).mean())
            for seen in view.objects:
                mask = view.labels == seen.mark
                if not mask.any():  # the engine lists objects that are hidden behind others
                    continue
                assert (frame.labels[mask] == catalog.OBJECT_CLASS[seen.category]).all()
                assert len(np.unique(frame.depth_m[mask])) == 1
                near = np.abs(frame.depth_m[mask] * 32 / STEP_UNITS - view.depth[mask]) < 4
                agree.append(bool(near.mean() > 0.5 or view.depth[mask].min() >= 62))
    # Depth along another axis than the camera's agrees with the engine's buffer for fewer than half of them.
    assert len(agree) >= 30 and np.mean(agree) > 0.8
    assert np.median(ignored) < 0.02


def test_walls_do_not_move_while_frames_are_drawn(tmp_path):
    # the ray-caster takes heights from the file; this is the engine's word that they hold during a chunk
    level = open_level("MAP05")
    engine = Engine("MAP05", CAMERA, tmp_path)
    engine._game.set_sectors_info_enabled(True)
    with engine:
        engine.restart(1)
        rng = np.random.default_rng(0)
        for _ in range(20):
            draw_frame(level, engine, rng, keep_gore=True)
        sectors = engine._game.get_state().sectors
    assert np.array_equal([sector.floor_height for sector in sectors], level.floor)
    assert np.array_equal([sector.ceiling_height for sector in sectors], level.ceiling)


def test_a_restart_forgets_what_was_before(tmp_path):
    level = open_level("E1M2")
    with Engine("E1M2", CAMERA, tmp_path) as engine:
        first = views(level, engine, 4, seed=3)
        views(level, engine, 3, seed=4)
        again = views(level, engine, 4, seed=3)
    with Engine("E1M2", CAMERA, tmp_path) as engine:
        fresh = views(level, engine, 4, seed=3)
    for one, other, third in zip(first, again, fresh):
        assert one.pose == other.pose == third.pose
        assert (one.color == other.color).all()
        assert (one.color == third.color).all()
        assert (one.labels == third.labels).all()
    assert len({view.color.tobytes() for view in first}) == 4


def test_palette_is_what_the_engine_draws_with(tmp_path):
    level = open_level("MAP01")
    with Engine("MAP01", CAMERA, tmp_path) as engine:
        indexed = views(level, engine, 1)[0]
        palette = engine.palette
    engine = Engine("MAP01", CAMERA, tmp_path)
    engine._game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    with engine:
        rgb = views(level, engine, 1)[0]
    assert (palette[indexed.color] == rgb.color).all()


def test_the_engine_uses_its_own_freedoom_and_leaves_nothing_behind(tmp_path, monkeypatch):
    here, scratch = tmp_path / "here", tmp_path / "scratch"
    for folder in (here, scratch):
        folder.mkdir()
    for name in ("doom2.wad", "freedoom2.wad", "doom.wad"):  # the engine's own search would pick these up
        (here / name).write_bytes(b"IWAD" + bytes(8))
    monkeypatch.chdir(here)
    monkeypatch.setenv("DOOMWADDIR", str(here))
    level = open_level("MAP01")
    with Engine("MAP01", CAMERA, scratch) as engine:
        assert Path.cwd() == here
        assert len(list(scratch.iterdir())) == 1
        views(level, engine, 1)
        pids = engine_processes(scratch)
        assert len(pids) == 1 or not Path("/proc").is_dir()
    assert sorted(os.listdir(here)) == ["doom.wad", "doom2.wad", "freedoom2.wad"]
    assert list(scratch.iterdir()) == []
    assert engine_processes(scratch) == []
    assert wad_path("MAP01").parent == Path(vizdoom.__file__).parent


def test_the_engine_is_closed_when_the_body_raises(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), Engine("MAP01", CAMERA, tmp_path):
        raise RuntimeError("stop")
    assert engine_processes(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_size_that_the_engine_lacks_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"cannot render 123x45; it has 160x120"):
        Engine("MAP01", Camera(123, 45), tmp_path)
    assert list(tmp_path.iterdir()) == []


def paired_views(name: str, count: int, big: Camera, small: Camera, tmp_path: Path) -> list[tuple]:
    """The same places seen by two cameras."""
    level = open_level(name)
    seen = []
    for camera in (big, small):
        with Engine(name, camera, tmp_path) as engine:
            seen.append((views(level, engine, count, seed=5), engine.palette))
    (first, palette), (second, _) = seen
    assert [view.pose for view in first] == [view.pose for view in second]
    return [(one, other, palette) for one, other in zip(first, second)]


@pytest.mark.parametrize(("side", "row", "column"), [(2, 0, 1), (4, 1, 2)])
def test_a_supersampled_view_is_the_mean_of_what_is_drawn(side, row, column, tmp_path):
    big, small = Camera(160 * side, 120 * side), Camera(160, 120, side)
    for drawn, view, palette in paired_views("MAP05", 3, big, small, tmp_path):
        colors = palette[drawn.color].astype(float)
        means = sum(colors[i::side, j::side] for i in range(side) for j in range(side)) / side**2
        assert view.color.shape == (120, 160, 3)
        assert np.abs(view.color - means).max() <= 0.5
        assert (view.labels == drawn.labels[row::side, column::side]).all()
        assert (view.depth == drawn.depth[row::side, column::side]).all()


def test_labels_of_a_supersampled_view_are_those_at_the_centre(tmp_path):
    level = open_level("MAP05")
    small, plain, big = Camera(160, 120, 4), Camera(160, 120), Camera(640, 480)
    unlike, depths, unknown = [], [], []
    for drawn, view, _ in paired_views("MAP05", 6, big, small, tmp_path):
        frame, large = label_view(level, view, small), label_view(level, drawn, big)
        middle = np.s_[1::4, 2::4]
        # Two ways to one answer: the small camera's rays, and the large camera's at the drawn pixel in the middle.
        both = (frame.labels != 255) & (large.labels[middle] != 255)
        assert (frame.labels == large.labels[middle])[both].mean() > 0.999
        same = both & (frame.labels == large.labels[middle]) & (frame.labels != catalog.SKY) & (np.abs(frame.normals[..., 1]) < 0.5)
        depths.append(np.abs(frame.depth_m[same] / large.depth_m[middle][same] - 1))
        unknown.append((frame.labels == 255).mean() - (large.labels == 255).mean())
        surfaces, coarse = cast(level, view.pose, small), cast(level, view.pose, plain)
        moved = (surfaces.kind != coarse.kind) | (surfaces.sector != coarse.sector) | (surfaces.line != coarse.line)
        unlike.append(moved.mean())
        # Within a surface depth is the same at both: floors by the row's centre, walls by a fraction of a column.
        inside = ~moved & (surfaces.kind <= CEILING)
        assert (surfaces.depth == coarse.depth)[inside].all()
    assert np.quantile(np.concatenate(depths), 0.999) < 1e-4
    assert np.mean(unlike) < 0.06  # edges alone: half a pixel
    assert np.mean(unknown) < 0.005


def test_a_size_that_cannot_be_supersampled_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"supersample 4 needs images of 2048x1152 .*cannot render; .*: 40x30, .*160x120.*, 480x270$"
    ):
        Engine("MAP01", Camera(512, 288, 4), tmp_path)


def engine_processes(scratch: Path) -> list[int]:
    """Processes whose command line names the scratch directory (Linux)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(scratch).encode() in (entry / "cmdline").read_bytes() and int(entry.name) != os.getpid():
                found.append(int(entry.name))
        except OSError:
            continue
    return found
