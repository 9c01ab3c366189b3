import pytest
import torch
from tiny_guidance import generators, tiny_predictor, tiny_prior, tiny_unet
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from noise2map.guidance import GuidanceConfig, UNetFeatureTap, guided_prediction
from noise2map.guidance.depth_prior import draw_prior_noise, draw_tau

BOTH = GuidanceConfig.from_scales(1.0, 1.0)
LOSSES = [{"consistency_scale": 3.0}, {"prior_scale": 2.0}, {"consistency_scale": 3.0, "prior_scale": 2.0}]


def parts(dtype=torch.float32):
    unet = tiny_unet()
    return unet.to(dtype), tiny_predictor(unet).to(dtype), tiny_prior().to(dtype)


def objective(unet, predictor, prior, x, timestep, scales, reduction, detached_strong):
    """The scaled sum of the losses written out, with one forward pass without any shortcut."""
    with torch.no_grad(), UNetFeatureTap(unet) as tap:
        unet(x, timestep)
        strong, weak = predictor(tap.features, timestep), predictor(tap.features, timestep, (6,))
        reduce = torch.sum if reduction == "sum" else torch.mean
        total = scales.get("consistency_scale", 0.0) * sum(reduce(row) for row in (detached_strong - weak) ** 2)
        if scales.get("prior_scale"):
            gens = generators(*range(x.shape[0]))
            tau = draw_tau("uniform", timestep, 1000, 1000, gens)
            eta = draw_prior_noise(prior, gens).to(x)
            alpha, sigma = prior.levels(tau)
            noisy = alpha[:, None, None, None] * prior.resize(strong) + sigma[:, None, None, None] * eta
            total = total + scales["prior_scale"] * sum(reduce(row) for row in (eta - prior(noisy, tau)) ** 2)
    return total, strong


@pytest.mark.parametrize("scales", LOSSES)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_finite_differences(scales, reduction):
    unet, predictor, prior = parts(torch.float64)
    torch.manual_seed(3)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    losses = GuidanceConfig.from_scales(**scales, reduction=reduction)
    found = guided_prediction(unet, predictor, prior, x, 300, losses, generators(0, 1))
    _, strong = objective(unet, predictor, prior, x, 300, scales, reduction, torch.zeros(1))
    for seed in range(3):
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        step = 1e-5
        # The strong depth is held where it is: its gradient is stopped.
        high, _ = objective(unet, predictor, prior, x + step * direction, 300, scales, reduction, strong)
        low, _ = objective(unet, predictor, prior, x - step * direction, 300, scales, reduction, strong)
        assert (found.gradient * direction).sum().item() == pytest.approx(((high - low) / (2 * step)).item(), rel=1e-5)
    assert found.gradient.abs().max() > 0


