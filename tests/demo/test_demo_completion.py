"""The demo's section of completion on a tiny untrained model."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_depth_model, tiny_segmenter

from noise2map.data.freedoom import load_samples
from noise2map.demo.completion import (
    FILM_STEPS,
    SAMPLES,
    CompletionSection,
    complete,
    covered_middle,
    open_completion_model,
    unfold,
)
from noise2map.models import Noise2MapImageProcessor
from noise2map.report.html import Page

CPU = torch.device("cpu")
MATCHED = {"matched_filter": True, "map_encoding": "one_hot", "map_scale": 1.0, "time_difference": 0.0, "feedback": "mean"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    made = {
        "matched": tiny_segmenter(num_labels=10, **MATCHED),
        "plain": tiny_segmenter(diffusion=False),
        "depth": tiny_depth_model(),
    }
    for name, model in made.items():
        model.save_pretrained(root / name)
        Noise2MapImageProcessor(size={"height": 48, "width": 64}).save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def predictor(models):
    return open_completion_model(str(models / "matched"), CPU)


def test_the_cover_is_hidden_from_the_model_and_guesses_differ_by_their_noise(predictor):
    sample = load_samples("test", "segmentation")[0]
    one = complete(predictor, sample, "MAP01", seed=0)
    hidden = covered_middle(*one.truth.shape)
    assert np.array_equal(one.hidden, hidden) and 0.25 < hidden.mean() < 0.4
    assert np.array_equal(one.covered[~hidden], one.image[~hidden])
    assert len(np.unique(one.covered[hidden].reshape(-1, 3), axis=0)) == 1
    assert one.samples.shape == (SAMPLES, *one.truth.shape) and one.samples.max() < 10
    assert any((one.samples[0] != other).any() for other in one.samples[1:])
    # What lies behind the cover must not reach the model: another picture there gives the same answer.
    other = dict(sample)
    pixels = np.asarray(sample["image"]).copy()
    pixels[hidden] = 255 - pixels[hidden]
    other["image"] = Image.fromarray(pixels)
    again = complete(predictor, other, "MAP01", seed=0)
    assert np.array_equal(again.samples, one.samples) and np.array_equal(again.doubt, one.doubt)


def test_a_map_becomes_definite_over_the_steps(predictor):
    one = complete(predictor, load_samples("test", "segmentation")[0], "MAP01", seed=0)
    by_steps = unfold(predictor, one, seed=0)
    assert by_steps.shape == (FILM_STEPS, 12, 16) and by_steps.max() < 10
    assert (by_steps[-1] != by_steps[0]).any()
    assert np.array_equal(unfold(predictor, one, seed=0), by_steps) and (unfold(predictor, one, seed=1) != by_steps).any()


def test_the_section_writes_a_panel_for_each_frame(predictor, tmp_path):
    page = Page("demo")
    assert CompletionSection(predictor, 2, 0).show(page, tmp_path) == []
    page.write(tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text()
    for word in ("Behind a cover", f"guess {SAMPLES}", "most likely", "doubt", f"step {FILM_STEPS} of {FILM_STEPS}"):
        assert word in text
    files = sorted((tmp_path / "completion").iterdir())
    assert len(files) == 2
    for path in files:
        Image.open(path).load()


def test_models_without_samples_of_classes_are_refused(models):
    for name in ("depth", "plain"):
        with pytest.raises(ValueError, match="expected one for segmentation"):
            open_completion_model(str(models / name), CPU)
    assert open_completion_model("none", CPU) is None
