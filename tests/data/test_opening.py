"""Datasets by name: what they are called, where they lie, which split is meant, and what is said if there is none."""

import json

import numpy as np
import pytest
from PIL import Image

from noise2map.data import PUBLIC_DATASETS, FolderDataset, open_public_dataset
from noise2map.data.center_crop import ImageFolder
from noise2map.data.checking import check_classes, check_dataset, check_lines
from noise2map.data.freedoom import SAMPLES_ROOT, SURROUND_SAMPLES_ROOT
from noise2map.data.nuscenes import MAP_LAYERS
from noise2map.data.opening import DATASETS, dataset_names, evaluation_split, open_dataset
from noise2map.data.transforms.presets import PUBLISHED
from noise2map.rendering.export import LAYOUTS, export_frames


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    base = tmp_path_factory.mktemp("opening")
    for name in LAYOUTS:
        if name == "lsun":
            pytest.importorskip("lmdb")
        export_frames(name, "samples", base / name, limit=2)
    return base


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_every_layout_opens_by_name(exported, name):
    kind = PUBLIC_DATASETS[name]
    data = open_public_dataset(name, exported / name)
    assert len(data) == 2
    sample = data[0]
    assert sample["image"].mode == "RGB" and isinstance(sample["id"], str) and "/" not in sample["id"]
    maps = {("segmentation",): {"labels"}, ("depth",): {"depth_m", "valid"}, (): set()}[kind.tasks]
    assert maps <= sample.keys() and not {"labels", "depth_m"} - maps & sample.keys()
    assert data.palette.shape == (len(data.id2label), 3)
    report = check_dataset(data, kind.title, 0, True, kind.depth_median_m, kind.units_per_metre)
    assert report.complete and report.images == 2
    assert not any("scale" in line for line in check_lines(report, data.id2label))


@pytest.mark.parametrize("name", sorted(set(LAYOUTS) - {"lsun"}))
def test_evaluation_finds_them(exported, name):
    kind = PUBLIC_DATASETS[name]
    (task,) = kind.tasks
    data = open_dataset(name, exported / name, kind.evaluation_split, task)
    assert data.ids == open_public_dataset(name, exported / name).ids == open_dataset(f"{name}:{exported / name}").ids
    other = {"segmentation": "depth", "depth": "segmentation"}[task]
    with pytest.raises(ValueError, match=f"has maps for {task}; it cannot be used for {other}"):
        open_dataset(name, exported / name, kind.evaluation_split, other)
    with pytest.raises(ValueError, match="split"):
        open_dataset(f"{name}/foo:{exported / name}")
    spec = f"{name}/{kind.evaluation_split}:{exported / name}"
    assert open_dataset(spec, task="image").ids == data.ids
    with pytest.raises(ValueError, match="which is given a second time"):
        open_dataset(spec, split="train")
    with pytest.raises(ValueError, match="which is given a second time"):
        open_dataset(spec, exported)
    with pytest.raises(ValueError, match="needs the folder of the data"):
        open_dataset(name)


def test_unknown_names_and_data_without_maps(exported):
    with pytest.raises(
        ValueError, match="dataset must be one of ade20k, cityscapes, kitti, nyu, nyu-labelled, sun-rgbd, lsun, got 'coco'"
    ):
        open_public_dataset("coco", exported)
    with pytest.raises(ValueError, match="LSUN has no maps; it cannot be used for depth"):
        open_public_dataset("lsun", exported / "lsun", task="depth")
    assert "lsun" not in dataset_names("depth") and "lsun" in dataset_names("image")


def test_lines_without_depth_are_reported(exported, tmp_path):
    path = exported / "kitti" / "mine.txt"
    lines = (exported / "kitti" / "kitti_eigen_test.txt").read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1].split()[0] + " None 80.0"]))
    data = open_public_dataset("kitti", exported / "kitti", "mine.txt")
    assert len(data) == 1
    assert "1 more is listed without depth" in check_lines(check_dataset(data, "KITTI"), {})


def test_order_and_content_do_not_depend_on_the_machine(exported):
    for name in ("ade20k", "cityscapes", "sun-rgbd"):
        split = "all" if name == "sun-rgbd" else "train"
        data = open_public_dataset(name, exported / name, split)
        assert data.ids == sorted(data.ids)
        again = open_public_dataset(name, exported / name, split)
        key = "depth_m" if name == "sun-rgbd" else "labels"
        assert np.array_equal(data[1][key], again[1][key])


