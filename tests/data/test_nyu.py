import pickle

import numpy as np
import pytest
from picture_files import save_image, save_map

from noise2map.data import NyuDataset, NyuLabelledDataset

h5py = pytest.importorskip("h5py")


@pytest.fixture
def root(tmp_path):
    for scene, number, size in (("kitchen_0028b", "00045", (8, 6)), ("bathroom", "00001", (640, 480))):
        save_image(tmp_path / scene / f"rgb_{number}.jpg", *size)
        stored = np.zeros(size[::-1], np.uint16)
        stored[1, :4] = 1, 1000, 9999, 65535
        save_map(tmp_path / scene / f"sync_depth_{number}.png", stored)
    lines = [
        "/kitchen_0028b/rgb_00045.jpg /kitchen_0028b/sync_depth_00045.png 518.8579",
        "bathroom/rgb_00001.jpg bathroom/sync_depth_00001.png 518.8579",
    ]
    (tmp_path / "nyu_test.txt").write_text("\n".join(lines))
    return tmp_path


def test_millimetres_and_lists_with_and_without_slash(root):
    data = NyuDataset(root)
    assert data.ids == ["kitchen_0028b-00045", "bathroom-00001"]
    sample = data[0]
    assert sample["depth_m"][1, :4] == pytest.approx([0.001, 1, 9.999, 65.535])
    assert sample["valid"].sum() == 4
    assert data.id2label == {}


def test_intrinsics_of_the_kinect_at_its_own_size_only(root):
    data = NyuDataset(root)
    assert data[1]["intrinsics"] == pytest.approx([518.8579, 519.4696, 325.0824, 253.2362], abs=1e-3)
    assert data[0]["intrinsics"] == pytest.approx([518.8579, 518.8579, 4, 3])
    (root / "mine.txt").write_text("bathroom/rgb_00001.jpg bathroom/sync_depth_00001.png 400\n")
    assert NyuDataset(root, "mine.txt")[0]["intrinsics"] == pytest.approx([400, 400, 320, 240])


def test_all_pairs_and_missing_lists(root):
    save_image(root / "bathroom" / "rgb_00002.jpg")  # without depth
    assert NyuDataset(root, "all").ids == ["bathroom-00001", "kitchen_0028b-00045"]
    with pytest.raises(FileNotFoundError, match=r"NYU-Depth V2 needs the list .*nyu_train\.txt"):
        NyuDataset(root, "train")
    with pytest.raises(FileNotFoundError, match=r"NYU-Depth V2 needs SCENE/rgb_NUMBER\.jpg"):
        NyuDataset(root / "none")


