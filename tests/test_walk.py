"""Journeys of a reader through the files of a command: see docs/walk.py."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_generator import save_generator, save_map_models
from tiny_models import tiny_depth_model

from noise2map.cli import main
from noise2map.models import Noise2MapImageProcessor


@pytest.fixture(scope="module")
def walking():
    spec = importlib.util.spec_from_file_location("walk", Path(__file__).parents[1] / "docs" / "walk.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["walk"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def run(words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert not stop.value.code


def made(walking, **calls):
    """Functions named FILE_NAME, and what each of them calls."""
    named = {
        name: walking.Function(name.split("_")[0], name, 1)
        for name in {*calls, *(one for found in calls.values() for one in found)}
    }
    return {None: {named["a_start"]: None}, **{named[name]: dict.fromkeys(map(named.get, found)) for name, found in calls.items()}}


def test_returns_are_counted(walking):
    down = walking.walk(made(walking, a_start=["b_one"], b_one=["c_two"], c_two=["d_three"]), "a_start")
    assert (down.stays, down.returns) == (["a", "b", "c", "d"], 0)
    hub = made(walking, a_start=["b_one", "a_two", "b_three", "b_one"], a_two=["c_four"])
    assert walking.walk(hub, "a_start").stays == ["a", "b", "a", "c", "b"]  # what was read is not read again
    assert walking.walk(hub, "a_start").returns == 2
    assert walking.walk(hub, "a_start", callers=True).stays == ["a", "b", "a", "c", "a", "b"]
    with pytest.raises(ValueError, match="no function 'b_none' was called"):
        walking.walk(hub, "b_none")


def test_only_the_package_is_walked_through(walking):
    """A checkout is called like the package, and an environment in it holds others' files."""
    package = Path(walking.noise2map.__file__).parent
    found = {}
    for file in (
        package / "own.py",
        package.parent / "noise2map-clone" / "other.py",
        package.parents[1] / "noise2map" / "other.py",
    ):
        exec(compile("def called():\n    return 0", str(file), "exec"), found)
        calls = walking.record(found["called"])
        assert [function.file for names in calls.values() for function in names] == (["own"] if file.stem == "own" else [])


def test_predicting_returns_at_most_nine_times(walking, tmp_path):
    tiny_depth_model().save_pretrained(tmp_path / "model")
    Noise2MapImageProcessor(size={"shortest_edge": 32}).save_pretrained(tmp_path / "model")
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "photo.png")
    words = ["predict", tmp_path / "photo.png", "--model", tmp_path / "model", "--out", tmp_path / "maps", "--device", "cpu"]
    found = walking.walk(walking.record(lambda: run(words)), "predict")
    assert "models/map_model" in found.stays and found.stays[-1] == "cli/predict"
    assert found.returns <= 9


@pytest.mark.slow
def test_evaluating_a_generator_returns_at_most_sixteen_times(walking, tmp_path):
    paths = {**save_generator(tmp_path), **save_map_models(tmp_path)}
    options = {
        "model": paths["generator"], "references": "samples", "depth-predictor": paths["predictor"], "depth-prior": paths["prior"],
        "extractor": paths["segmentation"], "estimator": paths["depth"], "out": tmp_path / "out", "samples": 18, "steps": 2,
        "resamples": 4, "limit": 20, "batch-size": 9, "pairs": 0, "device": "cpu", "cache": tmp_path / "cache",
    }  # fmt: skip
    words = ["evaluate", "generator", *(part for name, value in options.items() for part in (f"--{name}", value))]
    found = walking.walk(walking.record(lambda: run(words)), "run_study")
    assert {"generation/sampling", "generation/evaluation/scores"} <= set(found.stays)
    assert found.returns <= 16