def pairs(folder, classes=("a", "b"), task="segmentation", count=3, start=0):
    for part in ("images", "maps"):
        (folder / part).mkdir(parents=True)
    for i in range(start, start + count):
        Image.new("RGB", (40, 36), (i, 0, 0)).save(folder / "images" / f"{i:02d}.png")
        ids = np.full((36, 40), i % 2, np.uint8 if task == "segmentation" else np.uint16)
        Image.fromarray(ids).save(folder / "maps" / f"{i:02d}.png")
    if classes:
        (folder / "classes.json").write_text(json.dumps(classes))
    return folder


def test_samples_follow_the_model_in_the_number_of_classes():
    for count in (8, 10):
        names = {i: str(i) for i in range(count)}
        assert len(open_dataset("samples", split="val", id2label=names).id2label) == count
    assert "labels" in open_dataset("samples/val")[0]
    depth = open_dataset("samples", split="val", task="depth")[0]
    assert "depth_m" in depth and "labels" not in depth


def test_sub_folders_are_splits(tmp_path):
    pairs(tmp_path / "train", count=5)
    pairs(tmp_path / "test", count=2, start=7)
    by_split = open_dataset("folder", tmp_path, split="test")
    direct = open_dataset("folder", tmp_path / "test", split="test")
    assert direct.ids == by_split.ids == open_dataset(f"folder:{tmp_path}").ids == ["07", "08"]
    assert by_split.id2label == {0: "a", 1: "b"}
    assert len(open_dataset(f"folder/train:{tmp_path}")) == 5
    for split in ("val", "foo", "all"):
        with pytest.raises(ValueError, match=rf"has no split '{split}'; it has test, train"):
            open_dataset(f"folder/{split}:{tmp_path}")


def test_an_undivided_folder_is_parted_as_training_parts_it(tmp_path):
    pairs(tmp_path, count=18)
    everything = open_dataset("folder", tmp_path)
    train, val = (open_dataset(f"folder/{split}:{tmp_path}") for split in ("train", "val"))
    assert [val[i]["id"] for i in range(len(val))] == ["00", "08", "16"]
    assert {train[i]["id"] for i in range(len(train))} | {"00", "08", "16"} == set(everything.ids)
    assert len(train) == 15 and val.id2label == {0: "a", 1: "b"} and val.palette.shape == (2, 3)
    thirds = open_dataset(f"folder/val:{tmp_path}", hold_out_every=3)
    assert [thirds[i]["id"] for i in range(len(thirds))] == ["00", "03", "06", "09", "12", "15"]
    for split in ("test", "foo"):
        with pytest.raises(ValueError, match=rf"has no split '{split}'; it has train, val \(every eighth pair\) and all"):
            open_dataset("folder", tmp_path, split)


@pytest.mark.parametrize(("folders", "expected"), [((), "all"), (("train", "val"), "val"), (("train", "val", "test"), "test")])
def test_the_folder_decides_which_of_its_splits_is_evaluated(tmp_path, folders, expected):
    for name in folders:
        (tmp_path / name / "images").mkdir(parents=True)
    assert evaluation_split("folder", tmp_path) == expected
    assert (evaluation_split("ade20k"), evaluation_split("kitti"), evaluation_split("nuscenes")) == ("val", "test", "val")


def test_a_folder_without_names_takes_the_models(tmp_path):
    pairs(tmp_path, classes=None)
    assert open_dataset("folder", tmp_path, id2label={0: "x", 1: "y"}).id2label == {0: "x", 1: "y"}
    with pytest.raises(ValueError, match="classes are not known"):
        open_dataset("folder", tmp_path)
    assert open_dataset("folder", tmp_path, missing="drop").id2label == {0: "class 0", 1: "class 1"}


def test_depth_scale_reaches_the_folder(tmp_path):
    pairs(tmp_path, classes=None, task="depth")
    sample = open_dataset("folder", tmp_path, task="depth", depth_scale=0.5)[1]
    assert sample["depth_m"].max() == pytest.approx(0.5)
    alone = open_dataset("depth-maps", tmp_path / "maps", depth_scale=0.5)[1]
    assert (alone["depth_m"] == sample["depth_m"]).all()
    with pytest.raises(ValueError, match="depth maps alone has no images; it cannot be used for images"):
        open_dataset("depth-maps", tmp_path / "maps", task="image")


