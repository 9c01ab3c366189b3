"""Scoring rules of samples against scoringrules, brute force and closed forms."""

import itertools
import math

import numpy as np
import pytest
import scoringrules
import torch

from noise2map.metrics.samples import fair_crps, laplace_covers, laplace_crps, patch_energy_score, variogram_score
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


def test_laplace_crps_agrees_with_scoringrules_and_intervals_cover():
    error, scale = 2 * draw(50), 0.2 + draw(50, seed=1).abs()
    expected = scoringrules.crps_laplace(error.numpy(), 0.0, scale.numpy())
    assert np.allclose(laplace_crps(error, scale).numpy(), expected)
    uniform = torch.rand(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    drawn = -uniform.sign() * torch.log1p(-2 * uniform.abs())
    for level in (0.5, 0.9):
        covered = laplace_covers(3 * drawn, torch.full_like(drawn, 3.0), level)
        assert covered.double().mean().item() == pytest.approx(level, abs=0.005)
    with pytest.raises(ValueError, match="expected a probability"):
        laplace_covers(error, scale, 1.0)
