"""``noise2map experiment depth-from-generated`` on a tiny generator."""

import csv
import math

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_generator import save_generator

from noise2map.cli import main
from noise2map.data.opening import open_dataset
from noise2map.generation.depth_reading import depth_probe
from noise2map.generation.experiments import depth_from_generated as experiment
from noise2map.generation.experiments.depth_from_generated import paired, summarise
from noise2map.generation.experiments.training_sets import ARMS, ExperimentOptions, training_set
from noise2map.generation.loading import load_generator
from noise2map.generation.sampling import SamplingOptions
from noise2map.metrics import depth_disagreement


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    recipe = folder / "pairs.yaml"
    recipe.write_text("base: freedoom-depth-mini\ntrain: {batch_size: 2}\n", encoding="utf-8")
    return {**save_generator(folder), "recipe": recipe}


def words(paths, out, **changes):
    options = {
        name: paths[part] for name, part in (("model", "generator"), ("depth-predictor", "predictor"), ("depth-prior", "prior"))
    }
    options["recipe"] = paths["recipe"]
    options |= {"real": "samples", "test": "samples", "out": out, "images": 4, "seeds": 2, "iterations": 1, "steps": 1}
    options |= {"limit": 6, "device": "cpu", **{name.replace("_", "-"): value for name, value in changes.items()}}
    return [part for name, value in options.items() if value is not None for part in (f"--{name}", str(value))]


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(["experiment", "depth-from-generated", *arguments])
    return stop.value.code or 0


def stack_of(files):
    """Images `(N, 3, H, W)` uint8 of files."""
    return torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in files])).permute(0, 3, 1, 2)


def rows_of(out, name):
    with open(out / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_all_arms_from_command_to_files_and_again(paths, tmp_path, monkeypatch, capsys):
    assert run(*words(paths, tmp_path)) == 0
    runs, summary = rows_of(tmp_path, "runs"), rows_of(tmp_path, "summary")
    assert [(row["arm"], row["seed"]) for row in runs] == [(arm, str(seed)) for arm in ARMS for seed in (0, 1)]
    assert [row["arm"] for row in summary] == list(ARMS) and {row["test_images"] for row in summary} == {"6"}
    for row in summary:
        values = [float(one["abs_rel"]) for one in runs if one["arm"] == row["arm"]]
        assert float(row["abs_rel"]) == pytest.approx(sum(values) / 2)
        half = 12.7062 * abs(values[0] - values[1]) / 2  # Student, one degree of freedom
        assert float(row["abs_rel_high"]) - float(row["abs_rel"]) == pytest.approx(half, rel=1e-3, abs=1e-9)
    assert "guided samples, predicted depth" in capsys.readouterr().out
    assert len(list((tmp_path / "samples").glob("consistency-40_prior-40_*/*.png"))) == 8  # the filter draws twice as many
    plot = (tmp_path / "summary.png").read_bytes()
    (tmp_path / "summary.png").write_bytes(b"of an earlier run")

    def fail(*args, **kwargs):
        raise AssertionError("done again")

    monkeypatch.setattr(experiment, "learn_depth", fail)
    monkeypatch.setattr(experiment, "training_set", fail)
    assert run(*words(paths, tmp_path)) == 0
    assert [row["abs_rel"] for row in rows_of(tmp_path, "runs")] == [row["abs_rel"] for row in runs]
    assert (tmp_path / "summary.png").read_bytes() == plot
    assert run(*words(paths, tmp_path, keep=0.25)) == 2 and "keep 0.5 -> 0.25" in capsys.readouterr().err
    with Image.open(tmp_path / "summary.png") as image:
        assert min(image.size) > 200 and image.convert("L").getextrema() != (255, 255)


def test_images_of_an_evaluation_are_taken(paths, tmp_path):
    parts = [word for name in ("predictor", "prior") for word in (f"--depth-{name}", str(paths[name]))]
    shared = ["--model", str(paths["generator"]), *parts, "--steps", "1", "--timestep-spacing", "linspace", "--device", "cpu"]
    settings = ["--references", "samples", "--samples", "8", "--draw", "none,both", "--allow-singular"]
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "generator", *shared, *settings, "--out", str(tmp_path / "evaluation")])
    assert not stop.value.code
    drawn = {path: path.stat().st_mtime_ns for path in (tmp_path / "evaluation").rglob("*.png")}
    assert len(drawn) == 16
    spacing = {"timestep_spacing": "linspace"}
    assert run(*words(paths, tmp_path / "experiment", samples=tmp_path / "evaluation" / "samples", seeds=1, **spacing)) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "evaluation").rglob("*.png")} == drawn
    assert not (tmp_path / "experiment" / "samples").exists()


