"""The small depth U-Net: it learns, its seeds mean what they say, unknown depth teaches nothing."""

import pytest
import torch

from noise2map.generation.experiments.small_depth import SmallDepthUNet, fit_small_depth, score_small_depth
from noise2map.guidance.depth_range import DepthRange

RANGE = DepthRange(1.0, 10.0, "log")


def scenes(count, seed=0):
    """Grey squares whose brightness is their depth."""
    generator = torch.Generator().manual_seed(seed)
    depth = 1.2 + 8 * torch.rand(count, 1, 1, generator=generator).expand(-1, 16, 16)
    images = (depth / 10 * 255).to(torch.uint8)[:, None].expand(-1, 3, -1, -1).contiguous()
    return images, depth.contiguous()


def test_it_learns_depth_from_brightness():
    images, depth = scenes(24)
    fit = fit_small_depth(images, *RANGE.encode(depth), num_steps=50, batch_size=8)
    fresh_images, fresh_depth = scenes(12, seed=1)
    scores = score_small_depth(fit, fresh_images, fresh_depth, RANGE)
    blind = score_small_depth(SmallDepthUNet(), fresh_images, fresh_depth, RANGE)
    assert scores["abs_rel"] < 0.15 < 0.3 < blind["abs_rel"]


def test_equal_seeds_give_equal_weights_and_leave_the_global_state_alone():
    images, depth = scenes(4)
    state = torch.get_rng_state()
    fits = [fit_small_depth(images, *RANGE.encode(depth), num_steps=2, batch_size=2, seed=seed) for seed in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), state)
    outputs = [fit(images.float()) for fit in fits]
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


def test_unknown_depth_teaches_nothing():
    images, depth = scenes(4)
    signal, mask = RANGE.encode(depth)
    mask = mask.clone()
    mask[..., 8:] = False
    wrong = torch.where(mask, signal, 1.0)
    fits = [fit_small_depth(images, one, mask, num_steps=3, batch_size=4) for one in (signal, wrong)]
    assert torch.equal(fits[0].head.weight, fits[1].head.weight)


@pytest.mark.parametrize("size", [(16, 16), (13, 22)])
def test_any_size(size):
    assert SmallDepthUNet()(torch.zeros(2, 3, *size)).shape == (2, 1, *size)


def test_every_weight_gets_a_gradient():
    model = SmallDepthUNet()
    model(torch.randn(1, 3, 16, 16)).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


def test_bad_input_is_refused():
    images, depth = scenes(2)
    signal, mask = RANGE.encode(depth)
    with pytest.raises(ValueError, match="expected"):
        fit_small_depth(images, signal[:1], mask[:1])
    with pytest.raises(ValueError, match="at least 1"):
        fit_small_depth(images, signal, mask, num_steps=0)
    with pytest.raises(ValueError, match="without metres"):
        score_small_depth(SmallDepthUNet(), images, depth, DepthRange(None, None, "log"))
