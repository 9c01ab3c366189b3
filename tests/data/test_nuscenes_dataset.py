"""The nuScenes reader on a toy set whose geometry is known."""

import json
import math

import numpy as np
import pytest
import toy_nuscenes as toy
from PIL import Image

from noise2map.data.nuscenes import BevAugmentation, NuScenesDataset, NuScenesTables, published_splits
from noise2map.data.nuscenes.augmentation import evaluation_crop, image_matrix, lidar_matrix, transform_image
from noise2map.data.nuscenes.points import read_points
from noise2map.data.nuscenes.tables import rigid

pytest.importorskip("shapely")
pytest.importorskip("cv2")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return toy.make(tmp_path_factory.mktemp("nuscenes") / "set")


@pytest.fixture(scope="module")
def dataset(root):
    return NuScenesDataset(root, "toy_train", "v1.0-toy")


def test_samples_of_a_split_in_time(dataset, root):
    assert [record["token"] for record in dataset.records] == ["sample-0-0", "sample-0-1"]
    assert len(NuScenesDataset(root, "toy_val", "v1.0-toy")) == 2


def test_sample_holds_what_it_says(dataset):
    sample = dataset[1]
    assert sample["id"] == "sample-0-1" and sample["location"] == "toy-town"
    assert [image.getpixel((3, 3))[0] for image in sample["images"]] == [20, 50, 80, 110, 140, 170]
    assert sample["intrinsics"].shape == (6, 3, 3) and sample["camera_to_lidar"].dtype == np.float32
    assert sample["labels"].shape == (6, 200, 200) and set(np.unique(sample["labels"])) == {0, 1}
    assert sample["points"].dtype == np.float32


def test_camera_to_lidar_accounts_for_the_car_that_moved_between_the_readings(dataset):
    """A point 10 m before the front camera, worked out by hand in the frame of the LiDAR."""
    front = dataset[0]["camera_to_lidar"][0].astype(np.float64)
    point = front @ [0.0, 0.0, 10.0, 1.0]
    forward = 1.5 + 10 + toy.SPEED * 0.02 - toy.LIDAR_SHIFT[0]  # the camera sits 1.5 m ahead, its reading came 20 ms later
    np.testing.assert_allclose(point[:3], [0.0, forward, 1.5 - toy.LIDAR_SHIFT[2]], atol=1e-4)
    right = front @ [1.0, 0.0, 10.0, 1.0] - point
    np.testing.assert_allclose(right[:3], [1, 0, 0], atol=1e-6)  # LiDAR x points to the right of the car


def test_sweeps_of_a_still_world_fall_onto_the_key_frame(dataset):
    points = dataset[1]["points"]
    key = toy.lidar_reading(toy.SAMPLE_US)
    np.testing.assert_array_equal(points[: len(key), :3], key[:, :3])
    assert (points[: len(key), 4] == 0).all()
    rest = points[len(key) :].reshape(4, 60, 5)  # three sweeps and the key frame before, each without the car's own reflection
    for sweep, age in zip(rest, (0.05, 0.1, 0.15, 0.5), strict=True):
        np.testing.assert_allclose(sweep[:, :3], key[:60, :3], atol=1e-4)
        np.testing.assert_allclose(sweep[:, 4], age, atol=1e-6)


def test_nearest_sweeps_are_taken_and_the_first_frame_stands_in_for_missing_ones(root):
    few = NuScenesDataset(root, "toy_train", "v1.0-toy", sensors=("lidar",), sweeps=2, with_labels=False)
    assert sorted(set(few[1]["points"][:, 4].round(3))) == pytest.approx([0, 0.05, 0.1])
    assert len(few[0]["points"]) == 61 + 2 * 60 and "images" not in few[0]
    assert len(NuScenesDataset(root, "toy_train", "v1.0-toy", sweeps=0)[0]["points"]) == 61


def test_map_of_the_pose(dataset):
    """A LiDAR looking along the map's x: its own x, to the right, is minus the map's y."""
    labels = dataset[0]["labels"]
    matrix = dataset.lidar_to_global(0)
    np.testing.assert_allclose(matrix[:3, 3], [296.94, 400.0, 1.84], atol=1e-4)
    np.testing.assert_allclose(matrix[:3, 0], [0, -1, 0], atol=1e-6)
    assert labels[0].any() and np.array_equal(labels, dataset.draw_labels(0, np.eye(4, dtype=np.float32)))


