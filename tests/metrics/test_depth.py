"""Depth scores against numpy written from the definitions, torchmetrics, and closed forms."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional import mean_squared_error

from noise2map.metrics import DEPTH_SCORES, DepthScores, absolute_relative_error, depth_is_wrong, depth_valid


def _maps(seed: int = 0, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    depth = 0.2 + 12 * torch.rand(batch, 7, 8, generator=generator)
    prediction = depth * torch.exp(0.3 * torch.randn(depth.shape, generator=generator))
    depth[torch.rand(depth.shape, generator=generator) < 0.2] = 0
    return prediction, depth


def _numpy_scores(prediction: np.ndarray, depth: np.ndarray) -> dict[str, float]:
    """One image's scores, straight from the definitions."""
    ratio = np.maximum(depth / prediction, prediction / depth)
    log_error = np.log(prediction) - np.log(depth)
    return {
        "delta1": (ratio < 1.25).mean(),
        "delta2": (ratio < 1.25**2).mean(),
        "delta3": (ratio < 1.25**3).mean(),
        "abs_rel": np.mean(np.abs(depth - prediction) / depth),
        "sq_rel": np.mean((depth - prediction) ** 2 / depth),
        "rmse": np.sqrt(np.mean((depth - prediction) ** 2)),
        "rmse_log": np.sqrt(np.mean(log_error**2)),
        "log10": np.mean(np.abs(np.log10(depth) - np.log10(prediction))),
        "silog": np.sqrt(np.mean(log_error**2) - np.mean(log_error) ** 2) * 100,
    }


def _valid_arrays(prediction, depth, low, high):
    for p, d in zip(prediction.double().numpy(), depth.double().numpy()):
        keep = (d > low) & (d < high)
        yield np.clip(p[keep], low, high), d[keep]


def test_average_over_images_agrees_with_numpy():
    prediction, depth = _maps()
    metric = DepthScores(0.5, 10)
    metric.update(prediction[:2], depth[:2])
    metric.update(prediction[2:], depth[2:])
    rows = [_numpy_scores(p, d) for p, d in _valid_arrays(prediction, depth, 0.5, 10)]
    scores = metric.compute()
    assert list(scores) == list(DEPTH_SCORES)
    for column, name in enumerate(DEPTH_SCORES):
        assert scores[name].item() == pytest.approx(np.mean([row[name] for row in rows]), rel=1e-6)
        assert metric.per_image()[:, column].tolist() == pytest.approx([row[name] for row in rows], rel=1e-6)


def test_pooled_over_pixels_agrees_with_numpy_and_torchmetrics():
    prediction, depth = _maps(1)
    metric = DepthScores(0.5, 10, average="pixel")
    for p, d in zip(prediction, depth):
        metric.update(p[None], d[None])
    pairs = list(_valid_arrays(prediction, depth, 0.5, 10))
    pooled_prediction, pooled_depth = (np.concatenate(x) for x in zip(*pairs))
    expected = _numpy_scores(pooled_prediction, pooled_depth)
    scores = metric.compute()
    for name in DEPTH_SCORES:
        assert scores[name].item() == pytest.approx(expected[name], rel=1e-6)
    rmse = mean_squared_error(torch.tensor(pooled_prediction), torch.tensor(pooled_depth), squared=False)
    assert scores["rmse"].item() == pytest.approx(rmse.item(), rel=1e-6)


def test_a_constant_factor_costs_no_silog():
    depth = torch.linspace(1, 5, 12).view(1, 3, 4)
    metric = DepthScores(0.1, 100)
    metric.update(2 * depth, depth)
    scores = metric.compute()
    assert scores["silog"].item() == pytest.approx(0, abs=1e-4)
    assert scores["abs_rel"].item() == pytest.approx(1)
    assert scores["rmse_log"].item() == pytest.approx(math.log(2), rel=1e-6)
    assert scores["log10"].item() == pytest.approx(math.log10(2), rel=1e-6)
    assert [scores[f"delta{k}"].item() for k in (1, 2, 3)] == [0, 0, 0]  # 1.25 cubed is 1.953