def test_one_forward_pass_and_no_gradients_of_parameters():
    unet, predictor, prior = parts()
    calls = []
    handle = unet.register_forward_hook(lambda *_: calls.append(1))
    next(unet.parameters()).requires_grad_(False)
    x = torch.randn(2, 3, 16, 16)
    found = guided_prediction(unet, predictor, prior, x, 300, BOTH, generators(0, 1))
    handle.remove()
    assert len(calls) == 1
    for module in (unet, predictor, prior):
        assert all(parameter.grad is None for parameter in module.parameters())
    trainable = [parameter.requires_grad for parameter in unet.parameters()]
    assert not trainable[0] and all(trainable[1:]), "the parts must be left as they were"
    assert not x.requires_grad and not found.model_output.requires_grad and not found.depth_signal.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(found.model_output, unet(x, 300).sample, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("scales", LOSSES)
def test_an_image_does_not_depend_on_its_batch(scales):
    unet, predictor, prior = parts()
    x = torch.randn(3, 3, 16, 16)
    for reduction in ("sum", "mean"):
        losses = GuidanceConfig.from_scales(**scales, reduction=reduction)
        together = guided_prediction(unet, predictor, prior, x, 300, losses, generators(0, 1, 2))
        alone = guided_prediction(unet, predictor, prior, x[1:2], 300, losses, generators(1))
        torch.testing.assert_close(together.gradient[1:2], alone.gradient, atol=1e-6, rtol=1e-4)
        for name in together.losses:
            torch.testing.assert_close(together.losses[name][1:2], alone.losses[name], atol=1e-5, rtol=1e-4)


def test_weak_gradient_reaches_only_what_it_needs():
    # Scaling of the losses is linear, and the graph of consistency alone ends at block 6.
    unet, predictor, prior = parts()
    x, seen = torch.randn(1, 3, 16, 16), []
    handle = unet.up_blocks[2].resnets[1].register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
    one = guided_prediction(unet, predictor, None, x, 300, GuidanceConfig.from_scales(1.0), generators(0))
    three = guided_prediction(unet, predictor, prior, x, 300, GuidanceConfig.from_scales(3.0), generators(0))
    both = guided_prediction(unet, predictor, prior, x, 300, GuidanceConfig.from_scales(3.0, 2.0), generators(0))
    other = guided_prediction(unet, predictor, prior, x, 300, GuidanceConfig.from_scales(0.0, 2.0), generators(0))
    handle.remove()
    assert seen == [False, False, True, True]
    torch.testing.assert_close(three.gradient, 3 * one.gradient)
    torch.testing.assert_close(both.gradient, three.gradient + other.gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_inference_mode_and_checkpointing(checkpointing):
    unet, predictor, prior = parts()
    x = torch.randn(1, 3, 16, 16)
    expected = guided_prediction(unet, predictor, prior, x, 300, BOTH, generators(0))
    if checkpointing:
        unet.enable_gradient_checkpointing()
    with torch.inference_mode():
        found = guided_prediction(unet, predictor, prior, x.clone(), 300, BOTH, generators(0))
    torch.testing.assert_close(found.gradient, expected.gradient, atol=1e-6, rtol=1e-4)


def test_gradients_that_are_not_finite():
    unet, predictor, prior = parts()
    x = torch.randn(2, 3, 16, 16)
    x[1, 0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"consistency loss at time step 300 is not finite for images \[1\]"):
        guided_prediction(unet, predictor, prior, x, 300, GuidanceConfig.from_scales(1.0), generators(0, 1))
    found = guided_prediction(
        unet, predictor, prior, x, 300, GuidanceConfig.from_scales(1.0, on_nonfinite="skip"), generators(0, 1)
    )
    assert found.skipped.tolist() == [False, True]
    assert found.gradient[1].abs().max() == 0 and found.gradient[0].abs().max() > 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"consistency_scale": -1.0}, "consistency_scale is -1.0"),
        ({"prior_scale": float("nan")}, "prior_scale is nan"),
        ({"prior_scale": "40"}, "prior_scale is '40'"),
        ({"reduction": "max"}, "reduction is 'max'"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite is 'ignore'"),
        ({"prior_timesteps": "often"}, "prior_timesteps is 'often'"),
    ],
)
def test_bad_input(values, message):
    with pytest.raises(ValueError, match=message):
        GuidanceConfig.from_scales(**values)


class Operations(TorchDispatchMode):
    """Counts multiplications; torch's own counter does not work under `autograd.grad` to a leaf."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def test_costs_far_less_than_a_full_backward_pass():
    # Operations of a U-Net with the proportions of the LSUN-256 models; a plain forward is 1.
    attends = (False, False, False, True, True, True)
    unet = tiny_unet(
        sample_size=64,
        block_out_channels=(16, 16, 32, 32, 64, 64),
        down_block_types=tuple("AttnDownBlock2D" if has else "ResnetDownsampleBlock2D" for has in attends),
        up_block_types=tuple("AttnUpBlock2D" if has else "ResnetUpsampleBlock2D" for has in reversed(attends)),
        downsample_type="resnet",
        upsample_type="resnet",
    )
    predictor, prior, x = tiny_predictor(unet), tiny_prior(), torch.randn(1, 3, 64, 64)

    def operations(run) -> int:
        with Operations() as counter:
            run()
        return counter.total

    def naive():
        out = unet(x.clone().requires_grad_(True), 300).sample
        out.square().sum().backward()

    forward = operations(lambda: unet(x, 300))
    guided = operations(lambda: guided_prediction(unet, predictor, prior, x, 300, BOTH, generators(0)))
    assert guided < 1.5 * forward
    assert operations(naive) > 2.9 * forward


@pytest.mark.parametrize("everything", [False, True])
def test_half_precision(everything):
    """Of the U-Net alone or of the predictor and a prior of half the resolution, too."""
    unet, predictor, prior = parts()
    assert prior.image_size == (8, 8)  # of images of 16 px
    for module in (unet, predictor, prior) if everything else (unet,):
        module.to(torch.bfloat16)
    x = torch.randn(2, 3, 16, 16)
    half = guided_prediction(unet, predictor, prior, x.bfloat16(), 300, BOTH, generators(0, 1))
    full = guided_prediction(unet.float(), predictor.float(), prior.float(), x, 300, BOTH, generators(0, 1))
    assert half.model_output.dtype == torch.bfloat16 and half.gradient.dtype == torch.float32
    cosine = torch.cosine_similarity(half.gradient.flatten(1), full.gradient.flatten(1))
    assert (cosine > 0.95).all()
