"""The demo's guided section: equal seeds, the course of a denoising, and what happens without a generator."""

import csv
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline
from tiny_generator import save_generator, save_map_models

from noise2map.demo import guidance as demo_guidance
from noise2map.demo.guidance import FIRST_SEEDS, STEPS, GuidanceSection, draw, open_generator, trajectory_frames
from noise2map.generation.loading import load_generator
from noise2map.guidance import GuidanceConfig, UNetFeatureTap
from noise2map.report.html import Page

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("showcase")
    paths = save_generator(root)
    load_generator(paths["generator"], paths["predictor"], paths["prior"]).save_pretrained(root / "whole")
    save_map_models(root)
    return root


@pytest.fixture(scope="module")
def pipe(root):
    return load_generator(root / "whole")


def test_the_trajectory_ends_with_the_picture_that_diffusers_draws(pipe):
    drawn = draw(pipe, GuidanceConfig(), (3, 7), 4)
    plain = DDIMPipeline(pipe.unet, pipe.scheduler)
    plain.set_progress_bar_config(disable=True)
    expected = plain(2, [torch.Generator().manual_seed(seed) for seed in (3, 7)], num_inference_steps=4, output_type="np").images
    assert np.abs(drawn.images.permute(0, 2, 3, 1).numpy() - expected * 255).max() <= 0.51
    unfilmed = draw(pipe, GuidanceConfig(), (3, 7), 4, film=False)
    assert unfilmed.trajectory is None and torch.equal(unfilmed.images, drawn.images)
    assert (drawn.trajectory.noisy[-1] == drawn.images[0].permute(1, 2, 0).numpy()).all()
    assert drawn.trajectory.clean.shape == (4, 16, 16, 3) and drawn.trajectory.depth.shape == (4, 16, 16)


def test_the_depth_of_every_step_is_what_the_strong_branch_reads(pipe):
    steps = []

    def keep(pipeline, index, timestep, tensors):
        steps.append((int(timestep), tensors["latents"], tensors["depth_signal"]))
        return {}

    names = ["latents", "depth_signal"]
    for scales in ({}, {"consistency_scale": 2.0, "prior_scale": 2.0}):
        steps.clear()
        generator = [torch.Generator().manual_seed(5)]
        pipe(1, generator, num_inference_steps=3, callback_on_step_end=keep, callback_on_step_end_tensor_inputs=names, **scales)
        for (_, before, _), (timestep, _, signal) in pairwise(steps):
            with torch.no_grad(), UNetFeatureTap(pipe.unet, pipe.depth_predictor.strong_blocks) as tap:
                pipe.unet(before, timestep)
                expected = pipe.depth_predictor(tap.features, timestep)
            torch.testing.assert_close(signal, expected, rtol=1e-4, atol=1e-5)
    alone = type(pipe)(pipe.unet, pipe.scheduler)
    with pytest.raises(ValueError, match=r"\['depth_signal'\]; expected names of"):
        alone(1, callback_on_step_end=keep, callback_on_step_end_tensor_inputs=names)


def test_the_section_shows_pairs_numbers_clouds_and_the_denoising(root, pipe, tmp_path):
    page = Page("demo")
    assert GuidanceSection(pipe, str(root / "whole"), str(root / "depth")).show(page, tmp_path) == []
    text = page.render()
    for word in (
        "Guided generation",
        *(f"seed {seed}" for seed in FIRST_SEEDS),
        "consistency",
        "prior",
        "both",
        "normals",
        "references",
        f"{STEPS}/{STEPS}",
    ):
        assert word in text
    assert text.count('class="card" data-points') == 2 and text.count('class="card" data-player') == 1 and str(root) not in text
    rows = list(csv.DictReader((tmp_path / "guided" / "plausibility.csv").open()))
    assert [row["setting"] for row in rows] == ["unguided", "consistency", "prior", "both", "references"]
    assert all(0 <= float(row["readings differ %"]) <= 100 for row in rows)
    names = {path.relative_to(tmp_path / "guided").as_posix() for path in (tmp_path / "guided").rglob("*") if path.is_file()}
    assert names == {
        "plausibility.csv", "denoising.webp",
        *(f"{seed:06d}.png" for seed in FIRST_SEEDS),
        *(f"clouds/{FIRST_SEEDS[0]:06d}-{name}.{kind}" for name in ("unguided", "both") for kind in ("ply", "glb")),
    }  # fmt: skip


def test_frames_of_the_denoising_are_labelled(pipe):
    scales = {"unguided": 0.0, "consistency": 2.0}
    drawn = {name: draw(pipe, GuidanceConfig.from_scales(scale), (1,), 2).trajectory for name, scale in scales.items()}
    first, last = trajectory_frames(drawn)
    assert [cell.title for cell in first] == [f"{what}, {name}" for name in drawn for what in ("noisy", "expected", "depth")]
    assert (first[0].note, last[0].note) == ("1/2", "2/2")
    assert len({(cell.bar.low, cell.bar.high) for row in (first, last) for cell in row if cell.bar}) == 1


def test_without_a_generator_there_is_a_warning_and_no_section(root, monkeypatch, caplog):
    monkeypatch.setattr(demo_guidance, "available_generators", list)
    assert open_generator("auto", CPU) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "no generator is shipped" in caplog.text
    assert open_generator("none", CPU) is None and len(caplog.records) == 1
    with pytest.raises(ValueError, match=r"has no depth_predictor/ in its folder"):
        open_generator(str(root / "generator"), CPU)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_generator("./nowhere", CPU)
    monkeypatch.setattr(demo_guidance, "available_generators", lambda: [str(root / "whole")])
    assert open_generator("auto", CPU).depth_prior is not None
