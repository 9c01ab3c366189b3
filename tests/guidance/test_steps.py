import adm_golden as golden
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler

from noise2map.convert import adm_scheduler, load_adm_unet
from noise2map.diffusion import tables_from_betas
from noise2map.guidance.scheduler_step import check_scheduler, ddim_previous, ddpm_variance, guided_step, set_timesteps

ATOL = 5e-5


@pytest.fixture(scope="module")
def output():
    """The U-Net's output at the time steps of each process, ``{t: (2, 6, 64, 64)}`` for both images."""
    unet = load_adm_unet(golden.weights("adm_tiny"), **golden.flags("adm_tiny"))
    with torch.no_grad():
        return {t: unet(golden.X(), t).sample for t in (10, 700, 40, 680, 42, 708, 0, 1)}


@pytest.fixture
def golden_noise(monkeypatch):
    """Schedulers draw the recorded noise, of the image that `image` says."""
    state = {"image": 0}

    def draw(shape, **_):
        return golden.NOISE()[state["image"]][None].expand(shape)

    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", draw)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddim.randn_tensor", draw)
    return state


def both_images(state, scheduler, output, timesteps, guided, **arguments):
    """One step of two images, each at its own time step, as ADM's batches allow."""
    steps = []
    for image, t in enumerate(timesteps):
        state["image"] = image
        rows = slice(image, image + 1)
        gradient = -golden.G()[rows] if guided else None
        steps.append(guided_step(scheduler, output[t][rows], t, golden.X()[rows], gradient, **arguments))
    return torch.cat([step.prev_sample for step in steps]), torch.cat([step.pred_original_sample for step in steps])


def scheduler_for(process, kind):
    base = adm_scheduler(**golden.flags("adm_tiny"))
    spacing = "linspace" if process == "25" else "leading"
    scheduler = kind.from_config(base.config, timestep_spacing=spacing)
    scheduler.set_timesteps(25 if "25" in process else 1000)
    return scheduler


@pytest.mark.golden
@pytest.mark.parametrize(
    ("name", "process", "timesteps"),
    [
        ("p_sample.cond.sample", "1000", (10, 700)),
        ("p_sample.sample", "1000", (10, 700)),
        ("p_sample.t0_1.cond.sample", "1000", (0, 1)),
        ("p_sample.ddim25.i1_17.cond.sample", "ddim25", (40, 680)),
        ("p_sample.25.i1_17.cond.sample", "25", (42, 708)),
    ],
)
def test_golden_ancestral_step(output, golden_noise, name, process, timesteps):
    scheduler = scheduler_for(process, DDPMScheduler)
    if 1 in timesteps:
        # There 1 - alpha_bar is 2e-4, and rounding of the scheduler's own float32 table moves its mean by 5.4e-5.
        scheduler.alphas_cumprod = tables_from_betas(scheduler.betas).alphas_cumprod
    sample, clean = both_images(golden_noise, scheduler, output, timesteps, "cond" in name)
    torch.testing.assert_close(golden.sample(sample), golden.numbers()[name], atol=ATOL, rtol=0)
    if process == "1000" and timesteps == (10, 700):
        torch.testing.assert_close(golden.sample(clean), golden.numbers()["p_mean_variance.pred_xstart"], atol=ATOL, rtol=0)


@pytest.mark.golden
@pytest.mark.parametrize("eta", [0, 1])
@pytest.mark.parametrize("guided", ["uncond", "cond"])
@pytest.mark.parametrize(("process", "label", "timesteps"), [("1000", "t10_700", (10, 700)), ("ddim25", "ddim25.i1_17", (40, 680))])
def test_golden_ddim_step(output, golden_noise, process, label, timesteps, guided, eta):
    scheduler = scheduler_for(process, DDIMScheduler)
    arguments = {"eta": float(eta), "use_clipped_model_output": True}
    sample, clean = both_images(golden_noise, scheduler, output, timesteps, guided == "cond", **arguments)
    name = f"ddim_sample.{label}.eta{eta}.{guided}"
    torch.testing.assert_close(golden.sample(sample), golden.numbers()[f"{name}.sample"], atol=ATOL, rtol=0)
    if f"{name}.pred_xstart" in golden.numbers():
        torch.testing.assert_close(golden.sample(clean), golden.numbers()[f"{name}.pred_xstart"], atol=ATOL, rtol=1e-5)


