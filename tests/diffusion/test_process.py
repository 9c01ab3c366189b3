"""The forward process and conversions between x0, eps and v."""

import pytest
import torch

from noise2map.diffusion import CosineSchedule, LinearSchedule, add_noise, eps_from_x0, to_x0, x0_from_eps
from noise2map.diffusion.process import expand_like, prediction_target, uniform_times, v_from_x0_eps, x0_from_v


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("schedule", [CosineSchedule(), LinearSchedule()])
@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_marginals_by_monte_carlo(schedule, t):
    """x_t has mean alpha m and variance alpha² s² + sigma² for data N(m, s²); each within four standard errors."""
    count, mean, spread = 200_000, 1.5, 0.7
    alpha, sigma = schedule.alpha_sigma(torch.tensor(t, dtype=torch.float64))
    x_t = add_noise(mean + spread * normal(count), normal(count, seed=1), alpha, sigma)
    variance = float(alpha**2 * spread**2 + sigma**2)
    assert abs(float(x_t.mean()) - float(alpha) * mean) < 4 * (variance / count) ** 0.5
    assert abs(float(x_t.var()) - variance) < 4 * variance * (2 / count) ** 0.5


def test_each_image_has_its_own_level():
    x0, noise = normal(3, 2, 4, 5), normal(3, 2, 4, 5, seed=1)
    levels = CosineSchedule().alpha_sigma(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    together = add_noise(x0, noise, *levels)
    for i in range(3):
        assert torch.equal(together[i], levels[0][i] * x0[i] + levels[1][i] * noise[i])
    assert expand_like(levels[0], x0).shape == (3, 1, 1, 1)
    assert expand_like(torch.tensor(0.5), x0).shape == (1, 1, 1, 1)


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 1, 3, 3\).*\(1, 1, 3, 3\)"):
        add_noise(torch.zeros(1, 1, 3, 3), torch.zeros(2, 1, 3, 3), torch.tensor(1.0), torch.tensor(0.0))


@pytest.mark.parametrize("t", [0.02, 0.3, 0.7, 0.98])
def test_conversions_round_trip(t):
    x0, eps = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    levels = CosineSchedule().alpha_sigma(torch.full((2,), t, dtype=torch.float64))
    x_t = add_noise(x0, eps, *levels)
    v = v_from_x0_eps(x0, eps, *levels)
    assert torch.allclose(eps_from_x0(x_t, x0, *levels), eps, atol=1e-9)
    assert torch.allclose(x0_from_eps(x_t, eps, *levels), x0, atol=1e-9)
    assert torch.allclose(x0_from_v(x_t, v, *levels), x0, atol=1e-9)
    for prediction, kind in ((x0, "sample"), (eps, "epsilon"), (v, "v_prediction")):
        assert torch.allclose(to_x0(prediction, x_t, *levels, kind), x0, atol=1e-9)
        assert torch.equal(prediction_target(x0, eps, *levels, kind), prediction)


def test_v_is_the_derivative_along_the_angle():
    """On x(phi) = cos(phi) x0 + sin(phi) eps, v = dx/dphi (Salimans & Ho 2022)."""
    x0, eps = normal(5), normal(5, seed=1)
    phi = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.functional.jacobian(lambda p: p.cos() * x0 + p.sin() * eps, phi)
    phi = phi.detach()
    assert torch.allclose(v_from_x0_eps(x0, eps, phi.cos(), phi.sin()), slope, atol=1e-12)


def test_unknown_prediction_type():
    x = torch.zeros(1, 1)
    with pytest.raises(ValueError, match=r"'noise'.*'epsilon'"):
        to_x0(x, x, torch.tensor(1.0), torch.tensor(1.0), "noise")
    with pytest.raises(ValueError, match="prediction_type"):
        prediction_target(x, x, torch.tensor(1.0), torch.tensor(1.0), "noise")


def test_clean_map_gives_a_finite_eps():
    x0 = torch.ones(1, 1)
    assert bool(torch.isfinite(eps_from_x0(x0 + 1e-9, x0, torch.tensor(1.0), torch.tensor(0.0))).all())


def test_training_times():
    times = uniform_times(20_000, torch.Generator().manual_seed(0))
    assert times.shape == (20_000,)
    assert times.dtype == torch.float32
    assert float(times.min()) >= 0
    assert 0.99 < float(times.max()) < 0.999
    assert float(times.mean()) == pytest.approx(0.4995, abs=0.01)
    assert torch.equal(times, uniform_times(20_000, torch.Generator().manual_seed(0)))