def test_unknown_names_are_refused(root, dataset, tmp_path):
    with pytest.raises(ValueError, match="sample 'nope' is not in split 'toy_train'"):
        dataset.index_of("nope")
    with pytest.raises(ValueError, match="split is 'toy_test'"):
        NuScenesDataset(root, "toy_test", "v1.0-toy")
    with pytest.raises(ValueError, match=r"no sample of split 'train' \(2 scenes"):
        NuScenesDataset(root, "train", "v1.0-toy")
    with pytest.raises(FileNotFoundError, match=r"no nuScenes version v1\.0-mini .*it holds v1\.0-toy"):
        NuScenesDataset(root, "mini_val")
    with pytest.raises(FileNotFoundError, match="no nuScenes version"):
        NuScenesDataset(tmp_path / "nowhere", "val")
    with pytest.raises(ValueError, match="sensors is"):
        NuScenesDataset(root, "toy_train", "v1.0-toy", sensors=("radar",))
    with pytest.raises(ValueError, match="sweeps is -1"):
        NuScenesDataset(root, "toy_train", "v1.0-toy", sweeps=-1)


def test_missing_map_is_noticed_before_the_first_sample(tmp_path):
    bare = toy.make(tmp_path / "set", with_map=False)
    with pytest.raises(FileNotFoundError, match="map expansion"):
        NuScenesDataset(bare, "toy_train", "v1.0-toy")
    sample = NuScenesDataset(bare, "toy_train", "v1.0-toy", with_labels=False)[0]
    assert "labels" not in sample