def write_labelled(path, pictures=5, width=8, height=6):
    """The MATLAB file as h5py sees it, from arrays in their natural order."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (pictures, height, width, 3), dtype=np.uint8)
    depths = rng.uniform(0.7, 9.9, (pictures, height, width)).astype(np.float32)
    raw = np.where(rng.random(depths.shape) < 0.3, 0, depths).astype(np.float32)
    with h5py.File(path, "w", userblock_size=512) as file:  # MATLAB files start with a block of their own
        file["images"] = images.transpose(0, 3, 2, 1)
        file["depths"] = depths.transpose(0, 2, 1)
        file["rawDepths"] = raw.transpose(0, 2, 1)
        file["labels"] = np.broadcast_to(np.arange(width, dtype=np.uint16)[:, None] % 4, (pictures, width, height))
        names = file.create_dataset("names", (1, 3), dtype=h5py.ref_dtype)  # MATLAB's cell array
        for place, name in enumerate(("book", "bottle", "cabinet door")):
            file[f"#refs#/{place}"] = np.array([[ord(letter)] for letter in name], np.uint16)
            names[0, place] = file[f"#refs#/{place}"].ref
    return images, depths, raw


def test_labelled_file_is_turned_upright(tmp_path):
    images, depths, raw = write_labelled(tmp_path / "nyu_depth_v2_labeled.mat")
    data = NyuLabelledDataset(tmp_path, "all")
    assert len(data) == 5
    sample = data[3]
    assert sample["id"] == "nyu-0004"
    assert (np.asarray(sample["image"]) == images[3]).all()
    assert (sample["depth_m"] == depths[3]).all() and sample["valid"].all()
    holes = NyuLabelledDataset(tmp_path / "nyu_depth_v2_labeled.mat", "all", depth="raw")[3]
    assert (holes["depth_m"] == raw[3]).all() and (holes["valid"] == (raw[3] > 0)).all()


def test_objects_of_the_labelled_file_have_numbers_and_names(tmp_path):
    write_labelled(tmp_path / "nyu_depth_v2_labeled.mat")
    data = NyuLabelledDataset(tmp_path, "all", objects=True)
    assert data.object_names == {1: "book", 2: "bottle", 3: "cabinet door"}
    objects = pickle.loads(pickle.dumps(data))[1]["object_labels"]
    height, width = data[1]["depth_m"].shape
    assert objects.shape == (height, width) and objects.dtype == np.int32
    assert (objects == np.arange(width) % 4).all()
    assert "object_labels" not in NyuLabelledDataset(tmp_path, "all")[1]


def test_objects_that_make_no_sense_are_named(tmp_path):
    for name in ("unknown", "untold"):
        write_labelled(tmp_path / f"{name}.mat")
    with h5py.File(tmp_path / "unknown.mat", "a") as file:
        file["labels"][1, 0, 0] = 9
    with pytest.raises(ValueError, match=r"image 2 of .* has label 9; the file names 3 objects"):
        NyuLabelledDataset(tmp_path / "unknown.mat", "all", objects=True)[1]
    with h5py.File(tmp_path / "untold.mat", "a") as file:
        del file["names"]
        file["names"] = np.zeros((1, 3))
    with pytest.raises(ValueError, match="'names' is not a cell array of texts"):
        NyuLabelledDataset(tmp_path / "untold.mat", "all", objects=True)


def test_labelled_file_survives_pickling(tmp_path):
    _, depths, _ = write_labelled(tmp_path / "nyu_depth_v2_labeled.mat")
    data = NyuLabelledDataset(tmp_path, "all")
    assert (pickle.loads(pickle.dumps(data))[2]["depth_m"] == depths[2]).all()


def test_official_split(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    _, depths, _ = write_labelled(tmp_path / "nyu_depth_v2_labeled.mat")
    splits = {"trainNdxs": np.array([[3], [4], [5]], np.uint16), "testNdxs": np.array([[2], [1]], np.uint16)}
    scipy_io.savemat(tmp_path / "splits.mat", splits)
    train, test = NyuLabelledDataset(tmp_path, "train"), NyuLabelledDataset(tmp_path, "test")
    assert (train.numbers.tolist(), test.numbers.tolist()) == ([3, 4, 5], [1, 2])
    assert (train[0]["depth_m"] == depths[2]).all()
    scipy_io.savemat(tmp_path / "splits.mat", {"trainNdxs": np.array([[9]]), "testNdxs": np.array([[1]])})
    with pytest.raises(ValueError, match="must hold trainNdxs, numbers from 1 to 5"):
        NyuLabelledDataset(tmp_path, "train")
    (tmp_path / "splits.mat").write_bytes(b"text")
    with pytest.raises(ValueError, match="is not a MATLAB file"):
        NyuLabelledDataset(tmp_path, "train")


def test_labelled_file_that_is_not_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected nyu_depth_v2_labeled\.mat"):
        NyuLabelledDataset(tmp_path)
    path = tmp_path / "nyu_depth_v2_labeled.mat"
    path.write_bytes(b"no")
    with pytest.raises(ValueError, match=r"is not a MATLAB 7\.3"):
        NyuLabelledDataset(path, "all")
    with h5py.File(path, "w") as file:
        file["images"] = np.zeros((5, 3, 8, 6), np.uint8)
    with pytest.raises(ValueError, match=r"must hold 'depths' with 3 dimensions, found only images"):
        NyuLabelledDataset(path, "all")
    with h5py.File(path, "a") as file:
        file["depths"] = np.zeros((5, 6, 8), np.float32)
    with pytest.raises(ValueError, match="do not fit"):
        NyuLabelledDataset(path, "all")
    write_labelled(path)
    with pytest.raises(FileNotFoundError, match=r"there is no .*splits\.mat: the official train and test numbers"):
        NyuLabelledDataset(path, "test")
    with pytest.raises(ValueError, match="no split 'val'"):
        NyuLabelledDataset(path, "val")
    with pytest.raises(ValueError, match="depth is 'dense'"):
        NyuLabelledDataset(path, "all", depth="dense")
