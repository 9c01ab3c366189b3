import math
import weakref

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, EulerDiscreteScheduler
from tiny_guidance import generators, tiny_predictor, tiny_prior, tiny_unet

from noise2map.diffusion.ensemble import guidance_generators
from noise2map.guidance import DepthGuidedPipeline, DepthPredictor, DepthPrior, GuidanceConfig, PriorLoss, UNetFeatureTap
from noise2map.guidance.depth_prior import draw_prior_noise, draw_tau

BOTH = {"consistency_scale": 2.0, "prior_scale": 1.0}


def pipeline(scheduler=None, **replaced) -> DepthGuidedPipeline:
    unet = replaced.pop("unet", None) or tiny_unet()
    parts = {"depth_predictor": tiny_predictor(unet), "depth_prior": tiny_prior(), **replaced}
    pipe = DepthGuidedPipeline(unet=unet, scheduler=scheduler or DDIMScheduler(), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, seeds=(0, 1), **arguments):
    arguments = {"num_inference_steps": 4, "output_type": "np", **arguments}
    return pipe(batch_size=len(seeds), generator=generators(*seeds), **arguments)


def stock(kind, pipe, seeds=(0, 1), **arguments):
    reference = kind(unet=pipe.unet, scheduler=pipe.scheduler)
    reference.set_progress_bar_config(disable=True)
    return reference(
        batch_size=len(seeds), generator=generators(*seeds), num_inference_steps=4, output_type="np", **arguments
    ).images


@pytest.mark.parametrize("output_depth", [False, True])
def test_zero_scales_are_the_stock_pipelines_bit_for_bit(output_depth):
    pipe = pipeline(DDPMScheduler())
    assert np.array_equal(draw(pipe, output_depth=output_depth).images, stock(DDPMPipeline, pipe))
    learned = pipeline(DDPMScheduler(variance_type="learned_range"), unet=tiny_unet(out_channels=6))
    assert np.array_equal(draw(learned, output_depth=output_depth).images, stock(DDPMPipeline, learned))
    pipe = pipeline(DDIMScheduler())
    for options in ({}, {"eta": 0.7}, {"use_clipped_model_output": True}):
        assert np.array_equal(draw(pipe, output_depth=output_depth, **options).images, stock(DDIMPipeline, pipe, **options))


def test_works_without_predictor_and_prior():
    pipe = pipeline(depth_predictor=None, depth_prior=None)
    assert np.array_equal(draw(pipe).images, stock(DDIMPipeline, pipe))
    assert draw(pipe, return_dict=False)[1] is None


def gradient_by_hand(pipe, x, t, scales, gens):
    """Gradient of the scaled losses by an ordinary backward pass."""
    x = x.detach().requires_grad_(True)
    with torch.enable_grad(), UNetFeatureTap(pipe.unet) as tap:
        output = pipe.unet(x, t).sample
        strong, weak = pipe.depth_predictor(tap.features, t), pipe.depth_predictor(tap.features, t, (6,))
        total = scales["consistency_scale"] * ((strong.detach() - weak) ** 2).sum()
        tau = draw_tau("uniform", t, 1000, 1000, gens)
        eta = draw_prior_noise(pipe.depth_prior, gens)
        noisy = pipe.depth_prior.scheduler.add_noise(pipe.depth_prior.resize(strong), eta, tau)
        total = total + scales["prior_scale"] * ((pipe.depth_prior(noisy, tau) - eta) ** 2).sum()
        (gradient,) = torch.autograd.grad(total, x)
    return output.detach(), gradient