def test_broken_tables_are_named(tmp_path):
    broken = toy.make(tmp_path / "set")
    (broken / "v1.0-toy" / "ego_pose.json").write_text("[]")
    with pytest.raises(ValueError, match=r"ego_pose\.json has no token"):
        NuScenesDataset(broken, "toy_train", "v1.0-toy")[0]
    (broken / "v1.0-toy" / "log.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"log\.json is no nuScenes table"):
        NuScenesTables(broken, "v1.0-toy")
    (broken / "v1.0-toy" / "log.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no table .*log\.json"):
        NuScenesTables(broken, "v1.0-toy")


def test_records_without_a_field_are_named(tmp_path):
    broken = toy.make(tmp_path / "set")
    path = broken / "v1.0-toy" / "sample_data.json"
    records = json.loads(path.read_text())
    del records[3]["is_key_frame"]
    path.write_text(json.dumps(records))
    with pytest.raises(ValueError, match=rf"sample_data\.json: record '{records[3]['token']}' has no is_key_frame"):
        NuScenesTables(broken, "v1.0-toy")


@pytest.mark.parametrize(("text", "message"), [("{", "splits.json is not a JSON file"), ('{"val": "a"}', "is no list of splits")])
def test_broken_split_lists_are_named(text, message, tmp_path):
    broken = toy.make(tmp_path / "set")
    (broken / "v1.0-toy" / "splits.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        NuScenesDataset(broken, "toy_train", "v1.0-toy")


def test_missing_camera_is_named(tmp_path):
    broken = toy.make(tmp_path / "set")
    path = broken / "v1.0-toy" / "sample_data.json"
    records = [record for record in json.loads(path.read_text()) if "CAM_BACK_LEFT" not in record["token"]]
    path.write_text(json.dumps(records))
    with pytest.raises(ValueError, match="sample-0-0 has no CAM_BACK_LEFT; it has CAM_BACK, "):
        NuScenesDataset(broken, "toy_train", "v1.0-toy")[0]


def test_broken_point_clouds_are_named(tmp_path):
    np.zeros(7, np.float32).tofile(tmp_path / "a.bin")
    with pytest.raises(ValueError, match="holds 7 numbers"):
        read_points(tmp_path / "a.bin")
    (tmp_path / "b.bin").touch()
    with pytest.raises(ValueError, match="holds 0 numbers"):
        read_points(tmp_path / "b.bin")
    with pytest.raises(FileNotFoundError, match=r"no point cloud .*c\.bin"):
        read_points(tmp_path / "c.bin")
    cloud = np.zeros((4, 5), np.float32)
    cloud[2, 1] = np.nan
    cloud.tofile(tmp_path / "d.bin")
    with pytest.raises(ValueError, match=r"d\.bin: point 2 holds NaN"):
        read_points(tmp_path / "d.bin")


def test_published_splits():
    splits = published_splits()
    assert {name: len(scenes) for name, scenes in splits.items()} == {
        "train": 700, "val": 150, "test": 150, "mini_train": 8, "mini_val": 2,
    }  # fmt: skip
    assert not set(splits["train"]) & set(splits["val"]) and not set(splits["train"]) & set(splits["test"])


def test_rigid_refuses_what_is_no_rotation():
    with pytest.raises(ValueError, match="quaternion"):
        rigid([0, 0, 0, 0], [0, 0, 0])
    for shift in ([0, math.nan, 0], [0, 0]):
        with pytest.raises(ValueError, match=r"translation is .* expected three finite numbers"):
            rigid([1, 0, 0, 0], shift)
    turned = rigid([math.cos(0.3), 0, 0, math.sin(0.3)], [1, 2, 3]) @ [1, 0, 0, 1]
    np.testing.assert_allclose(turned, [1 + math.cos(0.6), 2 + math.sin(0.6), 3, 1])


# ---- augmentation ------------------------------------------------------------------------------------------------------


def test_images_and_matrices_are_the_published_ones():
    recorded = np.load(toy.GOLDEN / "bev_imageaug.npz")
    noise = np.random.Generator(np.random.PCG64(77)).integers(0, 256, (45, 80, 3)).astype(np.uint8)
    image = Image.fromarray(noise).resize((1600, 900), Image.Resampling.BICUBIC)
    crop = evaluation_crop(image.size, 0.48, (256, 704))
    assert crop == (32, 176, 736, 432)
    result, matrix = transform_image(image, 0.48, crop)
    np.testing.assert_allclose(matrix[:2], [[0.48, 0, 0, -32], [0, 0.48, 0, -176]], atol=1e-6)
    np.testing.assert_array_equal(np.asarray(result)[::16, ::16], recorded["test"])
    result, matrix = transform_image(image, 0.43, (0, 131, 704, 387), True, 3.7)
    np.testing.assert_array_equal(np.asarray(result)[::16, ::16], recorded["train"])
    linear = [[-0.4291037321090698, 0.027748893946409225], [0.027748893946409225, 0.4291037321090698]]
    np.testing.assert_allclose(matrix[:2, :2], linear, atol=1e-6)
    np.testing.assert_allclose(matrix[:2, 3], [686.5524291992188, -153.17550659179688], atol=1e-4)


def test_image_matrix_says_where_a_pixel_went():
    picture = np.zeros((90, 160, 3), np.uint8)
    picture[58:63, 98:103] = 255  # centre (100, 60)
    image, matrix = transform_image(Image.fromarray(picture), 0.8, (10, 8, 118, 72), True, 10.0)
    rows, columns = np.nonzero(np.asarray(image)[..., 0] > 100)
    expected = matrix @ [100.5, 60.5, 0, 1]  # pixel centres lie half a pixel inside
    np.testing.assert_allclose([columns.mean() + 0.5, rows.mean() + 0.5], expected[:2], atol=1.0)
    assert np.array_equal(matrix, image_matrix(0.8, (10, 8, 118, 72), True, 10.0))


def test_lidar_matrix_is_the_published_one():
    matrix = lidar_matrix(1.009762700785465, 0.33801866480092824, (0.4893689920528696, 1.120446599600729, 0.9337789950749837))
    expected = [
        [0.9526238441467285, 0.3348560035228729, 0.0, 0.49414655566215515],
        [-0.3348560035228729, 0.9526238441467285, 0.0, 1.1313852071762085],
        [0.0, 0.0, 1.0097626447677612, 0.9428951740264893],
        [0.0, 0.0, 0.0, 1.0],
    ]
    np.testing.assert_allclose(matrix, expected, atol=1e-6)
    np.testing.assert_allclose(lidar_matrix(mirror_x=True) @ [1, 2, 3, 1], [-1, 2, 3, 1])


def still(dataset, **options):
    quiet = {"scene_scale": (1, 1), "scene_rotate_rad": 0.0, "scene_shift_m": 0.0, "scene_flip": 0.0, "network_size": (32, 64)}
    return BevAugmentation(dataset, **{**quiet, **options})


def test_mirrored_scene_mirrors_map_and_points(dataset):
    sample = dataset[1]
    result = still(dataset, scene_flip=1.0)(sample, np.random.default_rng(0))
    np.testing.assert_array_equal(result["labels"], sample["labels"][:, ::-1, ::-1])
    order = np.lexsort(result["points"].T), np.lexsort((sample["points"] * [-1, -1, 1, 1, 1]).T)
    np.testing.assert_allclose(result["points"][order[0]], (sample["points"] * [-1, -1, 1, 1, 1])[order[1]], atol=1e-5)
    assert np.array_equal(sample["labels"], dataset[1]["labels"])  # the input is as it was


def test_turned_scene_turns_the_map(dataset):
    """A scene turned by a quarter has the map turned by a quarter, but for pixels on outlines."""
    before = dataset[1]["labels"][0]
    after = dataset.draw_labels(1, lidar_matrix(angle_rad=math.pi / 2))[0]  # x' = y, y' = -x
    assert 0.1 < before.mean() < 0.9 and (after != before).mean() > 0.1
    assert (after != before[::-1].T).mean() < 0.02


def test_augmentation_is_a_function_of_its_generator(dataset):
    sample = dataset[1]
    augmentation = BevAugmentation(dataset, network_size=(32, 64), image_scale=(0.8, 1.0))
    first, again, other = (augmentation(sample, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first["points"], again["points"]) and np.array_equal(first["labels"], again["labels"])
    assert not np.array_equal(first["lidar_augmentation"], other["lidar_augmentation"])
    assert first["image_augmentation"].shape == (6, 4, 4) and first["images"][0].size == (64, 32)
    assert not np.array_equal(first["image_augmentation"][0], first["image_augmentation"][1])