def test_plot_shows_means_intervals_and_every_training():
    def row(arm, seed, value):
        return {"arm": arm, "what": arm, "images": 9, "seed": seed, "delta1": value, "abs_rel": 1 - value, "rmse": 2.0}

    runs = [row("real", 0, 0.8), row("real", 1, 0.9), row("guided", 0, 0.5)]
    figure = experiment.ExperimentReport(runs, summarise(runs), paired(runs), {}).figure()
    delta1, abs_rel = figure.axes
    assert [label.get_text() for label in delta1.get_yticklabels()] == ["real", "guided"]
    half = 12.7062 * 0.05  # Student, one degree of freedom
    interval, trainings, mean = (line.get_xdata() for line in delta1.lines[:3])
    assert list(interval) == pytest.approx([0.85 - half, 0.85 + half], abs=1e-4)
    assert list(trainings) == [0.8, 0.9] and list(mean) == pytest.approx([0.85])
    assert list(abs_rel.lines[2].get_xdata()) == pytest.approx([0.15])
    assert np.isnan(delta1.lines[3].get_xdata()).all() and list(delta1.lines[5].get_xdata()) == [0.5]  # one seed: no interval
    assert "2 trainings" in figure.get_suptitle()


def test_training_sets_hold_what_they_say(paths, tmp_path):
    pipe = load_generator(paths["generator"], paths["predictor"], paths["prior"])
    options = ExperimentOptions(
        model="g",
        real="samples",
        test="samples",
        out=tmp_path,
        images=4,
        keep=0.5,
        sampling=SamplingOptions(num_inference_steps=1),
    )
    real = open_dataset("samples", task="depth")
    sets = {arm: training_set(options, arm, pipe, real, 16) for arm in ARMS}
    assert torch.equal(sets["real"].images, sets["real-predicted"].images)
    assert not torch.equal(sets["real"].depth_m, sets["real-predicted"].depth_m)
    depth = sets["real"].depth_m[sets["real"].depth_m > 0]
    assert depth.min() > 0.5 and depth.max() < 40 and (sets["real-predicted"].depth_m > 0).all()
    files = sorted((tmp_path / "samples").glob("consistency-40_prior-40_*/*.png"))
    pool = stack_of(files)
    assert torch.equal(sets["guided"].images, pool[:4])
    strong, weak = depth_probe(pipe, 50)(pool, [str(seed) for seed in range(8)])
    best = sorted(depth_disagreement(strong, weak).argsort()[:4].tolist())
    assert torch.equal(sets["filtered"].images, pool[best])
    expected = pipe.depth_predictor.decode_depth(strong[best].clamp(-1, 1))
    torch.testing.assert_close(sets["filtered"].depth_m, expected.reshape(4, 16, 16), rtol=1e-4, atol=1e-4)
    unguided = stack_of(sorted((tmp_path / "samples").glob("unguided_*/*.png")))
    assert torch.equal(sets["unguided"].images, unguided[:4])
    best = sorted(depth_disagreement(*depth_probe(pipe, 50)(unguided, [str(seed) for seed in range(8)])).argsort()[:4].tolist())
    assert torch.equal(sets["filtered-unguided"].images, unguided[best])
    assert not torch.equal(sets["unguided"].images, sets["guided"].images)


def test_summary_and_pairs_by_hand():
    def row(arm, seed, value):
        return {"arm": arm, "what": arm, "images": 9, "seed": seed, "delta1": value, "abs_rel": 1 - value, "rmse": 2 * value}

    runs = [row("unguided", 0, 0.5), row("unguided", 1, 0.6), row("guided", 0, 0.7), row("guided", 1, 0.8), row("guided", 2, 0.1)]
    assert [one["delta1"] for one in summarise(runs)] == [pytest.approx(0.55), pytest.approx(1.6 / 3)]
    found = {(one["this"], one["minus"], one["score"]): one for one in paired(runs)}
    assert len(found) == 3
    difference = found["guided", "unguided", "delta1"]
    assert difference["seeds"] == 2 and difference["difference"] == pytest.approx(0.2)
    assert difference["difference_low"] == pytest.approx(0.2) and math.isfinite(difference["difference_high"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth-predictor": None, "depth-prior": None}, "needs a depth predictor"),
        ({"images": 1000}, "expected at least --images 1000"),
        ({"recipe": "freedoom-segmentation-tiny"}, "expected a recipe of depth"),
        ({"recipe": "nowhere"}, "nowhere"),
        ({"recipe": "freedoom-depth-mini"}, "--images is 4; recipe freedoom-depth-mini trains with batches of 16"),
        ({"keep": 0}, "--keep"),
        ({"arms": "real,imagined"}, "imagined"),
        ({"seeds": 0}, "--seeds"),
        ({"test": "nowhere"}, "nowhere"),
    ],
)
def test_bad_input_is_refused_before_anything_is_drawn(paths, tmp_path, capsys, changes, message):
    assert run(*words(paths, tmp_path, **changes)) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "samples").exists() and not (tmp_path / "runs").exists()