def test_a_path_is_told_by_what_lies_in_it(tmp_path):
    pairs(tmp_path / "own" / "val")
    assert isinstance(open_dataset(tmp_path / "own"), FolderDataset)
    plain = open_dataset(str(tmp_path / "own" / "val" / "images"))
    assert isinstance(plain, ImageFolder) and len(plain) == 3
    frames = open_dataset(SAMPLES_ROOT / "val", task="image")
    assert frames.split == "val" and frames[0].keys() == {"image", "intrinsics", "id", "location"}
    assert open_dataset("images", tmp_path / "own" / "val" / "images").paths == plain.paths


def test_birds_eye_view_sets_are_opened_like_the_others():
    data = open_dataset(f"freedoom-surround:{SURROUND_SAMPLES_ROOT}", task="bev", sensors=("camera",), sweeps=0, with_labels=False)
    assert len(data) and data.sensors == ("camera",) and data.id2label == DATASETS["freedoom-surround"].classes
    with pytest.raises(ValueError, match="nuScenes has bird's-eye-view maps; it cannot be used for depth"):
        open_dataset("nuscenes:/data", task="depth")
    with pytest.raises(ValueError, match="dataset must be one of nuscenes, freedoom-surround, got 'kitty'"):
        open_dataset("kitty", "/data", task="bev")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_dataset("nuscenes:/nowhere")


def test_bad_names_and_roots_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"freedoom, samples, folder, images, depth-maps, ade20k, .*, got 'ade'"):
        open_dataset("ade", tmp_path)
    with pytest.raises(ValueError, match="needs the folder"):
        open_dataset("freedoom")
    with pytest.raises(ValueError, match="takes no root"):
        open_dataset("samples", tmp_path)
    for name in ("freedoom", "folder", "images", "ade20k", "kitti"):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            open_dataset(name, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="split"):
        open_dataset("samples", split="validation")
    with pytest.raises(FileNotFoundError, match=r"dataset must be one of freedoom, .*, or a folder; there is no folder .*nowhere"):
        open_dataset(str(tmp_path / "nowhere"), task="depth")


def test_a_freedoom_folder_of_another_split_is_refused(tmp_path):
    assert len(open_dataset("freedoom", SAMPLES_ROOT, split="val")) > 0
    assert open_dataset("freedoom", SAMPLES_ROOT).split == "test"
    with pytest.raises(ValueError, match="holds the split 'val', not 'test'"):
        open_dataset("freedoom", SAMPLES_ROOT / "val", split="test")


@pytest.mark.parametrize(
    ("root", "split", "command"),
    [
        ("rooms", None, "--split test --out {rooms}/test"),
        ("rooms", "val", "--split val --out {rooms}/val"),
        ("rooms/test", None, "--split test --out {rooms}/test"),
        ("rooms/test", "test", "--split test --out {rooms}/test"),
    ],
)
def test_the_command_that_makes_a_freedoom_split_is_named(tmp_path, root, split, command):
    rooms = tmp_path / "rooms"
    rooms.mkdir()
    (rooms / "train").symlink_to(SAMPLES_ROOT / "train")
    with pytest.raises(FileNotFoundError) as raised:
        open_dataset("freedoom", tmp_path / root, split)
    text = str(raised.value)
    assert f"noise2map data freedoom {command.format(rooms=rooms)})" in text
    assert ("; it holds train" in text) == (root == "rooms")


def test_the_table_agrees_with_what_is_opened(exported):
    assert DATASETS["freedoom"].classes == open_dataset("samples").id2label
    assert DATASETS["nuscenes"].classes == dict(enumerate(MAP_LAYERS))
    for name in ("ade20k", "cityscapes"):
        assert DATASETS[name].classes == open_dataset(name, exported / name).id2label
    assert {facts.augmentation for facts in DATASETS.values()} - {None} == set(PUBLISHED)
    for facts in PUBLIC_DATASETS.values():
        assert facts.evaluation_split in facts.splits and set(facts.released) <= set(facts.splits)


def test_classes_are_compared():
    data = open_dataset("samples", split="val", id2label={i: str(i) for i in range(8)})
    assert check_classes(data, data.id2label, "m") is None
    renamed = data.id2label | {3: "heaven"}
    assert "class 3 is 'heaven' in the model and 'sky' in the data (1 differ)" in check_classes(data, renamed, "m")
    with pytest.raises(ValueError, match=r"'m' knows 2 classes .* data has 8"):
        check_classes(data, {0: "a", 1: "b"}, "m")