@pytest.mark.parametrize("kind", ["ddpm", "ddim", "plain"])
def test_guided_run_follows_the_equations(kind):
    """Classifier guidance written out in float64 scalars (Dhariwal & Nichol, Alg. 1 and 2), and DAG's update."""
    scheduler = DDIMScheduler() if kind == "ddim" else DDPMScheduler(variance_type="fixed_small")
    pipe = pipeline(scheduler)
    convention = "plain" if kind == "plain" else "variance"
    clipped = {"use_clipped_model_output": True} if kind == "ddim" else {}
    found = draw(pipe, convention=convention, output_type="pt", **BOTH, **clipped).images
    levels = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    gens = generators(0, 1)
    prior_gens = guidance_generators(gens, 2, torch.device("cpu"))
    x = torch.cat([torch.randn(1, 3, 16, 16, generator=gen) for gen in gens])
    for t in (750, 500, 250, 0):
        a, before = levels[t], levels[t - 250] if t else 1.0
        output, gradient = gradient_by_hand(pipe, x, t, BOTH, prior_gens)
        clean = ((x - math.sqrt(1 - a) * output) / math.sqrt(a)).clamp(-1, 1)
        if kind == "ddim":
            noise = (x - math.sqrt(a) * clean) / math.sqrt(1 - a) + math.sqrt(1 - a) * gradient
            clean = (x - math.sqrt(1 - a) * noise) / math.sqrt(a)
            x = math.sqrt(before) * clean + math.sqrt(1 - before) * noise
            continue
        beta = 1 - a / before
        variance = (1 - before) / (1 - a) * beta
        moved = variance if t else (1 - levels[0]) / (1 - levels[250]) * (1 - levels[250] / levels[0])
        mean = math.sqrt(before) * beta / (1 - a) * clean + math.sqrt(1 - beta) * (1 - before) / (1 - a) * x
        x = mean - (1.0 if kind == "plain" else moved) * gradient
        if t:
            x = x + math.sqrt(variance) * torch.cat([torch.randn(1, 3, 16, 16, generator=gen) for gen in gens])
    torch.testing.assert_close(found, (x / 2 + 0.5).clamp(0, 1), atol=5e-4, rtol=1e-3)


def test_guidance_lowers_its_losses():
    pipe = pipeline()
    free = draw(pipe, consistency_scale=1e-9, reduction="mean").losses["consistency"]
    guided = draw(pipe, consistency_scale=2.0).losses["consistency"] / 256
    assert guided.shape == (4, 2)
    torch.testing.assert_close(free[0], guided[0], atol=1e-5, rtol=1e-4)
    assert (guided[1:].mean(0) < free[1:].mean(0)).all()


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), DDPMScheduler()])
def test_an_image_does_not_depend_on_its_batch(scheduler):
    pipe = pipeline(scheduler)
    together, alone = draw(pipe, (5, 6, 7), output_depth=True, **BOTH), draw(pipe, (6,), output_depth=True, **BOTH)
    np.testing.assert_allclose(together.images[1:2], alone.images, atol=2e-4)
    np.testing.assert_allclose(together.depths[1:2], alone.depths, atol=2e-4)
    again = draw(pipe, (7, 5, 6), **BOTH)
    np.testing.assert_allclose(again.images[[1, 2, 0]], together.images, atol=2e-4)
    assert np.abs(draw(pipe, (5, 6, 7)).images - together.images).max() > 1e-3


@pytest.mark.parametrize("one", [True, False])
def test_what_guides_an_image_is_its_own_also_with_one_generator_for_all(one):
    """A single generator, or none, is not drawn from, and no two images share the noise of the prior."""
    given = torch.Generator().manual_seed(3) if one else None
    before = given.get_state() if one else torch.get_rng_state()
    noise = torch.cat([torch.randn(1, 64, generator=each) for each in guidance_generators(given, 4, torch.device("cpu"))])
    assert torch.equal(before, given.get_state() if one else torch.get_rng_state())
    assert (torch.corrcoef(noise) - torch.eye(4)).abs().max() < 0.6
    again = guidance_generators(given, 2, torch.device("cpu"))
    assert torch.equal(torch.randn(1, 64, generator=again[1])[0], noise[1])


def test_sampling_noise_is_that_of_the_unguided_run():
    # With a vanishing scale the guided run sees the same noise, although the prior draws too.
    pipe = pipeline(DDPMScheduler())
    np.testing.assert_allclose(draw(pipe, prior_scale=1e-12).images, draw(pipe).images, atol=1e-5)
    torch.manual_seed(0)
    free = pipe(batch_size=2, num_inference_steps=4, output_type="np").images
    torch.manual_seed(0)
    np.testing.assert_allclose(
        pipe(batch_size=2, num_inference_steps=4, output_type="np", prior_scale=1e-12).images, free, atol=1e-5
    )


