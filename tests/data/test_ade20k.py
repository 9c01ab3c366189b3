import numpy as np
import pytest
from picture_files import save_image, save_map

from noise2map.data import Ade20kDataset


@pytest.fixture
def root(tmp_path):
    base = tmp_path / "ADEChallengeData2016"
    for split, short in (("training", "train"), ("validation", "val")):
        for number in (1, 2):
            name = f"ADE_{short}_{number:08d}"
            save_image(base / "images" / split / f"{name}.jpg", seed=number)
            ids = np.random.default_rng(number).integers(0, 151, (6, 8)).astype(np.uint8)
            ids[0, :4] = 0, 1, 150, 255
            save_map(base / "annotations" / split / f"{name}.png", ids)
    return tmp_path


def test_other_is_ignored_and_classes_count_from_zero(root):
    data = Ade20kDataset(root, "val")
    assert (len(data), data.ids) == (2, ["ADE_val_00000001", "ADE_val_00000002"])
    sample = data[0]
    assert sample["labels"].dtype == np.uint8 and sample["image"].mode == "RGB"
    assert sample["labels"][0, :4].tolist() == [255, 0, 149, 255]
    stored = np.random.default_rng(1).integers(0, 151, (6, 8))[1:]
    assert (sample["labels"][1:] == np.where(stored == 0, 255, stored - 1)).all()
    assert "intrinsics" not in sample


def test_names_and_colors_of_the_challenge(root):
    data = Ade20kDataset(root / "ADEChallengeData2016", "training")
    assert len(data.id2label) == 150 == len(set(data.id2label.values()))
    assert [data.id2label[index] for index in (0, 2, 12, 149)] == ["wall", "sky", "person", "flag"]
    assert data.palette.shape == (150, 3) and data.palette.dtype == np.uint8
    assert data.palette[[0, 1, 2, 149]].tolist() == [[120, 120, 120], [180, 120, 120], [6, 230, 230], [92, 0, 255]]


def test_ids_outside_the_table_are_named(root):
    path = root / "ADEChallengeData2016" / "annotations" / "validation" / "ADE_val_00000002.png"
    save_map(path, np.array([[151, 200, 3, 0]] * 6, np.uint8).repeat(2, 1))
    with pytest.raises(ValueError, match=r"ADE_val_00000002\.png has unknown class ids 151, 200; known are 0 to 150"):
        Ade20kDataset(root, "val")[1]


def test_missing_annotations(root):
    (root / "ADEChallengeData2016" / "annotations" / "validation" / "ADE_val_00000001.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of 4 files: .*ADE_val_00000001\.png; expected images/"):
        Ade20kDataset(root, "val")
    data = Ade20kDataset(root, "val", missing="drop")
    assert data.ids == ["ADE_val_00000002"]
    assert [path.name for path in data.missing] == ["ADE_val_00000001.png"]


def test_what_is_expected_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*ADE20K needs images/\{training,validation\}/NAME\.jpg"):
        Ade20kDataset(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*validation; ADE20K needs"):
        Ade20kDataset(tmp_path)
    with pytest.raises(ValueError, match="ADE20K has no split 'test'; expected one of train, training, val, validation"):
        Ade20kDataset(tmp_path, "test")


def test_sizes_that_differ_are_named(root):
    save_map(root / "ADEChallengeData2016" / "annotations" / "validation" / "ADE_val_00000001.png", np.zeros((5, 8), np.uint8))
    with pytest.raises(ValueError, match=r"ADE_val_00000001\.jpg is 8x6 and its map .*ADE_val_00000001\.png is 8x5"):
        Ade20kDataset(root, "val")[0]
