import numpy as np
import pytest

from noise2map.data import PUBLIC_DATASETS, open_public_dataset
from noise2map.data.checking import check_dataset, check_lines
from noise2map.data.opening import DATASETS, open_dataset
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
    maps = {"segmentation": {"labels"}, "depth": {"depth_m", "valid"}, None: set()}[kind.task]
    assert maps <= sample.keys() and not {"labels", "depth_m"} - maps & sample.keys()
    assert data.palette.shape == (len(data.id2label), 3)
    report = check_dataset(data, kind.title, 0, True, kind.depth_median_m, kind.units_per_metre)
    assert report.complete and report.images == 2
    assert not any("scale" in line for line in check_lines(report, data.id2label))


@pytest.mark.parametrize("name", sorted(set(LAYOUTS) - {"lsun"}))
def test_evaluation_finds_them(exported, name):
    kind = PUBLIC_DATASETS[name]
    assert name in DATASETS
    data = open_dataset(name, exported / name, kind.evaluation_split, kind.task)
    assert data.ids == open_public_dataset(name, exported / name).ids
    other = {"segmentation": "depth", "depth": "segmentation"}[kind.task]
    with pytest.raises(ValueError, match=f"has maps for {kind.task}; it cannot be used for {other}"):
        open_dataset(name, exported / name, kind.evaluation_split, other)
    with pytest.raises(ValueError, match="needs the folder of the data"):
        open_dataset(name)


def test_unknown_names_and_data_without_maps(exported):
    with pytest.raises(
        ValueError, match="dataset must be one of ade20k, cityscapes, kitti, nyu, nyu-labelled, sun-rgbd, lsun, got 'coco'"
    ):
        open_public_dataset("coco", exported)
    with pytest.raises(ValueError, match="LSUN has no maps; it cannot be used for depth"):
        open_public_dataset("lsun", exported / "lsun", task="depth")
    assert "lsun" not in DATASETS


def test_lines_without_depth_are_reported(exported, tmp_path):
    path = exported / "kitti" / "mine.txt"
    lines = (exported / "kitti" / "kitti_eigen_test.txt").read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1].split()[0] + " None 80.0"]))
    data = open_public_dataset("kitti", exported / "kitti", "mine.txt")
    assert len(data) == 1
    assert "1 more are listed without depth" in check_lines(check_dataset(data, "KITTI"), {})


def test_order_and_content_do_not_depend_on_the_machine(exported):
    for name in ("ade20k", "cityscapes", "sun-rgbd"):
        split = "all" if name == "sun-rgbd" else "train"
        data = open_public_dataset(name, exported / name, split)
        assert data.ids == sorted(data.ids)
        again = open_public_dataset(name, exported / name, split)
        key = "depth_m" if name == "sun-rgbd" else "labels"
        assert np.array_equal(data[1][key], again[1][key])
