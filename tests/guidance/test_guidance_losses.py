import pytest
import torch

from noise2map.guidance import consistency_loss, prior_loss


def test_consistency_is_the_squared_norm_of_each_image():
    strong, weak = torch.randn(3, 1, 4, 5, dtype=torch.float64), torch.randn(3, 1, 4, 5, dtype=torch.float64)
    expected = torch.stack([torch.linalg.vector_norm(s - w) ** 2 for s, w in zip(strong, weak)])
    torch.testing.assert_close(consistency_loss(strong, weak), expected)
    torch.testing.assert_close(consistency_loss(strong, weak, "mean"), expected / 20)


def test_consistency_draws_only_the_weak_branch():
    strong, weak = torch.randn(1, 1, 2, 2, requires_grad=True), torch.randn(1, 1, 2, 2, requires_grad=True)
    consistency_loss(strong, weak).sum().backward()
    assert strong.grad is None
    torch.testing.assert_close(weak.grad, 2 * (weak - strong).detach())


def test_prior_of_a_perfect_denoiser_is_zero_and_of_a_zero_denoiser_the_noise():
    depth, noise = torch.randn(2, 1, 4, 4, dtype=torch.float64), torch.randn(2, 1, 4, 4, dtype=torch.float64)
    alpha, sigma = torch.tensor([0.8, 0.6], dtype=torch.float64), torch.tensor([0.6, 0.8], dtype=torch.float64)
    tau = torch.tensor([3, 5])

    def perfect(noisy, timesteps):
        assert torch.equal(timesteps, tau)
        return (noisy - alpha[:, None, None, None] * depth) / sigma[:, None, None, None]

    assert prior_loss(depth, perfect, tau, alpha, sigma, noise).abs().max() < 1e-20
    zero = prior_loss(depth, lambda noisy, t: torch.zeros_like(noisy), tau, alpha, sigma, noise, "mean")
    torch.testing.assert_close(zero, noise.square().mean((1, 2, 3)))


def test_half_precision_is_summed_in_float32():
    strong = torch.full((1, 1, 256, 256), 2.0, dtype=torch.float16)
    assert consistency_loss(strong, -strong).item() == 16 * 256 * 256


def test_bad_input():
    with pytest.raises(ValueError, match="expected the same"):
        consistency_loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match="reduction is 'max'"):
        consistency_loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), "max")
    with pytest.raises(ValueError, match="predicts noise of shape"):
        prior_loss(
            torch.zeros(1, 1, 4, 4), lambda x, t: x[..., :2], torch.zeros(1), torch.ones(1), torch.ones(1), torch.zeros(1, 1, 4, 4)
        )
