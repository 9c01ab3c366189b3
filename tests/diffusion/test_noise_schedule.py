"""Schedules: closed forms, recorded float32 values, and tables against diffusers."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from noise2map.diffusion import CosineSchedule, LinearSchedule, make_schedule, tables_from_betas

SCHEDULES = [CosineSchedule(), CosineSchedule(min_inverse_snr=0.0), LinearSchedule()]
TIMES = torch.linspace(0, 1, 201, dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_signal_and_noise_keep_unit_variance(schedule):
    alpha, sigma = schedule.alpha_sigma(TIMES)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones_like(TIMES), atol=1e-12)
    alpha, sigma = schedule.alpha_sigma(TIMES.float())
    assert torch.allclose(alpha**2 + sigma**2, torch.ones(201), atol=3e-7)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_noise_only_grows(schedule):
    log_snr = schedule.log_snr(TIMES)
    assert bool(torch.isfinite(log_snr).all())
    assert bool((log_snr.diff() <= 0).all())
    assert float(log_snr[0]) > 9
    assert float(log_snr[-1]) < -9


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_levels_and_log_snr_agree(schedule):
    inner = TIMES[2:-1]  # away from the clamp
    alpha, sigma = schedule.alpha_sigma(inner)
    assert torch.allclose(2 * (alpha / sigma).log(), schedule.log_snr(inner), atol=1e-9)


def test_cosine_is_a_cosine():
    alpha, sigma = CosineSchedule().alpha_sigma(TIMES[2:])
    angle = (TIMES[2:] + 2e-4) / (1 + 2.5e-4) * math.pi / 2
    assert torch.allclose(alpha, angle.cos(), atol=1e-9)
    assert torch.allclose(sigma, angle.sin(), atol=1e-9)


def test_cosine_values_in_float32():
    schedule = CosineSchedule()
    # The order of operations shows at t = 1, where float64 gives -18.904310; the last bits are up to the maths library.
    assert float(schedule.log_snr(torch.tensor(1.0))) == pytest.approx(-18.907475, abs=4e-3)
    assert float(schedule.log_snr(torch.tensor(1.0, dtype=torch.float64))) == pytest.approx(-18.904310, abs=1e-5)
    assert float(schedule.log_snr(torch.tensor(0.0))) == pytest.approx(-math.log(1e-5), abs=1e-5)  # the clamp


def test_unclamped_cosine_goes_on_to_the_end():
    clamped, free = CosineSchedule(), CosineSchedule(min_inverse_snr=0.0)
    assert float(free.log_snr(TIMES[0])) > 15 > 12 > float(clamped.log_snr(TIMES[0]))
    assert torch.allclose(clamped.log_snr(TIMES[2:]), free.log_snr(TIMES[2:]))
    assert float(free.alpha_sigma(torch.tensor(0.0))[1]) > 0  # eps = (x - alpha x0) / sigma stays finite


def test_linear_closed_form():
    schedule = LinearSchedule()
    alpha, _ = schedule.alpha_sigma(TIMES)
    # sigmoid(-log(exp(u) - 1)) = exp(-u), the signal left after noising at the rate 20 t.
    assert torch.allclose(alpha**2, torch.exp(-(1e-4 + 10 * TIMES**2)), atol=1e-12)


def test_levels_keep_shape_and_type():
    for dtype in (torch.float32, torch.float64):
        alpha, sigma = CosineSchedule().alpha_sigma(torch.rand(2, 3, dtype=dtype))
        assert alpha.shape == sigma.shape == (2, 3)
        assert alpha.dtype == sigma.dtype == dtype


def test_make_schedule():
    assert make_schedule("cosine", 0.0) == CosineSchedule(min_inverse_snr=0.0)
    assert make_schedule("linear") == LinearSchedule()
    with pytest.raises(ValueError, match=r"'sqrt'.*'cosine' or 'linear'"):
        make_schedule("sqrt")


@pytest.fixture(scope="module")
def scheduler():
    return DDPMScheduler(num_train_timesteps=1000, prediction_type="sample", clip_sample=False, variance_type="fixed_small")


@pytest.fixture(scope="module")
def tables(scheduler):
    return tables_from_betas(scheduler.betas)


def test_tables_equal_diffusers(scheduler, tables):
    assert torch.allclose(tables.alphas_cumprod.float(), scheduler.alphas_cumprod, rtol=2e-4)
    for i in (1, 2, 10, 500, 999):
        assert float(tables.posterior_variance[i]) == pytest.approx(float(scheduler._get_variance(i)), rel=2e-3)
    assert float(tables.posterior_variance[0]) == 0
    assert bool(torch.isfinite(tables.posterior_log_variance).all())
    assert torch.allclose(tables.posterior_log_variance[1:].exp(), tables.posterior_variance[1:])


@pytest.mark.parametrize("step", [0, 1, 10, 500, 999])
def test_posterior_mean_equals_a_step_of_diffusers(scheduler, tables, step):
    x_t, x0 = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(step))
    after = scheduler.step(x0, step, x_t, generator=torch.Generator().manual_seed(1)).prev_sample
    noise = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    mean = tables.posterior_mean_x0[step] * x0 + tables.posterior_mean_xt[step] * x_t
    assert torch.allclose((mean + tables.posterior_variance[step].sqrt() * noise).float(), after, atol=2e-4)


def test_posterior_brings_the_marginal_one_step_back(tables):
    """If x_i ~ N(alpha_i x0, sigma_i²), mean coefficients and variance give N(alpha_{i-1} x0, sigma_{i-1}²) exactly."""
    before, after = tables.alphas_cumprod, tables.alphas_cumprod_prev
    assert torch.allclose(tables.posterior_mean_x0 + tables.posterior_mean_xt * before.sqrt(), after.sqrt(), atol=1e-12)
    assert torch.allclose(tables.posterior_mean_xt**2 * (1 - before) + tables.posterior_variance, 1 - after, atol=1e-12)


def test_discrete_log_snr_and_levels(tables):
    alpha, sigma = tables.alpha_sigma(torch.tensor([0, 5, 999]))
    assert torch.allclose(tables.log_snr[[0, 5, 999]], 2 * (alpha / sigma).log(), atol=1e-10)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones(3, dtype=torch.float64))
    assert torch.allclose(tables.alphas_cumprod[2], (1 - tables.betas[0]) * (1 - tables.betas[1]) * (1 - tables.betas[2]))


@pytest.mark.parametrize(
    ("betas", "message"),
    [([[0.1, 0.2]], r"shape \(1, 2\)"), ([0.1], r"shape \(1,\)"), ([0.1, 0.0], r"expected \(0, 1\]"), ([0.1, 1.5], r"1.5")],
)
def test_impossible_betas(betas, message):
    with pytest.raises(ValueError, match=message):
        tables_from_betas(torch.tensor(betas))
