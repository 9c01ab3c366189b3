"""Scoring rules of samples against scoringrules, brute force and closed forms."""

import itertools
import math

import numpy as np
import pytest
import scoringrules
import torch

from noise2map.metrics.samples import (
    ScaleScores,
    fair_crps,
    laplace_crps,
    laplace_cumulative,
    laplace_nll,
    patch_energy_score,
    variogram_score,
)
from noise2map.metrics.samples.scoring_rules import pooled


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def all_valid(*shape):
    return torch.ones(*shape, dtype=torch.bool)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_fair_crps_agrees_with_scoringrules(count):
    samples, truth = draw(2, count, 5, 4), draw(2, 5, 4, seed=1)
    expected = scoringrules.crps_ensemble(truth.numpy(), samples.movedim(1, -1).numpy(), estimator="fair")
    assert np.allclose(fair_crps(samples, truth).numpy(), expected)


def test_fair_crps_of_one_sample_is_the_absolute_error_and_ignores_the_size_of_the_set():
    samples, truth = draw(40_000, 12), draw(40_000, seed=1)
    assert torch.equal(fair_crps(samples[:, :1], truth), (samples[:, 0] - truth).abs())
    # a calibrated standard normal forecast scores 1 / sqrt(pi) on average, with any number of samples
    for count in (2, 3, 12):
        assert fair_crps(samples[:, :count], truth).mean().item() == pytest.approx(1 / math.sqrt(math.pi), abs=0.01)
    with pytest.raises(ValueError, match="shape of the truth"):
        fair_crps(samples, truth[:5])


def squared(a, b):
    return (a - b).square()


def test_energy_score_agrees_with_scoringrules():
    samples, truth = draw(1, 5, 6, 6), draw(1, 6, 6, seed=1)
    score, counted = patch_energy_score(samples, truth, all_valid(1, 6, 6), squared, 6)
    expected = (
        scoringrules.es_ensemble(truth.flatten().numpy(), samples[0].flatten(1).numpy(), estimator="fair") / 6
    )  # per root pixel
    assert score.shape == (1, 1, 1) and bool(counted.all())
    assert score.item() == pytest.approx(float(expected))


def test_energy_score_of_a_masked_patch_is_that_of_its_valid_pixels():
    samples, truth, valid = draw(1, 4, 4, 8), draw(1, 4, 8, seed=1), all_valid(1, 4, 8)
    valid[0, :2, :3] = False  # 10 of 16 pixels of the first patch are left, 5 of the second
    valid[0, 1:, 4:] = False
    valid[0, 3, 4] = True
    samples[:, :, ~valid[0]] = torch.nan  # what is not valid is not looked at
    score, counted = patch_energy_score(samples, truth, valid, squared, 4)
    assert counted.tolist() == [[[True, False]]]
    left = valid[0, :, :4]
    x, y = samples[0, :, :, :4][:, left].numpy(), truth[0, :, :4][left].numpy()
    assert score[0, 0, 0].item() == pytest.approx(float(scoringrules.es_ensemble(y, x, estimator="fair")) / math.sqrt(10))


def test_energy_score_prefers_coherent_samples_with_the_same_pixels():
    """One value for the whole patch, or one for each pixel: the marginals are the same, the truth is coherent."""
    truth = draw(300, 1, 1).expand(-1, 8, 8)
    coherent, noise = draw(300, 6, 1, 1, seed=1).expand(-1, -1, 8, 8), draw(300, 6, 8, 8, seed=2)
    scores = [patch_energy_score(one, truth, all_valid(300, 8, 8), squared, 8)[0].mean().item() for one in (coherent, noise)]
    assert scores[0] < scores[1] - 0.05
    assert fair_crps(coherent, truth).mean().item() == pytest.approx(fair_crps(noise, truth).mean().item(), abs=0.05)


def test_variogram_score_agrees_with_scoringrules():
    samples, truth = draw(1, 5, 4, 5), draw(1, 4, 5, seed=1)
    places = list(itertools.product(range(4), range(5)))
    apart = [[abs(a - c) + abs(b - d) if (a == c or b == d) else 0 for c, d in places] for a, b in places]
    weights = np.isin(np.array(apart), (1, 2)).astype(float)
    total, number = variogram_score(samples, truth, all_valid(1, 4, 5), steps=(1, 2))
    expected = scoringrules.vs_ensemble(truth.flatten().numpy(), samples[0].flatten(1).numpy(), w=weights, p=0.5)
    assert 2 * total.item() == pytest.approx(float(expected))  # the matrix of weights has every pair twice
    assert 2 * number.item() == weights.sum()


