import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from noise2map.data import LsunDataset, SunRgbdDataset, load_samples, open_public_dataset
from noise2map.data.freedoom import SAMPLES_ROOT, class_names
from noise2map.rendering.export import LAYOUTS, export_frames
from noise2map.rendering.export.layouts import NyuLayout
from noise2map.rendering.export.writer import to_16_bits

LIMIT = 3
# Half a unit of each format, in metres.
PRECISION_M = {"kitti": 0.5 / 256, "nyu": 0.5 / 1000, "sun-rgbd": 0.5 / 1000}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    base = tmp_path_factory.mktemp("exports")
    return {name: (base / name, export_frames(name, "samples", base / name, limit=LIMIT)) for name in LAYOUTS if name != "lsun"}


def rendered(report, identity):
    """The frame that was exported under this id."""
    original = report.ids[identity]
    data = load_samples(original.split("-")[1], "both")
    index = next(i for i, record in enumerate(data.records) if record["id"] == original)
    return data[index]


def assert_same_picture(found, expected, lossless):
    difference = np.abs(np.asarray(found).astype(int) - np.asarray(expected).astype(int))
    assert found.size == expected.size and found.mode == "RGB"
    if lossless:
        assert difference.max() == 0
    else:
        assert difference.mean() < 4
        mixed = np.abs(np.asarray(found).astype(int) - np.roll(np.asarray(expected).astype(int), 5, 1)).mean()
        assert difference.mean() < mixed / 3  # the same picture at the same place, not one that is just as grey


