"""The calibration of a checkpoint: what it does to outputs, and what it refuses."""

import json
import math

import numpy as np
import pytest
import torch
from tiny_bev import inputs, tiny_bev
from tiny_models import images, tiny_config, tiny_depth_model, tiny_segmenter

from noise2map import Noise2MapForNormalEstimation
from noise2map.models.distributions.calibration import Calibration, likely_classes

CLASSES = {"temperature": 2.0, "levels": [0.5, 0.9], "thresholds": [0.3, 0.15]}
INTERVALS = {"temperature": 1.5, "levels": [0.5, 0.9], "radii": [1.0, 4.0]}


def noise(count=1):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def tiny_normals_model(**fields):
    torch.manual_seed(0)
    fields = {"map_scale": 0.1, "time_input": "time", "num_labels": 2, **fields}
    return Noise2MapForNormalEstimation(tiny_config(**fields)).eval()


@torch.no_grad()
def run(model, count=1, calibration=None, **options):
    model.config.calibration = calibration
    return model(images(count), generator=noise(count), **options)


def test_logits_are_divided_and_sets_follow_the_probabilities():
    model = tiny_segmenter()
    before, after = run(model), run(model, calibration=CLASSES)
    torch.testing.assert_close(after.logits, before.logits / 2)
    p = after.logits.softmax(1)
    assert after.prediction_set(0.9).equal((p >= 0.15) | (p == p.amax(1, keepdim=True)))
    assert after.prediction_set(0.7).equal(after.prediction_set(0.9))  # the next level that was fitted
    assert bool(after.prediction_set(0.5).any(1).all()) and after.prediction_set(0.5).sum() <= after.prediction_set(0.9).sum()
    entropy = -(p * p.log()).sum(1) / math.log(5)
    torch.testing.assert_close(after.uncertainties["entropy"], entropy, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after.uncertainty, entropy, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_confidences_become_what_came_true_and_the_likeliest_class_stays():
    knots = ((0.4, 0.3), (0.7, 0.6), (0.95, 0.97))
    model = tiny_segmenter()
    field = {"temperature": 0.05, "confidences": [list(knot) for knot in knots]}
    features = model.encode_image(images(4))
    cells = []  # corrected before they are resized
    for calibration, factor in ((None, 0.05), (field, 1)):
        model.config.calibration = calibration
        logits = model.decode_map(features, generator=noise(4)).logits.double() / factor
        cells.append(logits.softmax(1).movedim(1, -1).flatten(0, -2).numpy())
    p, after = cells
    x, y = zip((0, 0), *knots, (1, 1))
    first, second = np.sort(p, 1)[:, -1], np.sort(p, 1)[:, -2]
    # What the second class gets stays behind what the first one gets, by a thousandth of a nat.
    behind = second * math.exp(1e-3)
    expected = np.maximum(np.interp(first, x, y), behind / (1 - first + behind).clip(1e-300)).clip(max=1 - 1e-6)
    np.testing.assert_allclose(after.max(1), expected, atol=2e-6)
    assert (expected > np.interp(first, x, y)).any() and (expected == np.interp(first, x, y)).any()
    assert (after.argmax(1) == p.argmax(1)).all()
    rows, places = np.arange(len(p)), p.argmax(1)
    np.testing.assert_allclose(after[rows, places], after.max(1), atol=2e-6)
    others = p.copy()
    others[rows, places] = 0
    np.testing.assert_allclose(
        np.delete(after, 0, 1)[places == 0], (others * ((1 - expected) / others.sum(1))[:, None])[places == 0][:, 1:], atol=2e-6
    )
    found = Calibration.read(field)
    assert found.confidences == knots and Calibration.read(json.loads(json.dumps(found.as_field()))) == found
    assert "confidences" not in Calibration(temperature=2.0).as_field()
    sure = found.correct_classes(torch.tensor([[80.0, 0.0, -80.0]])[:, :, None, None])
    assert bool(sure.isfinite().all()) and float(sure.softmax(1).amax()) == pytest.approx(1 - 1e-6, abs=1e-7)


def test_averaged_probabilities_are_sharpened_and_still_add_up():
    model = tiny_segmenter()
    options = {"average": "steps", "num_inference_steps": 2}
    features = model.encode_image(images())
    before = model.decode_map(features, generator=noise(), **options).logits.softmax(1)
    model.config.calibration = {"temperature": 0.5}
    after = model.decode_map(features, generator=noise(), **options)
    torch.testing.assert_close(after.logits.exp(), before.square() / before.square().sum(1, keepdim=True), atol=1e-5, rtol=1e-4)


def test_intervals_of_depth_have_the_fitted_radius():
    model = tiny_depth_model(objective="laplace")
    before, after = run(model), run(model, calibration=INTERVALS)
    torch.testing.assert_close(after.predicted_scale, before.predicted_scale * 1.5)
    torch.testing.assert_close(after.predicted_depth, before.predicted_depth)
    for level, radius in ((0.5, 1.0), (0.9, 4.0)):
        nearest, farthest = after.interval(level)
        torch.testing.assert_close((farthest / nearest).log(), 2 * radius * after.predicted_scale, rtol=1e-4, atol=1e-5)
    # between the fitted levels the radius grows linearly with that of the statement, beyond them in proportion
    place = (-math.log(0.25) - math.log(2)) / (-math.log(0.1) - math.log(2))
    assert -math.log1p(-Calibration.read(INTERVALS).stated_level(0.75)) == pytest.approx(1 + 3 * place)
    assert -math.log1p(-Calibration.read(INTERVALS).stated_level(0.99)) == pytest.approx(8.0)


def test_a_model_without_a_scale_gets_one_that_holds_everywhere():
    model = tiny_depth_model()
    with pytest.raises(ValueError, match="no predicted_scale"):
        run(model).interval(0.9)
    out = run(model, calibration={"scale": 0.2, "levels": [0.9], "radii": [3.0]})
    nearest, farthest = out.interval(0.9)
    torch.testing.assert_close((farthest / nearest).log(), torch.full_like(nearest, 1.2), rtol=1e-4, atol=1e-5)


def test_a_mixture_keeps_its_components():
    model = tiny_depth_model(objective="laplace_mixture")
    before, after = run(model), run(model, calibration={"temperature": 2.0})
    torch.testing.assert_close(after.mixture[:, 4:], 2 * before.mixture[:, 4:])
    torch.testing.assert_close(after.mixture[:, :4], before.mixture[:, :4])


def test_cones_of_directions():
    model = tiny_normals_model(objective="angular")
    before, after = run(model), run(model, calibration={"temperature": 0.5, "levels": [0.9], "radii": [-math.log(0.2)]})
    torch.testing.assert_close(after.spread, before.spread / 2)
    out = run(model, calibration={"temperature": 0.5})
    torch.testing.assert_close(after.cone(0.9), out.cone(0.8))
    constant = run(tiny_normals_model(), calibration={"scale": 0.3, "levels": [0.9], "radii": [2.0]})
    assert float(constant.cone(0.9).std()) < 1e-3


@torch.no_grad()
def test_every_layer_has_a_temperature_of_its_own():
    model = tiny_bev()
    given = inputs()
    count = model.config.num_labels
    before = model(**given, generator=noise())
    temperatures = [0.5 + 0.5 * layer for layer in range(count)]
    model.config.calibration = {"temperature": temperatures}
    after = model(**given, generator=noise())
    odds = torch.logit(before.probabilities) / torch.tensor(temperatures).view(-1, 1, 1)
    torch.testing.assert_close(after.probabilities, odds.sigmoid(), atol=1e-4, rtol=1e-3)
    p = after.probabilities
    torch.testing.assert_close(after.uncertainties["least_confidence"], 2 * torch.minimum(p, 1 - p), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "field"), [(tiny_segmenter, CLASSES), (lambda **k: tiny_depth_model(objective="laplace", **k), INTERVALS)]
)
def test_it_is_saved_loaded_and_the_same_in_any_batch(make, field, tmp_path):
    model = make(calibration=field)
    together = run(model, 3, field)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert loaded.config.calibration == field
    pixels, generators = images(3), noise(3)
    for index in range(3):
        with torch.no_grad():
            alone = loaded(pixels[index : index + 1], generator=[generators[index]])
        torch.testing.assert_close(alone.prediction[0], together.prediction[index], atol=1e-4, rtol=1e-4)
        assert alone.calibration == together.calibration


