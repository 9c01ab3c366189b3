"""The configuration of guidance: equal to the keywords of a call, and open to losses of one's own."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from tiny_guidance import generators, tiny_predictor, tiny_prior, tiny_unet

from noise2map.guidance import (
    ConsistencyLoss,
    DepthGuidedPipeline,
    GuidanceConfig,
    GuidanceLoss,
    PriorLoss,
    UNetFeatureTap,
    guided_prediction,
)


@dataclass(frozen=True)
class FarTop(GuidanceLoss):
    """A third loss: the upper half of the image is to be as far away as depth goes."""

    name: ClassVar[str] = "far top"

    def blocks_needed(self, strong, weak):
        return strong

    def __call__(self, features, depth, generators):
        assert set(features) >= {2, 4, 5, 6, 7} and len(generators) == depth.strong.shape[0]
        return (depth.strong[:, :, :8] - 1).square().flatten(1).sum(1)


@pytest.fixture(scope="module")
def pipe():
    unet = tiny_unet()
    pipe = DepthGuidedPipeline(unet, DDIMScheduler(), tiny_predictor(unet), tiny_prior())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, **arguments):
    return pipe(batch_size=2, generator=generators(0, 1), num_inference_steps=4, output_type="np", **arguments)


def test_a_third_loss_is_one_class_and_guides(pipe):
    guided, free = draw(pipe, guidance=GuidanceConfig(losses=(FarTop(5.0),))), draw(pipe)
    assert guided.losses.keys() == {"far top"} and guided.losses["far top"].shape == (4, 2)
    assert np.abs(guided.images - free.images).max() > 1e-3
    watched = draw(pipe, guidance=GuidanceConfig(losses=(FarTop(1e-9),)))
    assert (guided.losses["far top"][-1] < watched.losses["far top"][-1]).all()
    every = GuidanceConfig(losses=(ConsistencyLoss(2.0), PriorLoss(1.0), FarTop(5.0)))
    assert draw(pipe, guidance=every).losses.keys() == {"consistency", "prior", "far top"}


def test_the_gradient_of_a_third_loss_is_that_of_an_ordinary_backward_pass(pipe):
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    guidance = GuidanceConfig(losses=(FarTop(3.0),))
    found = guided_prediction(pipe.unet, pipe.depth_predictor, None, x, 300, guidance, generators(0, 1))
    x.requires_grad_(True)
    with UNetFeatureTap(pipe.unet) as tap:
        pipe.unet(x, 300)
    loss = 3 * (pipe.depth_predictor(tap.features, 300)[:, :, :8] - 1).square().sum()
    (expected,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(found.gradient, expected, rtol=1e-4, atol=1e-5)
    assert expected.abs().max() > 1e-3


def test_an_object_says_what_keywords_say(pipe):
    said = {"convention": "plain", "reduction": "mean", "strong_blocks": (2, 4, 5, 6, 7), "weak_blocks": (6,)}
    said |= {"on_nonfinite": "skip", "prior_timesteps": "matched"}
    window = {"start": 1, "end": 3, "every": 2, "log_snr": (-9.0, 20.0)}
    keywords = {**said, **{f"guidance_{name}": value for name, value in window.items()}}
    guidance = GuidanceConfig.from_scales(3000.0, 2000.0, **said, **window)
    expected = draw(pipe, consistency_scale=3000.0, prior_scale=2000.0, **keywords)
    found = draw(pipe, guidance=guidance)
    assert np.array_equal(found.images, expected.images) and np.abs(found.images - draw(pipe).images).max() > 1e-4
    for name, values in expected.losses.items():
        assert torch.equal(found.losses[name].nan_to_num(-1), values.nan_to_num(-1))
    with pytest.raises(ValueError, match="got guidance and prior_scale, guidance_every"):
        draw(pipe, guidance=guidance, prior_scale=1.0, guidance_every=2)


def test_a_prior_loss_may_bring_its_own_prior(pipe):
    other = tiny_prior(seed=9)
    own = draw(pipe, guidance=GuidanceConfig(losses=(PriorLoss(2.0, prior=other),))).images
    swapped = DepthGuidedPipeline(**{**pipe.components, "depth_prior": other})
    swapped.set_progress_bar_config(disable=True)
    assert np.array_equal(own, draw(swapped, prior_scale=2.0).images)
    assert np.abs(own - draw(pipe, prior_scale=2.0).images).max() > 1e-4
    assert all(parameter.requires_grad for parameter in other.parameters())


def test_a_loss_of_scale_zero_does_not_guide(pipe):
    nothing = GuidanceConfig(losses=(FarTop(0.0), ConsistencyLoss(0.0)))
    assert nothing.active == () and np.array_equal(draw(pipe, guidance=nothing).images, draw(pipe).images)
    with pytest.raises(ValueError, match="no loss guides"):
        guided_prediction(pipe.unet, pipe.depth_predictor, None, torch.zeros(1, 3, 16, 16), 3, nothing, generators(0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"losses": (ConsistencyLoss(1.0), ConsistencyLoss(2.0))}, "different names"),
        ({"losses": ("consistency",)}, "expected objects of GuidanceLoss"),
        ({"convention": "half"}, "convention is 'half'"),
        ({"every": 0}, "guidance_every is 0"),
        ({"log_snr": (5.0, 5.0)}, "guidance_log_snr"),
    ],
)
def test_bad_values(values, message):
    with pytest.raises(ValueError, match=message):
        GuidanceConfig(**values)
    with pytest.raises(ValueError, match=r"far top_scale is -1\.0"):
        FarTop(-1.0)
    with pytest.raises(ValueError, match="reduction is 'max'"):
        FarTop(1.0, "max")
