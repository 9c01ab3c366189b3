import colorsys

import numpy as np
import pytest
from PIL import Image

from noise2map.data.transforms import (
    BottomCrop,
    BoxCrop,
    ColorAugmentation,
    PadTo,
    PhotometricDistortion,
    RandomCrop,
    RandomRotation,
    RatioResize,
    published_transform,
    sample_generator,
)
from noise2map.data.transforms.geometric import fit_size


def rng(seed=0):
    return np.random.default_rng(seed)


def smooth_sample(width=120, height=90):
    """Red tells the column and green the row, in the image and in the maps; a hole of invalid depth."""
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    image = np.stack([columns * 2, rows * 2, np.full_like(rows, 99)], -1).astype(np.uint8)
    depth_m = (rows * 2 + 1).astype(np.float32)
    valid = ~((rows > 30) & (rows < 60) & (columns > 40) & (columns < 80))
    return {
        "image": Image.fromarray(image),
        "labels": (columns * 2).astype(np.uint8),
        "depth_m": np.where(valid, depth_m, 0).astype(np.float32),
        "valid": valid,
        "intrinsics": np.array([100, 100, width / 2 + 5, height / 2 - 3], np.float32),
        "id": "smooth",
    }


def assert_moved_together(sample, tolerance):
    """What the maps say of column and row is what the image says; invalid depth is zero and zero depth invalid."""
    pixels = np.asarray(sample["image"]).astype(float)
    known = sample["labels"] != 255
    assert known.mean() > 0.5
    assert np.abs(pixels[..., 0] - sample["labels"])[known].max() <= tolerance
    valid = sample["valid"]
    assert np.abs(pixels[..., 1] + 1 - sample["depth_m"])[valid].max() <= tolerance
    assert ((sample["depth_m"] > 0) == valid).all()
    types = {key: sample[key].dtype for key in ("labels", "depth_m", "valid", "intrinsics")}
    assert types == {"labels": np.uint8, "depth_m": np.float32, "valid": np.bool_, "intrinsics": np.float32}
    assert sample["labels"].shape == sample["depth_m"].shape == valid.shape == sample["image"].size[::-1]


