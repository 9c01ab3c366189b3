import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from noise2map.data import FolderDataset, FreedoomDataset
from noise2map.data.freedoom import SAMPLES_ROOT, SPLITS, brighten, class_names, class_palette, load_samples, merge_classes
from noise2map.data.freedoom.shipped import LARGE, export_samples
from noise2map.rendering.frames import depth_to_centimetres


def test_no_map_is_in_two_splits():
    maps = [name for names in SPLITS.values() for name in names]
    assert len(maps) == len(set(maps)) == 68
    assert [len(names) for names in SPLITS.values()] == [50, 9, 9]


def test_eight_classes_are_the_ten_with_two_merged():
    ten, eight = class_names(10), class_names(8)
    merged = merge_classes(np.array([[*range(10), 255, 77]], np.uint8))[0]
    renamed = {"step": "wall", "item": "decor"}
    for index, name in ten.items():
        assert eight[merged[index]] == renamed.get(name, name)
        assert (class_palette(8)[merged[index]] == class_palette(10)[index]).all() or name in renamed
    assert merged[10] == merged[11] == 255
    assert len(np.unique(class_palette(10), axis=0)) == 10
    with pytest.raises(ValueError, match="classes must be 10"):
        class_names(9)


def test_brighten_is_a_fixed_curve():
    ramp = np.arange(256, dtype=np.uint8)[None].repeat(3, 0).T[None]  # (1, 256, 3)
    bright = np.asarray(brighten(Image.fromarray(ramp.copy()), 1.8))[0, :, 0].astype(int)
    assert np.abs(bright - 255 * (np.arange(256) / 255) ** (1 / 1.8)).max() <= 0.5
    assert (bright[0], bright[255]) == (0, 255)
    picture = Image.new("RGB", (2, 2), (7, 8, 9))
    assert brighten(picture, 1.0) is picture
    assert picture.getpixel((0, 0)) == (7, 8, 9)
    for gain in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="gain must be a positive number"):
            brighten(picture, gain)


