"""Conformal thresholds and scale factors against closed forms, brute force and other libraries."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torchmetrics.classification import MulticlassCalibrationError

from noise2map.metrics import fit_temperature
from noise2map.metrics.conformal import conformal_threshold, fit_scale_factor, level_error, naive_sets


@pytest.mark.parametrize("count", [1, 9, 10, 37])
@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_the_threshold_is_the_quantile_with_the_finite_sample_correction(count, level):
    scores = torch.from_numpy(np.random.default_rng(count).standard_normal(count))
    rank = math.ceil(round((count + 1) * level, 9))
    expected = np.quantile(scores.numpy(), rank / count, method="inverted_cdf") if rank <= count else math.inf
    assert conformal_threshold(scores, level) == expected
    assert conformal_threshold(scores, level, torch.arange(count)) == expected  # groups of one pixel each


def test_coverage_of_exchangeable_scores_is_exact():
    """Of n + 1 exchangeable scores each is as likely to be the new one: averaged over all choices the coverage is known."""
    rng = np.random.default_rng(0)
    for level in (0.5, 0.9):
        covered = []
        for _ in range(200):
            scores = torch.from_numpy(rng.standard_normal(20))
            covered += [float(scores[i]) <= conformal_threshold(torch.cat([scores[:i], scores[i + 1 :]]), level) for i in range(20)]
        assert np.mean(covered) == math.ceil(20 * level) / 20


def test_groups_count_alike_and_a_new_group_is_covered():
    rng = np.random.default_rng(1)
    # one group of 900 easy pixels does not outvote nine of 10
    scores = torch.cat([torch.zeros(900), torch.ones(90)])
    groups = torch.cat([torch.zeros(900, dtype=torch.long), 1 + torch.arange(90) // 10])
    assert conformal_threshold(scores, 0.5) == 0 and conformal_threshold(scores, 0.5, groups) == 1
    covered, plain = [], []
    for _ in range(400):  # a pixel of a new image, images differ far more than pixels of one
        levels = rng.standard_normal(13)
        drawn = torch.from_numpy(levels[:, None] + 0.1 * rng.standard_normal((13, 30)))
        names = torch.arange(12).repeat_interleave(30)
        new = float(drawn[12, 0])
        covered.append(new <= conformal_threshold(drawn[:12].flatten(), 0.8, names))
        plain.append(new <= conformal_threshold(drawn[:12].flatten(), 0.8))
    assert (
        np.mean(covered) > 0.76 > np.mean(plain) - 0.05
    )  # at least 0.8 less three standard errors of 0.02; pixels alone fall short
    assert np.mean(covered) > np.mean(plain)


def test_too_few_groups_reach_no_level():
    assert conformal_threshold(torch.ones(1000), 0.95, torch.arange(1000) // 100) == math.inf


@pytest.mark.parametrize(
    ("scores", "level", "groups", "message"),
    [
        (torch.ones(3), 1.0, None, "level is 1.0; expected a probability between 0 and 1"),
        (torch.ones(0), 0.5, None, "at least one"),
        (torch.tensor([1.0, math.nan]), 0.5, None, "without NaN"),
        (torch.ones(3), 0.5, torch.zeros(2, dtype=torch.long), "a group for each score"),
    ],
)
def test_what_cannot_be_is_refused(scores, level, groups, message):
    with pytest.raises(ValueError, match=message):
        conformal_threshold(scores, level, groups)


def test_naive_sets_hold_the_likeliest_classes_up_to_the_level():
    p = torch.tensor([[0.5, 0.3, 0.2], [0.05, 0.9, 0.05]])
    assert naive_sets(p, 0.6).tolist() == [[True, True, False], [False, True, False]]
    assert naive_sets(p.T[None, :, :, None], 0.6)[0, :, :, 0].T.equal(naive_sets(p, 0.6))


def test_the_factor_of_a_scale_is_that_of_greatest_likelihood():
    rng = np.random.default_rng(2)
    scales = torch.from_numpy(rng.uniform(0.1, 1, 500))
    errors = torch.from_numpy(rng.laplace(size=500)).abs() * scales * 1.7

    def nll(factor):
        return float((errors / (scales * factor) + (2 * scales * factor).log()).mean())

    closed_form = float((errors / scales).mean())
    assert fit_scale_factor(nll) == pytest.approx(closed_form, rel=1e-5)
    assert fit_scale_factor(nll) == pytest.approx(minimize_scalar(nll, bounds=(0.02, 50), method="bounded").x, rel=1e-3)


def test_a_temperature_brings_another_librarys_calibration_error_down():
    generator = torch.Generator().manual_seed(0)
    honest = torch.randn(20000, 6, generator=generator) * 2
    labels = torch.multinomial(honest.softmax(1), 1, generator=generator)[:, 0]
    sharp = honest * 3
    found = fit_temperature([sharp.T[None, ..., None]], [labels[None, :, None]], 255, len(labels))
    grid = np.linspace(2, 4, 201)
    losses = [float(torch.nn.functional.cross_entropy(sharp / t, labels)) for t in grid]
    assert found == pytest.approx(grid[int(np.argmin(losses))], abs=0.02)
    error = MulticlassCalibrationError(6, n_bins=15)
    assert error(sharp.softmax(1), labels) > 0.1 and error((sharp / found).softmax(1), labels) < 0.01


def test_level_error_is_the_mean_gap():
    assert level_error([0.6, 0.9], [0.5, 0.9]) == pytest.approx(0.05)
