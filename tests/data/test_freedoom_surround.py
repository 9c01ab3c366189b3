"""Freedoom surround sets: rendered, written in nuScenes' format, read back by its reader; needs the engine."""

import json
import queue
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("vizdoom")
pytest.importorskip("shapely")
pytest.importorskip("cv2")

from noise2map.data.freedoom.catalog import UNITS_PER_METRE
from noise2map.data.freedoom.surround import FreedoomSurroundDataset
from noise2map.data.nuscenes import CAMERAS, BevAugmentation, MapExpansion, NuScenesDataset
from noise2map.data.nuscenes.augmentation import lidar_matrix
from noise2map.rendering import workers as chunks
from noise2map.rendering.engine import Engine, wad_path
from noise2map.rendering.level import Level
from noise2map.rendering.lidar import LidarSpec
from noise2map.rendering.raycast import Camera, Pose, cast
from noise2map.rendering.surround import SurroundOptions, make_surround, map_expansion
from noise2map.rendering.surround import files as store
from noise2map.rendering.surround import samples as job
from noise2map.rendering.surround.vector_map import south_west
from noise2map.rendering.wad import Wad

CAMERA = Camera(160, 120)
SAMPLES = 3
SPEC = LidarSpec(beams=16, azimuths=180)
MAP = "E1M3"  # the first of the validation maps


def small_job(out: Path, **changes) -> SurroundOptions:
    return SurroundOptions(out=out, **{"split": "val", "samples": SAMPLES, "workers": 1, "lidar": SPEC, "sweeps": 1, **changes})


@pytest.fixture(scope="module")
def level() -> Level:
    return Level(Wad(wad_path(MAP)).read_map(MAP))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("surround") / "set"
    assert make_surround(small_job(out), progress=False) == SAMPLES
    return out


@pytest.fixture(scope="module")
def dataset(root) -> FreedoomSurroundDataset:
    return FreedoomSurroundDataset(root, "val")


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and "surround-" not in path.name[:9])
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def engine_pose(dataset, index: int, channel: str, level: Level) -> Pose:
    """Pose of a camera in the engine's world, out of the tables alone."""
    tables, record = dataset.tables, dataset.records[index]
    matrix = tables.sensor_to_global(tables.key_frame(record, channel))
    left, bottom = south_west(level)
    x, y, z = matrix[:3, 3] * UNITS_PER_METRE + [left, bottom, 0.0]
    forward = matrix[:3, 2]  # the optical axis
    assert abs(forward[2]) < 1e-9 and np.allclose(matrix[:3, 1], [0, 0, -1], atol=1e-9)  # level, y down
    return Pose(x, y, z, float(np.rad2deg(np.arctan2(forward[1], forward[0]))))


def test_the_tables_give_the_engines_poses_back(root, dataset, level):
    record = store.read_manifest(root, "val")[0]
    poses = [engine_pose(dataset, 0, channel, level) for channel in CAMERAS]
    assert record["map"] == MAP and dataset[0]["location"] == f"freedoom-{MAP}"
    for pose in poses[1:]:  # one centre, whole map units, an eye's height above the floor
        np.testing.assert_allclose([pose.x, pose.y, pose.z], [poses[0].x, poses[0].y, poses[0].z], atol=1e-6)
    assert abs(poses[0].x - round(poses[0].x)) < 1e-6
    assert abs(poses[0].z - 41 - level.floor[level.sector_at(poses[0].x, poses[0].y)]) < 0.5
    turns = [(pose.yaw_deg - poses[0].yaw_deg + 1) % 360 - 1 for pose in poses]
    np.testing.assert_allclose(turns, [0, 300, 60, 180, 120, 240], atol=0.05)  # nuScenes' order of channels
    fx, fy, cx, cy = CAMERA.intrinsics
    np.testing.assert_array_equal(dataset[0]["intrinsics"], np.array([[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]] * 6, np.float32))


