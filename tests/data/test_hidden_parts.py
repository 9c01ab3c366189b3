"""Covered images and the ambiguity dial: what is taken away, what stays, and that draws depend on seed and sample alone."""

import numpy as np
import pytest
from PIL import Image

from noise2map.data.subsets import Redrawn, Subset
from noise2map.data.transforms import Ambiguity, Hide, HorizontalFlip, identity_generator, sample_generator
from noise2map.data.transforms.geometric import MEAN_COLOR

HEIGHT, WIDTH = 120, 160


def make_sample(identity="a"):
    rng = np.random.default_rng(len(identity))
    return {
        "image": Image.fromarray(rng.integers(0, 100, (HEIGHT, WIDTH, 3)).astype(np.uint8)),  # never grey
        "labels": rng.integers(0, 5, (HEIGHT, WIDTH)).astype(np.uint8),
        "depth_m": rng.random((HEIGHT, WIDTH)).astype(np.float32),
        "intrinsics": np.array([80, 96, 80, 60], np.float32),
        "id": identity,
    }


class Places:
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return make_sample("abcdefgh"[: index + 1])


def runs(line: np.ndarray) -> list[int]:
    """Lengths of the stretches of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(int), [0]])))
    return (edges[1::2] - edges[::2]).tolist()


@pytest.mark.parametrize("kind", ["rectangle", "strips", "window", "mixed"])
def test_what_is_hidden_is_grey_and_nothing_else_changes(kind):
    for seed in range(40):
        sample = make_sample()
        covered = Hide(kind)(sample, np.random.default_rng(seed))
        hidden, before, after = covered["hidden"], np.asarray(sample["image"]), np.asarray(covered["image"])
        assert hidden.shape == (HEIGHT, WIDTH) and hidden.dtype == bool
        assert (after[hidden] == MEAN_COLOR).all() and (after[~hidden] == before[~hidden]).all()
        assert 0.1 < hidden.mean() < 0.9
        for key in ("labels", "depth_m", "intrinsics", "id"):
            assert covered[key] is sample[key]
        assert "hidden" not in sample
        rows, columns = hidden.any(1), hidden.any(0)
        if kind == "rectangle":
            assert hidden.sum() == rows.sum() * columns.sum()  # a full box
            assert 60 <= rows.sum() <= 100 and 60 <= columns.sum() <= 111
        if kind == "window":
            rows, columns = (~hidden).any(1), (~hidden).any(0)
            assert (~hidden).sum() == rows.sum() * columns.sum() and 60 <= rows.sum() <= 100
        if kind == "strips":
            line, other = (hidden[0], rows) if rows.all() else (hidden[:, 0], columns)
            assert other.all() and hidden.sum() == line.sum() * len(other)
            assert 0.37 <= line.mean() <= 0.84 and len(runs(line)) <= 4


def test_kinds_and_places_are_all_drawn():
    masks = [Hide("mixed")(make_sample(), np.random.default_rng(seed))["hidden"] for seed in range(300)]
    boxes = [m.sum() == m.any(1).sum() * m.any(0).sum() and not m.all(0).any() and not m.all(1).any() for m in masks]
    windows = [
        bool(m[0].all() or m[-1].all() or m[:, 0].all()) and (~m).sum() == (~m).any(1).sum() * (~m).any(0).sum() for m in masks
    ]
    assert 60 < sum(boxes) < 140 and sum(windows) > 60
    rectangles = np.mean([Hide()(make_sample(), np.random.default_rng(seed))["hidden"] for seed in range(300)], axis=0)
    assert rectangles.mean() == pytest.approx(0.665 * 0.535, abs=0.02)  # the product of the mean shares
    assert abs(rectangles[:60].mean() - rectangles[60:].mean()) < 0.03  # no side is favored
    assert abs(rectangles[:, :80].mean() - rectangles[:, 80:].mean()) < 0.03


def test_the_probability_leaves_images_whole_with_a_mask_that_says_so():
    covered = [Hide(p=0.25)(make_sample(), sample_generator(0, 0, index))["hidden"].any() for index in range(400)]
    assert np.mean(covered) == pytest.approx(0.25, abs=0.06)
    whole = Hide(p=0.0)(make_sample(), np.random.default_rng(0))
    assert whole["image"].tobytes() == make_sample()["image"].tobytes() and not whole["hidden"].any()


def test_later_transforms_move_the_mask_with_the_image():
    covered = Hide()(make_sample(), np.random.default_rng(3))
    flipped = HorizontalFlip(1.0)(covered, np.random.default_rng(0))
    assert (np.asarray(flipped["image"]) == MEAN_COLOR).all(-1)[flipped["hidden"]].all()
    assert (flipped["hidden"] == covered["hidden"][:, ::-1]).all()


def test_draws_of_an_evaluation_depend_on_seed_and_id_alone():
    data = Redrawn(Places(), Hide("mixed"), seed=7)
    reversed_part = Redrawn(Subset(Places(), [5, 3, 1]), Hide("mixed"), seed=7)
    masks = [data[index]["hidden"] for index in range(6)]
    for place, index in enumerate([5, 3, 1]):
        assert (reversed_part[place]["hidden"] == masks[index]).all()
    assert len({mask.tobytes() for mask in masks}) == 6
    other = Redrawn(Places(), Hide("mixed"), seed=8)
    assert any((other[index]["hidden"] != masks[index]).any() for index in range(6))
    assert identity_generator(1, "a").random() != identity_generator(1, "b").random()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "circle"}, "hide is 'circle'; expected one of rectangle, strips, window, mixed"),
        ({"p": 1.5}, "hide probability is 1.5"),
        ({"height": (0.8, 0.5)}, "hidden height is"),
        ({"width": (0.5, 1.2)}, "hidden width is"),
    ],
)
def test_impossible_covers_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Hide(**fields)


def test_the_dial_takes_away_more_of_the_same():
    before = np.zeros((HEIGHT, WIDTH), bool)
    for share in (0.0, 0.1, 0.3, 0.5, 0.75):
        sample = Ambiguity(hide_share=share)(make_sample(), np.random.default_rng(4))
        hidden = sample.get("hidden", np.zeros_like(before))
        assert hidden.mean() == pytest.approx(share, abs=0.02)
        assert hidden[before].all()
        before = hidden
    levels = []
    for darkness in (0.0, 0.5, 0.95):
        image = np.asarray(Ambiguity(darkness=darkness)(make_sample(), np.random.default_rng(4))["image"])
        assert np.abs(image - np.asarray(make_sample()["image"]) * (1 - darkness)).max() <= 0.5
        levels.append(len(np.unique(image)))
    assert levels[0] > levels[1] > levels[2]


def test_an_unknown_focal_length_magnifies_and_tells_nobody():
    columns = np.broadcast_to(np.arange(WIDTH, dtype=np.uint8), (HEIGHT, WIDTH))
    sample = make_sample() | {"image": Image.fromarray(np.stack([columns] * 3, -1)), "depth_m": columns.astype(np.float32)}
    seen = Ambiguity(zoom=2.0)(sample, np.random.default_rng(0))
    shown = np.asarray(seen["image"])[..., 0].astype(float)
    assert np.abs(shown - (40 + np.arange(WIDTH) / 2 - 0.25)).max() <= 1  # the middle half
    assert np.abs(shown - seen["depth_m"]).max() <= 1  # the truth moves with the image, its metres stay
    assert (seen["intrinsics"] == sample["intrinsics"]).all()


def test_cameras_that_are_left_out_are_grey():
    views = [Image.new("RGB", (8, 6), (index, 0, 0)) for index in range(6)]
    sample = {"images": views, "intrinsics": np.zeros((6, 3, 3)), "camera_to_lidar": np.zeros((6, 4, 4)), "labels": 1, "id": "p"}
    seen = Ambiguity(cameras=2, darkness=0.5)(sample, np.random.default_rng(0))
    assert [np.asarray(view).mean((0, 1)).tolist() for view in seen["images"]] == [[0, 0, 0], [0, 0, 0], *[list(MEAN_COLOR)] * 4]
    assert all(seen[key] is sample[key] for key in ("intrinsics", "camera_to_lidar")) and len(views) == 6
    with pytest.raises(ValueError, match="sample 'p' has 6 cameras; expected 7"):
        Ambiguity(cameras=7)(sample, np.random.default_rng(0))
    for fields in ({"hide_share": 0.8}, {"darkness": 1.0}, {"zoom": 0.5}, {"cameras": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(fields))} is"):
            Ambiguity(**fields)
