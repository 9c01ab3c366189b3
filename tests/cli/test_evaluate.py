"""``noise2map evaluate`` from the command line: files, tables, and one-line errors."""

import csv
import json
import math
import subprocess

import pytest
import torch
from transformers import ConvNextConfig

from noise2map.cli import main
from noise2map.data import load_samples
from noise2map.models import (
    Noise2MapConfig,
    Noise2MapForDepthEstimation,
    Noise2MapForSemanticSegmentation,
    Noise2MapImageProcessor,
)
from noise2map.runs.provenance import commit


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Tiny models on disk: segmentation with and without diffusion, with other classes, and depth."""
    root = tmp_path_factory.mktemp("models")
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=stages)
    sizes = {"hidden_size": 16, "group_norm_groups": 4, "decoder_layers": 1, "decoder_attention_heads": 4}
    sizes |= {"decoder_ffn_dim": 16, "time_embed_dim": 16, "use_auxiliary_head": False, "backbone_config": backbone}
    names = load_samples("test", classes=8).id2label
    eight = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    torch.manual_seed(0)
    models = {
        "rooms": Noise2MapForSemanticSegmentation(Noise2MapConfig(**sizes, **eight)),
        "plain": Noise2MapForSemanticSegmentation(Noise2MapConfig(**sizes, **eight, diffusion=False)),
        "three": Noise2MapForSemanticSegmentation(Noise2MapConfig(**sizes, num_labels=3)),
        "depth": Noise2MapForDepthEstimation(Noise2MapConfig(**sizes, min_depth=0.5, max_depth=40.0, time_input="time")),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
        Noise2MapImageProcessor(size={"height": 120, "width": 160}).save_pretrained(root / name)
    return root


def _run(*words) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *map(str, words)])
    return stop.value.code or 0


def test_one_luck_for_the_whole_map_is_kept_where_json_has_no_infinity(checkpoints, tmp_path):
    words = ["--model", checkpoints / "plain", "--limit", 2, "--steps", 1, "--ensemble", 2, "--sampling", "field"]
    words += ["--field-smoothness", "2,inf", "--sample-scores", "--resamples", 0, "--out", tmp_path / "out"]
    assert _run(*words) == 0
    rows = json.loads((tmp_path / "out" / "evaluation.json").read_text())["rows"]
    assert [row["field_smoothness"] for row in rows] == [2.0, "inf"]
    with (tmp_path / "out" / "evaluation.csv").open(newline="") as file:
        assert [float(row["field_smoothness"]) for row in csv.DictReader(file)] == [2.0, math.inf]
    # A map that is one luck's has fewer edges than one of a field.
    assert rows[1]["edge_share"] < rows[0]["edge_share"]
    assert _run(*words) == 0  # the settings of the folder are read again, and are the same


def test_one_pass_is_what_a_model_without_diffusion_does(checkpoints, tmp_path):
    words = ["--model", checkpoints / "plain", "--limit", 2, "--resamples", 0]
    assert _run(*words, "--steps", 1, "--out", tmp_path / "steps") == 0
    assert _run(*words, "--steps", 1, "--sampling", "one_pass", "--ensemble", 8, "--out", tmp_path / "pass") == 0
    steps, one = (json.loads((tmp_path / name / "evaluation.json").read_text())["rows"] for name in ("steps", "pass"))
    assert len(one) == 1 and one[0]["mIoU"] == steps[0]["mIoU"]


def test_hidden_parts_change_the_scores_in_the_same_way_each_time(checkpoints, tmp_path):
    found = []
    for name, words in (("seen", []), ("hidden", ["--hide", "mixed"]), ("again", ["--hide", "mixed", "--batch-size", 1])):
        words += ["--model", checkpoints / "depth", "--limit", 3, "--steps", 1, "--resamples", 0, "--out", tmp_path / name]
        assert _run(*words) == 0
        found.append(json.loads((tmp_path / name / "evaluation.json").read_text())["rows"][0])
    seen, hidden, again = found
    assert "hide" not in seen and hidden["hide"] == "mixed"
    assert hidden["abs_rel"] != seen["abs_rel"]
    assert hidden["abs_rel"] == pytest.approx(again["abs_rel"], rel=1e-5)


def test_an_ensemble_of_decoders_is_scored_as_one_model(checkpoints, tmp_path, capsys):
    first = Noise2MapForSemanticSegmentation.from_pretrained(checkpoints / "rooms")
    torch.manual_seed(1)
    first.decoder.projection.weight.data.normal_(std=0.3)
    first.save_pretrained(tmp_path / "other")
    Noise2MapImageProcessor(size={"height": 120, "width": 160}).save_pretrained(tmp_path / "other")
    words = ["--model", checkpoints / "rooms", "--limit", 2, "--steps", 1, "--resamples", 0]
    assert _run(*words, "--member", tmp_path / "other", "--out", tmp_path / "two") == 0
    row = json.loads((tmp_path / "two" / "evaluation.json").read_text())["rows"][0]
    assert row["members"] == 2 and row["mutual_information_auroc"] >= 0
    capsys.readouterr()
    assert "another encoder" in _error(capsys, *words, "--member", checkpoints / "plain")


def test_two_models_from_command_to_files(checkpoints, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["noise2map", "evaluate", "--steps", "1 2"])  # the process of the tests has words of its own
    out = tmp_path / "results"
    words = ["--model", checkpoints / "rooms", "--compare", checkpoints / "plain", "--limit", 4, "--steps", "1,2"]
    words += ["--steps", "auto", "--ensemble", "1,2", "--average", "last,steps", "--resamples", 20, "--device", "cpu"]
    assert _run(*words, "--fit-temperature", "--out", out, "--save-per-image") == 0
    screen = capsys.readouterr().out
    document = json.loads((out / "evaluation.json").read_text())
    with open(out / "evaluation.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    # 1 step: 2 sizes; 2 steps and auto: 2 sizes x 2 averages; the model without diffusion: 1.
    assert len(rows) == len(document["rows"]) == 2 + 4 + 4 + 1
    for row, other in zip(rows, document["rows"]):
        assert float(row["mIoU"]) == other["mIoU"] and 0 <= other["mIoU"] <= 1
        assert row["images"] == "4" and row["seed"] == "0" and row["threads"] and row["device"].startswith("cpu")
        assert row["command"] == "noise2map evaluate --steps '1 2'" and row["date"] and row["torch"] == torch.__version__
        assert f"{100 * other['mIoU']:.3f}"[:4] in screen
    assert document["rows"][2]["step_flip_auroc"] is not None and rows[0].get("step_flip_auroc", "") == ""
    pairs = {(d["model"] == d["other_model"], d["score"]) for d in document["differences"]}
    assert pairs == {(same, score) for same in (True, False) for score in ("mIoU", "aAcc", "mAcc")}
    assert len(document["extras"][0]["classes"]) == 8
    with open(out / "per_image.csv", newline="") as file:
        images = list(csv.DictReader(file))
    assert len(images) == 4 * len(rows) and len({row["id"] for row in images}) == 4
    assert sorted(path.name for path in out.iterdir()) == ["evaluation.csv", "evaluation.json", "per_image.csv", "settings.json"]


def test_scores_of_other_settings_and_foreign_files_are_not_replaced(checkpoints, tmp_path, capsys):
    words = ["--model", checkpoints / "depth", "--limit", 2, "--resamples", 0, "--out", tmp_path / "out"]
    assert _run(*words, "--steps", 1) == 0
    before = (tmp_path / "out" / "evaluation.csv").read_bytes()
    capsys.readouterr()
    assert "other settings (protocols" in _error(capsys, *words, "--steps", 2)
    assert (tmp_path / "out" / "evaluation.csv").read_bytes() == before
    assert _run(*words, "--steps", 2, "--overwrite") == 0
    assert (tmp_path / "out" / "evaluation.csv").read_bytes() != before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "evaluation.csv").write_text("mine")
    capsys.readouterr()
    assert "did not write" in _error(capsys, *words[:-1], tmp_path / "mine", "--steps", 1)
    assert (tmp_path / "mine" / "evaluation.csv").read_text() == "mine"


def test_depth_from_command_to_files(checkpoints, tmp_path, capsys):
    out = tmp_path / "results"
    assert _run("--model", checkpoints / "depth", "--limit", 3, "--steps", "1,2", "--resamples", 0, "--out", out) == 0
    rows = json.loads((out / "evaluation.json").read_text())["rows"]
    assert [row["steps"] for row in rows] == [1, 2]
    assert rows[0]["min_depth"] == 0.5 and rows[0]["max_depth"] == 40.0 and "abs_rel_low" not in rows[0]
    assert rows[1]["step_flip_auroc"] is not None and "step_flip_uce" not in rows[1]
    assert "abs_rel" in capsys.readouterr().out
    assert not (out / "per_image.csv").exists()


def test_sparse_refinement_is_scored_beside_the_whole_run(checkpoints, tmp_path, capsys):
    words = ["--model", checkpoints / "rooms", "--limit", 2, "--steps", 2, "--resamples", 5, "--out", tmp_path]
    assert _run(*words, "--refine", "all", "uncertain", "--refine-share", 1, 0.1) == 0
    document = json.loads((tmp_path / "evaluation.json").read_text())
    assert [row["refine_share"] for row in document["rows"]] == ["", 1, 0.1]
    whole, same, sparse = ({name: row[name] for name in ("mIoU", "step_flip_auroc")} for row in document["rows"])
    assert whole == same != sparse
    assert {row["other_protocol"] for row in document["differences"]} == {document["rows"][0]["protocol"]}
    capsys.readouterr()
    assert "--refine-share needs --refine uncertain" in _error(capsys, *words, "--refine-share", 0.3)
    both = _error(capsys, *words, "--refine", "uncertain", "--refine-share", 0.3, "--refine-threshold", 0.1)
    assert "refine_share is 0.3 and refine_threshold 0.1; expected one of them" in both


def test_narrower_depth_range_counts_fewer_pixels(checkpoints, tmp_path):
    scores = []
    for bounds in ([], ["--max-depth", 5]):
        out = tmp_path / str(len(bounds))
        words = ["--model", checkpoints / "depth", "--limit", 3, "--steps", 1, "--resamples", 0, "--out", out]
        assert _run(*words, *bounds) == 0
        scores.append(json.loads((out / "evaluation.json").read_text())["rows"][0]["rmse"])
    assert scores[1] < scores[0]


def test_bfloat16_runs(checkpoints, capsys):
    assert _run("--model", checkpoints / "rooms", "--limit", 2, "--steps", 2, "--dtype", "bfloat16", "--resamples", 0) == 0
    assert "mIoU" in capsys.readouterr().out


def _error(capsys, *words) -> str:
    assert _run(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    lines = [line for line in captured.err.splitlines() if line.startswith(("noise2map: error: ", "Error: "))]
    assert len(lines) == 1
    return lines[0]


def test_bad_input_is_one_line(checkpoints, tmp_path, capsys):
    rooms = ["--model", checkpoints / "rooms"]
    assert "expected a whole number from 1 to 1000, or auto, got 'abc'" in _error(capsys, *rooms, "--steps", "abc")
    assert "got '0'" in _error(capsys, *rooms, "--steps", "3,0")
    assert "Invalid value for '--ensemble'" in _error(capsys, *rooms, "--ensemble", "-1")
    assert "Invalid value for '--average'" in _error(capsys, *rooms, "--average", "median")
    assert "'euler' is not one of" in _error(capsys, *rooms, "--sampler", "euler")
    assert "limit" in _error(capsys, *rooms, "--limit", "-3")
    assert "--save-per-image needs --out" in _error(capsys, *rooms, "--save-per-image")
    assert "'float8' is not one of" in _error(capsys, *rooms, "--dtype", "float8")
    assert "device" in _error(capsys, *rooms, "--device", "tpu")
    assert "no-such-model" in _error(capsys, "--model", "no-such-model")
    assert "dataset must be" in _error(capsys, *rooms, "--dataset", "coco")
    assert "needs the folder" in _error(capsys, *rooms, "--dataset", "ade20k")
    assert "'offical' is not one of" in _error(capsys, *rooms, "--protocol", "offical")
    assert "no official protocol" in _error(capsys, *rooms, "--protocol", "official")
    assert "'--window': expected WIDTHxHEIGHT" in _error(capsys, *rooms, "--window", "512")
    assert "does not exist" in _error(capsys, *rooms, "--dataset", "freedoom", "--root", tmp_path / "none")
    assert "split" in _error(capsys, *rooms, "--split", "validation")
    assert "knows 3 classes" in _error(capsys, "--model", checkpoints / "three")
    assert "cannot compare" in _error(capsys, *rooms, "--compare", checkpoints / "depth")
    assert "without diffusion" in _error(capsys, "--model", checkpoints / "plain", "--steps", 3)
    assert "min_depth" in _error(capsys, "--model", checkpoints / "depth", "--min-depth", 50)
    empty = tmp_path / "empty"
    (empty / "images").mkdir(parents=True)
    (empty / "maps").mkdir()
    assert "images" in _error(capsys, *rooms, "--dataset", "folder", "--root", empty)


def test_an_out_that_is_a_file_is_refused_before_the_work(checkpoints, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert "file" in _error(capsys, "--model", checkpoints / "rooms", "--out", tmp_path / "file")


def test_a_model_without_diffusion_needs_no_dials(checkpoints, capsys):
    assert _run("--model", checkpoints / "plain", "--limit", 2, "--resamples", 0) == 0
    assert "entropy" in capsys.readouterr().out


def test_commit_is_the_checkouts():
    found = commit()
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        assert found is None
    else:
        assert found is None or done.stdout.startswith(found.removesuffix("-dirty"))
