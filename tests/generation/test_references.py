"""Real images by name: which dataset is opened, what of an image is taken."""

import numpy as np
import pytest
from PIL import Image

from noise2map.data import load_samples
from noise2map.data.opening import open_dataset
from noise2map.generation.evaluation.references import ImageFiles, ReferenceImages
from noise2map.rendering.export import export_frames


def test_a_folder_of_images_gives_middle_squares(tmp_path):
    picture = np.zeros((8, 16, 3), np.uint8)
    picture[:, 4:12] = (10, 200, 30)
    Image.fromarray(picture).save(tmp_path / "wide.png")
    pictures = ReferenceImages(str(tmp_path), 4)
    assert len(pictures) == 1 and pictures.intrinsics is None
    assert pictures[0].shape == (4, 4, 3)
    assert np.abs(pictures[0].astype(int) - (10, 200, 30)).max() < 25  # resampling looks a little beyond the square
    assert (ImageFiles([tmp_path / "wide.png"])[0] == picture).all()


def test_shipped_frames_bring_their_camera():
    pictures = ReferenceImages("samples", 60, limit=3)
    frame = load_samples("test", "depth")[0]
    fx, fy, cx, cy = frame["intrinsics"]
    assert len(pictures) == 3
    # 160x120: the middle 120 columns, at half the size.
    assert pictures.intrinsics.tolist() == pytest.approx([fx / 2, fy / 2, (cx - 20) / 2, cy / 2])


def test_public_data_sets_are_opened_by_name_and_split(tmp_path):
    export_frames("nyu", "samples", tmp_path / "nyu", limit=3)
    tests, trains = (open_dataset(f"{name}:{tmp_path / 'nyu'}", task="depth") for name in ("nyu", "nyu/train"))
    assert tests[0]["depth_m"].max() > 0 and tests[0]["id"] != trains[0]["id"]
    assert len(ReferenceImages(f"nyu:{tmp_path / 'nyu'}", 32)) == len(tests)


def test_what_cannot_be_opened_is_refused(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="no depth that could be read"):
        open_dataset(str(tmp_path), task="depth")
    with pytest.raises(FileNotFoundError, match="no folder"):
        open_dataset(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="it cannot be used for depth"):
        open_dataset(f"ade20k:{tmp_path}", task="depth")
