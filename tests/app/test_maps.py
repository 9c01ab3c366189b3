"""Maps as the app makes them: those of `Predictor`, with what a pixel says."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_config, tiny_depth_model, tiny_segmenter

from noise2map.app.files import map_files
from noise2map.app.jobs import Cancelled
from noise2map.app.limits import Limits
from noise2map.app.maps import MapRequest, covered, run_map
from noise2map.app.pixel import class_probabilities, depth_distribution, report_pixel
from noise2map.inference.predictor import Predictor
from noise2map.models import Noise2MapForNormalEstimation, Noise2MapImageProcessor

IMAGE = Image.fromarray(np.random.default_rng(1).integers(0, 255, (48, 72, 3), dtype=np.uint8))


def predictor_of(model):
    return Predictor(model, Noise2MapImageProcessor(size={"height": 32, "width": 32}))


@pytest.fixture(scope="module")
def segmenter():
    return predictor_of(tiny_segmenter())


@pytest.fixture(scope="module")
def classes(segmenter):
    return run_map(segmenter, "tiny", IMAGE, "one", MapRequest(steps=3, samples=2, seed=5))


@pytest.mark.parametrize("make", [tiny_segmenter, tiny_depth_model])
def test_the_map_is_that_of_the_predictor(make):
    predictor = predictor_of(make())
    found = run_map(predictor, "tiny", IMAGE, "one", MapRequest(steps=2, samples=3, average="steps", seed=4)).prediction
    expected = predictor(IMAGE, ["one"], num_inference_steps=2, ensemble_size=3, average="steps", seed=4)[0]
    np.testing.assert_array_equal(found.map, expected.map)
    np.testing.assert_array_equal(found.uncertainty, expected.uncertainty)


@pytest.mark.parametrize("average", ["last", "steps"])
def test_the_likeliest_class_of_a_pixel_is_that_of_the_map(segmenter, average):
    result = run_map(segmenter, "tiny", IMAGE, "one", MapRequest(steps=2, samples=2, average=average))
    for x, y in ((0, 0), (71, 47), (30, 20), (50, 3)):
        p = class_probabilities(result, x, y)
        assert p.sum() == pytest.approx(1, abs=1e-4) and p.argmax() == result.prediction.map[y, x]
        bars = report_pixel(result, x, y).bars
        assert [share for _, share, _ in bars] == sorted(p.tolist(), reverse=True)


def test_more_samples_than_the_memory_holds_are_refused_before_they_run(segmenter):
    request, calls = MapRequest(steps=1, samples=4), []
    with pytest.raises(ValueError, match=r"4 samples of \d+x\d+ pixels need about .* GiB; expected at most"):
        run_map(segmenter, "tiny", IMAGE, "one", request, lambda: calls.append(1), Limits(run_bytes=1000))
    assert not calls
    run_map(segmenter, "tiny", IMAGE, "one", request, lambda: calls.append(1))
    assert calls


def test_steps_and_samples_are_kept(classes):
    assert classes.step_maps.shape[:2] == (3, 5) and classes.samples.shape[:2] == (2, 5)
    assert classes.times[0] == 1 and classes.times == sorted(classes.times, reverse=True)
    # The sample whose steps are shown ends where it is kept as a sample.
    np.testing.assert_allclose(classes.step_maps[-1], classes.samples[0], atol=1e-6)
    assert all(one.shape == (*classes.step_maps.shape[-2:], 3) for one in classes.painted_steps())


def test_votes_of_samples_are_counted(classes):
    _, said = report_pixel(classes, 3, 3).facts[0]
    assert sum(int(part.split()[-1]) for part in said.split(", ")) == 2


def test_a_stated_distribution_is_read_at_the_pixel():
    model = tiny_depth_model(objective="laplace")
    result = run_map(predictor_of(model), "tiny", IMAGE, "one", MapRequest())
    report = report_pixel(result, 40, 20)
    stated = depth_distribution(result, 40, 20)
    low, high = (float(one) for one in stated.interval(0.9))
    assert dict(report.facts)["90% interval"] == f"{low:.2f} to {high:.2f} m"
    shares = report.series["stated by the model"]
    inside = stated.cumulative(torch.tensor(report.edges[-1]).view(1, 1, 1)) - stated.cumulative(
        torch.tensor(report.edges[0]).view(1, 1, 1)
    )
    assert sum(shares) == pytest.approx(float(inside), abs=1e-4) and sum(shares) > 0.8


def test_depth_of_samples_is_a_histogram():
    result = run_map(predictor_of(tiny_depth_model()), "tiny", IMAGE, "one", MapRequest(steps=2, samples=6))
    report = report_pixel(result, 10, 40)
    assert sum(report.series["6 samples"]) == pytest.approx(1)
    row, column = 40 * result.samples.shape[-2] // 48, 10 * result.samples.shape[-1] // 72
    values = result.samples[:, 0, row, column]
    assert report.edges[0] < values.min() and values.max() < report.edges[-1]


def test_directions_are_spread_around_the_map():
    torch.manual_seed(0)
    model = Noise2MapForNormalEstimation(tiny_config(map_scale=0.1)).eval()
    result = run_map(predictor_of(model), "tiny", IMAGE, "one", MapRequest(steps=2, samples=4))
    report = report_pixel(result, 10, 40)
    assert report.unit == "°" and 0 <= report.edges[0] < report.edges[-1] <= 181
    assert sum(report.series["4 samples"]) == pytest.approx(1)


def test_a_run_can_be_stopped(segmenter):
    calls = []

    def tick():
        calls.append(1)
        if len(calls) == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        run_map(segmenter, "tiny", IMAGE, "one", MapRequest(steps=9), tick)
    assert len(calls) == 3
    run_map(segmenter, "tiny", IMAGE, "one", MapRequest(steps=2), lambda: None)
    assert len(calls) == 3  # nothing of the stopped run is left on the model


def test_steps_that_would_be_too_large_are_not_kept(segmenter):
    result = run_map(segmenter, "tiny", IMAGE, "one", MapRequest(steps=3), limits=Limits(kept_step_bytes=100))
    assert len(result.step_maps) == 0 and "steps.webp" not in map_files(result)


def test_covering_hides_exactly_the_rectangle():
    changed = (np.asarray(covered(IMAGE, (0.25, 0.5, 0.75, 1.0))) != np.asarray(IMAGE)).any(-1)
    assert changed[24:, 18:54].mean() > 0.95 and not changed[:24].any() and not changed[:, :18].any()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"steps": 0}, "steps is 0; expected a whole number from 1 to 200"),
        ({"steps": True}, "steps is True"),
        ({"steps": 50, "samples": 5}, "250 calls of the model; at most 200"),
        ({"samples": 10**9}, "samples is 1000000000"),
        ({"average": "mean"}, "average is 'mean'; expected one of last, steps"),
        ({"seed": "../../etc"}, "seed is"),
        ({"fov_deg": float("nan")}, "fov_deg is nan"),
        ({"cover": [0, 0, 2, 1]}, "left < right"),
        ({"cover": "all"}, "cover is no list"),
        ({"path": "/etc/passwd"}, "there is no field 'path'"),
        ({"sampler": "x" * 500}, r"sampler is 'x+\.\.\."),
    ],
)
def test_impossible_dials_are_named(fields, words):
    with pytest.raises(ValueError, match=words):
        MapRequest.read(fields)