def test_engine_and_geometry_agree_all_around(tmp_path, level):
    """What the six poses see in the geometry is what the engine has drawn."""
    agree = []
    with Engine(MAP, CAMERA, tmp_path) as engine:
        engine.restart(3)
        rng = np.random.default_rng(1)
        while len(agree) < 12:
            views = engine.look_around(*level.draw_viewpoint(rng), rng.uniform(-180, 180), 6)
            if views is None:
                continue
            yaws = np.array([view.pose.yaw_deg for view in views])
            np.testing.assert_allclose((yaws[:-1] - yaws[1:]) % 360, 60, atol=0.02)
            for view in views:
                surfaces = cast(level, view.pose, CAMERA)
                free = view.labels <= 1
                agree.append(((view.labels == 1) == (surfaces.kind <= 1))[free].mean())
    assert np.median(agree) > 0.98


def test_lidar_points_land_where_the_rendered_depth_says(dataset, level):
    sample = dataset[1]
    points = sample["points"][sample["points"][:, 4] == 0]  # the key frame's
    hits = []
    for number, channel in enumerate(CAMERAS):
        into_camera = np.linalg.inv(sample["camera_to_lidar"][number].astype(np.float64))
        seen = points[:, :3] @ into_camera[:3, :3].T + into_camera[:3, 3]
        seen = seen[seen[:, 2] > 0.1]
        pixel = seen @ sample["intrinsics"][number].T.astype(np.float64)
        column, row = (pixel[:, :2] / pixel[:, 2:]).T
        inside = (column >= 1) & (column < CAMERA.width - 1) & (row >= 1) & (row < CAMERA.height - 1)
        depth = cast(level, engine_pose(dataset, 1, channel, level), CAMERA).depth / UNITS_PER_METRE
        at = row[inside].astype(int), column[inside].astype(int)
        # the LiDAR stands 0.3 m above the eye: a point may hide behind an edge, or lie beside one
        hits.append(np.abs(depth[at] - seen[inside, 2]) < 0.05 + 0.05 * seen[inside, 2])
    assert len(np.concatenate(hits)) > 500
    assert np.concatenate(hits).mean() > 0.93


def test_the_layers_are_those_of_the_level(root, dataset, level, tmp_path):
    """Through tables, files and the reader, against the level itself drawn at the engine's pose."""
    whole = FreedoomSurroundDataset(root, "val", sensors=("lidar",), cells="all")
    pose = engine_pose(dataset, 2, "CAM_FRONT", level)
    left, bottom = south_west(level)
    yaw = np.deg2rad(pose.yaw_deg - 90)
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    matrix[:2, 3] = (pose.x - left) / UNITS_PER_METRE, (pose.y - bottom) / UNITS_PER_METRE
    (tmp_path / "map.json").write_text(json.dumps(map_expansion(level)))
    expected = MapExpansion(tmp_path / "map.json").labels(matrix, (25.6, 25.6), (64, 64))
    labels = whole[2]["labels"]
    assert (labels != expected).mean() < 2e-3  # float32 poses: a corner may be rounded the other way
    # and cell by cell against the level's own grid of sectors
    centre = (np.arange(64) + 0.5) * 0.4 - 12.8
    x, y = np.meshgrid(centre, centre, indexing="ij")
    world = matrix[:2, :2] @ np.stack([x.ravel(), y.ravel()]) + matrix[:2, 3:4]
    sector = level.sector_at(world[0] * UNITS_PER_METRE + left, world[1] * UNITS_PER_METRE + bottom).reshape(64, 64)
    liquid = (sector >= 0) & level.liquid[np.maximum(sector, 0)]
    assert (liquid & (labels[4] == 0)).sum() <= 0.02 * max(liquid.sum(), 50)


