import pytest
import torch
from tiny_guidance import generators, tiny_prior

from noise2map.guidance import DepthPrior, draw_tau


def test_save_and_load(tmp_path):
    prior = tiny_prior(min_depth=0.5, max_depth=10.0, scheduler_config={"num_train_timesteps": 100})
    prior.save_pretrained(tmp_path)
    again = DepthPrior.from_pretrained(tmp_path)
    noisy, tau = torch.randn(2, 1, 8, 8), torch.tensor([3, 90])
    with torch.no_grad():
        assert torch.equal(again(noisy, tau), prior(noisy, tau))
    assert again.depth_range == prior.depth_range and again.num_train_timesteps == 100


def test_levels_are_those_of_its_scheduler():
    prior, tau = tiny_prior(), torch.tensor([0, 500, 999])
    depth, noise = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8)
    alpha, sigma = prior.levels(tau)
    noisy = alpha[:, None, None, None] * depth + sigma[:, None, None, None] * noise
    torch.testing.assert_close(noisy, prior.scheduler.add_noise(depth, noise, tau), atol=1e-4, rtol=1e-4)


def test_training_lowers_the_loss():
    prior = tiny_prior()
    optimiser = torch.optim.Adam(prior.parameters(), 1e-2)
    depth = torch.linspace(-1, 1, 8).expand(8, 1, 8, 8)
    generator, history = torch.Generator().manual_seed(0), []
    for _ in range(40):
        optimiser.zero_grad()
        loss = prior.training_loss(depth, generator)
        loss.backward()
        optimiser.step()
        history.append(loss.item())
    assert sum(history[-10:]) < 0.8 * sum(history[:10])


def test_resizes_to_its_resolution():
    prior = tiny_prior()
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    small = prior.resize(ramp)
    assert small.shape == (1, 1, 8, 8)
    torch.testing.assert_close(small[0, 0, 3, 1:-1], ramp[0, 0, 0].reshape(8, 2).mean(1)[1:-1])
    with pytest.raises(ValueError, match="same proportions"):
        prior.resize(torch.zeros(1, 1, 16, 32))


def test_shrinking_averages_all_that_falls_on_a_pixel():
    """At a quarter of the size each new pixel is the mean of the old ones under a triangle four old pixels wide on either side."""
    prior = tiny_prior()
    image = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centers, old = 4 * torch.arange(8, dtype=torch.float64) + 2, torch.arange(32, dtype=torch.float64) + 0.5
    weights = (1 - (old[None] - centers[:, None]).abs() / 4).clamp(min=0)
    weights = weights / weights.sum(1, keepdim=True)
    torch.testing.assert_close(prior.resize(image)[0, 0], weights @ image[0, 0] @ weights.T, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("rule", "low", "high"), [("uniform", 2, 97), ((0.5, 0.6), 50, 59), ("matched", 70, 70), (7, 7, 7)])
def test_rules_for_tau(rule, low, high):
    drawn = torch.cat([draw_tau(rule, 700, 1000, 100, generators(2 * seed, 2 * seed + 1)) for seed in range(400)])
    assert (drawn.min().item(), drawn.max().item()) == (low, high)
    if low != high:
        assert abs(drawn.float().mean() - (low + high) / 2) < 4 * (high - low) / 12**0.5 / 800**0.5


def test_tau_by_function_and_bad_rules():
    assert draw_tau(lambda t, gens: torch.tensor([t // 10, len(gens)]), 500, 1000, 100, generators(0, 1)).tolist() == [50, 2]
    for rule in ("often", (0.6, 0.5), -1, 100, (0.1, 0.2, 0.3)):
        with pytest.raises(ValueError, match=r"prior_timesteps is|time steps are"):
            draw_tau(rule, 5, 1000, 100, generators(0))


def test_small_prior_and_bad_configuration():
    assert DepthPrior.small(64).image_size == (64, 64)
    with pytest.raises(ValueError, match="expected 1 -> 1"):
        DepthPrior(unet_config={**dict(tiny_prior().config.unet_config), "in_channels": 3})
    with pytest.raises(ValueError, match="no sample_size"):
        DepthPrior(unet_config={**dict(tiny_prior().config.unet_config), "sample_size": None})
    with pytest.raises(ValueError, match="expected 'epsilon'"):
        tiny_prior(scheduler_config={"prediction_type": "sample"})


def test_a_small_prior_attends_at_its_two_coarsest_levels():
    config = DepthPrior.small(64).unet.config
    assert list(config.down_block_types) == ["DownBlock2D"] * 2 + ["AttnDownBlock2D"] * 2
    assert list(config.up_block_types) == ["AttnUpBlock2D"] * 2 + ["UpBlock2D"] * 2
