"""Measurements of pictures: right rows in the right order, kept by content, gone on with after an interruption."""

import numpy as np
import pytest
import torch

from noise2map.generation.evaluation import measurements
from noise2map.generation.evaluation.measurements import GEOMETRY_SCORES, FeatureModels, ImageFeatures, extract, stack_images
from noise2map.generation.evaluation.scores import score_settings
from noise2map.metrics import FeatureExtractor, PlausibilityScores, render_depth, room_scores


class Counting(FeatureExtractor):
    """Mean colors; counts the pictures it sees and stops where it is told to."""

    name, size = "colors", 3

    def __init__(self):
        super().__init__()
        self.seen, self.stop_after = 0, None

    def forward(self, images):
        self.seen += len(images)
        if self.stop_after is not None and self.seen > self.stop_after:
            raise KeyboardInterrupt
        return images.float().mean((2, 3))


class Red(torch.nn.Module):
    name, metric, depth_range = "red", True, (1.0, 300.0)

    def forward(self, images):
        return 1 + images[:, 0].float()


@pytest.fixture
def chunks_of_four(monkeypatch):
    monkeypatch.setattr(measurements, "_CHUNK", 4)


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)


def names(count):
    return [str(index) for index in range(count)]


def test_rows_are_those_of_each_picture(chunks_of_four):
    images = pictures(6)
    found = extract(images, names(6), FeatureModels(Counting(), Red(), "metric"), batch_size=3)
    stacked = torch.from_numpy(images).permute(0, 3, 1, 2)
    torch.testing.assert_close(found.image_features, stacked.float().mean((2, 3)))
    grey = render_depth(1 + stacked[:, 0].float(), "metric", (1.0, 300.0))
    torch.testing.assert_close(found.depth_features, grey.float().mean((2, 3)))
    scores = PlausibilityScores()
    scores.update(stacked, 1 + stacked[:, 0].float())
    torch.testing.assert_close(found.plausibility[:, :5], scores.per_image(), equal_nan=True)
    assert found.plausibility[:, 5:].isnan().all()  # no camera
    assert len(found) == 6 and len(found.first(2)) == 2 and isinstance(found.first(2), ImageFeatures)


def test_laws_of_rooms_are_scored_where_there_are_a_camera_and_metres():
    images, camera = pictures(3), (4.0, 4.0, 4.0, 4.0)
    depth = 1 + torch.from_numpy(images[..., 0]).float()
    with_camera = FeatureModels(Counting(), Red(), camera=camera, eye_height_m=60.0)
    found = extract(images, names(3), with_camera, batch_size=2).plausibility
    expected = room_scores(depth, camera, 0.99 * 300, 60.0)
    torch.testing.assert_close(found[:, 5:], torch.stack(list(expected.values()), 1), equal_nan=True)
    assert not found[:, GEOMETRY_SCORES.index("order_share")].isnan().any()
    relative = Red()
    relative.metric = False
    for other in (FeatureModels(Counting(), Red()), FeatureModels(Counting(), relative, camera=camera)):
        assert extract(images, names(3), other).plausibility[:, 5:].isnan().all()
        assert other.name != with_camera.name


def test_probe_gets_the_names_and_its_readings_are_scored(chunks_of_four):
    asked = []

    def probe(images, ids):
        asked.extend(ids)
        strong = torch.zeros(len(images), 1, 2, 2)
        return strong, strong + torch.tensor([float(one) / 10 for one in ids])[:, None, None, None]

    found = extract(pictures(6), names(6), FeatureModels(Counting(), Red(), probe=probe, probe_name="p"), batch_size=4)
    assert asked == names(6)
    assert found.plausibility[:, 0].tolist() == pytest.approx([index / 20 for index in range(6)])


