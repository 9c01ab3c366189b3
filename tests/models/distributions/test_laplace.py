"""Laplace distributions of log depth against torch.distributions, closed forms and draws."""

import math

import pytest
import torch
from torch.distributions import Laplace

from noise2map.models.distributions.laplace import LogLaplace


def mixture(seed=0, count=2):
    """A random mixture at 2 x 3 pixels of one map."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(1, count, 2, 3, generator=generator).add(0.1)
    medians_m = torch.rand(1, count, 2, 3, generator=generator) * 9 + 0.5
    scales = torch.rand(1, count, 2, 3, generator=generator) * 0.5 + 0.02
    return LogLaplace(weights / weights.sum(1, keepdim=True), medians_m, scales)


def test_likelihood_of_one_component_is_that_of_torch():
    one = mixture(count=1)
    depth_m = torch.rand(1, 2, 3, generator=torch.Generator().manual_seed(1)) * 9 + 0.5
    expected = -Laplace(one.medians_m[:, 0].log(), one.scales[:, 0]).log_prob(depth_m.log())
    assert torch.allclose(one.negative_log_likelihood(depth_m), expected, atol=1e-5)
    assert torch.allclose(one.cumulative(depth_m), Laplace(one.medians_m[:, 0].log(), one.scales[:, 0]).cdf(depth_m.log()))


@pytest.mark.parametrize("share", [0.05, 0.5, 0.75, 0.99])
def test_quantiles_of_one_component_are_those_of_torch(share):
    one = mixture(count=1)
    expected = Laplace(one.medians_m[:, 0].log(), one.scales[:, 0]).icdf(torch.tensor(share)).exp()
    assert torch.allclose(one.quantile(share), expected, rtol=1e-5)


def test_half_of_all_truths_lie_within_two_to_the_scale():
    one = mixture(count=1)
    for level, base in ((0.5, 2.0), (0.9, 10.0)):
        low, high = one.interval(level)
        assert torch.allclose(high / one.medians_m[:, 0], base ** one.scales[:, 0], rtol=1e-4)
        assert torch.allclose(low / one.medians_m[:, 0], base ** -one.scales[:, 0], rtol=1e-4)


@pytest.mark.parametrize("count", [2, 3])
def test_mixture_against_draws(count):
    whole, draws = mixture(count=count), 200_000
    torch.manual_seed(0)
    for y in range(2):
        for x in range(3):
            weights, medians, scales = (v[0, :, y, x] for v in (whole.weights, whole.medians_m, whole.scales))
            chosen = torch.multinomial(weights, draws, replacement=True)
            logs = Laplace(medians.log()[chosen], scales[chosen]).sample()
            for share in (0.1, 0.5, 0.9):
                # Where the quantile lies among the draws is a share with a standard error of 0.001.
                found = float((logs < whole.quantile(share)[0, y, x].log()).float().mean())
                assert found == pytest.approx(share, abs=5e-3)
            median, distance = whole.channels()[0, :2, y, x]
            assert float((logs - median.log()).abs().mean()) == pytest.approx(float(distance), rel=0.02)


def test_mixture_of_equal_components_is_one_component():
    one = mixture(count=1)
    twice = LogLaplace(*(torch.cat([v * share, v * (1 - share if share != 1 else 1)], 1) for v, share in (
        (one.weights, 0.3), (one.medians_m, 1), (one.scales, 1)
    )))  # fmt: skip
    depth_m = torch.full((1, 2, 3), 2.5)
    assert torch.allclose(twice.negative_log_likelihood(depth_m), one.negative_log_likelihood(depth_m), atol=1e-5)
    assert torch.allclose(twice.channels()[:, :2], one.channels(), rtol=1e-5)


def test_likelihood_integrates_to_one():
    whole = mixture(count=2)
    logs = torch.linspace(-15, 15, 60_001, dtype=torch.float64)
    density = (-whole.negative_log_likelihood(logs.exp()[:, None, None].expand(-1, 2, 3))).exp()
    assert torch.allclose(torch.trapezoid(density, logs, dim=0), torch.ones(2, 3, dtype=torch.float64), atol=1e-3)


def test_channels_are_read_as_they_were_laid_out():
    for count in (1, 2):
        whole = mixture(count=count)
        again = LogLaplace.from_prediction(whole.channels())
        for name in ("weights", "medians_m", "scales"):
            assert torch.equal(getattr(again, name), getattr(whole, name))


@pytest.mark.parametrize("level", [0.0, 1.0, 90, -0.5, math.nan])
def test_impossible_levels(level):
    with pytest.raises(ValueError, match=r"level is .* expected a probability between 0 and 1"):
        mixture().interval(level)
    with pytest.raises(ValueError, match="share is"):
        mixture().quantile(level)