@pytest.mark.parametrize("name", ["kitti", "nyu", "sun-rgbd"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_depth_comes_back_to_the_precision_of_the_format(roots, name, split):
    root, report = roots[name]
    data = open_public_dataset(name, root, split, "depth")
    assert len(data) == report.frames[split] == LIMIT
    limit_m = 65535 * 2 * PRECISION_M[name]
    for index in range(LIMIT):
        sample = data[index]
        truth = rendered(report, sample["id"])
        known = truth["valid"] & (truth["depth_m"] < limit_m)
        assert (sample["valid"] == known).all() and known.mean() > 0.5
        assert np.abs(sample["depth_m"] - truth["depth_m"])[known].max() <= PRECISION_M[name] * 1.001
        assert (sample["depth_m"][~known] == 0).all()
        assert_same_picture(sample["image"], truth["image"], name == "kitti")


@pytest.mark.parametrize(("name", "lossless"), [("ade20k", False), ("cityscapes", True)])
@pytest.mark.parametrize("split", ["train", "val"])
def test_classes_come_back_by_name(roots, name, lossless, split):
    root, report = roots[name]
    data = open_public_dataset(name, root, split, "segmentation")
    assert len(data) == report.frames[split] == LIMIT
    assert len(set(report.classes.values())) == 10
    seen = set()
    for index in range(LIMIT):
        sample = data[index]
        truth = rendered(report, sample["id"])
        assert ((sample["labels"] == 255) == (truth["labels"] == 255)).all()
        for label, freedoom_name in class_names().items():
            here = truth["labels"] == label
            names = {data.id2label[value] for value in np.unique(sample["labels"][here])}
            assert names <= {report.classes[freedoom_name]}
            seen |= names
        assert_same_picture(sample["image"], truth["image"], lossless)
    assert len(seen) >= 4


def test_cameras_come_back_where_the_format_has_them(roots):
    for name, split in (("kitti", "test"), ("sun-rgbd", "test"), ("cityscapes", "val")):
        sample = open_public_dataset(name, roots[name][0], split)[0]
        assert sample["intrinsics"] == pytest.approx([80, 96, 80, 60], abs=1e-3)
    focal = open_public_dataset("nyu", roots["nyu"][0], "test")[0]["intrinsics"]
    assert focal == pytest.approx([80, 80, 80, 60])  # its lists hold one focal length


def test_bytes_are_those_of_the_formats(roots):
    root = roots["kitti"][0]
    line = (root / "kitti_eigen_test.txt").read_text().splitlines()[0].split()
    with Image.open(root / "gt_depth" / line[1]) as depth, Image.open(root / "input" / line[0]) as image:
        assert (depth.format, depth.mode, image.format) == ("PNG", "I;16", "PNG")
    root = roots["nyu"][0]
    image, depth, focal = (root / "nyu_train.txt").read_text().splitlines()[0].split()
    assert image.startswith("/") and float(focal) == 80
    with Image.open(root / image[1:]) as picture, Image.open(root / depth[1:]) as units:
        assert picture.format == "JPEG" and units.mode == "I;16"
        stored = np.asarray(units)
        assert stored.max() > 1000
    root = roots["ade20k"][0] / "ADEChallengeData2016"
    with Image.open(root / "annotations" / "validation" / "ADE_val_00000001.png") as ids:
        assert ids.mode == "L" and np.asarray(ids).max() <= 150
    root = roots["cityscapes"][0]
    with Image.open(next(root.glob("gtFine/val/*/*_gtFine_labelIds.png"))) as ids:
        assert set(np.unique(np.asarray(ids))) <= {0, 7, 8, 11, 12, 13, 20, 21, 22, 23, 24}
    with Image.open(next(roots["sun-rgbd"][0].glob("SUNRGBD/xtion/**/depth/*.png"))) as rotated:
        stored = np.asarray(rotated).astype(int)
        millimetres = (stored >> 3) + (stored & 7) * 8192
        assert 500 < np.median(millimetres[stored > 0]) < 30000


def test_sun_rgbd_without_a_list(roots):
    assert len(SunRgbdDataset(roots["sun-rgbd"][0])) == 2 * LIMIT


def test_lsun(tmp_path):
    pytest.importorskip("lmdb")
    report = export_frames("lsun", "samples", tmp_path / "lsun", limit=LIMIT, evaluation="val")
    data = LsunDataset(tmp_path / "lsun", "freedoom", "val")
    assert len(data) == LIMIT
    for index in range(LIMIT):
        sample = data[index]
        assert report.ids[sample["id"]].startswith("freedoom-val-")
        assert_same_picture(sample["image"], rendered(report, sample["id"])["image"], lossless=False)


def test_lsun_grows(tmp_path, monkeypatch):
    pytest.importorskip("lmdb")
    monkeypatch.setattr("noise2map.rendering.export.layouts._SPARE_BYTES", 2**15)
    export_frames("lsun", SAMPLES_ROOT / "val", tmp_path / "lsun", limit=12)
    assert len(LsunDataset(tmp_path / "lsun", split="val")) == 12


def test_report_is_kept(roots):
    root, report = roots["ade20k"]
    stored = json.loads((root / "export.json").read_text())
    assert stored["ids"] == report.ids and stored["layout"] == "ade20k"
    assert (root / "LICENSE.freedoom").is_file()


def test_depth_beyond_the_format_is_unknown_not_wrong():
    stored = to_16_bits(np.array([[0, 1, 65.535, 65.536, 300]], np.float32), 1000)
    assert stored.tolist() == [[0, 1000, 65535, 0, 0]]
    assert to_16_bits(np.array([[256.0]]), 256).tolist() == [[0]]


def test_one_split_alone(tmp_path):
    report = export_frames("nyu", SAMPLES_ROOT / "test", tmp_path / "one", limit=1)
    assert report.frames == {"test": 1}
    assert not (tmp_path / "one" / "nyu_train.txt").exists()
    both = export_frames("nyu", SAMPLES_ROOT, tmp_path / "both", limit=1, evaluation="val")
    assert both.frames == {"train": 1, "test": 1}
    assert any("freedoom-val" in identity for identity in both.ids.values())


def test_targets_that_are_not_empty_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert export_frames("nyu", "samples", tmp_path / "empty", limit=1).frames == {"train": 1, "test": 1}
    with pytest.raises(FileExistsError, match="empty is not empty"):
        export_frames("nyu", "samples", tmp_path / "empty", limit=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        export_frames("nyu", "samples", tmp_path / "file", limit=1)


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(*args):
        raise OSError(28, "No space left on device", "picture")

    write, written = NyuLayout.write, []

    def two_fit(self, *arguments):
        if len(written) == 2:
            monkeypatch.setattr(os, "replace", full_disk)
        written.append(write(self, *arguments))
        return written[-1]

    monkeypatch.setattr(NyuLayout, "write", two_fit)
    with pytest.raises(OSError, match="No space left"):
        export_frames("nyu", "samples", tmp_path / "out", limit=3)
    assert len(written) == 2 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("coco", "samples"), "layout must be one of ade20k, cityscapes, kitti, nyu, sun-rgbd, lsun, got 'coco'"),
        (("nyu", "samples", "train"), "made of 'test' or 'val', got 'train'"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    layout, source, *evaluation = arguments
    with pytest.raises(ValueError, match=message):
        export_frames(layout, source, tmp_path / "out", *evaluation)
    with pytest.raises(ValueError, match="limit is 0"):
        export_frames("nyu", "samples", tmp_path / "out", limit=0)
    with pytest.raises(FileNotFoundError, match=r"holds no rendered split \(train or test\)"):
        export_frames("nyu", Path(tmp_path), tmp_path / "out")
