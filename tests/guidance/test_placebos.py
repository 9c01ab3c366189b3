"""Placebos have the size of a gradient and none of its knowledge."""

import pytest
import torch
from tiny_guidance import generators, tiny_predictor, tiny_unet

from noise2map.guidance import ConsistencyLoss, DepthGuidedPipeline, GuidanceConfig, guided_prediction
from noise2map.guidance.placebos import placebo_gradient


def gradient(count=4):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * torch.arange(1, count + 1)[:, None, None, None]


def norms(x):
    return x.flatten(1).norm(dim=1)


def test_neighbors_change_places():
    x = gradient()
    assert torch.equal(placebo_gradient("neighbor", x, []), x[[1, 0, 3, 2]])
    with pytest.raises(ValueError, match="needs pairs of images, got 3"):
        placebo_gradient("neighbor", x[:3], [])


def test_noise_has_the_norm_and_no_direction_in_common():
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(9))
    found = placebo_gradient("noise", x, generators(0, 1))
    torch.testing.assert_close(norms(found), norms(x))
    cosine = (found * x).flatten(1).sum(1) / norms(x).square()
    assert cosine.abs().max() < 4 / (3 * 64 * 64) ** 0.5  # four standard deviations of chance
    alone = placebo_gradient("noise", x[1:], generators(1))
    assert torch.equal(alone[0], found[1])


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="placebo is 'sugar'"):
        placebo_gradient("sugar", gradient(), [])
    with pytest.raises(ValueError, match="placebo is 'sugar'"):
        GuidanceConfig(placebo="sugar")


@pytest.mark.parametrize("kind", ["neighbor", "noise", "reversed"])
def test_a_step_takes_the_placebo_in_place_of_its_gradient(kind):
    unet = tiny_unet()
    predictor, x = tiny_predictor(unet), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    call = (unet, predictor, None, x, 300)
    plain = guided_prediction(*call, GuidanceConfig(losses=(ConsistencyLoss(3.0),)), generators(0, 1))
    found = guided_prediction(*call, GuidanceConfig(losses=(ConsistencyLoss(3.0),), placebo=kind), generators(0, 1))
    assert torch.equal(found.gradient, placebo_gradient(kind, plain.gradient, generators(0, 1)))
    assert torch.equal(found.model_output, plain.model_output) and not torch.equal(found.gradient, plain.gradient)


def test_the_pipeline_wants_pairs_before_it_works():
    from diffusers import DDPMScheduler

    unet = tiny_unet()
    pipe = DepthGuidedPipeline(unet, DDPMScheduler(), tiny_predictor(unet))
    guidance = GuidanceConfig(losses=(ConsistencyLoss(3.0),), placebo="neighbor")
    with pytest.raises(ValueError, match="needs pairs of images, got 3"):
        pipe(batch_size=3, guidance=guidance, num_inference_steps=2)