def test_which_steps_are_guided():
    pipe = pipeline()

    def guided(**arguments):
        losses = draw(pipe, (0,), num_inference_steps=8, consistency_scale=1.0, **arguments).losses["consistency"][:, 0]
        return (~losses.isnan()).nonzero().flatten().tolist()

    assert guided() == list(range(8))
    assert guided(guidance_start=2, guidance_end=6) == [2, 3, 4, 5]
    assert guided(guidance_start=1, guidance_every=3) == [1, 4, 7]
    # The steps are 875, 750 ... 0: windows are in log-SNR, whatever the schedule calls its steps.
    levels = [math.log(a / (1 - a)) for a in (float(pipe.scheduler.alphas_cumprod[t]) for t in range(875, -1, -125))]
    assert guided(guidance_log_snr=(levels[2], levels[6])) == [2, 3, 4, 5]
    assert guided(guidance_log_snr=(-math.inf, levels[1] + 1e-6)) == [0, 1]
    pipe.depth_predictor.register_to_config(min_log_snr=levels[5] - 1e-6)
    assert guided() == [5, 6, 7]


def test_one_forward_pass_for_each_step_and_parameters_stay_clean():
    pipe, calls = pipeline(), []
    pipe.unet.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    draw(pipe, output_depth=True, guidance_end=3, **BOTH)
    assert len(calls) == 4
    for part in (pipe.unet, pipe.depth_predictor, pipe.depth_prior):
        assert all(parameter.requires_grad and parameter.grad is None for parameter in part.parameters())


@pytest.mark.parametrize("scales", [{}, BOTH])
def test_depth_output(scales):
    unet = tiny_unet()
    pipe = pipeline(
        unet=unet,
        depth_predictor=tiny_predictor(unet, min_depth=1.0, max_depth=5.0),
        depth_prior=tiny_prior(min_depth=1.0, max_depth=5.0),
    )
    seen = []
    out = draw(pipe, output_depth=True, callback_on_step_end=lambda p, i, t, k: seen.append(k["latents"]) or {}, **scales)
    with torch.no_grad(), UNetFeatureTap(pipe.unet) as tap:
        pipe.unet(seen[-2], 0)
        expected = pipe.depth_predictor.decode_depth(pipe.depth_predictor(tap.features, 0))
    np.testing.assert_allclose(out.depths, expected.numpy(), atol=1e-4)
    assert out.depths.shape == (2, 16, 16) and out.depths.min() >= 1 and out.depths.max() <= 5
    assert torch.is_tensor(draw(pipe, output_depth=True, output_type="pt").depths)


