"""Samplers against closed forms: point-mass and Gaussian data, whose optimal denoisers are known."""

import itertools
import types

import pytest
import torch
from golden_reference import numbers

from noise2map.diffusion import (
    CosineSchedule,
    LinearSchedule,
    ddim_steps,
    ddpm_steps,
    dpmpp_2m_steps,
    karras_pairs,
    make_schedule,
    time_pairs,
)
from noise2map.diffusion.sampling import ddpm_posterior

SCHEDULES = [CosineSchedule(), LinearSchedule()]
MEAN, SPREAD = 0.6, 0.4


def levels(schedule, t):
    return schedule.alpha_sigma(torch.tensor(t, dtype=torch.float64))


def optimal_gain(schedule, t):
    """k of E[x0 | x_t] - m = k (x_t - alpha m) for data N(m, s²): s² alpha / (alpha² s² + sigma²)."""
    alpha, sigma = levels(schedule, t)
    return SPREAD**2 * alpha / (alpha**2 * SPREAD**2 + sigma**2)


def gaussian_denoiser(schedule):
    def denoise(x_t, t):
        alpha, _ = levels(schedule, float(t[0]))
        x0 = MEAN + optimal_gain(schedule, float(t[0])) * (x_t - alpha * MEAN)
        return x0, x0

    return denoise