def test_what_cannot_be_seen_is_not_known(root, dataset, level):
    labels = dataset[0]["labels"]
    hidden = (labels == 255).all(0)
    assert ((labels == 255).any(0) == hidden).all() and 0.2 < hidden.mean() < 0.9
    assert not hidden[30:34, 30:34].any()
    whole = FreedoomSurroundDataset(root, "val", cells="all")[0]["labels"]
    np.testing.assert_array_equal(labels[:, ~hidden], whole[:, ~hidden])
    points = dataset[0]["points"]
    cells = np.floor(points[:, :2] / 0.4 + 32).astype(int)
    cells = cells[((cells >= 0) & (cells < 64)).all(1)]
    assert (~hidden[cells[:, 0], cells[:, 1]]).mean() > 0.97  # what the LiDAR meets can be seen


def test_the_hidden_region_turns_with_the_scene(dataset):
    quarter = lidar_matrix(scale=1.1, angle_rad=np.pi / 2)  # clockwise: x -> -y, y -> x
    turned, plain = dataset.visible(0, quarter), dataset.visible(0)
    expected = plain.T[:, ::-1]  # turned[x, y] = plain[-y, x]
    assert (turned != expected).mean() < 0.02
    sample = BevAugmentation(dataset, network_size=(96, 160), image_scale=(1.0, 1.1))(dataset[0], np.random.default_rng(0))
    assert set(np.unique(sample["labels"])) == {0, 1, 255}


def test_all_cells_are_labelled_and_say_what_is_seen(root, dataset):
    whole = FreedoomSurroundDataset(root, "val", sensors=("lidar",), cells="all")
    for index in range(SAMPLES):
        sample, plain = whole[index], dataset[index]
        visibility = sample["visibility"]
        assert visibility.shape == (64, 64) and visibility.dtype == np.uint8 and set(np.unique(visibility)) == {0, 1}
        assert "visibility" not in plain
        np.testing.assert_array_equal(visibility != 0, (plain["labels"] == 255).all(0))
        np.testing.assert_array_equal(sample["labels"][:, visibility == 0], plain["labels"][:, visibility == 0])
        assert set(np.unique(sample["labels"])) == {0, 1}
        # What a LiDAR meets is seen, in a turned scene, too.
        augmented = BevAugmentation(whole, scene_shift_m=1.0)(sample, np.random.default_rng(index))
        scale = np.sqrt(np.linalg.det(augmented["lidar_augmentation"][:2, :2]) ** 2) ** 0.5
        cells = np.floor(augmented["points"][:, :2] / scale / 0.4 + 32).astype(int)
        cells = cells[((cells >= 0) & (cells < 64)).all(1)]
        assert (augmented["visibility"][cells[:, 0], cells[:, 1]] == 0).mean() > 0.95


def test_cells_beyond_the_lidar_are_out_of_range(root):
    wide = FreedoomSurroundDataset(root, "val", sensors=("lidar",), cells="all", size_m=(100.0, 100.0), canvas=(50, 50))
    centre = (np.arange(50) + 0.5) * 2 - 50
    far = np.hypot(centre[:, None], centre) > 40
    np.testing.assert_array_equal(wide[0]["visibility"] == 2, far)
    shifted = wide.visibility(0, lidar_matrix(2.0, 0.0, (10.0, 0.0, 0.0)))  # the map does not follow the scale
    np.testing.assert_array_equal(shifted == 2, np.hypot(centre[:, None] - 10, centre) > 40)
    with pytest.raises(ValueError, match="cells is 'some'; expected one of visible, all"):
        FreedoomSurroundDataset(root, "val", cells="some")


def test_sweeps_lie_on_the_key_frame(dataset):
    """The world stands still: moved into the key frame, an older reading shows the same walls."""
    points = dataset[0]["points"]
    key, old = points[points[:, 4] == 0], points[points[:, 4] > 0]
    assert len(old) > 500 and np.unique(old[:, 4]) == pytest.approx([0.05])
    nearest = np.array([np.linalg.norm(key[:, :3] - point[:3], axis=1).min() for point in old[::10]])
    assert np.median(nearest) < 0.25