def test_variogram_score_leaves_out_pairs_with_an_invalid_pixel():
    samples, truth, valid = draw(1, 3, 2, 3), draw(1, 2, 3, seed=1), all_valid(1, 2, 3)
    valid[0, 1] = False
    samples[:, :, 1], truth[:, 1] = torch.nan, torch.nan
    found = variogram_score(samples, truth, valid, steps=(1, 16))
    expected = variogram_score(samples[:, :, :1], truth[:, :1], valid[:, :1], steps=(1,))
    assert found[0].item() == expected[0].item() and found[1].item() == 2


def test_pooled_means_are_those_of_valid_pixels():
    maps, valid = draw(1, 2, 5, 4), draw(1, 5, 4, seed=1) > -0.5
    means, counted = pooled(maps, valid, 2)
    assert means.shape == (1, 2, 2, 2)
    for row, column in itertools.product(range(2), range(2)):
        place = (slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2))
        mask = valid[0][place]
        assert bool(counted[0, row, column]) == (mask.float().mean().item() >= 0.5)
        if bool(mask.any()):
            assert means[0, 1, row, column].item() == pytest.approx(maps[0, 1][place][mask].mean().item())
    assert pooled(maps, valid, 8)[0].numel() == 0


def components(*rows):
    """Weights, medians and scales ``(1, n, 1)`` of a mixture."""
    return [torch.tensor(one, dtype=torch.float64).view(1, -1, 1) for one in zip(*rows)]


def test_laplace_scores_agree_with_scoringrules():
    error, scale = 2 * draw(50), 0.2 + draw(50, seed=1).abs()
    one = (torch.ones(50, 1), torch.zeros(50, 1), scale[:, None])
    assert np.allclose(laplace_crps(error, *one).numpy(), scoringrules.crps_laplace(error.numpy(), 0.0, scale.numpy()))
    assert np.allclose(laplace_nll(error, *one).numpy(), scoringrules.logs_laplace(error.numpy(), 0.0, scale.numpy()))


@pytest.mark.parametrize("scales", [(0.3, 0.9), (0.5, 0.5), (0.5, 0.50001)])
def test_scores_of_a_mixture_agree_with_numerical_integration(scales):
    parts = components((0.3, -1.0, scales[0]), (0.7, 0.6, scales[1]))
    grid = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    cumulative = laplace_cumulative(grid[None], *parts)[0]
    density = (-laplace_nll(grid[None], *parts)[0]).exp()
    assert torch.allclose(density.cumsum(0) * (grid[1] - grid[0]), cumulative, atol=1e-3)
    for truth in (-1.2, 0.1, 2.0):
        expected = torch.trapezoid((cumulative - (grid >= truth).double()).square(), grid).item()
        assert laplace_crps(torch.tensor([[truth]], dtype=torch.float64), *parts).item() == pytest.approx(expected, abs=2e-4)


def test_intervals_of_a_right_scale_cover_their_level():
    uniform = torch.rand(1, 200, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    truth = 2 - 3 * uniform.sign() * torch.log1p(-2 * uniform.abs())  # median 2, scale 3
    ones, valid = torch.ones(1, 1, 200, 500), torch.rand(1, 200, 500) < 0.9
    metric = ScaleScores()
    metric.update(torch.where(valid, truth, torch.nan), ones, 2 * ones, 3 * ones, valid)
    scores = metric.compute()
    assert scores["coverage_50"].item() == pytest.approx(0.5, abs=0.01)
    assert scores["coverage_90"].item() == pytest.approx(0.9, abs=0.01)
    assert scores["nll"].item() == pytest.approx(1 + math.log(6), abs=0.02)  # the entropy
    assert scores["crps"].item() == pytest.approx(0.75 * 3, rel=0.02)  # half the mean distance of two draws
    with pytest.raises(ValueError, match="scales must be above 0"):
        metric.update(truth, ones, ones, 0 * ones, valid)
    with pytest.raises(ValueError, match="need truth"):
        metric.update(truth, ones, ones, ones[:, :, :5], valid)