def start(count=5, seed=0):
    return torch.randn(count, 1, 1, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- the time grid ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", sorted(numbers()["sampling_times"], key=int))
def test_grid_equals_the_recorded_one(count):
    assert time_pairs(int(count)) == [pytest.approx(pair, abs=1e-7) for pair in numbers()["sampling_times"][count]]


@pytest.mark.parametrize("count", range(1, 11))
@pytest.mark.parametrize("difference", [0, 1, 2.5])
def test_grid_by_its_definition(count, difference):
    pairs = time_pairs(count, difference)
    assert len(pairs) == count
    for i, (t, t_next) in enumerate(pairs):
        assert t == pytest.approx((count - i) / count)
        assert t_next == pytest.approx(max((count - i - 1 - difference) / count, 0))
    assert pairs[0][0] == 1
    assert pairs[-1][1] == 0


def test_usual_grid_moves_to_where_the_next_step_is_told():
    pairs = time_pairs(7, 0)
    assert [t_next for _, t_next in pairs[:-1]] == pytest.approx([t for t, _ in pairs[1:]])


@pytest.mark.parametrize("count", [0, -1, 2.5, "3", True, None])
def test_impossible_number_of_steps(count):
    with pytest.raises(ValueError, match="number of steps"):
        time_pairs(count)


@pytest.mark.parametrize("difference", [-0.1, float("nan")])
def test_impossible_time_difference(difference):
    with pytest.raises(ValueError, match="time_difference"):
        time_pairs(3, difference)


# ---- the stream ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [ddim_steps, ddpm_steps])
def test_samplers_are_lazy(sampler):
    calls = []

    def denoise(x_t, t):
        calls.append(t.clone())
        return x_t * 0, "said"

    run = sampler(denoise, start(2).float(), CosineSchedule(), time_pairs(4))
    assert isinstance(run, types.GeneratorType)
    assert calls == []
    first = next(run)
    assert len(calls) == 1
    assert torch.equal(calls[0], torch.ones(2))
    assert first.prediction == first.readout == "said"
    assert (first.index, first.t, first.t_next) == (0, 1.0, 0.5)
    next(run)
    assert len(calls) == 2
    run.close()  # an early stop costs nothing more
    assert len(calls) == 2


def test_steps_carry_what_entered_and_what_came_out():
    schedule = CosineSchedule()
    run = list(ddim_steps(gaussian_denoiser(schedule), start(), schedule, time_pairs(3)))
    assert [step.index for step in run] == [0, 1, 2]
    assert torch.equal(run[0].x_t, start())
    for step in run:
        assert torch.equal(step.x0, step.prediction)
        assert (step.t, step.t_next) == time_pairs(3)[step.index]


def test_ddpm_draws_no_noise_for_a_clean_map():
    drawn = []

    def noise(index, x):
        drawn.append(index)
        return torch.zeros_like(x)

    pairs = time_pairs(4, 1)  # t_next: 0.5, 0.25, 0, 0
    list(ddpm_steps(lambda x, t: (x * 0, None), start(), CosineSchedule(), pairs, noise))
    assert drawn == [0, 1]


# ---- DDIM ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_ddim_is_exact_for_a_point_mass(schedule, count):
    """One image in the data: every step finds it, and the map stays on the line alpha c + sigma eps with the first eps."""
    c = 0.3
    x_T = start()
    run = list(ddim_steps(lambda x, t: (torch.full_like(x, c), None), x_T, schedule, time_pairs(count, 0)))
    alpha, sigma = levels(schedule, 1.0)
    eps = (x_T - alpha * c) / sigma
    for step in run:
        alpha, sigma = levels(schedule, step.t)
        assert torch.allclose(step.x_t, alpha * c + sigma * eps, atol=1e-6)
        assert bool((step.x0 == c).all())


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("difference", [0.0, 1.0])
def test_ddim_for_a_gaussian_follows_its_recursion(schedule, difference):
    """With the optimal x0 the update is linear in d = x - alpha m; the told time sets eps, as published, for any grid."""
    run = list(ddim_steps(gaussian_denoiser(schedule), start(), schedule, time_pairs(6, difference)))
    x = start()
    for step in run:
        assert torch.allclose(step.x_t, x, atol=1e-6)
        (alpha, sigma), (alpha_next, sigma_next) = levels(schedule, step.t), levels(schedule, step.t_next)
        gain = optimal_gain(schedule, step.t)
        d = x - alpha * MEAN
        x = alpha_next * MEAN + (alpha_next * gain + sigma_next * (1 - alpha * gain) / sigma) * d


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddim_converges_to_the_probability_flow(schedule):
    """The flow maps d at t = 1 to d sqrt(var(0) / var(1)); the error of DDIM falls like 1 / N."""

    def deviation(t):
        alpha, sigma = levels(schedule, t)
        return (alpha**2 * SPREAD**2 + sigma**2).sqrt()

    x_T = start()
    alpha, _ = levels(schedule, 1.0)
    exact = levels(schedule, 0.0)[0] * MEAN + (x_T - alpha * MEAN) * deviation(0.0) / deviation(1.0)
    errors = []
    for count in (50, 100, 200, 400):
        *_, last = ddim_steps(gaussian_denoiser(schedule), x_T, schedule, time_pairs(count, 0))
        errors.append(float((last.x0 - exact).abs().max()))
    assert errors[-1] < 1e-2
    for coarse, fine in itertools.pairwise(errors):
        assert 1.6 < coarse / fine < 2.6


def test_ddim_result_has_the_spread_of_the_data():
    schedule = CosineSchedule()
    *_, last = ddim_steps(gaussian_denoiser(schedule), start(100_000), schedule, time_pairs(200, 0))
    assert float(last.x0.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(last.x0.std()) == pytest.approx(SPREAD, abs=0.01)


# ---- DDPM ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("t", "t_next"), [(1.0, 0.5), (0.6, 0.4), (0.2, 0.0)])
def test_posterior_takes_the_marginal_to_the_next_one(schedule, t, t_next):
    """q(x_t | x0) = N(alpha x0, sigma²) must become q(x_next | x0): exact, for any pair of times."""
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    of_x_t, std = ddpm_posterior(one, zero, schedule, t, t_next)
    of_x0, _ = ddpm_posterior(zero, one, schedule, t, t_next)
    (alpha, sigma), (alpha_next, sigma_next) = levels(schedule, t), levels(schedule, t_next)
    assert torch.allclose(of_x_t * alpha + of_x0, alpha_next.expand(1), atol=1e-10)
    assert torch.allclose(of_x_t**2 * sigma**2 + std**2, (sigma_next**2).expand(1), atol=1e-10)


def test_posterior_equals_bayes():
    """Mean and variance of x_next given x_t and x0, from the joint Gaussian of the Markov chain."""
    schedule, t, t_next, x0, x_t = CosineSchedule(), 0.7, 0.4, 0.8, -0.3
    (alpha, sigma), (alpha_next, sigma_next) = levels(schedule, t), levels(schedule, t_next)
    # x_t = r x_next + sqrt(sigma² - r² sigma_next²) z with r = alpha / alpha_next
    r = alpha / alpha_next
    gain = r * sigma_next**2 / sigma**2
    mean = alpha_next * x0 + gain * (x_t - alpha * x0)
    variance = sigma_next**2 - gain * r * sigma_next**2
    ours, std = ddpm_posterior(*torch.tensor([[x_t], [x0]], dtype=torch.float64), schedule, t, t_next)
    assert float(ours) == pytest.approx(float(mean), abs=1e-10)
    assert float(std) ** 2 == pytest.approx(float(variance), abs=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddpm_mean_and_variance_for_a_gaussian(schedule):
    """x_next - alpha_next m = a d + b z with closed-form a, b: the moments of 200 000 chains follow their recursion."""
    count, pairs = 200_000, time_pairs(5, 0)
    generator = torch.Generator().manual_seed(1)
    run = ddpm_steps(
        gaussian_denoiser(schedule),
        start(count),
        schedule,
        pairs,
        lambda index, x: torch.randn(x.shape, generator=generator, dtype=x.dtype),
    )
    alpha, _ = levels(schedule, 1.0)
    mean, variance = -alpha * MEAN, torch.tensor(1.0, dtype=torch.float64)  # of d at the start
    for step in run:
        alpha, sigma = levels(schedule, step.t)
        d = step.x_t - alpha * MEAN
        assert abs(float(d.mean()) - float(mean)) < 5 * (float(variance) / count) ** 0.5
        assert abs(float(d.var()) - float(variance)) < 5 * float(variance) * (2 / count) ** 0.5
        alpha_next, sigma_next = levels(schedule, step.t_next)
        c = 1 - (alpha / sigma) ** 2 / (alpha_next / sigma_next) ** 2
        a = alpha_next * ((1 - c) / alpha + c * optimal_gain(schedule, step.t))
        mean, variance = a * mean, a**2 * variance + sigma_next**2 * c


def test_default_noise_is_the_global_generators():
    schedule, pairs = CosineSchedule(), time_pairs(5)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        *_, last = ddpm_steps(gaussian_denoiser(schedule), start(), schedule, pairs)
        results.append(last.x0)
    assert torch.equal(*results)
    *_, other = ddpm_steps(gaussian_denoiser(schedule), start(), schedule, pairs)
    assert not torch.equal(results[0], other.x0)


def test_the_karras_grid_has_the_noise_levels_of_the_paper():
    schedule = make_schedule("cosine")
    pairs = karras_pairs(6, schedule, largest=10.0, smallest=0.1)
    assert pairs[0][0] == 1.0 and pairs[-1][1] == 0.0
    assert [end for _, end in pairs[:-1]] == [start for start, _ in pairs[1:]]
    alpha, sigma = schedule.alpha_sigma(torch.tensor([t for t, _ in pairs[1:]], dtype=torch.float64))
    expected = [(10 ** (1 / 7) + i / 4 * (0.1 ** (1 / 7) - 10 ** (1 / 7))) ** 7 for i in range(5)]
    assert (sigma / alpha).tolist() == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="falling positive"):
        karras_pairs(3, schedule, 0.1, 10.0)


@pytest.mark.parametrize("name", ("cosine", "linear"))
def test_times_are_found_by_their_log_snr(name):
    schedule, times = make_schedule(name, 0.0), torch.linspace(0.02, 0.98, 13, dtype=torch.float64)
    assert torch.allclose(schedule.time_of(schedule.log_snr(times)), times, atol=1e-9)


def test_the_second_order_solver_is_nearer_to_the_exact_flow():
    schedule, x_T = make_schedule("cosine"), start(2000).double()
    *_, exact = ddim_steps(gaussian_denoiser(schedule), x_T, schedule, time_pairs(1000, 0))
    errors = {}
    for name, solver in (("first", ddim_steps), ("second", dpmpp_2m_steps)):
        *_, last = solver(gaussian_denoiser(schedule), x_T, schedule, time_pairs(10, 0))
        errors[name] = (last.x0 - exact.x0).square().mean().sqrt().item()
    assert errors["second"] < 0.5 * errors["first"]
    with pytest.raises(ValueError, match="needs time_difference 0"):
        list(dpmpp_2m_steps(gaussian_denoiser(schedule), x_T, schedule, time_pairs(3)))


def test_churn_replaces_a_share_of_the_noise_and_keeps_its_variance():
    schedule, x_T = make_schedule("cosine"), start(200_000)
    seen = []

    def fresh(index, x):
        seen.append(torch.randn(x.shape, generator=torch.Generator().manual_seed(5)))
        return seen[-1]

    def denoise(x, t):
        return torch.zeros_like(x), None

    for churn in (0.0, 0.6, 1.0):
        seen.clear()
        _, second = ddim_steps(denoise, x_T, schedule, time_pairs(2, 0), churn, fresh)
        _, sigma = schedule.alpha_sigma(torch.tensor(0.5))
        assert (second.x_t / sigma).var().item() == pytest.approx(1, abs=0.02)
        assert len(seen) == (churn > 0)
        if churn:
            share = (second.x_t / sigma * seen[0]).mean().item()  # of the fresh noise
            assert share == pytest.approx(churn, abs=0.02)
    with pytest.raises(ValueError, match=r"churn is 1\.5"):
        next(ddim_steps(denoise, x_T, schedule, time_pairs(2), 1.5))
