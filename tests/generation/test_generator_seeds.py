"""One seed, one image: whatever command draws it, on whatever device."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_generator import save_generator

from noise2map.cli import main
from noise2map.demo.guidance import draw
from noise2map.generation.loading import Camera, load_generator
from noise2map.generation.sampling import SamplingOptions, draw_images, sample_images
from noise2map.guidance import DepthGuidedPipeline, GuidanceConfig

STEPS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A generator with predictor and prior, saved whole."""
    root = tmp_path_factory.mktemp("generator")
    paths = save_generator(root)
    load_generator(paths["generator"], paths["predictor"], paths["prior"]).save_pretrained(root / "whole")
    return root / "whole"


def pixels(path):
    return np.asarray(Image.open(path))


def test_sample_and_evaluate_generator_draw_the_same_image_of_a_seed(folder, tmp_path):
    guided = ["--consistency-scale", "5", "--prior-scale", "3"]
    command = ["--model", str(folder), "--steps", str(STEPS), *guided]
    with pytest.raises(SystemExit) as exit_:
        main(["sample", *command, "--seeds", "3", "--out", str(tmp_path / "sample")])
    assert exit_.value.code == 0
    study = ["--references", "samples", "--samples", "5", "--batch-size", "2", "--draw", "none,both"]
    with pytest.raises(SystemExit) as exit_:
        main(["evaluate", "generator", *command, *study, "--out", str(tmp_path / "study")])
    assert exit_.value.code == 0
    drawn = {path.parent.name.rpartition("_")[0]: pixels(path) for path in (tmp_path / "study" / "samples").glob("*/000003.png")}
    assert len(drawn) == 2
    guided_here, unguided_here = (tmp_path / "sample" / f"{one}images/000003.png" for one in ("", "unguided/"))
    assert (pixels(guided_here) == drawn["consistency-5_prior-3"]).all()
    assert (pixels(unguided_here) == drawn["unguided"]).all()


class ElsewherePipeline(DepthGuidedPipeline):
    """A pipeline that says it is on another device, of which this machine has none, and keeps its generators."""

    asked: list

    @property
    def device(self):
        return torch.device("meta")

    @property
    def _execution_device(self):
        return torch.device("cpu")

    def __call__(self, *args, **keywords):
        self.asked.append(keywords["generator"])
        return super().__call__(*args, **keywords)


@pytest.mark.parametrize("command", ["sample", "evaluate generator", "demo"])
def test_noise_is_drawn_on_the_cpu_whatever_the_device(folder, tmp_path, command):
    whole = load_generator(folder)
    pipe = ElsewherePipeline(**whole.components)
    pipe.set_progress_bar_config(disable=True)
    pipe.asked = []
    options = SamplingOptions(num_inference_steps=1)
    if command == "sample":
        sample_images(pipe, [4], tmp_path, options, camera=Camera([8, 8, 8, 8], "given"))
    elif command == "evaluate generator":
        draw_images(pipe, [4], tmp_path, options)
    else:
        draw(pipe, GuidanceConfig(), (4,), 1)
    ((generator,),) = pipe.asked
    assert generator.device.type == "cpu" and generator.initial_seed() == 4
