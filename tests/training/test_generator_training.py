import json

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from tiny_denoising import UNET, recipe_dict, write_depths, write_pictures
from transformers import TrainerCallback

from noise2map.guidance import DepthGuidedPipeline, DepthPrior
from noise2map.guidance.depth_range import DepthRange
from noise2map.training import read_metrics
from noise2map.training.generators.build import make_generator_trainer
from noise2map.training.generators.recipe import GeneratorRecipe, generator_recipe_names, load_generator_recipe
from noise2map.training.generators.trainer import DepthCollator, ImageCollator, UNetWithLoss
from noise2map.training.recipe_files import build


def trainer_for(root, directory, target="image", **train):
    return make_generator_trainer(build(GeneratorRecipe, recipe_dict(root, target, **train), ""), directory)


def losses(directory):
    return [record["loss"] for record in read_metrics(directory) if "loss" in record]


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


class DieAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def generator_run(tmp_path_factory):
    root = tmp_path_factory.mktemp("generator")
    write_pictures(root / "pictures")
    trainer = trainer_for(root / "pictures", root / "run")
    trainer.train()
    return root, trainer


def test_a_killed_generator_run_goes_on_to_the_same_weights(generator_run):
    root, whole = generator_run
    killed = trainer_for(root / "pictures", root / "killed")
    killed.add_callback(DieAt(3))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    torch.manual_seed(99)
    resumed = trainer_for(root / "pictures", root / "killed", seed=0)
    resumed.train(resume_from_checkpoint=True)
    assert losses(root / "killed") == losses(root / "run") and len(losses(root / "run")) == 4
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(resumed).items())
    with whole.averaged_weights(), resumed.averaged_weights():
        assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(resumed).items())


def test_the_generator_is_a_pipeline_that_can_be_guided(generator_run):
    root, trainer = generator_run
    final = trainer.export_final()
    source = DDIMPipeline.from_pretrained(final)
    with trainer.averaged_weights():
        for name, value in trainer.model.unet.state_dict().items():
            assert torch.equal(source.unet.state_dict()[name], value)
    guided = DepthGuidedPipeline.from_pipe(source)
    guided.set_progress_bar_config(disable=True)
    images = guided(batch_size=2, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 16, 16, 3)
    picture = Image.open(root / "run" / "samples" / "step-000004.png")
    assert picture.size == (16 * 2 + 4, 16)
    assert (root / "run" / "checkpoint-4" / "ema" / "unet" / "diffusion_pytorch_model.safetensors").is_file()


def test_held_out_loss_by_hand(generator_run):
    _, trainer = generator_run
    scores = trainer.evaluate()
    assert scores["eval_loss"] == pytest.approx(np.mean([scores[f"eval_loss_q{q}"] for q in (1, 2, 3, 4)]), rel=1e-5)
    trainer.args.per_device_eval_batch_size = 1
    assert trainer.evaluate()["eval_loss"] == pytest.approx(scores["eval_loss"], rel=1e-4)
    assert len(trainer.eval_dataset) == 3 and len(trainer.train_dataset) == 4


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_prediction_has_no_error(kind):
    """The scheduler of diffusers knows what each prediction type means: its own target is the right answer."""
    torch.manual_seed(0)
    scheduler = DDPMScheduler(prediction_type=kind)
    signal, noise = torch.rand(3, 1, 8, 8) * 2 - 1, torch.randn(3, 1, 8, 8)
    timesteps = torch.tensor([3, 500, 990])
    answers = {"epsilon": noise, "sample": signal, "v_prediction": scheduler.get_velocity(signal, noise, timesteps)}

    class Oracle(UNet2DModel):
        def forward(self, noisy, steps):
            torch.testing.assert_close(noisy, scheduler.add_noise(signal, noise, timesteps), rtol=1e-3, atol=1e-4)
            return type("Output", (), {"sample": answers[kind]})

    model = UNetWithLoss(Oracle(sample_size=8, in_channels=1, out_channels=1, **UNET), scheduler)
    assert model.errors(signal, timesteps, noise).max() < 1e-6


def test_time_steps_of_a_batch_cover_the_process_and_are_uniform():
    seen = []
    model = UNetWithLoss(UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **UNET), DDPMScheduler())
    model.errors = lambda signal, timesteps, noise: (seen.append(timesteps), torch.zeros_like(signal))[1]
    for seed in range(50):
        model(torch.zeros(10, 1, 8, 8), generator=torch.Generator().manual_seed(seed))
    steps = torch.stack(seen)
    assert torch.equal(steps // 100, torch.arange(10).expand(50, 10))
    assert abs(steps.double().mean().item() - 499.5) < 10 and steps.min() >= 0 and steps.max() < 1000


def test_masked_pixels_do_not_count():
    model = UNetWithLoss(UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **UNET), DDPMScheduler())
    errors = torch.rand(2, 1, 8, 8)
    model.errors = lambda *_: errors
    mask = torch.rand(2, 1, 8, 8) < 0.5
    assert model(torch.zeros(2, 1, 8, 8), mask).loss.item() == pytest.approx(errors[mask].mean().item(), rel=1e-5)


