"""Angular errors against hand counts and against NumPy."""

import math

import numpy as np
import pytest
import torch

from noise2map.metrics import NORMALS_SCORES, NormalsScores, angular_error


def turned(degrees, axis=0):
    """A normal towards the viewer, turned by an angle in the plane of x and z (axis 0) or y and z (axis 1)."""
    vector = [0.0, 0.0, math.cos(math.radians(degrees))]
    vector[axis] = math.sin(math.radians(degrees))
    return vector


def image(rows):
    """Rows of angles in degrees -> ``(1, 3, H, W)``."""
    return torch.tensor([[turned(angle) for angle in row] for row in rows], dtype=torch.float64).permute(2, 0, 1)[None]


def test_scores_by_hand():
    """Errors 0, 10, 20, 25, 40 degrees, and one pixel whose truth is unknown."""
    truth = image([[0, 0, 0], [0, 0, 0]])
    truth[..., 1, 2] = 0
    prediction = image([[0, 10, 20], [25, 40, 90]])
    metric = NormalsScores()
    metric.update(prediction * 3, truth)  # lengths do not matter
    found = metric.compute()
    assert list(found) == list(NORMALS_SCORES)
    assert [float(value) for value in found.values()] == pytest.approx([19, 20, 2 / 5, 3 / 5, 4 / 5])
    assert torch.allclose(metric.per_image()[0], torch.stack(list(found.values())))


def test_averages_over_images_and_over_pixels():
    metric, pooled = NormalsScores(), NormalsScores(average="pixel", keep_per_image=False)
    first, second = (image([[0]]), image([[90]])), (image([[0, 0, 0]]), image([[10, 20, 30]]))
    nothing = (torch.zeros(1, 3, 1, 4), torch.ones(1, 3, 1, 4))
    for truth, prediction in (first, second, nothing):
        metric.update(prediction, truth)
        pooled.update(prediction, truth)
    scores = metric.compute()
    assert float(scores["mean_angle"]) == pytest.approx((90 + 20) / 2)
    assert float(scores["median_angle"]) == pytest.approx((90 + 20) / 2)
    assert float(scores["within_22.5"]) == pytest.approx((0 + 2 / 3) / 2)
    assert metric.per_image().shape == (3, 5) and bool(metric.per_image()[2].isnan().all())
    scores = pooled.compute()
    assert float(scores["mean_angle"]) == pytest.approx((90 + 60) / 4)
    assert float(scores["median_angle"]) == pytest.approx(20, abs=0.01)
    assert float(scores["within_22.5"]) == pytest.approx(2 / 4)


def test_angles_against_numpy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 9, 11)), rng.normal(size=(2, 3, 9, 11))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    found = angular_error(torch.from_numpy(a), torch.from_numpy(b))
    np.testing.assert_allclose(found.numpy(), np.degrees(np.arccos(cosine)), atol=1e-9)
    tiny = angular_error(image([[0]]), image([[1e-5]]))
    assert float(tiny) == pytest.approx(1e-5, rel=1e-6)  # where the arc cosine gives 0


def test_what_cannot_be_scored_is_refused():
    metric = NormalsScores()
    with pytest.raises(ValueError, match="same shape"):
        metric.update(torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 3))
    with pytest.raises(ValueError, match="NaN, infinite or zero at 1 valid"):
        metric.update(image([[math.nan]]), image([[0]]))
    with pytest.raises(ValueError, match="zero at 1 valid"):
        metric.update(torch.zeros(1, 3, 1, 1), image([[0]]))
    with pytest.raises(ValueError, match="average must be"):
        NormalsScores(average="set")


def test_shares_are_as_exact_as_they_say():
    scores = NormalsScores(average="pixel")
    scores.update(image([[0, 40, 40]]), image([[0, 0, 0]]))
    assert {value.dtype for value in scores.compute().values()} == {torch.float64}
    assert scores.compute()["within_11.25"].item() == 1 / 3
