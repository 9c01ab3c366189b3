"""The depth model of the experiment: it learns, seeds mean what they say, a training can be gone on with."""

from dataclasses import replace

import pytest
import torch

from noise2map.generation.experiments.depth_learner import learn_depth, learner_recipe
from noise2map.generation.experiments.training_sets import TrainingSet
from noise2map.guidance.depth_range import DepthRange
from noise2map.metrics import DepthScores
from noise2map.models import Noise2MapForDepthEstimation, Noise2MapImageProcessor

RANGE = DepthRange(1.0, 10.0, "log")
SIZE = 32


def scenes(count, seed=0):
    """Grey squares whose brightness is their depth."""
    generator = torch.Generator().manual_seed(seed)
    depth = 1.2 + 8 * torch.rand(count, 1, 1, generator=generator).expand(-1, SIZE, SIZE)
    images = (depth / 10 * 255).to(torch.uint8)[:, None].expand(-1, 3, -1, -1).contiguous()
    return TrainingSet(images, depth.contiguous())


def recipe(iterations, seed=0):
    found = learner_recipe("freedoom-depth-mini", RANGE, SIZE, iterations, seed)
    return replace(found, train=replace(found.train, batch_size=8, bf16=False, save_every=2, log_every=2))


def weights(folder):
    return Noise2MapForDepthEstimation.from_pretrained(folder / "final").state_dict()


def test_it_learns_depth_from_brightness_and_its_scores_are_those_of_its_maps(tmp_path):
    test = scenes(12, seed=1)
    steps = []
    scores = learn_depth(scenes(24), test, recipe(120), tmp_path / "run", lambda: steps.append(1), use_cpu=True)
    blind = learn_depth(scenes(24), test, recipe(1), tmp_path / "blind", use_cpu=True)
    assert scores["abs_rel"] < 0.15 < 0.3 < blind["abs_rel"] and len(steps) == 120
    model = Noise2MapForDepthEstimation.from_pretrained(tmp_path / "run" / "final").eval()
    processor = Noise2MapImageProcessor.from_pretrained(tmp_path / "run" / "final")
    assert (model.config.min_depth, model.config.max_depth) == (1.0, 10.0)
    with torch.no_grad():
        output = model(**processor([test[index]["image"] for index in range(12)], return_tensors="pt"), num_inference_steps=1)
    maps = torch.stack([one["predicted_depth"] for one in processor.post_process_depth_estimation(output, [(SIZE, SIZE)] * 12)])
    expected = DepthScores(1.0, 10.0)
    expected.update(maps, test.depth_m)
    assert scores["abs_rel"] == pytest.approx(float(expected.compute()["abs_rel"]), rel=1e-4)


def test_equal_seeds_give_equal_weights(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        learn_depth(scenes(8), scenes(2), recipe(2, seed), tmp_path / name, use_cpu=True)
    one, two, other = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


def test_an_interrupted_training_is_gone_on_with(tmp_path):
    whole = learn_depth(scenes(8), scenes(4), recipe(6), tmp_path / "whole", use_cpu=True)
    done = []

    def stop():
        done.append(1)
        if len(done) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn_depth(scenes(8), scenes(4), recipe(6), tmp_path / "parts", stop, use_cpu=True)
    assert sorted(path.name for path in (tmp_path / "parts").glob("checkpoint-*"))
    counted = []
    assert learn_depth(scenes(8), scenes(4), recipe(6), tmp_path / "parts", lambda: counted.append(1), use_cpu=True) == whole
    assert len(counted) == 6 and not list((tmp_path / "parts").glob("checkpoint-*"))
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match="without metres"):
        learner_recipe("freedoom-depth-mini", DepthRange(None, None, "log"), SIZE, 2, 0)
    with pytest.raises(ValueError, match="expected a recipe of depth"):
        learner_recipe("freedoom-normals-tiny", RANGE, SIZE, 2, 0)
    with pytest.raises(ValueError, match="3 samples; expected at least one batch of 8"):
        learn_depth(scenes(3), scenes(2), recipe(2), tmp_path / "run", use_cpu=True)


def test_a_finished_training_is_not_repeated_whatever_was_left_of_its_checkpoints(tmp_path):
    """A kill while checkpoints were deleted left one that said it was complete, and no later call could go on."""
    first = learn_depth(scenes(8), scenes(2), recipe(4), tmp_path / "run", use_cpu=True)
    remnant = tmp_path / "run" / "checkpoint-4"
    remnant.mkdir()
    (remnant / "complete").write_text("")
    steps, before = [], weights(tmp_path / "run")
    assert learn_depth(scenes(8), scenes(2), recipe(4), tmp_path / "run", lambda: steps.append(1), use_cpu=True) == first
    assert len(steps) == 4 and all(torch.equal(value, before[name]) for name, value in weights(tmp_path / "run").items())
    other = learn_depth(scenes(8), scenes(2), recipe(2, seed=1), tmp_path / "other", use_cpu=True)
    assert other.keys() == first.keys() and other != first
