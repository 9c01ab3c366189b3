from types import SimpleNamespace

import pytest
import torch

from noise2map.guidance import ConsistencyLoss, consistency_loss, prior_loss


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


def disagreeing_by(*squares, timestep=0):
    """Depth of one image for each number, whose branches differ by that mean square; the weak one with a gradient."""
    strong = torch.zeros(len(squares), 1, 2, 3, dtype=torch.float64)
    pattern = torch.tensor([[[1.0, -1, 1], [-1, 1, -1]]], dtype=torch.float64)
    weak = (torch.tensor(squares, dtype=torch.float64).sqrt()[:, None, None, None] * pattern).requires_grad_()
    return SimpleNamespace(strong=strong, weak=weak, timestep=timestep)


@pytest.mark.parametrize(("reduction", "pixels"), [("mean", 1), ("sum", 6)])
def test_consistency_may_aim_at_the_disagreement_of_real_images(reduction, pixels):
    """Images of 1, 4 and 9 where real ones have 4: the hinge leaves the first two alone, the square pushes the first back."""
    found = {}
    for pull in ("hinge", "square"):
        depth = disagreeing_by(1.0, 4.0, 9.0)
        found[pull] = ConsistencyLoss(1.0, reduction, real=[(0, 4.0)], pull=pull)({}, depth, ())
        found[pull].sum().backward()
        slope = (depth.weak.grad * depth.weak).sum((1, 2, 3)) / depth.weak.square().sum((1, 2, 3))  # along growing disagreement
        share = [0.0, 0, 1] if pull == "hinge" else [-3 / 4, 0, 5 / 4]  # of the gradient of m, 2 w / 6; (m - c) / c
        torch.testing.assert_close(slope, pixels * torch.tensor(share, dtype=torch.float64) / 3)
    torch.testing.assert_close(found["hinge"], pixels * torch.tensor([0.0, 0, 5], dtype=torch.float64))
    torch.testing.assert_close(found["square"], pixels * torch.tensor([9 / 8, 0, 25 / 8], dtype=torch.float64))


def test_the_disagreement_of_real_images_follows_the_time_step():
    loss = ConsistencyLoss(1.0, "mean", real=[(100, 2.0), (300, 4.0)])
    found = [loss({}, disagreeing_by(10.0, timestep=step), ()).item() for step in (0, 100, 150, 300, 900)]
    assert found == pytest.approx([8, 8, 7.5, 6, 6])


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
    with pytest.raises(ValueError, match="pull is 'rope'"):
        ConsistencyLoss(1.0, pull="rope")
    for real in ([], [(0, 0.0)], [(5, 1.0), (3, 1.0)]):
        with pytest.raises(ValueError, match="expected pairs of rising time steps"):
            ConsistencyLoss(1.0, real=real)