def test_images_without_valid_pixels_do_not_enter_the_mean():
    prediction, depth = _maps(2)
    alone, together = DepthScores(0.5, 10), DepthScores(0.5, 10)
    alone.update(prediction, depth)
    together.update(prediction, depth)
    together.update(torch.full((1, 7, 8), torch.nan), torch.zeros(1, 7, 8))
    assert together.compute()["rmse"].item() == alone.compute()["rmse"].item()
    assert together.per_image().shape == (4, 9)
    assert torch.isnan(together.per_image()[3]).all()


def test_the_mask_and_the_bounds_select_pixels():
    depth = torch.tensor([[[0.0, 0.5, 1.0, 2.0, 10.0, torch.inf]]])
    assert depth_valid(depth, 0.5, 10).tolist() == [[[False, False, True, True, False, False]]]
    mask = torch.tensor([[[True, True, False, True, True, True]]])
    assert depth_valid(depth, 0.5, 10, mask).sum() == 1
    metric = DepthScores(0.5, 10)
    metric.update(torch.full_like(depth, 3.0), depth, valid=mask)
    assert metric.compute()["rmse"].item() == pytest.approx(1.0)


def test_predictions_are_clamped_to_the_range():
    metric = DepthScores(0.5, 10)
    metric.update(torch.tensor([[[1000.0, -3.0]]]), torch.tensor([[[8.0, 2.0]]]))
    assert metric.compute()["rmse"].item() == pytest.approx(math.sqrt((2**2 + 1.5**2) / 2))


def test_error_maps():
    depth, prediction = torch.tensor([2.0, 2.0, 2.0, 2.0]), torch.tensor([2.4, 2.5, 1.7, 1.5])
    assert absolute_relative_error(prediction, depth).tolist() == pytest.approx([0.2, 0.25, 0.15, 0.25])
    assert depth_is_wrong(prediction, depth).tolist() == [False, True, False, True]


def test_wrong_is_the_complement_of_delta1():
    prediction, depth = _maps(3, batch=1)
    metric = DepthScores(0.5, 10)
    metric.update(prediction, depth)
    valid = depth_valid(depth, 0.5, 10)
    wrong = depth_is_wrong(prediction.clamp(0.5, 10), depth)[valid].double().mean()
    assert metric.compute()["delta1"].item() == pytest.approx(1 - wrong.item(), rel=1e-9)


def test_merging_two_halves_equals_the_whole():
    prediction, depth = _maps(4, batch=4)
    whole, first, second = DepthScores(0.5, 10), DepthScores(0.5, 10), DepthScores(0.5, 10)
    whole.update(prediction, depth)
    first.update(prediction[:1], depth[:1])
    second.update(prediction[1:], depth[1:])
    first.merge_state(second)
    for name, value in whole.compute().items():
        assert first.compute()[name].item() == pytest.approx(value.item(), rel=1e-12)


@pytest.mark.parametrize(("low", "high"), [(0, 10), (-1, 10), (5, 5), (6, 5)])
def test_impossible_bounds_are_refused(low, high):
    with pytest.raises(ValueError, match="min_depth"):
        DepthScores(low, high)


def test_bad_maps_are_refused():
    with pytest.raises(ValueError, match="average"):
        DepthScores(1, 2, average="median")
    metric = DepthScores(0.5, 10)
    with pytest.raises(ValueError, match="same shape"):
        metric.update(torch.ones(1, 2, 2), torch.ones(1, 2, 3))
    with pytest.raises(ValueError, match="2 valid pixels"):
        metric.update(torch.tensor([[[torch.nan, torch.inf, 1.0]]]), torch.full((1, 1, 3), 2.0))
