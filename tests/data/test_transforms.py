import numpy as np
import pytest
from PIL import Image

from noise2map.data.transforms import (
    Compose,
    HorizontalFlip,
    Photometric,
    RandomResizedCrop,
    default_transform,
    sample_generator,
)
from noise2map.data.transforms import sample as sample_module


def make_sample(height=24, width=32):
    """Every map is readable from the picture: red = 8 x the class, green = the depth, blue = the column."""
    rows, columns = np.mgrid[:height, :width]
    labels = (rows // 6 + 4 * (columns // 8)).astype(np.uint8)
    depth_m = (1 + rows).astype(np.float32)
    image = np.stack([labels * 8, depth_m.astype(np.uint8), columns.astype(np.uint8)], axis=-1)
    return {
        "image": Image.fromarray(image),
        "labels": labels,
        "depth_m": depth_m,
        "valid": columns > 3,
        "intrinsics": np.array([20, 24, 15, 12], dtype=np.float32),
        "id": "a",
    }


def rng(seed=0):
    return np.random.default_rng(seed)


def test_flip_moves_image_maps_and_camera_together():
    sample = make_sample()
    flipped = HorizontalFlip(1.0)(sample, rng())
    assert np.array_equal(np.asarray(flipped["image"]), np.asarray(sample["image"])[:, ::-1])
    for key in ("labels", "depth_m", "valid"):
        assert np.array_equal(flipped[key], sample[key][:, ::-1])
        assert flipped[key].dtype == sample[key].dtype
    # A point at X metres right of the axis lies at cx + fx X / Z; mirrored, it must lie at W minus that.
    fx, _, cx, _ = sample["intrinsics"]
    mirrored_fx, _, mirrored_cx, _ = flipped["intrinsics"]
    assert mirrored_cx + mirrored_fx * (-0.3) == pytest.approx(32 - (cx + fx * 0.3))
    again = HorizontalFlip(1.0)(flipped, rng())
    assert np.array_equal(again["labels"], sample["labels"]) and np.allclose(again["intrinsics"], sample["intrinsics"])


def test_crop_moves_image_maps_and_camera_together():
    # A smooth picture: column and row can be read back after resampling, up to half a pixel.
    height, width = 48, 64
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([columns * 3, rows * 4, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    sample = {
        "image": Image.fromarray(image),
        "labels": columns.astype(np.uint8),
        "depth_m": rows.astype(np.float32),
        "valid": columns >= 32,
        "intrinsics": np.array([40, 48, 32, 24], dtype=np.float32),
    }
    for seed in range(5):
        cut = RandomResizedCrop((0.5, 0.8))(sample, rng(seed))
        assert cut["image"].size == (width, height) and cut["labels"].shape == (height, width)
        picture = np.asarray(cut["image"]).astype(float)
        assert np.abs(picture[..., 0] / 3 - cut["labels"]).max() <= 1.0
        assert np.abs(picture[..., 1] / 4 - cut["depth_m"]).max() <= 1.0
        assert np.array_equal(cut["valid"], cut["labels"] >= 32)
        assert cut["labels"].dtype == np.uint8 and cut["depth_m"].dtype == np.float32 and cut["valid"].dtype == np.bool_
        # The ray of a pixel is the ray of the pixel of the original that it shows.
        ray_x = (np.arange(width) + 0.5 - cut["intrinsics"][2]) / cut["intrinsics"][0]
        shown = (cut["labels"][0] + 0.5 - 32) / 40
        assert np.abs(ray_x - shown).max() < 0.6 / 40
        side = 40 / cut["intrinsics"][0]
        assert 0.5 <= side <= 0.8


def test_crop_of_everything_changes_nothing():
    sample = make_sample()
    same = RandomResizedCrop((1.0, 1.0))(sample, rng())
    assert np.array_equal(np.asarray(same["image"]), np.asarray(sample["image"]))
    assert np.array_equal(same["labels"], sample["labels"]) and np.allclose(same["intrinsics"], sample["intrinsics"])


def test_photometric_changes_colors_only():
    sample = make_sample()
    changed = Photometric(0.5, 0.5, 0.5, 0.3)(sample, rng(1))
    assert not np.array_equal(np.asarray(changed["image"]), np.asarray(sample["image"]))
    assert changed["labels"] is sample["labels"] and changed["depth_m"] is sample["depth_m"]
    still = Photometric(0, 0, 0, 0)(sample, rng(1))
    assert np.array_equal(np.asarray(still["image"]), np.asarray(sample["image"]))


def test_brightness_follows_its_factor():
    grey = {"image": Image.new("RGB", (8, 8), (100, 100, 100))}
    factors = [rng(seed).uniform(-1, 1, size=4) for seed in range(6)]
    for seed, draws in enumerate(factors):
        out = np.asarray(Photometric(0.4, 0, 0, 0)(grey, rng(seed))["image"])
        expected = 100 + 0  # contrast about the mean of the picture as it was
        brightness = 1 + 0.4 * draws[1]
        assert out[0, 0].tolist() == pytest.approx([expected * brightness] * 3, abs=1)


def test_same_generator_same_result_and_the_input_is_untouched():
    sample = make_sample()
    before = np.asarray(sample["image"]).copy()
    transform = default_transform("segmentation")
    first = transform(sample, sample_generator(0, 3, 7))
    second = transform(sample, sample_generator(0, 3, 7))
    other = transform(sample, sample_generator(0, 4, 7))
    assert np.array_equal(np.asarray(first["image"]), np.asarray(second["image"]))
    assert np.array_equal(first["labels"], second["labels"])
    assert not np.array_equal(np.asarray(first["image"]), np.asarray(other["image"]))
    assert np.array_equal(np.asarray(sample["image"]), before) and sample["intrinsics"][0] == 20


def test_depth_keeps_its_camera():
    transform = default_transform("depth")
    focal = {round(float(transform(make_sample(), rng(seed))["intrinsics"][0]), 3) for seed in range(10)}
    assert focal == {20.0}
    scaled = default_transform("segmentation")
    assert len({round(float(scaled(make_sample(), rng(seed))["intrinsics"][0]), 3) for seed in range(10)}) > 5


def test_compose_without_transforms_copies():
    sample = make_sample()
    out = Compose([])(sample, rng())
    assert out == sample and out is not sample


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: HorizontalFlip(1.5), "1.5"),
        (lambda: RandomResizedCrop((0.0, 1.0)), "0.0"),
        (lambda: RandomResizedCrop((0.9, 0.5)), "0.9"),
        (lambda: Photometric(brightness=1.0), "brightness"),
        (lambda: default_transform("flow"), "flow"),
    ],
)
def test_impossible_values_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_point_keeps_its_place_in_the_image_whatever_is_done_to_it():
    camera, point = np.array([80, 96, 70, 65], np.float32), np.array([0.4, -0.3, 2.0])

    def pixel(intrinsics, at=point):
        fx, fy, cx, cy = intrinsics
        return fx * at[0] / at[2] + cx, fy * at[1] / at[2] + cy

    u, v = pixel(camera)
    assert pixel(sample_module.resize_intrinsics(camera, 2, 0.5)) == pytest.approx((2 * u, v / 2))
    assert pixel(sample_module.crop_intrinsics(camera, left=-3, top=10)) == pytest.approx((u + 3, v - 10))
    mirrored = pixel(sample_module.mirror_intrinsics(camera, 160), point * (-1, 1, 1))
    assert mirrored == pytest.approx((160 - u, v))
    square = np.array([90, 90, 70, 65], np.float32)  # pixels as high as wide: the scene can turn with the image
    u, v = pixel(square)
    turned = pixel(sample_module.rotate_intrinsics(square, 160, 120, 90), np.array([point[1], -point[0], point[2]]))
    assert turned == pytest.approx((80 + (v - 60), 60 - (u - 80)))  # the right edge goes up


def test_object_labels_stay_with_their_image():
    from noise2map.data.transforms import HorizontalFlip, published_transform

    objects = np.arange(640, dtype=np.int32)[None].repeat(480, 0) + 300
    red = Image.fromarray(np.stack([np.arange(640).astype(np.uint8)[None].repeat(480, 0)] * 3, -1))
    sample = {"image": red, "object_labels": objects, "depth_m": objects.astype(np.float32), "valid": objects > 0, "id": "a"}
    mirrored = HorizontalFlip(1.0)(sample, np.random.default_rng(0))["object_labels"]
    assert mirrored[0, 0] == 939 and mirrored.dtype == np.int32
    moved = published_transform("nyu", (416, 544))(sample, np.random.default_rng(1))
    assert moved["object_labels"].shape == moved["depth_m"].shape == (416, 544)
    inside = moved["object_labels"] > 0
    assert inside.mean() > 0.8 and np.array_equal(moved["object_labels"][inside], moved["depth_m"][inside].astype(np.int32))
