import json

import numpy as np
import pytest
from PIL import Image

from noise2map.data import FolderDataset, open_dataset
from noise2map.data.folder import distinct_colors

NAMES = {0: "floor", 1: "wall", 2: "sky"}


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("images", "maps", "depth"):
        (tmp_path / part).mkdir()
    for name, (width, height) in (("b", (8, 6)), ("a", (5, 7))):
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{name}.jpg")
        Image.fromarray(rng.choice([0, 1, 2, 255], (height, width)).astype(np.uint8)).save(tmp_path / "maps" / f"{name}.png")
        Image.fromarray(rng.integers(0, 5000, (height, width)).astype(np.uint16)).save(tmp_path / "depth" / f"{name}.png")
    return tmp_path


def test_segmentation_pairs(root):
    (root / "classes.json").write_text(json.dumps(["floor", "wall", "sky"]))
    data = FolderDataset(root)
    assert (len(data), data.ids, data.id2label) == (2, ["a", "b"], NAMES)
    sample = data[1]
    assert sample["id"] == "b"
    assert (sample["image"].mode, sample["image"].size) == ("RGB", (8, 6))
    assert (sample["labels"] == np.asarray(Image.open(root / "maps" / "b.png"))).all()
    assert sample["labels"].dtype == np.uint8
    assert "intrinsics" not in sample
    assert data.palette.shape == (3, 3)
    data.check()


def test_depth_pairs_are_in_metres_and_know_their_holes(root):
    data = FolderDataset(root, "depth", depth_scale=0.01, maps="depth", intrinsics=(10, 11, 4, 3))
    sample = data[0]
    stored = np.asarray(Image.open(root / "depth" / "a.png"))
    assert np.allclose(sample["depth_m"], stored / 100)
    assert (sample["valid"] == (stored > 0)).all()
    assert sample["intrinsics"].tolist() == [10, 11, 4, 3]
    assert data.id2label == {}


def test_missing_partners_are_named(root):
    Image.new("RGB", (4, 4)).save(root / "images" / "c.png")
    with pytest.raises(ValueError, match=r"one file in .*images has no partner in .*maps: c\.png"):
        FolderDataset(root, id2label=NAMES)
    (root / "images" / "c.png").unlink()
    for index in range(7):
        Image.new("L", (4, 4)).save(root / "maps" / f"extra{index}.png")
    with pytest.raises(ValueError, match=r"7 files in .*maps have no partner .*extra4\.png and 2 more"):
        FolderDataset(root, id2label=NAMES)


def test_wrong_sizes_are_named(root):
    Image.new("L", (8, 5)).save(root / "maps" / "b.png")
    with pytest.raises(ValueError, match=r"b\.jpg is 8x6 and its map .*b\.png is 8x5"):
        FolderDataset(root, id2label=NAMES)


def test_unknown_ids_are_named(root):
    Image.fromarray(np.array([[0, 7, 9, 255] * 2] * 6, np.uint8)).save(root / "maps" / "b.png")
    data = FolderDataset(root, id2label=NAMES)
    data[0]
    with pytest.raises(ValueError, match=r"b\.png has unknown class ids 7, 9; known are 0 to 2, and 255"):
        data[1]
    with pytest.raises(ValueError, match="unknown class ids"):
        data.check()


def test_broken_files_are_named(root):
    data = (root / "images" / "a.jpg").read_bytes()
    (root / "images" / "a.jpg").write_bytes(data[:-20])
    folder = FolderDataset(root, id2label=NAMES)
    with pytest.raises(OSError, match=r"cannot read image .*a\.jpg"):
        folder.check()
    (root / "maps" / "a.png").write_bytes(b"")
    with pytest.raises(OSError, match=r"cannot read image .*a\.png"):
        FolderDataset(root, id2label=NAMES)


def test_two_images_of_one_name_are_refused(root):
    Image.new("RGB", (8, 6)).save(root / "images" / "b.png")
    with pytest.raises(ValueError, match=r"b\.jpg and .*b\.png have the same name"):
        FolderDataset(root, id2label=NAMES)


def test_folders_missing_or_empty(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*labels"):
        FolderDataset(root, id2label=NAMES, maps="labels")
    (root / "none").mkdir()
    with pytest.raises(ValueError, match="none holds no image"):
        FolderDataset(root, id2label=NAMES, images="none")


@pytest.mark.parametrize("text", ['{"a": "floor"}', '{"1": "floor"}', "[]", "7", "{", '{"0": "a", "2": "b"}'])
def test_class_files_that_make_no_sense(root, text):
    (root / "classes.json").write_text(text)
    with pytest.raises(ValueError, match=r"classes\.json must hold|class ids must be 0 to K - 1"):
        FolderDataset(root)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "pose"}, "task is 'pose'"),
        ({"depth_scale": 0.0}, "depth_scale is 0.0"),
        ({"depth_scale": float("nan")}, "depth_scale is nan"),
        ({"intrinsics": (1, 2, 3)}, r"intrinsics is \(1, 2, 3\)"),
        ({"id2label": {0: "a", 5: "b"}}, "class ids must be 0 to K - 1"),
        ({}, "the classes are not known: write .*classes"),
    ],
)
def test_bad_arguments(root, options, message):
    with pytest.raises(ValueError, match=message):
        FolderDataset(root, **options)


def test_colors_are_distinct():
    colors = distinct_colors(150)
    assert len(np.unique(colors, axis=0)) == 150
    near = np.abs(colors[:20, None].astype(int) - colors[None, :20]).sum(-1) + 999 * np.eye(20)
    assert near.min() > 25
    assert distinct_colors(0).shape == (0, 3)


@pytest.mark.parametrize("spelt", ["absolute", "relative"])
def test_a_folder_of_one_split_is_not_parted_into_others(tmp_path, monkeypatch, spelt):
    """Held-out pairs of a folder called train were trained on."""
    folder = tmp_path / "train"
    for part in ("images", "maps"):
        (folder / part).mkdir(parents=True)
        for index in range(16):
            Image.new("L", (8, 6), 1).save(folder / part / f"{index:02d}.png")
    monkeypatch.chdir(folder)
    root = folder if spelt == "absolute" else "."
    names = {"id2label": {0: "a", 1: "b"}}
    assert len(open_dataset("folder", root, "train", **names)) == len(open_dataset("folder", root, "all", **names)) == 16
    with pytest.raises(
        ValueError, match="is a folder of the split 'train' and is not parted; expected 'train' or 'all', got 'val'"
    ):
        open_dataset("folder", root, "val", **names)
    folder.rename(tmp_path / "mine")
    assert [len(open_dataset("folder", tmp_path / "mine", split, **names)) for split in ("train", "val")] == [14, 2]