def test_depth_prior_trains_resumes_and_loads(tmp_path):
    write_depths(tmp_path / "depths")
    trainer = trainer_for(tmp_path / "depths", tmp_path / "run", "depth", iterations=2)
    trainer.train()
    further = trainer_for(tmp_path / "depths", tmp_path / "run", "depth", iterations=3, save_every=1)
    further.train(resume_from_checkpoint=True)
    whole = trainer_for(tmp_path / "depths", tmp_path / "whole", "depth", iterations=3)
    whole.train()
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    prior = DepthPrior.from_pretrained(further.export_final())
    assert prior.depth_range == DepthRange(0.5, 10.0, "log") and prior.image_size == (16, 16)
    with further.averaged_weights():
        assert torch.equal(prior.unet.conv_out.weight, further.model.unet.conv_out.weight)
    assert prior.training_loss(torch.zeros(2, 1, 16, 16)).isfinite()


def test_pixels_without_depth():
    depth_range = DepthRange(1.0, 9.0, "linear")
    depth_m = np.array([[1.0, 9.0], [5.0, 0.0]], np.float32)
    sample = {"depth_m": depth_m, "valid": depth_m > 0}
    far, ignored = (DepthCollator(depth_range, missing)([sample]) for missing in ("far", "ignore"))
    torch.testing.assert_close(far["signal"][0, 0], torch.tensor([[-1.0, 1.0], [0.0, 1.0]]))
    torch.testing.assert_close(ignored["signal"][0, 0], torch.tensor([[-1.0, 1.0], [0.0, 0.0]]))
    assert far["mask"].all() and ignored["mask"].tolist() == [[[[True, True], [True, False]]]]


def test_relative_depth_of_files():
    depth = np.array([[1 / 65535, 0.5], [65535 * 1.52590219e-5, 0.0]], np.float32)
    sample = {"depth_m": depth, "valid": depth > 0}
    batch = DepthCollator(DepthRange(None, None, "log"), "far")([sample])
    torch.testing.assert_close(batch["signal"][0, 0], torch.tensor([[-1.0, 0.0], [1.0, 1.0]]), atol=1e-4, rtol=0)


def test_pictures_become_signals():
    picture = Image.fromarray(np.array([[[0, 255, 51]]], np.uint8))
    signal = ImageCollator()([{"image": picture}])["signal"]
    torch.testing.assert_close(signal[0, :, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))


def test_fine_tuning_starts_from_the_weights(generator_run):
    root, trainer = generator_run
    final = trainer.export_final(root / "start")
    recipe = recipe_dict(root / "pictures")
    recipe["model"] = {"init_from": str(final)}
    again = make_generator_trainer(build(GeneratorRecipe, recipe, ""), root / "tuned")
    with trainer.averaged_weights():
        assert torch.equal(again.model.unet.conv_in.weight, trainer.model.unet.conv_in.weight)
    recipe["data"]["size"] = 8
    with pytest.raises(ValueError, match=r"16 px; data.size is 8"):
        make_generator_trainer(build(GeneratorRecipe, recipe, ""), root / "tuned")


def test_shipped_recipes_hold_what_they_promise():
    assert "freedoom-generator-64" in generator_recipe_names()
    for name in generator_recipe_names():
        recipe = load_generator_recipe(name)
        config = {**recipe.model.unet, "sample_size": recipe.data.size}
        unet = UNet2DModel(**config)
        parameters = sum(parameter.numel() for parameter in unet.parameters())
        blocks = len(recipe.model.unet["block_out_channels"]) * (recipe.model.unet["layers_per_block"] + 1)
        if recipe.model.target == "image":
            assert parameters < 8e6 and blocks >= 8
        else:
            assert parameters < 3e6


@pytest.mark.parametrize(
    "section, change, message",
    [
        ("data", {"name": "imagenet"}, "data.name is 'imagenet'"),
        ("data", {"size": 4}, "at least 8 pixels"),
        ("data", {"size": 17}, "multiple of 2: the U-Net halves it 1 times"),
        ("data", {"train": "nowhere"}, "nowhere"),
        ("data", {"missing": "near"}, "far or ignore"),
        ("model", {"target": "video"}, "model.target is 'video'"),
        ("model", {"unet": {"widths": [1]}}, "widths"),
        ("model", {"min_depth": 20.0}, "below max_depth 10.0"),
        ("model", {"min_depth": None}, "or none for both"),
        ("model", {"scheduler": {"prediction_type": "noise"}}, "noise"),
        ("model", {"init_from": "./nowhere"}, "./nowhere"),
        ("train", {"save_every": 3, "log_every": 2}, "multiple of log_every"),
        ("train", {"batch_sise": 3}, "did you mean train.batch_size"),
    ],
)
def test_bad_recipes_are_named(tmp_path, section, change, message):
    write_pictures(tmp_path / "pictures", 4)
    recipe = recipe_dict(tmp_path / "pictures")
    recipe[section] |= change
    with pytest.raises((ValueError, OSError), match=message):
        make_generator_trainer(build(GeneratorRecipe, recipe, ""), tmp_path / "run")


def test_camera_of_the_pictures_is_kept(tmp_path):
    unet = UNet2DModel(sample_size=16, **UNET)
    UNetWithLoss(unet, DDPMScheduler(), intrinsics=[10, 12, 8, 8]).save_pretrained(tmp_path / "g")
    assert json.loads((tmp_path / "g" / "camera.json").read_text()) == {"intrinsics_px": [10, 12, 8, 8], "size_px": [16, 16]}
    with pytest.raises(ValueError, match="3 -> 6 channels"):
        UNetWithLoss(UNet2DModel(sample_size=16, out_channels=6, **UNET), DDPMScheduler())
