"""Splits of a folder by what models were trained on."""

import numpy as np
import pytest
from PIL import Image

from noise2map.evaluation.seen import open_folder_part
from noise2map.runs.data_split import DataSplit, file_checksum

NAMES = {0: "a", 1: "b"}


def pairs(root, count):
    for kind in ("images", "maps"):
        (root / kind).mkdir(parents=True)
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{index}.png")
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / "maps" / f"{index}.png")
    return [file_checksum(root / "images" / f"{index}.png") for index in range(count)]


def opened(root, split, records):
    part = open_folder_part(root, split, "segmentation", records, NAMES)
    return part.split, part.dataset.ids, part.trained_on


def test_an_undivided_folder_has_the_splits_of_the_model(tmp_path):
    marks = pairs(tmp_path / "own", 6)
    record = DataSplit(train=dict(zip("abcd", marks)), val={"e": marks[4]})  # the sixth came later
    assert opened(tmp_path / "own", None, [record]) == ("val", ["4"], 0)
    assert opened(tmp_path / "own", "train", [None, record]) == ("train", ["0", "1", "2", "3"], 4)
    assert opened(tmp_path / "own", "all", [record]) == ("all", list("012345"), 4)
    with pytest.raises(ValueError, match="must be one of all, train, val, got 'test'"):
        opened(tmp_path / "own", "test", [record])


def test_without_a_record_there_is_the_whole(tmp_path):
    pairs(tmp_path / "own", 3)
    assert opened(tmp_path / "own", None, []) == ("all", list("012"), None)
    assert opened(tmp_path / "own", None, [DataSplit(train={"x": "1"}, val={"y": "2"})]) == ("all", list("012"), 0)
    for records in ([], [DataSplit(train={"x": "1"}, val={"y": "2"})]):
        with pytest.raises(ValueError, match="one of all, got 'val'; the model has no record of being trained on it"):
            opened(tmp_path / "own", "val", records)


def test_folders_of_folders_have_their_own_splits(tmp_path):
    marks, _ = (pairs(tmp_path / "own" / name, 3) for name in ("train", "val"))
    assert opened(tmp_path / "own", None, [DataSplit(train={"a": marks[1]}, val={})]) == ("val", list("012"), 1)
    with pytest.raises(ValueError, match="must be one of train, val, got 'test'"):
        opened(tmp_path / "own", "test", [])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        opened(tmp_path / "none", None, [])