def test_what_is_kept_is_not_measured_again_and_other_content_is(chunks_of_four, tmp_path):
    first = Counting()
    found = extract(pictures(6), names(6), FeatureModels(first, Red()), cache=tmp_path)
    seen = first.seen
    again = extract(pictures(6), names(6), FeatureModels(first, Red()), cache=tmp_path)
    assert first.seen == seen
    for one in ("image_features", "depth_features", "plausibility"):
        torch.testing.assert_close(getattr(again, one), getattr(found, one), rtol=0, atol=0, equal_nan=True)
    changed = pictures(6)
    changed[5, 0, 0, 0] ^= 1  # one bit of the second chunk
    extract(changed, names(6), FeatureModels(first, Red()), cache=tmp_path)
    assert first.seen == seen + 2 * 2  # images and rendered depth of two pictures
    other = Counting()
    other.name = "colors of another training"
    extract(pictures(6), names(6), FeatureModels(other, Red()), cache=tmp_path)
    assert other.seen == 12


def test_an_interrupted_run_goes_on(chunks_of_four, tmp_path):
    extractor = Counting()
    extractor.stop_after = 10
    with pytest.raises(KeyboardInterrupt):
        extract(pictures(8), names(8), FeatureModels(extractor, Red()), batch_size=2, cache=tmp_path)
    fresh = Counting()
    found = extract(pictures(8), names(8), FeatureModels(fresh, Red()), batch_size=2, cache=tmp_path)
    assert fresh.seen == 8 and len(found) == 8


def test_a_broken_file_is_measured_again(chunks_of_four, tmp_path):
    extractor = Counting()
    found = extract(pictures(4), names(4), FeatureModels(extractor, Red()), cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:50])
    again = extract(pictures(4), names(4), FeatureModels(extractor, Red()), cache=tmp_path)
    torch.testing.assert_close(again.image_features, found.image_features)


def test_impossible_sets_are_refused():
    with pytest.raises(ValueError, match="one size"):
        stack_images([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)], range(2))
    with pytest.raises(ValueError, match="0 images"):
        extract([], [], FeatureModels(Counting(), Red()))
    relative = Red()
    relative.metric = False
    with pytest.raises(ValueError, match="needs depth in metres"):
        extract(pictures(2), names(2), FeatureModels(Counting(), relative, "metric"))


class Quadrants(FeatureExtractor):
    """Mean color of each quarter of the image."""

    name, size = "quadrants", 12

    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)


def rooms(count, seed, depth_shift=0, color_shift=0):
    """Red is distance, larger towards the right; green and blue are the texture."""
    random = np.random.default_rng(seed)
    distance = 40 + 12 * np.arange(8)[None, None] + depth_shift * np.arange(8)[None, :, None] + random.normal(0, 8, (count, 8, 8))
    texture = 90 + color_shift + random.normal(0, 8, (count, 8, 8, 2))
    return np.concatenate([distance[..., None], texture], -1).clip(0, 255).astype(np.uint8)


def test_dfid_orders_sets_by_geometry_and_fid_by_what_is_seen():
    """One set has the references' distances and another texture, the other their texture and turned distances."""
    models = FeatureModels(Quadrants(), Red(), "metric")
    real, right, wrong = rooms(200, 0), rooms(200, 1, color_shift=60), rooms(200, 2, depth_shift=-6)
    found = {name: extract(one, names(200), models) for name, one in (("right", right), ("wrong", wrong))}
    scores = score_settings(found, extract(real, names(200), models), {"right": 1.0, "wrong": 1.0}, resamples=20)
    for metric in ("dFID", "dKID"):
        near, far = scores.distances[metric]
        assert near.high < far.low
    near, far = scores.distances["FID"]
    assert near.low > far.high


def test_two_images_are_scored_without_an_extrapolation():
    """They pass the check of counts where a singular covariance is allowed, and ended in an error after all was drawn."""
    models = FeatureModels(Counting(), Red())
    few, many = (extract(pictures(count), names(count), models, batch_size=4) for count in (2, 6))
    scores = score_settings({"none": few}, many, {"none": 1.0}, resamples=5)
    assert all(np.isnan(values).all() for values in scores.extrapolated.values()) and scores.extrapolated
    assert all(np.isfinite(one.estimate) for values in scores.distances.values() for one in values)