def test_nuscenes_own_reader_and_splits(root):
    dataset = NuScenesDataset(root, "val", sensors=("camera", "lidar"))
    assert len(dataset) == SAMPLES and dataset[0]["labels"].shape == (6, 200, 200)
    assert all(image.size == (160, 120) for image in dataset[0]["images"])
    names = {path.stem for path in (root / "v1.0-trainval").iterdir()}
    assert {"attribute", "category", "instance", "map", "sample_annotation", "visibility"} <= names  # all thirteen
    with pytest.raises(ValueError, match="no sample of split 'train'"):
        NuScenesDataset(root, "train")


@pytest.mark.slow
def test_a_sample_does_not_depend_on_interruptions_or_numbers(root, tmp_path):
    out = tmp_path / "again"
    assert make_surround(small_job(out, samples=1), progress=False) == 1
    (out / "samples" / "CAM_BACK" / ".x.png.7.partial").write_bytes(b"half")
    assert make_surround(small_job(out), progress=False) == SAMPLES - 1
    assert contents(out) == contents(root)
    (out / store.camera_file(store.sample_id("val", 1), "CAM_BACK")).unlink()
    store.map_path(out, MAP).unlink()
    assert make_surround(small_job(out), progress=False) == 1
    assert contents(out) == contents(root)


def test_another_seed_gives_other_places(root, tmp_path):
    other = small_job(tmp_path / "other", seed=1, samples=1)
    (task,) = chunks.plan(other.split, other.samples, job._open_folder(other))
    messages: queue.Queue = queue.Queue()
    job._make_map(other, task, messages, lambda: False, tmp_path)
    assert messages.get()["poses"] != store.read_manifest(root, "val")[0]["poses"]


def test_supersampled_places_are_the_same_places_in_finer_colors(root, dataset, tmp_path):
    fine = small_job(tmp_path / "fine", samples=1, supersample=2)
    (task,) = chunks.plan(fine.split, fine.samples, job._open_folder(fine))
    messages: queue.Queue = queue.Queue()
    job._make_map(fine, task, messages, lambda: False, tmp_path)
    assert messages.get()["poses"] == store.read_manifest(root, "val")[0]["poses"]
    for channel, coarse in zip(CAMERAS, dataset[0]["images"]):
        with Image.open(fine.out / store.camera_file(store.sample_id("val", 0), channel)) as image:
            assert (image.mode, image.size) == ("RGB", (160, 120))
            assert np.abs(np.asarray(image, float) - np.asarray(coarse, float)).mean() < 20
            assert np.asarray(image).mean() == pytest.approx(np.asarray(coarse).mean(), rel=0.08)  # as bright


def test_a_set_of_another_kind_is_refused(root, tmp_path):
    for changes, text in (
        ({"sweeps": 0}, "sweeps = 1, not 0"),
        ({"supersample": 4}, "supersample = 1, not 4"),
        ({"seed": 4}, "seed = 0, not 4"),
    ):
        with pytest.raises(ValueError, match=text):
            make_surround(small_job(root, **changes), progress=False)
    with pytest.raises(ValueError, match="is not empty and no Freedoom surround set"):
        make_surround(small_job(_filled(tmp_path)), progress=False)
    with pytest.raises(FileNotFoundError, match="make one with: noise2map data freedoom-surround --split val"):
        FreedoomSurroundDataset(tmp_path, "val")
    with pytest.raises(FileNotFoundError, match=r"holds no test samples of Freedoom surround, only .*val.*--split test"):
        FreedoomSurroundDataset(root, "test")
    broken = tmp_path / "broken"
    shutil.copytree(root, broken)
    (broken / "v1.0-trainval" / "visible_region.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no table .*visible_region\.json"):
        FreedoomSurroundDataset(broken, "val")


def _filled(folder: Path) -> Path:
    folder = folder / "photos"
    folder.mkdir()
    Image.new("RGB", (2, 2)).save(folder / "a.png")
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "trian"}, "split must be one of train, val, test, got 'trian'"),
        ({"samples": 0}, "samples must be between 1 and"),
        ({"sweeps": 10}, "sweeps must be between 0 and 9, got 10"),
        ({"workers": 0}, "workers must be between 1"),
    ],
)
def test_impossible_jobs_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        SurroundOptions(out=tmp_path, **options)
