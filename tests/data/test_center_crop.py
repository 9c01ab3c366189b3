import numpy as np
import pytest
from PIL import Image

from noise2map.data.center_crop import (
    CenterCrops,
    DepthFolder,
    ImageFolder,
    center_crop_image,
    center_crop_intrinsics,
    center_crop_map,
)
from noise2map.data.freedoom import load_samples


def test_the_middle_is_kept_and_averaged():
    values = np.zeros((4, 8, 3), np.uint8)
    values[:, 2:6] = 200  # the middle square
    values[:, :2] = 255
    assert (np.asarray(center_crop_image(Image.fromarray(values), 2)) == 200).all()
    assert (np.asarray(center_crop_image(Image.fromarray(values.transpose(1, 0, 2)), 4)) == 200).all()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    small = np.asarray(center_crop_image(Image.fromarray(noise), 4)).astype(float)
    means = noise.reshape(4, 16, 4, 16, 3).mean((1, 3))
    assert np.abs(small - means).max() < 25  # a picked pixel would be off by 64 on average


def test_depth_takes_one_pixel_and_no_average():
    depth = np.array([[1, 1, 9, 9], [1, 1, 9, 9]], np.float32)
    assert center_crop_map(depth, 2).tolist() == [[1, 9], [1, 9]]
    assert set(np.unique(center_crop_map(depth, 7))) == {1, 9}


def test_a_point_seen_in_the_crop_lies_on_the_same_ray():
    fx, fy, cx, cy = center_crop_intrinsics([80, 96, 80, 60], 160, 120, 64)
    u, v = 100.0, 30.0  # pixel of the frame; the square starts at x = 20 and 120 px become 64
    crop = ((u - 20) * 64 / 120, v * 64 / 120)
    assert (crop[0] - cx) / fx == pytest.approx((u - 80) / 80) and (crop[1] - cy) / fy == pytest.approx((v - 60) / 96)


def test_samples_are_read_once_and_equal(tmp_path):
    frames = load_samples("test", "both")
    squares = CenterCrops(frames, 32, ("image", "depth"))
    reads = []
    original = frames.__class__.__getitem__
    squares.dataset = type("Counting", (), {"__getitem__": lambda _, i: (reads.append(i), original(frames, i))[1]})()
    first, second = squares[3], squares[3]
    assert reads == [3]
    assert first["image"].size == (32, 32) and first["depth_m"].shape == (32, 32)
    assert np.array_equal(np.asarray(first["image"]), np.asarray(second["image"]))
    assert (first["valid"] == (first["depth_m"] > 0)).all() and first["intrinsics"][2] == pytest.approx(16)
    assert np.isin(first["depth_m"], frames[3]["depth_m"]).all()


def test_folders_of_pictures_and_depth(tmp_path):
    Image.new("L", (5, 4), 7).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    folder = ImageFolder(tmp_path)
    assert len(folder) == 1 and folder[0]["id"] == "a.png" and folder[0]["image"].getpixel((0, 0)) == (7, 7, 7)
    with pytest.raises(ValueError, match="16-bit"):
        DepthFolder(tmp_path)[0]
    Image.fromarray(np.full((4, 5), 2500, np.uint16)).save(tmp_path / "a.png")
    sample = DepthFolder(tmp_path)[0]
    assert sample["depth_m"] == pytest.approx(2.5) and sample["valid"].all()


def test_bad_input(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ImageFolder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="depth_scale is 0"):
        DepthFolder(tmp_path, 0)
    frames = load_samples("test", "segmentation")
    with pytest.raises(ValueError, match="size is 0"):
        CenterCrops(frames, 0)
    with pytest.raises(ValueError, match="parts are"):
        CenterCrops(frames, 8, ("labels",))
    with pytest.raises(ValueError, match="has no depth"):
        CenterCrops(frames, 8, ("depth",))[0]