def test_callback_and_output_types():
    pipe, seen = pipeline(), []

    def watch(owner, index, timestep, tensors):
        assert owner is pipe
        seen.append((index, int(timestep), tensors["gradient"] is None, tuple(tensors["pred_original_sample"].shape)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    names = ["latents", "gradient", "pred_original_sample"]
    out = draw(pipe, guidance_end=2, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=names, **BOTH)
    assert seen == [(i, t, i >= 2, (2, 3, 16, 16)) for i, t in enumerate((750, 500, 250, 0))]
    assert (out.images == 0.5).all()
    assert draw(pipe, output_type="pil").images[1].size == (16, 16)
    assert draw(pipe, output_type="pt").images.shape == (2, 3, 16, 16)


def test_start_noise_may_be_given():
    pipe = pipeline()
    noise = torch.cat([torch.randn(1, 3, 16, 16, generator=gen) for gen in generators(0, 1)])
    assert np.array_equal(draw(pipe, latents=noise).images, draw(pipe).images)
    assert np.array_equal(draw(pipe, latents=noise, **BOTH).images, draw(pipe, **BOTH).images)


def test_class_conditional():
    unet = tiny_unet(num_class_embeds=5)
    pipe = pipeline(unet=unet)
    one, two = (draw(pipe, class_labels=torch.tensor(labels), **BOTH).images for labels in ([1, 2], [1, 3]))
    np.testing.assert_allclose(one[0], two[0], atol=1e-4)
    assert np.abs(one[1] - two[1]).max() > 1e-4
    with pytest.raises(ValueError, match="class-conditional"):
        draw(pipe)
    with pytest.raises(ValueError, match="unconditional"):
        draw(pipeline(), class_labels=torch.tensor([1, 2]))


def test_save_and_load(tmp_path):
    pipe = pipeline(DDPMScheduler())
    pipe.save_pretrained(tmp_path / "all")
    again = DepthGuidedPipeline.from_pretrained(tmp_path / "all")
    again.set_progress_bar_config(disable=True)
    assert isinstance(again.depth_predictor, DepthPredictor) and isinstance(again.depth_prior, DepthPrior)
    assert np.array_equal(draw(again, **BOTH).images, draw(pipe, **BOTH).images)
    bare = pipeline(depth_predictor=None, depth_prior=None)
    bare.save_pretrained(tmp_path / "bare")
    loaded = DepthGuidedPipeline.from_pretrained(tmp_path / "bare", depth_predictor=tiny_predictor(bare.unet))
    assert loaded.depth_prior is None and loaded.depth_predictor is not None


@pytest.mark.parametrize(("kind", "scheduler"), [(DDIMPipeline, DDIMScheduler()), (DDPMPipeline, DDPMScheduler())])
def test_from_pipe_and_back(kind, scheduler):
    source = kind(unet=tiny_unet(), scheduler=scheduler)
    predictor = tiny_predictor(source.unet)
    pipe = DepthGuidedPipeline.from_pipe(source, depth_predictor=predictor)
    assert pipe.unet is source.unet and pipe.depth_predictor is predictor and pipe.depth_prior is None
    both = DepthGuidedPipeline.from_pipe(pipe, depth_prior=tiny_prior())
    assert both.depth_predictor is predictor and both.depth_prior is not None
    both.set_progress_bar_config(disable=True)
    assert draw(both, **BOTH).losses.keys() == {"consistency", "prior"}
    assert kind.from_pipe(pipe).unet is source.unet


def test_what_a_scale_means_is_saved_with_the_pipeline(tmp_path):
    usual = pipeline()
    own = DepthGuidedPipeline(**usual.components, convention="plain", reduction="mean")
    own.save_pretrained(tmp_path)
    pipes = [own, DepthGuidedPipeline.from_pretrained(tmp_path), DepthGuidedPipeline.from_pipe(own)]
    expected = draw(usual, convention="plain", reduction="mean", output_type="pt", **BOTH).images
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
        assert torch.equal(draw(pipe, output_type="pt", **BOTH).images, expected)
    said = draw(own, convention="variance", reduction="sum", output_type="pt", **BOTH).images
    assert torch.equal(said, draw(usual, output_type="pt", **BOTH).images)
    assert not torch.equal(said, expected)
    for name in ("convention", "reduction"):
        with pytest.raises(ValueError, match=f"{name} is 'half'"):
            DepthGuidedPipeline(**usual.components, **{name: "half"})


def test_steps_that_are_not_finite_may_be_skipped():
    pipe = pipeline()
    noise = torch.zeros(2, 3, 16, 16)
    noise[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"consistency loss at time step 750 .* images \[1\]"):
        draw(pipe, latents=noise, consistency_scale=1.0)
    assert draw(pipe, latents=noise, consistency_scale=1.0, on_nonfinite="skip").skipped.tolist() == [0, 4]


def test_parts_that_do_not_belong_together():
    unet = tiny_unet()
    with pytest.raises(ValueError, match="EulerDiscreteScheduler"):
        pipeline(EulerDiscreteScheduler())
    with pytest.raises(ValueError, match="another U-Net"):
        pipeline(unet=unet, depth_predictor=tiny_predictor(tiny_unet(seed=9)))
    with pytest.raises(ValueError, match=r"gives 1\.\.5 m \(log\), but the depth prior was trained on relative"):
        pipeline(unet=unet, depth_predictor=tiny_predictor(unet, min_depth=1.0, max_depth=5.0))
    wide = tiny_unet(sample_size=(16, 32))
    with pytest.raises(ValueError, match="same proportions"):
        pipeline(unet=wide)
    pipe = pipeline(unet=unet)
    tall = DepthPrior(unet_config={**tiny_prior().config.unet_config, "sample_size": (16, 8)})
    for prior, said in ((tiny_prior(min_depth=1.0, max_depth=5.0), "trained on 1"), (tall, "same proportions")):
        with pytest.raises(ValueError, match=said):
            draw(pipe, guidance=GuidanceConfig(losses=(PriorLoss(1.0, prior=prior),)))
    pipe.depth_predictor = tiny_predictor(tiny_unet(seed=9))
    with pytest.raises(ValueError, match="another U-Net"):
        draw(pipe)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"consistency_scale": -1.0}, "consistency_scale is -1.0"),
        ({"prior_scale": float("nan")}, "prior_scale is nan"),
        ({"convention": "score"}, "convention is 'score'"),
        ({"reduction": "max"}, "reduction is 'max'"),
        ({"prior_timesteps": "never"}, "prior_timesteps is 'never'"),
        ({"prior_scale": 1.0, "prior_timesteps": 1000}, r"prior_timesteps is 1000; expected a time step of 0\.\.999"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": 1001}, "num_inference_steps is 1001"),
        ({"guidance_every": 0}, "guidance_every is 0"),
        ({"guidance_start": -1}, "guidance_start is -1"),
        ({"guidance_start": 3, "guidance_end": 2}, "guidance_end is 2"),
        ({"guidance_log_snr": (2.0, -3.0)}, "guidance_log_snr"),
        ({"eta": 2.0}, "eta is 2.0"),
        ({"output_type": "jpeg"}, "output_type is 'jpeg'"),
        ({"consistency_scale": 1.0, "strong_blocks": (2, 4)}, "no branch on blocks"),
        ({"consistency_scale": 1.0, "strong_blocks": (6,)}, "both read blocks"),
        ({"latents": torch.zeros(2, 3, 8, 8)}, "latents has shape"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "expected names of"),
        ({"on_nonfinite": "hope"}, "on_nonfinite is 'hope'"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(arguments, message):
    pipe = pipeline()
    pipe.unet.register_forward_pre_hook(lambda *_: pytest.fail("the U-Net ran"))
    with pytest.raises(ValueError, match=message):
        draw(pipe, **arguments)


def test_missing_parts_and_generators():
    with pytest.raises(ValueError, match="no depth_predictor"):
        draw(pipeline(depth_predictor=None, depth_prior=None), consistency_scale=1.0)
    with pytest.raises(ValueError, match="output_depth is set"):
        draw(pipeline(depth_predictor=None, depth_prior=None), output_depth=True)
    with pytest.raises(ValueError, match="no depth_prior"):
        draw(pipeline(depth_prior=None), prior_scale=1.0)
    with pytest.raises(ValueError, match=r"generator is a list of int; expected a torch\.Generator or a list of them"):
        pipeline()(batch_size=2, generator=[1, 2])
    with pytest.raises(ValueError, match="generator is a tuple; expected"):
        pipeline()(batch_size=2, generator=(torch.Generator(), torch.Generator()))
    with pytest.raises(ValueError, match="3 generators for 2 images"):
        pipeline()(batch_size=2, generator=generators(0, 1, 2))
    with pytest.raises(ValueError, match="eta belongs to DDIMScheduler"):
        draw(pipeline(DDPMScheduler()), eta=0.5)


def test_nothing_large_is_kept_of_past_steps():
    pipe, alive = pipeline(), []

    def watch(owner, index, timestep, tensors):
        alive.append(weakref.ref(tensors["gradient"]))
        # The gradients of steps before the last are gone.
        assert sum(ref() is not None for ref in alive[:-2]) == 0
        return {}

    draw(pipe, num_inference_steps=6, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=["gradient"], **BOTH)
    assert len(alive) == 6
