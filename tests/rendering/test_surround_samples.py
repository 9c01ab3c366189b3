"""Shipped surround samples, and the cut that makes such sets: nothing of a sample is lost."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("shapely")
pytest.importorskip("cv2")

from noise2map.data.freedoom import SURROUND_SAMPLES_ROOT, load_surround_samples
from noise2map.data.freedoom.surround import FreedoomSurroundDataset
from noise2map.data.nuscenes import MapExpansion
from noise2map.data.nuscenes.augmentation import lidar_matrix
from noise2map.rendering.surround import cut_surround
from noise2map.rendering.surround.subset import cut_map

WHOLE = Path("data/surround")
SHIPPED = ["surround-test-000085", "surround-test-000143", "surround-test-000169", "surround-test-000184"]


def test_shipped_places_are_whole_and_small():
    places = load_surround_samples()
    assert [places[index]["id"] for index in range(len(places))] == SHIPPED
    assert len({places[index]["location"] for index in range(4)}) == 4
    drawn = np.zeros(6, bool)
    for index in range(4):
        sample = places[index]
        assert [image.size for image in sample["images"]] == [(160, 120)] * 6
        assert len(sample["points"]) > 4000 and (sample["points"][:, 4] == 0).all()
        assert sample["labels"].shape == (6, 64, 64) and (sample["labels"] == 255).any()
        drawn |= (sample["labels"] == 1).any((1, 2))
    assert drawn.all()  # every layer is in view somewhere
    files = [path for path in SURROUND_SAMPLES_ROOT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1.6e6
    assert "Freedoom" in (SURROUND_SAMPLES_ROOT / "LICENSE.freedoom").read_text()


@pytest.mark.skipif(not WHOLE.is_dir(), reason="needs the test split of data/surround")
def test_shipped_places_are_those_of_the_whole_set():
    places, whole = load_surround_samples(), FreedoomSurroundDataset(WHOLE, "test", sweeps=0)
    for index, token in enumerate(SHIPPED):
        assert_same(places, index, whole, whole.index_of(token))


def assert_same(cut, index, whole, place):
    one, other = cut[index], whole[place]
    assert one.keys() == other.keys()
    for name in ("points", "intrinsics", "camera_to_lidar", "lidar_to_global", "labels"):
        np.testing.assert_array_equal(one[name], other[name])
    for a, b in zip(one["images"], other["images"], strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))
    turned = lidar_matrix(1.0, np.deg2rad(37.0), np.array([1.0, -1.0, 0.0]))
    np.testing.assert_array_equal(cut.draw_labels(index, turned), whole.draw_labels(place, turned))


def test_a_cut_of_the_shipped_places_is_equal_to_them(tmp_path):
    places = load_surround_samples()
    again = cut_surround(SURROUND_SAMPLES_ROOT, tmp_path / "few", [SHIPPED[2], SHIPPED[0]])
    few = FreedoomSurroundDataset(again, "test", sweeps=0)
    assert [record["token"] for record in few.records] == [SHIPPED[0], SHIPPED[2]]
    for index, place in enumerate((0, 2)):
        assert_same(few, index, places, place)
    assert sorted(path.stem for path in (again / "maps" / "expansion").iterdir()) == ["freedoom-MAP05", "freedoom-MAP29"]


def test_a_cut_map_draws_the_same_near_and_less_far(tmp_path):
    source = SURROUND_SAMPLES_ROOT / "maps" / "expansion" / "freedoom-MAP23.json"
    tables = json.loads(source.read_text())
    places = load_surround_samples()
    pose = places.lidar_to_global(1).astype(np.float64)
    cut = cut_map(tables, [(float(pose[0, 3]), float(pose[1, 3]))], reach_m=5.0)
    assert len(cut["node"]) < len(tables["node"])
    path = tmp_path / "cut.json"
    path.write_text(json.dumps(cut))
    near = [MapExpansion(p).labels(pose, (6.0, 6.0), (30, 30)) for p in (source, path)]
    np.testing.assert_array_equal(near[1], near[0])
    assert near[0].any()
    far = [MapExpansion(p).labels(pose, (25.6, 25.6), (64, 64)) for p in (source, path)]
    assert (far[0] & ~far[1] & 1).any() and not (far[1] & ~far[0] & 1).any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokens": ["nope"]}, ValueError, "sample 'nope' is not in split 'test'"),
        ({"tokens": []}, ValueError, "name at least one sample"),
        ({"split": "val"}, FileNotFoundError, "holds no val samples"),
        ({"sweeps": 1}, ValueError, "sweeps must be between 0 and the 0"),
    ],
)
def test_bad_cuts_write_nothing(tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        cut_surround(**{"source": SURROUND_SAMPLES_ROOT, "out": tmp_path / "out", "tokens": SHIPPED[:1], **change})
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "mine.png")
    with pytest.raises(ValueError, match="is not empty"):
        cut_surround(SURROUND_SAMPLES_ROOT, tmp_path, SHIPPED[:1])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]
