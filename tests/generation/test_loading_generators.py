"""Generators: loading, images by seed, resuming, and depth read from finished images."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler
from huggingface_hub import constants
from PIL import Image
from tiny_generator import save_generator
from tiny_guidance import tiny_prior

from noise2map.diffusion import add_noise, image_generator, tables_from_betas
from noise2map.generation.depth_reading import depth_probe, probe_name, real_disagreement
from noise2map.generation.loading import CAMERA_FILE, camera_of, load_generator, load_part
from noise2map.generation.sampling import SamplingOptions, draw, draw_images, first_timestep, warn_of_spacing
from noise2map.guidance import DepthGuidedPipeline, DepthPredictor, DepthPrior, GuidanceConfig, UNetFeatureTap

OPTIONS = SamplingOptions(num_inference_steps=2)
BOTH = GuidanceConfig.from_scales(5.0, 3.0)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return save_generator(tmp_path_factory.mktemp("generator"))


@pytest.fixture(scope="module")
def pipe(paths):
    return load_generator(paths["generator"], paths["predictor"], paths["prior"])


def read(folder, seed):
    return np.asarray(Image.open(folder.root / f"{seed:06d}.png"))


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"size_px": [64, 64], "intrinsics_px": [1, 2]}', '{"size_px": [0, 64], "intrinsics_px": [1, 2, 3, 4]}']
)
def test_a_camera_that_is_none_is_named(paths, tmp_path, text):
    shutil.copytree(paths["generator"], tmp_path / "generator")
    (tmp_path / "generator" / CAMERA_FILE).write_text(text)
    with pytest.raises(ValueError, match=r"camera.json is no camera \(.*expected size_px and the four intrinsics_px"):
        camera_of(tmp_path / "generator", 64)


def test_a_generator_is_opened_with_its_parts(paths, pipe, tmp_path):
    assert isinstance(pipe.scheduler, DDIMScheduler) and isinstance(pipe.depth_predictor, DepthPredictor)
    pipe.save_pretrained(tmp_path / "all")  # a DepthGuidedPipeline brings its parts
    again = load_generator(tmp_path / "all")
    assert isinstance(again.depth_prior, DepthPrior) and again.depth_prior.image_size == (8, 8)
    own = load_generator(paths["generator"], sampler="default")
    saved = (paths["generator"] / "scheduler" / "scheduler_config.json").read_text()
    assert f'"_class_name": "{type(own.scheduler).__name__}"' in saved
    alone = load_generator(paths["generator"], sampler="ddpm")
    assert alone.depth_predictor is None and type(alone.scheduler).__name__ == "DDPMScheduler"


def test_the_prior_of_a_generator_gives_way_to_a_given_predictor(paths, tmp_path, caplog):
    own = shutil.copytree(paths["generator"], tmp_path / "generator")
    tiny_prior(min_depth=1.0, max_depth=5.0).save_pretrained(own / "depth_prior")
    assert load_generator(own, paths["predictor"]).depth_prior is None
    assert "depth prior is left out" in caplog.text
    with pytest.raises(ValueError, match="expected the same range"):  # who asks for it is told
        load_generator(own, paths["predictor"], own / "depth_prior")
    shutil.copytree(paths["prior"], own / "depth_prior", dirs_exist_ok=True)
    assert load_generator(own, paths["predictor"]).depth_prior.depth_range == load_part("depth_prior", paths["prior"]).depth_range


def test_images_do_not_depend_on_the_memory_format(paths):
    """The format in which a CPU is faster, and diffusers' own pipeline in its own."""
    ours, stock = load_generator(paths["generator"], paths["predictor"]), DDIMPipeline.from_pretrained(paths["generator"])
    inner = ours.unet.mid_block.resnets[0].conv1.weight
    assert inner.is_contiguous(memory_format=torch.channels_last) and not inner.is_contiguous()
    stock.scheduler = ours.scheduler
    images = [pipe(2, torch.Generator().manual_seed(1), num_inference_steps=3, output_type="np").images for pipe in (ours, stock)]
    np.testing.assert_allclose(*images, atol=1e-5)
    plain = load_generator(paths["generator"], paths["predictor"])
    plain.unet.to(memory_format=torch.contiguous_format)
    guided = [
        pipe(2, torch.Generator().manual_seed(1), num_inference_steps=3, output_type="np", consistency_scale=5.0).images
        for pipe in (ours, plain)
    ]
    np.testing.assert_allclose(*guided, atol=1e-5)
    assert np.abs(guided[0] - images[0]).max() > 1e-3


def test_what_cannot_be_opened_is_named(paths, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub id"):
        load_generator(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no model_index"):
        load_generator(tmp_path / "empty")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="generator 'nobody/nothing' could not be loaded"):
        load_generator("nobody/nothing")
    with pytest.raises(FileNotFoundError, match="no depth predictor"):
        load_part("depth_predictor", tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"depth predictor .* could not be loaded"):
        load_part("depth_predictor", paths["prior"])
    shutil.copytree(paths["predictor"], tmp_path / "run" / "final")
    with pytest.raises(ValueError, match=r"could not be loaded.*; the run's model is in '.*run/final'"):
        load_part("depth_predictor", tmp_path / "run")
    with pytest.raises(ValueError, match="sampler is"):
        load_generator(paths["generator"], sampler="euler")


def test_unguided_images_are_those_of_diffusers(paths, pipe, tmp_path):
    folder = draw_images(pipe, [3, 7], tmp_path, OPTIONS)
    plain = DDIMPipeline(pipe.unet, pipe.scheduler)
    plain.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 7)]
    expected = plain(batch_size=2, generator=generators, num_inference_steps=2).images
    for seed, image in zip((3, 7), expected):
        assert np.abs(read(folder, seed).astype(int) - np.asarray(image)).max() <= 1
    assert folder.done["3"]["seconds"] > 0 and folder.done["3"]["skipped_steps"] == 0


