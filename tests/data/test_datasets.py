"""Data sets by name, and the evenly spread subset."""

import json

import numpy as np
import pytest
from PIL import Image

from noise2map.data.opening import check_classes, open_dataset


def _folder(root, split="", classes=("a", "b"), task="segmentation"):
    folder = root / split
    for part in ("images", "maps"):
        (folder / part).mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (40, 36), (i, 0, 0)).save(folder / "images" / f"{i}.png")
        ids = np.full((36, 40), i % 2, np.uint8 if task == "segmentation" else np.uint16)
        Image.fromarray(ids).save(folder / "maps" / f"{i}.png")
    if classes:
        (folder / "classes.json").write_text(json.dumps(classes))
    return folder


def test_samples_follow_the_model_in_the_number_of_classes():
    for count in (8, 10):
        names = {i: str(i) for i in range(count)}
        assert len(open_dataset("samples", split="val", id2label=names).id2label) == count
    assert "labels" in open_dataset("samples", split="val")[0]
    depth = open_dataset("samples", split="val", task="depth")[0]
    assert "depth_m" in depth and "labels" not in depth


def test_a_folder_is_taken_with_or_without_its_split(tmp_path):
    _folder(tmp_path, "test")
    direct = open_dataset("folder", tmp_path / "test", split="test")
    by_split = open_dataset("folder", tmp_path, split="test")
    assert len(direct) == len(by_split) == 3
    assert by_split.id2label == {0: "a", 1: "b"}


def test_a_folder_without_names_takes_the_models(tmp_path):
    _folder(tmp_path, classes=None)
    assert open_dataset("folder", tmp_path, id2label={0: "x", 1: "y"}).id2label == {0: "x", 1: "y"}
    with pytest.raises(ValueError, match="classes are not known"):
        open_dataset("folder", tmp_path)


def test_depth_scale_reaches_the_folder(tmp_path):
    _folder(tmp_path, classes=None, task="depth")
    sample = open_dataset("folder", tmp_path, task="depth", depth_scale=0.5)[1]
    assert sample["depth_m"].max() == pytest.approx(0.5)


def test_bad_names_and_roots_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"freedoom, samples, folder, ade20k, .*, got 'ade'"):
        open_dataset("ade", tmp_path)
    with pytest.raises(ValueError, match="needs the folder"):
        open_dataset("freedoom")
    with pytest.raises(ValueError, match="takes no root"):
        open_dataset("samples", tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_dataset("freedoom", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="split"):
        open_dataset("samples", split="validation")


def test_a_freedoom_folder_of_another_split_is_refused():
    from noise2map.data.freedoom import SAMPLES_ROOT

    assert len(open_dataset("freedoom", SAMPLES_ROOT, split="val")) > 0
    with pytest.raises(ValueError, match="holds the split 'val', not 'test'"):
        open_dataset("freedoom", SAMPLES_ROOT / "val", split="test")


def test_classes_are_compared():
    data = open_dataset("samples", split="val", id2label={i: str(i) for i in range(8)})
    assert check_classes(data, data.id2label, "m") is None
    renamed = data.id2label | {3: "heaven"}
    assert "class 3 is 'heaven' in the model and 'sky' in the data (1 differ)" in check_classes(data, renamed, "m")
    with pytest.raises(ValueError, match=r"'m' knows 2 classes .* data has 8"):
        check_classes(data, {0: "a", 1: "b"}, "m")