@pytest.mark.parametrize(
    ("split", "count", "size"),
    [("train", 60, (160, 120)), ("val", 30, (160, 120)), ("test", 60, (160, 120)), (LARGE, 12, (320, 240))],
)
def test_shipped_samples(split, count, size):
    data = load_samples(split, "both")
    assert len(data) == count
    ids, classes = set(), np.zeros(256, int)
    for index in range(count):
        sample, record = data[index], data.records[index]
        assert record["map"] in SPLITS[data.split]
        assert not record["gore"]
        assert sample["image"].mode == "RGB" and sample["image"].size == size
        assert sample["labels"].shape == sample["depth_m"].shape == sample["valid"].shape == size[::-1]
        assert (sample["labels"].dtype, sample["depth_m"].dtype, sample["valid"].dtype) == (np.uint8, np.float32, np.bool_)
        assert set(np.unique(sample["labels"])) <= {*range(10), 255}
        assert (sample["valid"] == (sample["depth_m"] > 0)).all()
        assert not sample["valid"][(sample["labels"] == 3) | (sample["labels"] == 255)].any()
        assert sample["depth_m"][sample["valid"]].min() > 0.02 and sample["depth_m"].max() < 400
        assert np.allclose(sample["intrinsics"], [size[1] * 2 / 3, size[1] * 0.8, size[0] / 2, size[1] / 2])
        ids.add(sample["id"])
        classes += np.bincount(sample["labels"].reshape(-1), minlength=256) > 0
    assert len(ids) == count
    assert all(identity.startswith(f"freedoom-{data.split}-") for identity in ids)
    assert (classes[:10] >= 5).all()  # every class is in several frames
    assert len({record["map"] for record in data.records}) >= min(8, count // 2)


def test_floor_depth_follows_from_the_camera_height():
    # on the floor that the camera stands on, depth is 41 / 32 m * fy / (row - horizon)
    shares = []
    data = load_samples("test", "both")
    for index in range(len(data)):
        sample = data[index]
        rows = np.arange(110, 120)
        expected = 41 / 32 * 96 / (rows + 0.5 - 60)
        near = sample["depth_m"][110:120]
        standing = (sample["labels"][110:120] == 0) & sample["valid"][110:120]
        if standing.any():
            shares.append((np.abs(near - expected[:, None]) < 0.011)[standing].mean())
    assert len(shares) > 40
    assert np.median(shares) == 1.0


def test_tasks_classes_and_limit():
    assert {"labels"} == {"labels", "depth_m", "valid"} & set(load_samples("val")[0])
    assert {"depth_m", "valid"} == {"labels", "depth_m", "valid"} & set(load_samples("val", "depth")[0])
    eight = load_samples("val", classes=8, limit=5)
    assert len(eight) == 5 and len(eight.id2label) == len(eight.palette) == 8
    assert (eight[3]["labels"] == merge_classes(load_samples("val")[3]["labels"])).all()
    raw = np.asarray(load_samples("val", gain=1)[0]["image"]).mean()
    assert raw < 0.7 * np.asarray(load_samples("val")[0]["image"]).mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "bev"}, "task is 'bev'"),
        ({"classes": 7}, "classes must be 10"),
        ({"gain": 0}, "gain must be"),
        ({"limit": 0}, "limit is 0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        load_samples("test", **options)
    with pytest.raises(ValueError, match="split is 'tset'; expected one of train, val, test"):
        load_samples("tset")


def test_a_folder_that_is_no_split_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no dataset\.json \(make one with: noise2map data freedoom"):
        FreedoomDataset(tmp_path)
    shutil.copytree(SAMPLES_ROOT / "val", tmp_path / "val")
    (tmp_path / "val" / "metadata.jsonl").write_text('{"index": 1}\nnonsense\n')
    with pytest.raises(ValueError, match=r"metadata\.jsonl, line 2 is not a frame's record"):
        FreedoomDataset(tmp_path / "val")
    (tmp_path / "val" / "metadata.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no finished frame"):
        FreedoomDataset(tmp_path / "val")
    description = json.loads((tmp_path / "val" / "dataset.json").read_text())
    (tmp_path / "val" / "dataset.json").write_text(json.dumps({**description, "format": 99}))
    with pytest.raises(ValueError, match="has format 99, this version reads format 1"):
        FreedoomDataset(tmp_path / "val")
    (tmp_path / "val" / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        FreedoomDataset(tmp_path / "val")


def test_exported_samples_are_a_folder_data_set(tmp_path):
    assert export_samples(tmp_path, "val") == 30
    here, there = FolderDataset(tmp_path), load_samples("val", "both")
    depth = FolderDataset(tmp_path, "depth", depth_scale=0.01, maps="depth")
    assert here.id2label == there.id2label
    for index in (0, 29):
        assert here[index]["id"] == there[index]["id"]
        assert (np.asarray(here[index]["image"]) == np.asarray(there[index]["image"])).all()
        assert (here[index]["labels"] == there[index]["labels"]).all()
        assert np.allclose(depth[index]["depth_m"], there[index]["depth_m"])
    licence = (tmp_path / "LICENSE.freedoom").read_text()
    assert "Contributors to the Freedoom project" in licence
    assert "AS\nIS" in licence


def test_samples_stay_small_and_licensed():
    files = [path for path in SAMPLES_ROOT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4.3e6
    assert (SAMPLES_ROOT / "LICENSE.freedoom").read_text().count("Freedoom project") >= 2


def test_depth_on_disk_is_centimetres():
    depth = np.array([[0.5, 12.344, np.inf], [1000.0, 3.0, 2.0]], np.float32)
    known = np.array([[True, True, True], [True, False, True]])
    assert depth_to_centimetres(depth, known).tolist() == [[50, 1234, 0], [65535, 0, 200]]


def test_reading_frames_needs_neither_torch_nor_vizdoom():
    code = (
        "import sys; sys.modules['vizdoom'] = None; from noise2map.data.freedoom import load_samples\n"
        "assert len(load_samples('test')) == 60 and 'torch' not in sys.modules\n"
        "from noise2map.rendering.frames import RenderOptions, render\n"
        "try: render(RenderOptions(out=None))\n"
        "except ImportError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "noise2map[render]"' in result.stdout


def test_copies_of_the_shipped_frames_are_not_mixed_with_foreign_files(tmp_path, capsys):
    from noise2map.cli import main

    def run(*words):
        with pytest.raises(SystemExit) as stop:
            main(["data", "samples", *map(str, words)])
        return stop.value.code or 0, capsys.readouterr()

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "classes.json").write_text("my own")
    code, said = run("--out", mine, "--split", "val")
    assert code == 2 and str(mine) in said.err and "--overwrite" in said.err
    assert (mine / "classes.json").read_text() == "my own" and len(list(mine.iterdir())) == 1
    assert run("--out", tmp_path / "new", "--split", "val")[0] == 0
    assert run("--out", tmp_path / "new", "--split", "val")[0] == 0  # the same again
    code, said = run("--out", tmp_path / "new", "--split", "test")
    assert code == 2 and "'val' -> 'test'" in said.err and len(list((tmp_path / "new" / "images").iterdir())) == 30
    assert run("--out", mine, "--split", "val", "--overwrite")[0] == 0
    assert json.loads((mine / "classes.json").read_text())["0"] == "floor"
    assert FolderDataset(mine)[0]["labels"].shape == (120, 160)
