"""A model trained on one's own folder, calibrated on what was held out, audits the folder: by the commands, one after another."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from noise2map.cli import main
from noise2map.inference.loading import load_model

SMALL = (
    *("model.config.backbone_config.hidden_sizes=[8, 16, 16, 16]", "model.config.backbone_config.depths=[1, 1, 1, 1]"),
    *("model.config.hidden_size=32", "model.config.group_norm_groups=4", "model.config.decoder_layers=1"),
    *("model.config.decoder_attention_heads=2", "model.config.decoder_ffn_dim=32", "model.config.time_embed_dim=32"),
    *("model.config.auxiliary_channels=8", "train.iterations=60", "train.threads=1", "train.eval_every=0", "train.eval_steps=[1]"),
    *("schedule.warmup_iterations=5", "optim.lr=0.003"),
)  # fmt: skip
HELD_OUT = ("000", "008")
BOX = (8, 8, 32, 28)  # left, top, right, bottom of the planted label error


def write(folder, count):
    """Pictures of a bright thing on dark ground, of which some look like the ground: nothing can be right everywhere."""
    rng = np.random.default_rng(0)
    for name in ("images", "maps"):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        labels = (np.arange(64)[None] > rng.integers(36, 50)) * np.ones((48, 1), np.uint8)
        picture = labels[..., None] * 150 + rng.integers(0, 50, (48, 64, 3))
        picture[40:] = 90  # a strip that says nothing
        Image.fromarray(picture.astype(np.uint8)).save(folder / "images" / f"{index:03}.png")
        Image.fromarray(labels).save(folder / "maps" / f"{index:03}.png")


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert not stop.value.code


@pytest.mark.slow
def test_a_model_of_ones_own_is_trained_calibrated_and_audits_its_folder(tmp_path, capsys):
    data, final = tmp_path / "data", tmp_path / "run" / "final"
    write(data, 14)
    changes = [word for change in SMALL for word in ("--set", change)]
    run("train", "folder", "--root", data, "--out", tmp_path / "run", *changes)
    # Calibration: on what was held out in training and nothing else, whole images scored apart.
    run("calibrate", final, "--dataset", "folder", "--root", data, "--out", tmp_path / "calibrated", "--unit", "pixel")
    document = json.loads((tmp_path / "calibrated" / "calibration.json").read_text())
    assert document["facts"]["calibrating"] == document["facts"]["held_out"] == "1 image"
    rows = {(row["images"], row["variant"]): row for row in document["scores"]}
    before, after = (rows["calibrated on", name] for name in ("before", "after"))
    assert after["nll"] < before["nll"] and after["error"] == before["error"] < 0.25
    model, _ = load_model(tmp_path / "calibrated", "cpu")
    assert model.calibration.temperature == document["calibration"]["temperature"] != 1
    # Audit by the calibrated model: a box of wrong labels in a held-out image comes first.
    left, top, right, bottom = BOX
    path = data / "maps" / f"{HELD_OUT[1]}.png"
    labels = np.asarray(Image.open(path)).copy()
    labels[top:bottom, left:right] = 1
    Image.fromarray(labels).save(path)
    capsys.readouterr()
    run("audit", data, "--model", tmp_path / "calibrated", "--split", "val", "--out", tmp_path / "audit", "--device", "cpu")
    assert "trained on" not in capsys.readouterr().err  # of the held-out images it was trained on none
    with open(tmp_path / "audit" / "images.csv", newline="") as file:
        assert {row["image"] for row in csv.DictReader(file)} == set(HELD_OUT)
    with open(tmp_path / "audit" / "suspects.csv", newline="") as file:
        first = next(csv.DictReader(file))
    assert first["image"] == HELD_OUT[1] and first["label"] == "class 1" and first["model"] == "class 0"
    for name, expected in zip(("left", "top", "right", "bottom"), BOX):
        assert abs(int(first[name]) - expected) <= 4
