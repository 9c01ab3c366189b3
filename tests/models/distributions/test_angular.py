"""The angular distribution of directions against integrals over the sphere."""

import math

import pytest
import torch

from noise2map.models.distributions.angular import (
    AngularDistribution,
    angle_between,
    concentration_of,
    expected_angle,
    resultant_length,
)

CONCENTRATIONS = [0.01, 0.7, 5.0, 80.0]


def over_the_sphere(concentration, of=None, upto=math.pi):
    """Integral of the density times a function of the angle, by the trapezoid rule over angles up to ``upto``."""
    angle = torch.linspace(0, upto, 400_001, dtype=torch.float64)
    up = torch.zeros(1, 3, 1, 1, dtype=torch.float64)
    up[:, 2] = 1
    whole = AngularDistribution(up, torch.full((1, 1, 1), concentration, dtype=torch.float64))
    normals = torch.stack([angle.sin(), torch.zeros_like(angle), angle.cos()], 1)[:, :, None, None]
    density = (-whole.negative_log_likelihood(normals)).exp().flatten()
    values = torch.ones_like(angle) if of is None else of(angle)
    return float(torch.trapezoid(density * values * 2 * math.pi * angle.sin(), angle))


@pytest.mark.parametrize("k", CONCENTRATIONS)
def test_density_and_moments(k):
    exact = torch.tensor(k, dtype=torch.float64)
    assert over_the_sphere(k) == pytest.approx(1, abs=1e-6)
    assert over_the_sphere(k, of=lambda a: a) == pytest.approx(float(expected_angle(exact)), rel=1e-5)
    assert over_the_sphere(k, of=torch.cos) == pytest.approx(float(resultant_length(exact)), rel=1e-5)


@pytest.mark.parametrize("k", CONCENTRATIONS)
@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_cones_hold_their_share(k, level):
    whole = AngularDistribution(torch.zeros(1, 3, 1, 1), torch.full((1, 1, 1), k, dtype=torch.float64))
    cone = whole.cone(level)
    assert over_the_sphere(k, upto=math.radians(float(cone))) == pytest.approx(level, abs=1e-5)


def test_expected_angle_falls_from_ninety_degrees_to_nothing():
    k = torch.logspace(-3, 4, 500, dtype=torch.float64)
    angle = expected_angle(k)
    assert bool((angle.diff() < 0).all()) and bool((resultant_length(k).diff() > 0).all())
    assert float(angle[0]) == pytest.approx(math.pi / 2, abs=2e-3) and float(angle[-1]) < 1e-3


def test_concentration_of_a_length():
    k = torch.tensor([0.05, 0.5, 3.0, 40.0])
    assert torch.allclose(concentration_of(resultant_length(k)), k, rtol=1e-2)


def test_small_angles_are_exact_and_have_a_gradient():
    angle = torch.tensor([0.0, 1e-4, 1.0, math.pi / 2, 3.1], dtype=torch.float64)
    first = torch.stack([angle.sin(), 0 * angle, angle.cos()], 1).requires_grad_()
    second = torch.tensor([[0.0, 0, 1]], dtype=torch.float64).expand(5, 3)
    found = angle_between(first, second)
    assert torch.allclose(found, angle, rtol=1e-9)
    found.sum().backward()
    assert bool(torch.isfinite(first.grad).all())


def test_draws_follow_the_distribution_at_every_pixel_and_are_smooth_over_the_map():
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(1, 3, 1, 2, generator=generator), dim=1).expand(1, 3, 4, 2)
    whole = AngularDistribution(directions, torch.tensor([1.0, 12.0]).expand(1, 4, 2))
    drawn = whole.sample(4000, 3.0, [torch.Generator().manual_seed(1)])
    assert drawn.shape == (1, 4000, 3, 4, 2)
    assert torch.allclose(drawn.norm(dim=2), torch.ones(1, 4000, 4, 2), atol=1e-5)
    angle = angle_between(drawn, directions[:, None].expand_as(drawn), dim=2)
    for level in (0.2, 0.5, 0.9):  # standard error of a share: 0.008
        share = (angle < torch.deg2rad(whole.cone(level))[:, None]).float().mean(1)
        assert torch.allclose(share, torch.full_like(share, level), atol=0.035)
    mean = drawn.mean(1)[0] - directions[0] * resultant_length(whole.concentrations)
    assert float(mean.abs().max()) < 0.04  # turned to all sides alike
    near = angle_between(drawn[..., 1:, :], drawn[..., :-1, :], dim=2).mean()
    apart = angle_between(drawn[:, 1:], drawn[:, :-1], dim=2).mean()
    assert float(near) < 0.5 * float(apart)


@pytest.mark.parametrize("level", [0.0, 1.0, 50, math.nan])
def test_impossible_levels(level):
    with pytest.raises(ValueError, match=r"level is .* expected a probability between 0 and 1"):
        AngularDistribution(torch.zeros(1, 3, 1, 1), torch.ones(1, 1, 1)).cone(level)