@pytest.mark.parametrize("seed", range(6))
def test_geometry_moves_image_maps_and_camera_alike(seed):
    sample = smooth_sample()
    for transform in (
        RatioResize((110, 70), (0.7, 1.6)),
        RandomCrop((50, 70)),
        RandomRotation(10, 1.0),
        BottomCrop((60, 80)),
        BoxCrop((10, 80), (20, 100)),
    ):
        moved = transform(sample, rng(seed))
        assert 0.05 < (~moved["valid"]).mean() < 0.5, transform  # the hole is still there
        inner = {**moved}
        if isinstance(transform, RandomRotation):  # corners blend into black
            cut = BoxCrop((12, 78), (12, 108))(moved)
            inner = cut
        assert_moved_together(inner, tolerance=5)
        rows, columns = inner["labels"].shape
        fx, fy, cx, cy = inner["intrinsics"]
        if not isinstance(transform, RandomRotation):
            # The ray through a pixel is the ray of the pixel of the original that it shows.
            shown_column, shown_row = np.asarray(inner["image"])[rows // 2, columns // 2, :2] / 2 + 0.5
            assert (columns // 2 + 0.5 - cx) / fx == pytest.approx((shown_column - 65) / 100, abs=0.02)
            assert (rows // 2 + 0.5 - cy) / fy == pytest.approx((shown_row - 42) / 100, abs=0.02)
    assert np.asarray(sample["image"])[5, 7].tolist() == [14, 10, 99]  # the input is untouched


def test_rotation_rolls_the_camera():
    """A bright point on the principal point stays on the principal point."""
    for seed in range(5):
        image = np.zeros((81, 121, 3), np.uint8)
        image[18:23, 78:83] = 255
        sample = {"image": Image.fromarray(image), "intrinsics": np.array([50, 50, 80.5, 20.5], np.float32)}
        turned = RandomRotation(20, 1.0)(sample, rng(seed))
        weight = np.asarray(turned["image"])[..., 0].astype(float)
        rows, columns = np.mgrid[:81, :121]
        centre = (weight * columns).sum() / weight.sum() + 0.5, (weight * rows).sum() / weight.sum() + 0.5
        assert turned["intrinsics"][2:] == pytest.approx(centre, abs=0.3)
        assert turned["intrinsics"][:2].tolist() == [50, 50]


def test_rotation_leaves_corners_unknown():
    sample = smooth_sample()
    turned = RandomRotation(30, 1.0)(sample, rng(3))
    corner = (turned["labels"] == 255) & (turned["labels"] != sample["labels"])
    assert corner.mean() > 0.05
    assert not turned["valid"][corner].any() and (turned["depth_m"][corner] == 0).all()
    assert (np.asarray(turned["image"])[corner].mean(0) < 60).all()
    assert RandomRotation(30, 0.0)(sample, rng()) == sample


@pytest.mark.parametrize(
    ("size", "box", "expected"),
    [
        ((2048, 1024), (2048, 1024), (2048, 1024)),
        ((683, 512), (2048, 512), (683, 512)),
        ((400, 300), (2048, 512), (683, 512)),
        ((300, 400), (512, 2048), (512, 683)),
        ((3000, 300), (2048, 512), (2048, 205)),
    ],
)
def test_box_is_filled_whichever_way_it_lies(size, box, expected):
    assert fit_size(*size, box) == expected


def test_ratio_covers_its_range():
    sample = {"image": Image.new("RGB", (100, 50))}
    widths = [RatioResize((200, 100))(sample, rng(seed))["image"].width for seed in range(200)]
    assert 100 <= min(widths) < 115 and 385 < max(widths) <= 400
    assert np.mean(widths) == pytest.approx(250, rel=0.08)


def checkered():
    """Nearly all of one class, but for a patch in a corner where two mix."""
    labels = np.zeros((100, 100), np.uint8)
    labels[:30, :30] = np.indices((30, 30)).sum(0) % 2
    labels[60:, 60:] = 255
    return {"image": Image.new("RGB", (100, 100)), "labels": labels, "id": "checkered"}


def largest_share(labels):
    counts = np.bincount(labels[labels != 255], minlength=2)
    return counts.max() / counts.sum()


def test_crop_obeys_the_limit_where_it_can():
    sample = checkered()
    limited = [RandomCrop((30, 30), 0.75, tries=500)(sample, rng(seed))["labels"] for seed in range(40)]
    assert all(largest_share(labels) < 0.75 for labels in limited)
    free = [RandomCrop((30, 30))(sample, rng(seed))["labels"] for seed in range(40)]
    assert sum(largest_share(labels) >= 0.75 for labels in free if (labels != 255).any()) > 20
    hopeless = {**sample, "labels": np.full((100, 100), 3, np.uint8)}
    assert RandomCrop((30, 30), 0.75)(hopeless, rng())["labels"].shape == (30, 30)
    without = {"image": sample["image"]}
    assert RandomCrop((30, 30), 0.75)(without, rng())["image"].size == (30, 30)


def test_crops_reach_every_place_and_no_farther():
    sample = {"image": Image.new("RGB", (12, 9)), "labels": np.arange(108, dtype=np.uint8).reshape(9, 12)}
    corners = {int(RandomCrop((7, 9))(sample, rng(seed))["labels"][0, 0]) for seed in range(300)}
    assert corners == {12 * row + column for row in range(3) for column in range(4)}
    assert RandomCrop((20, 5))(sample, rng())["labels"].shape == (9, 5)


def test_padding_is_ignored_invalid_and_mean_colored():
    sample = smooth_sample(20, 10)
    padded = PadTo((15, 24))(sample)
    assert padded["image"].size == (24, 15)
    outside = np.ones((15, 24), bool)
    outside[:10, :20] = False
    assert (padded["labels"][outside] == 255).all() and (padded["labels"][:10, :20] == sample["labels"]).all()
    assert (padded["depth_m"][outside] == 0).all() and not padded["valid"][outside].any()
    assert (np.asarray(padded["image"])[outside] == (124, 116, 104)).all()
    assert PadTo((5, 5))(sample)["image"].size == (20, 10)


def test_crops_of_the_depth_data_sets():
    drive = {"image": Image.new("RGB", (1242, 375)), "depth_m": np.tile(np.arange(1242, dtype=np.float32), (375, 1))}
    kitti = BottomCrop()(drive)
    assert kitti["image"].size == (1216, 352) and kitti["depth_m"][0, [0, -1]].tolist() == [13, 1228]
    room = {"image": Image.new("RGB", (640, 480)), "depth_m": np.tile(np.arange(480, dtype=np.float32)[:, None], (1, 640))}
    nyu = BoxCrop()(room)
    assert nyu["image"].size == (565, 427) and nyu["depth_m"][[0, -1], 0].tolist() == [45, 471]
    with pytest.raises(ValueError, match="sample 'x' is 160x120, smaller than the crop of 1216x352"):
        BottomCrop()({"image": Image.new("RGB", (160, 120)), "id": "x"})
    with pytest.raises(ValueError, match=r"is 160x120; the crop of rows 45:472, columns 43:608"):
        BoxCrop()({"image": Image.new("RGB", (160, 120))})


class Draws:
    """A generator that gives what it is told."""

    def __init__(self, randoms, uniforms):
        self.randoms, self.uniforms = list(randoms), list(uniforms)

    def random(self):
        return self.randoms.pop(0)

    def uniform(self, low, high, size=None):
        value = self.uniforms.pop(0)
        assert low <= np.min(value) and np.max(value) <= high
        return np.array(value) if size else value


def pixel(transform, color, draws):
    return np.asarray(transform({"image": Image.new("RGB", (1, 1), color)}, draws)["image"])[0, 0].tolist()


def test_photometric_distortion_step_by_step():
    yes, no = 0.1, 0.9
    distort = PhotometricDistortion()
    assert pixel(distort, (100, 50, 240), Draws([yes, no, no, no, no], [20.0])) == [120, 70, 255]  # brightness
    assert pixel(distort, (100, 50, 240), Draws([no, yes, yes, no, no], [1.2])) == [120, 60, 255]  # contrast before
    assert pixel(distort, (100, 50, 240), Draws([no, no, no, no, yes], [0.5])) == [50, 25, 120]  # contrast after
    assert pixel(distort, (7, 8, 9), Draws([no] * 5, [])) == [7, 8, 9]
    turned = pixel(distort, (200, 80, 80), Draws([no, no, no, yes, no], [30.0]))  # hue
    expected = [255 * value for value in colorsys.hsv_to_rgb(30 / 360, 0.6, 200 / 255)]
    assert turned == pytest.approx(expected, abs=4)
    greyer = pixel(distort, (200, 80, 80), Draws([no, no, yes, no, no], [0.5]))  # saturation
    assert greyer == pytest.approx([200, 140, 140], abs=2)


def test_color_augmentation_works_on_values_to_255():
    out = pixel(ColorAugmentation(), (100, 50, 9), Draws([0.1], [1.1, 0.9, [1.0, 1.1, 0.9]]))
    assert out == pytest.approx([100**1.1 * 0.9, 50**1.1 * 0.99, 9**1.1 * 0.81], abs=0.6)
    assert pixel(ColorAugmentation(), (255, 255, 0), Draws([0.1], [1.1, 1.0, [1.0, 1.0, 1.0]])) == [255, 255, 0]
    assert pixel(ColorAugmentation(), (100, 50, 9), Draws([0.6], [])) == [100, 50, 9]


@pytest.mark.parametrize(
    ("name", "size", "crop"),
    [("ade20k", (90, 70), (64, 64)), ("kitti", (1242, 375), None), ("nyu", (640, 480), None)],
)
def test_published_transforms_give_crops_of_one_size(name, size, crop):
    sample = smooth_sample(*size)
    sample["labels"] %= 7
    transform = published_transform(name, crop)
    first, again, other = (transform(sample, sample_generator(0, epoch, 3)) for epoch in (1, 1, 2))
    expected = crop or {"kitti": (352, 704), "nyu": (416, 544)}[name]
    for out in (first, other):
        assert out["labels"].shape == out["valid"].shape == out["image"].size[::-1] == expected
        assert ((out["depth_m"] > 0) == out["valid"]).all()
        assert set(np.unique(out["labels"])) <= {*range(7), 255}
    assert (np.asarray(first["image"]) == np.asarray(again["image"])).all() and (first["labels"] == again["labels"]).all()
    assert (np.asarray(first["image"]) != np.asarray(other["image"])).any()


def test_published_sizes():
    image = {"image": Image.new("RGB", (60, 40)), "labels": np.zeros((40, 60), np.uint8)}
    assert published_transform("ade20k")(image, rng())["image"].size == (512, 512)
    resize, crop, *_ = published_transform("cityscapes").transforms
    assert (resize.box, resize.ratio, crop.size, crop.cat_max_ratio) == ((2048, 1024), (0.5, 2.0), (512, 1024), 0.75)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomCrop((0, 5)), r"crop size is \(0, 5\)"),
        (lambda: RandomCrop((5, 5), 0.0), "cat_max_ratio is 0.0"),
        (lambda: RandomCrop((5, 5), tries=0), "tries is 0"),
        (lambda: RatioResize((0, 5)), "resize box"),
        (lambda: RatioResize((5, 5), (2.0, 1.0)), "resize ratio"),
        (lambda: RandomRotation(200), "up to 200 degrees"),
        (lambda: RandomRotation(2, 1.5), "rotation probability is 1.5"),
        (lambda: PhotometricDistortion(contrast=(0.0, 1.0)), "contrast is"),
        (lambda: PhotometricDistortion(brightness=-1), "brightness is -1"),
        (lambda: ColorAugmentation(p=-0.1), "color probability"),
        (lambda: BoxCrop((5, 5), (0, 3)), "box crop's rows"),
        (lambda: published_transform("sun-rgbd"), "no published augmentation for 'sun-rgbd'; expected one of ade20k"),
    ],
)
def test_impossible_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