def test_a_level_is_a_probability_that_was_fitted():
    out = run(tiny_segmenter(), calibration=CLASSES)
    for level in (0, 1, 1.5, math.nan, True):
        with pytest.raises(ValueError, match="expected a probability between 0 and 1"):
            out.prediction_set(level)
    with pytest.raises(ValueError, match=r"level is 0.95, for which no set of classes was fitted; expected at most 0.9"):
        out.prediction_set(0.95)
    with pytest.raises(ValueError, match="calibrated model"):
        run(tiny_segmenter()).prediction_set(0.9)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"temperatur": 1.0}, "calibration holds 'temperatur'"),
        ({"temperature": 0}, "calibration.temperature is 0; expected positive numbers"),
        ({"temperature": [1.0, 2.0]}, "expected one number for segmentation"),
        ({"radii": [1.0], "levels": [0.5]}, "calibration holds 'radii'"),
        ({"thresholds": [0.5], "levels": [0.5, 0.9]}, "expected one for each of 2 levels"),
        ({"thresholds": [0.1, 0.5], "levels": [0.5, 0.9]}, "expected falling numbers"),
        ({"thresholds": 0.5, "levels": [0.5]}, "expected a list of numbers"),
        ({"levels": [1.0]}, "expected levels between 0 and 1"),
        ({"confidences": [0.5, 0.6]}, "expected pairs of confidence and share"),
        ({"confidences": [[0.5, 1.5]]}, "calibration.confidences is 1.5; expected probabilities"),
        ({"confidences": [[0.5, 0.6], [0.6, 0.5]]}, "expected rising pairs"),
    ],
)
def test_what_no_calibration_can_be_is_refused(field, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        tiny_segmenter(calibration=field)


def test_layers_need_as_many_temperatures():
    with pytest.raises(ValueError, match="expected one for each of"):
        tiny_bev(calibration={"temperature": [1.0]})


def test_sets_are_never_empty():
    p = torch.tensor([[0.4, 0.35, 0.25]])
    assert likely_classes(p, 0.5).tolist() == [[True, False, False]] and likely_classes(p, 0.3).tolist() == [[True, True, False]]
