"""Temperature scaling against the temperature the data was made with, and against a scan of the loss."""

import numpy as np
import pytest
import torch
from scipy.optimize import isotonic_regression
from torch.nn.functional import cross_entropy

from noise2map.metrics import fit_temperature
from noise2map.metrics.calibration import LOWEST_TEMPERATURE, fit_confidences


def _data(temperature: float, seed: int = 0, sharpness: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn from `softmax(logits / temperature)`."""
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(6, 5, 40, 40, generator=generator)
    honest = (logits / temperature).softmax(1).permute(0, 2, 3, 1).reshape(-1, 5)
    labels = torch.multinomial(honest, 1, generator=generator).view(6, 40, 40)
    labels[:, :4] = 255
    return logits, labels


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.5])
def test_recovers_the_temperature(temperature):
    logits, labels = _data(temperature)
    assert fit_temperature(logits.split(2), labels.split(2)) == pytest.approx(temperature, rel=0.08)


def test_is_the_minimum_of_the_loss():
    logits, labels = _data(1.7, seed=1)
    found = fit_temperature([logits], [labels], pixels_per_image=10**6)

    def loss(t: float) -> float:
        return cross_entropy(logits.double() / t, labels, ignore_index=255).item()

    assert loss(found) <= min(loss(found * factor) for factor in (0.9, 0.999, 1.001, 1.1))


def test_streams_and_repeats():
    logits, labels = _data(1.3, seed=2)
    batches = ((z for z in logits.split(1)), (y for y in labels.split(1)))
    assert fit_temperature(*batches, pixels_per_image=300) == fit_temperature(
        logits.split(1), labels.split(1), pixels_per_image=300
    )


def test_perfect_predictions_stop_at_the_bound():
    labels = torch.randint(3, (1, 8, 8), generator=torch.Generator().manual_seed(3))
    logits = 4.0 * torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2)
    assert fit_temperature([logits], [labels]) == LOWEST_TEMPERATURE


def test_bad_input_is_refused():
    logits, labels = _data(1.0, seed=4)
    with pytest.raises(ValueError, match="no labelled pixel"):
        fit_temperature([], [])
    with pytest.raises(ValueError, match="no labelled pixel"):
        fit_temperature([logits], [torch.full_like(labels, 255)])
    with pytest.raises(ValueError, match="need logits"):
        fit_temperature([logits], [labels[:, :3]])
    with pytest.raises(ValueError, match=r"shorter|longer"):
        fit_temperature([logits, logits], [labels])
    with pytest.raises(ValueError, match="finite"):
        fit_temperature([logits * torch.nan], [labels])
    with pytest.raises(ValueError, match=r"0\.\.4"):
        fit_temperature([logits], [labels.where(labels != 0, 9)])
    with pytest.raises(ValueError, match="pixels_per_image"):
        fit_temperature([logits], [labels], pixels_per_image=0)


def test_one_pixel_of_each_image_is_the_least():
    logits, labels = torch.randn(40, 3, 2, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(40, 2, 2, dtype=torch.long)
    assert fit_temperature(logits.split(1), labels.split(1), pixels_per_image=1) > 0
    with pytest.raises(ValueError, match="at least 1, got 0"):
        fit_temperature(logits.split(1), labels.split(1), pixels_per_image=0)


@pytest.mark.parametrize("groups", [20, 3])
def test_confidences_are_the_isotonic_regression_of_scipy(groups):
    generator = torch.Generator().manual_seed(5)
    confidence = 0.2 + 0.8 * torch.rand(997, generator=generator)
    correct = torch.rand(997, generator=generator) < 0.4 + 0.5 * confidence.square()
    x, share = np.array(fit_confidences(confidence, correct, groups)).T
    order = np.argsort(confidence.numpy())
    parts = [(confidence.numpy()[one], correct.numpy()[one]) for one in np.array_split(order, groups)]
    np.testing.assert_allclose(x, [float(c.astype(float).mean()) for c, _ in parts], rtol=1e-6)
    raw, weights = [r.mean() for _, r in parts], [len(r) for _, r in parts]
    np.testing.assert_allclose(share, isotonic_regression(raw, weights=weights).x, atol=1e-12)
    assert (groups == 3) == bool((np.diff(raw) > 0).all())  # with many groups some had to be pooled


def test_confidences_of_few_or_equal_pixels():
    assert fit_confidences(torch.tensor([0.5]), torch.tensor([True])) == ((0.5, 1.0),)
    assert fit_confidences(torch.full((8,), 0.75), torch.tensor([1, 0] * 4).bool(), 4) == ((0.75, 0.5),)
    with pytest.raises(ValueError, match="at least one"):
        fit_confidences(torch.zeros(0), torch.zeros(0))


def test_equal_confidences_are_one_knot():
    """Whatever order their pixels come in: the first are right, the last wrong, or the other way round."""
    right = torch.arange(1000) < 700
    for correct in (right, ~right.flip(0), right.flip(0)):
        knots = fit_confidences(torch.full((1000,), 0.9), correct)
        assert len(knots) == 1 and knots[0] == pytest.approx((0.9, float(correct.double().mean())))


def test_a_group_that_begins_with_a_part_of_equal_confidences_has_their_share():
    confidence = torch.tensor([0.5] * 100 + [1.0] * 300)
    right = torch.zeros(400, dtype=torch.bool)
    right[:50] = right[100:325] = True  # three quarters of the sure ones, the first of them
    for order in (torch.arange(400), torch.arange(399, -1, -1)):
        knots = fit_confidences(confidence[order], right[order], groups=3)
        assert knots[-1] == pytest.approx((1.0, 0.75))