def test_an_image_follows_from_its_seed_whatever_the_batch(pipe, tmp_path):
    together = draw_images(pipe, range(4), tmp_path / "a", SamplingOptions(num_inference_steps=2, batch_size=4), BOTH)
    alone = draw_images(pipe, [2], tmp_path / "b", SamplingOptions(num_inference_steps=2, batch_size=1), BOTH)
    none = draw_images(pipe, [2], tmp_path / "a", OPTIONS)
    assert np.abs(read(together, 2).astype(int) - read(alone, 2)).max() <= 1
    assert np.abs(read(none, 2).astype(int) - read(alone, 2)).max() > 1  # guidance moves it


def test_only_what_is_missing_is_drawn_again(pipe, tmp_path, monkeypatch):
    folder = draw_images(pipe, range(3), tmp_path, OPTIONS, BOTH)
    before = read(folder, 1)
    (folder.root / "000001.png").unlink()
    drawn = []
    call = DepthGuidedPipeline.__call__
    monkeypatch.setattr(DepthGuidedPipeline, "__call__", lambda self, **k: drawn.append(k["batch_size"]) or call(self, **k))
    done = []
    again = draw_images(pipe, range(4), tmp_path, OPTIONS, BOTH, on_images=done.append)
    assert drawn == [2] and sum(done) == 4  # seed 1, and the new seed 3
    assert np.abs(read(again, 1).astype(int) - before).max() <= 1


def test_bfloat16_draws_nearly_the_same_images_into_another_folder(pipe, tmp_path):
    half_precision = SamplingOptions(num_inference_steps=2, dtype="bfloat16")
    for guidance in (BOTH, GuidanceConfig()):
        full, half = (draw_images(pipe, [4], tmp_path, options, guidance) for options in (OPTIONS, half_precision))
        assert half.root != full.root
        assert 0 < np.abs(read(half, 4).astype(float) - read(full, 4)).mean() < 3
    assert next(pipe.unet.parameters()).dtype == torch.float32


def test_depth_of_a_finished_image_is_that_of_its_noised_features(pipe):
    images = torch.randint(0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    strong, weak = depth_probe(pipe, 50)(images, ["a", "b", "c"])
    noise = torch.randn(3, 16, 16, generator=image_generator(0, "b"))
    alpha, sigma = tables_from_betas(pipe.scheduler.betas).alpha_sigma(torch.tensor(50))
    noisy = add_noise(images[1:2] / 127.5 - 1, noise[None], alpha.float(), sigma.float())
    with torch.no_grad(), UNetFeatureTap(pipe.unet, (2, 4, 5, 6, 7)) as tap:
        pipe.unet(noisy, 50)
        expected = pipe.depth_predictor(tap.features, 50), pipe.depth_predictor(tap.features, 50, (6,))
    torch.testing.assert_close(strong[1:2], expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weak[1:2], expected[1], rtol=1e-4, atol=1e-5)
    found = real_disagreement(pipe, images.permute(0, 2, 3, 1).numpy(), (20, 50), batch_size=2)
    again = depth_probe(pipe, 50)(images, ["0", "1", "2"])
    assert [step for step, _ in found] == [20, 50] and found[1][1] == pytest.approx(
        torch.nn.functional.mse_loss(*again).item(), rel=5e-3
    )
    assert probe_name(pipe, 50) != probe_name(pipe, 51)
    before, blocks = probe_name(pipe, 50), pipe.depth_predictor.config["weak_blocks"]
    pipe.depth_predictor.register_to_config(weak_blocks=[99])  # the same weights, read at another block
    assert probe_name(pipe, 50) != before
    pipe.depth_predictor.register_to_config(weak_blocks=blocks)
    assert probe_name(pipe, 50) == before
    pipe.scheduler.betas = pipe.scheduler.betas * 1.01
    assert probe_name(pipe, 50) != before
    with pytest.raises(ValueError, match="timestep is 1000"):
        depth_probe(pipe, 1000)


def test_the_spacing_of_steps_can_be_chosen_and_a_late_start_is_said(caplog):
    name = "freedoom-generator-64"
    assert load_generator(name).scheduler.config.timestep_spacing == "trailing"
    for sampler in ("ddim", "ddpm"):
        for steps in (7, 25, 60, 100):
            assert first_timestep(load_generator(name, sampler=sampler).scheduler, steps) == 999
    leading = load_generator(name, timestep_spacing="leading")
    assert [first_timestep(leading.scheduler, steps) for steps in (25, 60)] == [960, 944]
    warn_of_spacing(load_generator(name).scheduler, 60)
    assert not caplog.messages
    warn_of_spacing(leading.scheduler, 60)
    assert "begin at step 944 of 999" in caplog.text and "'trailing'" in caplog.text
    with pytest.raises(ValueError, match="timestep_spacing is 'even'"):
        load_generator(name, timestep_spacing="even")


# Mean luma of the frames that the shipped generator learnt from, 0 to 255.
LUMA_OF_TRAINING = 98


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "steps"), [("ddpm", 25), ("ddpm", 60), ("ddim", 25)])  # 1000 steps divide by 25 alone
def test_images_are_as_bright_as_those_of_training_whatever_the_number_of_steps(sampler, steps):
    drawn = draw(load_generator("freedoom-generator-64", sampler=sampler), range(12), SamplingOptions(num_inference_steps=steps))
    luma = (drawn.images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1).mean().item()
    assert luma == pytest.approx(LUMA_OF_TRAINING, abs=5)
