"""The ablations at toy size: a frozen tiny encoder, decoders trained for a few steps."""

import json
import os

import numpy as np
import pytest
import torch
from tiny_training import CLASSES, SIZE, RawSamples, tiny_model, tiny_processor

from noise2map.ablation import experiment
from noise2map.ablation.arms import ABLATIONS, PUBLISHED, Arm, Decoding, make_ablations
from noise2map.ablation.cost import decoder_gflop, decoder_parameters
from noise2map.ablation.experiment import Experiment, make_plan
from noise2map.ablation.options import AblationOptions, make_recipe_of
from noise2map.ablation.report import AblationReport, Scored, mean_over_seeds, reference
from noise2map.cli import main
from noise2map.data import FolderDataset
from noise2map.evaluation.evaluate import evaluate_model
from noise2map.metrics import segmentation_scores
from noise2map.models import Noise2MapForSemanticSegmentation
from noise2map.models.decoding import DecodingOptions
from noise2map.report.tables import read_csv

BASE = {"map_encoding": "class_embedding", "map_scale": 0.01, "noise_schedule": "cosine", "decoder_layers": 2}
TINY = (
    *("decoder_layers=1", "decoder_attention_heads=2", "decoder_n_points=2", "decoder_ffn_dim=16", "time_embed_dim=16"),
)  # fmt: skip
SCORES = ("mIoU", "aAcc", "difference", "gflop", "mIoU_low", "mIoU_seed_high")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with images and class maps, and the checkpoint whose encoder is kept."""
    from PIL import Image

    root = tmp_path_factory.mktemp("data")
    for part, count, seed in (("train", 6, 0), ("val", 5, 1)):
        for kind in ("images", "maps"):
            (root / part / kind).mkdir(parents=True)
        (root / part / "classes.json").write_text(json.dumps(list(CLASSES.values())))
        for index in range(count):
            sample = RawSamples(count, seed)[index]
            sample["image"].save(root / part / "images" / f"{index}.png")
            Image.fromarray(sample["labels"]).save(root / part / "maps" / f"{index}.png")
    encoder = root / "encoder"
    tiny_model().save_pretrained(encoder)
    tiny_processor().save_pretrained(encoder)
    return root


def options(place, out, names=("schedule", "time-difference"), **fields):
    changes = tuple(f"model.config.{change}" for change in TINY)
    given = {"iterations": 2, "seeds": 2, "batch_size": 2, "window": "24x16", "limit": 4, "resamples": 20, **fields}
    return AblationOptions(
        names=names, out=out, encoder=str(place / "encoder"), dataset="folder", root=place, changes=changes, **given
    )


def carry_out(chosen):
    return Experiment(chosen, make_plan(chosen)).run()


def numbers(report):
    rows = [row for ablation in report.ablations for row in report.rows(ablation)]
    return [[row.get(name) for name in ("arm", "steps", "time_difference", "seed", *SCORES)] for row in rows]


@pytest.fixture(scope="module")
def done(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    chosen = options(place, out)
    return chosen, carry_out(chosen)


def by_hand(place, folder, steps, time_difference):
    """mIoU of a finished run, the scored images and the decoding chosen here."""
    model = Noise2MapForSemanticSegmentation.from_pretrained(folder / "final").eval()
    model.config.time_difference = time_difference
    data = [FolderDataset(place / "val", "segmentation")[index] for index in (0, 1, 3, 4)]
    found = evaluate_model(model, tiny_processor(), data, [DecodingOptions(num_inference_steps=steps)], batch_size=1)
    return found.results[0].scorer.scores()["mIoU"]


def test_scores_are_those_of_the_trained_models(place, done):
    chosen, report = done
    schedule, difference = report.ablations
    rows = {(row["arm"], row["seed"], row["steps"]): row for row in report.rows(schedule)}
    for seed in (0, 1):
        folder = chosen.runs / f"schedule-linear-seed{seed}"
        assert rows["schedule-linear", seed, 3]["mIoU"] == pytest.approx(by_hand(place, folder, 3, 1.0), abs=1e-9)
    for row in report.rows(difference):
        if row["seed"] == 0:
            expected = by_hand(place, chosen.runs / f"{PUBLISHED}-seed0", row["steps"], row["time_difference"])
            assert row["mIoU"] == pytest.approx(expected, abs=1e-9)
    assert [row["time_difference"] for row in report.rows(difference) if row["seed"] == 0] == [0.0, 1.0, 2.0]


def test_rows_of_means_and_differences(done):
    _, report = done
    rows = {(row["arm"], row["seed"], row["steps"]): row for row in report.rows(report.ablations[0])}
    mean = rows["schedule-linear", "all", 3]
    singles = [rows["schedule-linear", seed, 3]["mIoU"] for seed in (0, 1)]
    others = [rows[PUBLISHED, seed, 3]["mIoU"] for seed in (0, 1)]
    assert mean["mIoU"] == pytest.approx(np.mean(singles))
    assert mean["minus"] == "published, steps3" and mean["seeds"] == 2
    assert mean["difference"] == pytest.approx(np.mean(singles) - np.mean(others))
    assert mean["difference_seed_low"] <= mean["difference"] <= mean["difference_seed_high"]
    assert mean["mIoU_low"] <= mean["mIoU"] <= mean["mIoU_high"] and mean["resampled"] == "images"
    assert "difference" not in rows[PUBLISHED, "all", 3] and "difference" not in rows["schedule-linear", 0, 3]


def test_what_is_there_is_not_made_again(place, done, monkeypatch):
    chosen, report = done
    plan = make_plan(chosen)
    assert {start.state for start in plan.starts} == {"finished"} and "0 of 4 trainings are left: 0 TFLOP" in plan.text()
    for name in ("run_training", "score"):
        monkeypatch.setattr(experiment, name, lambda *_: pytest.fail("made again"))
    assert numbers(carry_out(chosen)) == numbers(report)


@pytest.mark.slow
def test_an_interrupted_call_is_gone_on_with(place, done, tmp_path, monkeypatch):
    chosen, report = options(place, tmp_path), done[1]
    train, count = experiment.run_training, []

    def stop_at_the_third(*arguments):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return train(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(experiment, "run_training", stop_at_the_third)
        carry_out(chosen)
    assert [start.state for start in make_plan(chosen).starts] == ["finished", "finished", "new", "new"]
    assert numbers(carry_out(chosen)) == numbers(report)


def run(*words):
    with pytest.raises(SystemExit) as end:
        main(list(words))
    assert end.value.code == 0


def test_the_command_writes_tables_plots_and_maps(place, tmp_path, capsys):
    sets = [word for change in TINY for word in ("--set", f"model.config.{change}")]
    command = ["experiment", "ablation", "steps", "--out", str(tmp_path / "out"), "--encoder", str(place / "encoder"), *sets]
    command += ["--dataset", "folder", "--root", str(place), "--iterations", "2", "--seeds", "1", "--batch-size", "2"]
    run(*command, "--dry-run")
    assert "2 of 2 trainings are left" in capsys.readouterr().out and not (tmp_path / "out").exists()
    run(*command, "--resamples", "5")
    shown = capsys.readouterr().out
    assert "ours" in shown and "mIoU % [over images]" in shown
    rows = read_csv(tmp_path / "out" / "ablation_steps.csv")
    assert [(row["arm"], row["steps"]) for row in rows if row["seed"] == "all"] == [
        (arm, steps) for arm in ("published", "matched") for steps in (1, 2, 3, 10)
    ]
    assert {"commit", "device", "command", "iterations"} <= rows[0].keys()
    for name in ("ablation_steps", "ablation_steps_maps", "ablation_steps_uncertainty"):
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 1000


@pytest.mark.slow
def test_every_ablation_from_end_to_end(place, tmp_path):
    report = carry_out(options(place, tmp_path, ABLATIONS, seeds=1, iterations=1, limit=2))
    assert [ablation.name for ablation in report.ablations] == list(ABLATIONS)
    for ablation in report.ablations:
        rows = report.rows(ablation)
        assert {row["arm"] for row in rows} == {arm.name for arm in ablation.arms}
        assert all(0 <= row["mIoU"] <= 1 for row in rows)
    written = report.write(tmp_path)
    assert len(written) == 2 * len(ABLATIONS) + 2 and all(path.stat().st_size for path in written)


# ---- arms, differences, costs ------------------------------------------------------------------------------------------


def test_the_own_value_of_the_base_is_the_published_arm():
    found = make_ablations({**BASE, "map_scale": 0.5, "decoder_layers": 4, "time_difference": 0.0})
    assert [(arm.name, value) for arm, value in zip(found["scale"].arms, found["scale"].values)] == [
        ("scale-0.01", 0.01), ("scale-0.1", 0.1), (PUBLISHED, 0.5), ("scale-1", 1.0),
    ]  # fmt: skip
    assert [arm.name for arm in found["layers"].arms] == ["layers-1", "layers-2", "layers-3", PUBLISHED, "layers-6", "layers-12"]
    assert [one.time_difference for one in found["time-difference"].decodings] == [None, 1.0, 2.0]
    assert tuple(found) == ABLATIONS


def test_what_scores_are_compared_with():
    found = make_ablations({**BASE, "time_difference": 1.0})
    single = found["decoder"].arms[1]
    assert reference(found["decoder"], single, Decoding(1)) == (PUBLISHED, Decoding(3))
    assert reference(found["scale"], found["scale"].arms[1], Decoding(1)) == (PUBLISHED, Decoding(1))
    assert reference(found["steps"], found["steps"].arms[1], Decoding(5)) == ("matched", Decoding(1))
    assert reference(found["time-difference"], found["steps"].arms[0], Decoding(5, 2.0)) == (PUBLISHED, Decoding(5))


def test_an_arm_keeps_what_it_is_about(place, tmp_path):
    chosen = options(place, tmp_path)
    recipe = make_recipe_of(Arm("layers-6", "6", changes={"decoder_layers": 6}), 1, chosen)
    assert recipe.model.config["decoder_layers"] == 6 and recipe.model.config["decoder_ffn_dim"] == 16
    assert recipe.train.seed == 1 and recipe.model.config["backbone_config"]["model_type"] == "resnet"
    assert recipe.data.train == str(place / "train") and recipe.data.size is None


def test_the_mean_over_seeds_is_that_of_scores_not_of_counts():
    counts = torch.randint(1, 50, (4, 3, 3, 5), generator=torch.Generator().manual_seed(0)).double()
    expected = torch.stack([segmentation_scores(counts[:, seed].sum(0))["mIoU"] for seed in range(3)]).mean()
    assert mean_over_seeds(counts)[0] == expected
    assert not torch.isclose(expected, segmentation_scores(counts.sum((0, 1)))["mIoU"])


def test_a_missing_seed_is_left_out_of_the_difference():
    ablation = make_ablations({**BASE, "time_difference": 1.0})["schedule"]
    counts = torch.randint(1, 50, (4, 3, 5), generator=torch.Generator().manual_seed(0)).double()

    def scored(arm, seed, shift):
        row = {"mIoU": 0.5 + shift, "aAcc": 0.5, "places": ["a", "a", "b", "c"], "parameters": 1, "gflop": 1.0, "images": 4}
        return Scored(arm, seed, None, dict.fromkeys(ablation.decodings, (row | {"time_difference": 1.0}, counts + 9 * shift)))

    runs = [scored(ablation.arms[0], seed, 0.0) for seed in (0, 1)] + [scored(ablation.arms[1], 0, 0.1)]
    report = AblationReport([ablation], runs, {}, 10)
    row = next(row for row in report.rows(ablation) if row["arm"] == "schedule-linear" and row["seed"] == "all")
    assert row["seeds"] == 1 and row["difference_seed_low"] != row["difference_seed_low"] and row["resampled"] == "3 maps"


@torch.no_grad()
def test_operations_of_a_further_step_are_those_of_its_matrix_products():
    model = tiny_model(decoder_layers=1).eval()
    cells, width, inner, heads, points, classes, time, waves = 6 * 4, 16, 16, 2, 2, 3, 16, 8
    features = torch.randn(1, width, 4, 6)
    per_cell = width * width + 3 * heads * points * width + 2 * width * width + 2 * width * inner + classes * width
    per_time = (2 * waves + 1) * time + time * time + 2 * width * time
    counted = decoder_gflop(model, features, 3) - decoder_gflop(model, features, 2)
    assert counted * 1e9 == pytest.approx(2 * (cells * per_cell + per_time))


def test_parameters_are_those_that_learn():
    plain, diffusing = tiny_model(diffusion=False), tiny_model()
    table = diffusing.codec.embedding.weight.numel()
    assert decoder_parameters(diffusing) - decoder_parameters(plain) == table


def test_trainings_of_other_settings_are_replaced_where_that_was_asked_for(place, tmp_path):
    first = options(place, tmp_path / "out", ("schedule",), seeds=1, resamples=1)
    carry_out(first)
    folders = [run.folder for run in make_plan(first).runs]
    longer = options(place, tmp_path / "out", ("schedule",), seeds=1, resamples=1, iterations=3)
    plan = make_plan(longer, overwrite=True)
    assert [start.state for start in plan.starts] == ["new"] * len(folders)
    Experiment(longer, plan).run()
    assert [json.loads((folder / "config.json").read_text())["finished_steps"] for folder in folders] == [3] * len(folders)
    assert [start.state for start in make_plan(longer, overwrite=True).starts] == ["finished"] * len(folders)
    (folders[0] / "config.json").unlink()  # then it is no run that could be replaced
    with pytest.raises(ValueError, match="holds files, but no run of this command"):
        make_plan(longer, overwrite=True)


# ---- errors --------------------------------------------------------------------------------------------------------------


def test_what_cannot_work_is_refused_before_any_work(place, tmp_path):
    for fields, message in (
        ({"names": ("width",)}, r"ablations are width; expected of encoding, scale"),
        ({"seeds": 0}, "seeds is 0; expected at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            options(place, tmp_path, **fields)
    with pytest.raises(ValueError, match="dataset is 'nyu'; expected one with class maps: "):
        AblationOptions(names=("scale",), out=tmp_path, dataset="nyu")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere, which the recipe names as data\.val"):
        make_plan(options(place, tmp_path, val="nowhere"))
    with pytest.raises(ValueError, match=r"train\.cache_window is '24x15'; expected multiples of 4 pixels"):
        make_plan(options(place, tmp_path, window="24x15"))
    with pytest.raises(ValueError, match=r"holds a run of other settings \(train\.iterations 2 there, 3 here"):
        out = place / "other"
        carry_out(options(place, out, ("schedule",), seeds=1, resamples=1))
        make_plan(options(place, out, ("schedule",), seeds=1, iterations=3))
    with pytest.raises(ValueError, match=r"choose another --out, or --overwrite$"):
        make_plan(options(place, out, ("schedule",), seeds=1, iterations=3))
    assert os.listdir(tmp_path) == [] and SIZE == (48, 32)
