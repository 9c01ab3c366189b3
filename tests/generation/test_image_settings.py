"""The folder of drawn images is named by all that decides an image: one thing changes, and it is another folder."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from tiny_guidance import tiny_predictor, tiny_prior, tiny_unet

from noise2map.generation.sampling import SamplingOptions, draw_images, folder_name, image_settings
from noise2map.guidance import ConsistencyLoss, DepthGuidedPipeline, GuidanceConfig, PriorLoss

METRES = {"min_depth": 0.5, "max_depth": 20.0}
BOTH = GuidanceConfig.from_scales(5.0, 3.0)
NONE = GuidanceConfig()


def pipeline(scheduler=None, unet=None, convention="variance", **parts):
    unet = tiny_unet() if unet is None else unet
    parts = {"depth_predictor": tiny_predictor(unet, **METRES), "depth_prior": tiny_prior(**METRES), **parts}
    pipe = DepthGuidedPipeline(unet, scheduler or DDIMScheduler(), **parts, convention=convention)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def name(pipe=None, guidance=BOTH, **options):
    options = SamplingOptions(**{"num_inference_steps": 2, **options})
    return folder_name(image_settings(pipe or pipeline(), options, guidance), guidance)


def test_the_same_is_named_the_same():
    assert name() == name() == name(batch_size=3)
    assert name().startswith("consistency-5_prior-3_") and name(guidance=NONE).startswith("unguided_")


SCHEDULERS = [
    DDPMScheduler(),
    DDPMScheduler(variance_type="fixed_large"),
    DDIMScheduler(timestep_spacing="trailing"),
    DDIMScheduler(steps_offset=1),
    DDIMScheduler(set_alpha_to_one=False),
    DDIMScheduler(beta_end=0.03),
    DDIMScheduler(beta_schedule="squaredcos_cap_v2"),
    DDIMScheduler(trained_betas=[0.01] * 1000),
    DDIMScheduler(clip_sample=False),
    DDIMScheduler(prediction_type="v_prediction"),
    DDIMScheduler(rescale_betas_zero_snr=True),
]


@pytest.mark.parametrize("guidance", [BOTH, NONE])
def test_the_whole_scheduler_decides(guidance):
    names = [name(pipeline(one), guidance) for one in [DDIMScheduler(), *SCHEDULERS]]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("spacing", "steps", "ours"), [("trailing", 60, True), ("trailing", 50, False), ("leading", 60, False)])
def test_images_of_steps_that_are_not_those_of_diffusers_say_so(spacing, steps, ours):
    for kind in (DDIMScheduler, DDPMScheduler):
        pipe = pipeline(kind(timestep_spacing=spacing))
        found = image_settings(pipe, SamplingOptions(num_inference_steps=steps), NONE)
        assert ("step_to" in found) == (ours and kind is DDIMScheduler)


@pytest.mark.parametrize("guidance", [BOTH, NONE])
def test_network_steps_noise_and_arithmetic_decide(guidance):
    changed = tiny_unet()
    with torch.no_grad():  # in the middle, where a few samples of the first and the last layer do not see it
        next(changed.mid_block.parameters()).add_(1e-3)
    names = [
        name(guidance=guidance),
        name(pipeline(unet=changed), guidance),
        name(pipeline(unet=tiny_unet(act_fn="gelu")), guidance),
        name(pipeline().to(torch.bfloat16), guidance),
        name(guidance=guidance, num_inference_steps=3),
        name(guidance=guidance, eta=0.5),
        name(guidance=guidance, dtype="bfloat16"),
    ]
    assert len(set(names)) == len(names)


class Elsewhere(DepthGuidedPipeline):
    """A pipeline that says that it is on a GPU."""

    @property
    def device(self):
        return torch.device("cuda", 3)


def test_the_kind_of_device_decides():
    assert name(Elsewhere(**pipeline().components), NONE) != name(guidance=NONE)


def test_all_of_guidance_decides_guided_images_only():
    unet = tiny_unet()
    other_predictor = tiny_predictor(unet, seed=8, **METRES)
    narrow = tiny_predictor(unet, min_log_snr=-2.5, **METRES)
    guidance = [
        GuidanceConfig.from_scales(5.0, 0.0),
        GuidanceConfig.from_scales(5.0, 4.0),
        GuidanceConfig.from_scales(5.0, 3.0, prior_timesteps="matched"),
        GuidanceConfig(losses=(ConsistencyLoss(5.0), PriorLoss(3.0, prior=tiny_prior(seed=7, **METRES)))),
        *(
            GuidanceConfig.from_scales(5.0, 3.0, **{key: value})
            for key, value in {
                "convention": "plain",
                "reduction": "mean",
                "start": 1,
                "end": 1,
                "every": 2,
                "log_snr": (-2.5, 20.0),
                "on_nonfinite": "skip",
                "weak_blocks": (6,),
            }.items()
        ),
    ]
    pipes = [
        pipeline(unet=unet, depth_predictor=other_predictor),
        pipeline(unet=unet, depth_predictor=narrow),
        pipeline(unet=unet, depth_prior=tiny_prior(seed=5, **METRES)),
        pipeline(unet=unet, convention="plain"),
    ]
    names = [name(), *(name(guidance=one) for one in guidance), *(name(pipe) for pipe in pipes)]
    # The pipeline's convention and that of the configuration are one and the same decision.
    assert len(set(names)) == len(names) - 1 and name(pipes[-1]) == name(guidance=guidance[4])
    assert {name(pipe, NONE) for pipe in pipes} == {name(guidance=NONE)}


def test_images_drawn_under_other_settings_are_neither_taken_nor_touched(tmp_path):
    pipe, options = pipeline(), SamplingOptions(num_inference_steps=2)
    first = draw_images(pipe, [0], tmp_path, options)
    before = (first.root / "000000.png").read_bytes()
    trailing = pipeline(DDIMScheduler(timestep_spacing="trailing"))
    second = draw_images(trailing, [0], tmp_path, options)
    assert second.root != first.root and (second.root / "000000.png").read_bytes() != before
    old = first.root / "settings.json"
    old.write_text(old.read_text().replace('"steps": 2', '"steps": 7'))  # a folder of this name with other settings
    with pytest.raises(ValueError, match="steps 7 -> 2"):
        draw_images(pipe, [0], tmp_path, options)
