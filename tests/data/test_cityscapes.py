import json

import numpy as np
import pytest
from picture_files import save_image, save_map

from noise2map.data import CityscapesDataset

# The published table, written down a second time: label id -> train id of those that are scored.
TRAIN_ID = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14}
TRAIN_ID |= {28: 15, 31: 16, 32: 17, 33: 18}
NAMES = ["frankfurt_000000_000294", "lindau_000001_000019"]


@pytest.fixture
def root(tmp_path):
    for name in NAMES:
        city = name.split("_")[0]
        save_image(tmp_path / "leftImg8bit" / "val" / city / f"{name}_leftImg8bit.png", 12, 3)
        save_map(
            tmp_path / "gtFine" / "val" / city / f"{name}_gtFine_labelIds.png", np.arange(36, dtype=np.uint8).reshape(3, 12) % 34
        )
        save_map(tmp_path / "gtFine" / "val" / city / f"{name}_gtFine_color.png", np.zeros((3, 12, 3), np.uint8))
    camera = tmp_path / "camera" / "val" / "frankfurt" / f"{NAMES[0]}_camera.json"
    camera.parent.mkdir(parents=True)
    values = {"fx": 2262.52, "fy": 2265.3017905988554, "u0": 1096.98, "v0": 513.137}
    camera.write_text(json.dumps({"extrinsic": {"baseline": 0.209313}, "intrinsic": values}))
    return tmp_path


def test_label_ids_become_train_ids(root):
    data = CityscapesDataset(root)
    assert data.ids == NAMES
    labels = data[0]["labels"]
    expected = np.array([TRAIN_ID.get(value % 34, 255) for value in range(36)]).reshape(3, 12)
    assert labels.dtype == np.uint8 and (labels == expected).all()


def test_names_and_colors(root):
    data = CityscapesDataset(root)
    assert len(data.id2label) == 19
    assert [data.id2label[index] for index in (0, 10, 11, 13, 18)] == ["road", "sky", "person", "car", "bicycle"]
    assert data.palette.shape == (19, 3)
    assert data.palette[[0, 13]].tolist() == [[128, 64, 128], [0, 0, 142]]


def test_camera_where_there_is_one(root):
    data = CityscapesDataset(root)
    assert data[0]["intrinsics"] == pytest.approx([2262.52, 2265.3018, 1097.48, 513.637])
    assert "intrinsics" not in data[1]
    (root / "camera" / "val" / "frankfurt" / f"{NAMES[0]}_camera.json").write_text("{}")
    with pytest.raises(ValueError, match="must hold intrinsic fx, fy, u0 and v0"):
        data[0]


def test_ids_outside_the_table_are_named(root):
    save_map(root / "gtFine" / "val" / "lindau" / f"{NAMES[1]}_gtFine_labelIds.png", np.full((3, 12), 34, np.uint8))
    with pytest.raises(ValueError, match=r"unknown class ids 34; known are 0 to 33"):
        CityscapesDataset(root)[1]


def test_missing_and_unknown(root, tmp_path):
    (root / "gtFine" / "val" / "lindau" / f"{NAMES[1]}_gtFine_labelIds.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"Cityscapes val .* lacks 1 of 4 files"):
        CityscapesDataset(root)
    assert len(CityscapesDataset(root, missing="drop")) == 1
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*train; Cityscapes needs leftImg8bit/SPLIT/CITY"):
        CityscapesDataset(root, "train")
    with pytest.raises(ValueError, match="Cityscapes has no split 'minival'; expected one of train, val, test"):
        CityscapesDataset(root, "minival")
    (root / "leftImg8bit" / "test").mkdir()
    with pytest.raises(ValueError, match="holds no image"):
        CityscapesDataset(root, "test")


def test_files_that_another_system_left_behind_are_no_images(root):
    (root / "leftImg8bit" / "val" / "frankfurt" / f"._{NAMES[0]}_leftImg8bit.png").write_bytes(b"resource fork")
    assert CityscapesDataset(root).ids == NAMES