@pytest.mark.golden
def test_golden_variance(output):
    scheduler = scheduler_for("1000", DDPMScheduler)
    variances = [ddpm_variance(scheduler, t, output[t][image : image + 1, 3:]) for image, t in enumerate((10, 700))]
    recorded = golden.numbers()["p_mean_variance.variance"]
    torch.testing.assert_close(golden.sample(torch.cat(variances)), recorded, atol=1e-7, rtol=1e-3)


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_small_log", "fixed_large", "learned"])
@pytest.mark.parametrize("t", [980, 500, 20])
def test_variance_is_that_of_the_schedulers_noise(kind, t):
    # Empirically: the spread of many steps from one point.
    scheduler = DDPMScheduler(variance_type=kind)
    scheduler.set_timesteps(50)
    channels = 2 if kind == "learned" else 1
    output = torch.full((1, channels, 100, 100), 0.3)
    step = scheduler.step(output, t, torch.zeros(1, 1, 100, 100), generator=torch.Generator().manual_seed(0))
    variance = ddpm_variance(scheduler, t, output[:, 1:] if kind == "learned" else None)
    variance = variance.mean().item() if torch.is_tensor(variance) else variance
    assert step.prev_sample.var().item() == pytest.approx(variance, rel=0.05)


def test_last_step_takes_the_variance_of_the_step_before():
    scheduler = DDPMScheduler(variance_type="fixed_small")
    scheduler.set_timesteps(50)
    assert ddpm_variance(scheduler, 0) == ddpm_variance(scheduler, 20) > 0
    scheduler.set_timesteps(1)
    assert ddpm_variance(scheduler, 0) == 0.0


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("clip", [False, True])
def test_ddim_guidance_is_a_shift_of_the_predicted_noise(prediction, clip):
    # Without clipping, guiding is the same as handing the scheduler a shifted noise (Dhariwal & Nichol, Alg. 2).
    scheduler = DDIMScheduler(clip_sample=False, prediction_type=prediction)
    scheduler.set_timesteps(10)
    torch.manual_seed(0)
    x, output, gradient = (torch.randn(1, 3, 8, 8) for _ in range(3))
    t, eta = 300, 0.5
    level = scheduler.alphas_cumprod[t]
    alpha, sigma = level.sqrt(), (1 - level).sqrt()
    noise = {"epsilon": output, "sample": (x - alpha * output) / sigma, "v_prediction": sigma * x + alpha * output}[prediction]
    plain = DDIMScheduler(clip_sample=False)
    plain.set_timesteps(10)
    expected = plain.step(noise + sigma * gradient, t, x, eta=eta, generator=torch.Generator().manual_seed(1))
    found = guided_step(
        scheduler, output, t, x, gradient, eta=eta, generator=torch.Generator().manual_seed(1), use_clipped_model_output=clip
    )
    torch.testing.assert_close(found.prev_sample, expected.prev_sample, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(found.pred_original_sample, expected.pred_original_sample, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
def test_plain_convention_subtracts_the_gradient(kind):
    scheduler = kind()
    scheduler.set_timesteps(10)
    x, output, gradient = (torch.randn(2, 3, 8, 8) for _ in range(3))
    base = guided_step(scheduler, output, 300, x, None, generator=torch.Generator().manual_seed(1))
    plain = guided_step(scheduler, output, 300, x, gradient, convention="plain", generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(base.prev_sample - plain.prev_sample, gradient, atol=1e-5, rtol=1e-5)
    for convention in ("plain", "variance"):
        zero = guided_step(
            scheduler, output, 300, x, torch.zeros_like(x), convention=convention, generator=torch.Generator().manual_seed(1)
        )
        assert torch.equal(zero.prev_sample, base.prev_sample)


def test_fixed_variances_ignore_the_second_half_of_the_output():
    x, output = torch.randn(1, 3, 8, 8), torch.randn(1, 6, 8, 8)
    for scheduler in (DDPMScheduler(), DDIMScheduler()):
        scheduler.set_timesteps(10)
        full = guided_step(scheduler, output, 300, x, x, generator=torch.Generator().manual_seed(1))
        half = guided_step(scheduler, output[:, :3], 300, x, x, generator=torch.Generator().manual_seed(1))
        assert torch.equal(full.prev_sample, half.prev_sample)


def test_unsupported_schedulers():
    with pytest.raises(ValueError, match="EulerDiscreteScheduler; expected a DDPMScheduler or a DDIMScheduler"):
        check_scheduler(EulerDiscreteScheduler(), 3, 3)
    with pytest.raises(ValueError, match="variance_type is 'fixed_large_log'"):
        check_scheduler(DDPMScheduler(variance_type="fixed_large_log"), 3, 3)
    with pytest.raises(ValueError, match="predicts no variance"):
        check_scheduler(DDPMScheduler(variance_type="learned_range"), 3, 3)
    with pytest.raises(ValueError, match="twice as many"):
        check_scheduler(DDPMScheduler(), 3, 4)


SPACINGS = ["trailing", "linspace", "leading"]


def gaussian_run(scheduler, step):
    """A run from noise, with the exact prediction for images of independent normal values of standard deviation 0.05."""
    sample = torch.randn(1, 1, 100, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in scheduler.timesteps:
        level = float(scheduler.alphas_cumprod[t])
        sample = step((1 - level) ** 0.5 / (0.05**2 * level + 1 - level) * sample, t, sample)
    return sample


def cosine_ddim(spacing, **config):
    return DDIMScheduler(timestep_spacing=spacing, beta_schedule="squaredcos_cap_v2", clip_sample=False, **config)


@pytest.mark.parametrize("spacing", SPACINGS[:2])
@pytest.mark.parametrize("count", [60, 85, 150, 170, 300, 600, 999])
def test_ddim_leaves_no_noise_whatever_the_number_of_steps(spacing, count):
    scheduler = cosine_ddim(spacing)
    set_timesteps(scheduler, count)
    sample = gaussian_run(scheduler, lambda noise, t, x: guided_step(scheduler, noise, t, x, None).prev_sample)
    assert sample.std().item() == pytest.approx(0.05, rel=0.25)
    assert scheduler.num_inference_steps == count


def test_steps_before_the_first_of_training_end_at_the_clean_image():
    scheduler = cosine_ddim("trailing")
    with pytest.raises(ValueError, match="set_timesteps"):
        guided_step(scheduler, torch.zeros(1, 1, 4, 4), 999, torch.zeros(1, 1, 4, 4), None)
    scheduler.set_timesteps(61)
    assert [ddim_previous(scheduler, t) for t in (int(scheduler.timesteps[-3]), 0, -1)] == [int(scheduler.timesteps[-2]), -1, -2]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("count", [1, 2, 4, 5, 8, 20, 25, 50, 100, 250, 500, 1000])
def test_ddim_of_a_number_of_steps_that_divides_is_that_of_diffusers(spacing, count):
    ours, theirs = (cosine_ddim(spacing) for _ in range(2))
    set_timesteps(ours, count)
    theirs.set_timesteps(count)
    found = gaussian_run(ours, lambda noise, t, x: guided_step(ours, noise, t, x, None).prev_sample)
    assert torch.equal(found, gaussian_run(theirs, lambda noise, t, x: theirs.step(noise, t, x).prev_sample))


@pytest.mark.parametrize(("spacing", "count"), [("trailing", 85), ("linspace", 300), ("leading", 85)])
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_ddim_guidance_shifts_the_step_to_the_next_of_the_run(spacing, count, eta):
    scheduler = cosine_ddim(spacing)
    set_timesteps(scheduler, count)
    torch.manual_seed(0)
    x, output, gradient = (torch.randn(1, 3, 8, 8, dtype=torch.float64) for _ in range(3))
    for t in scheduler.timesteps[[1, count // 2, -2, -1]].tolist():
        sigma = (1 - scheduler.alphas_cumprod[t]).sqrt()
        options = [{"eta": eta, "generator": torch.Generator().manual_seed(1)} for _ in range(2)]
        expected = guided_step(scheduler, output + sigma * gradient, t, x, None, **options[0])
        found = guided_step(scheduler, output, t, x, gradient, **options[1])
        torch.testing.assert_close(found.prev_sample, expected.prev_sample, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
def test_no_number_of_steps_ends_before_the_first_of_training(kind):
    scheduler = kind(timestep_spacing="trailing", beta_schedule="squaredcos_cap_v2")
    broken = []
    for count in range(1, 1001):
        scheduler.set_timesteps(count)
        broken += [count] if int(scheduler.timesteps[-1]) < 0 else []
        set_timesteps(scheduler, count)
        steps = scheduler.timesteps
        assert len(steps) == count and int(steps[0]) == 999 and int(steps[-1]) >= 0
        assert (steps[:-1] > steps[1:]).all()
    assert 61 in broken and 201 in broken  # once this fails, diffusers has mended it and `set_timesteps` can go


@pytest.mark.parametrize("count", [61, 103])
def test_an_exact_denoiser_of_one_image_draws_it_in_any_number_of_steps(count):
    scheduler = DDPMScheduler(timestep_spacing="trailing", beta_schedule="squaredcos_cap_v2", clip_sample=False)
    image = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)
    set_timesteps(scheduler, count)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(image.shape, generator=generator)
    for t in scheduler.timesteps:
        level = scheduler.alphas_cumprod[max(int(t), 0)]  # a network takes -1 for a nearly clean image; the scheduler does not
        noise = (sample - level.sqrt() * image) / (1 - level).sqrt()
        sample = guided_step(scheduler, noise, t, sample, None, generator=[generator]).prev_sample
    torch.testing.assert_close(sample, image, atol=1e-3, rtol=0)
