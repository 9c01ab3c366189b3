"""``noise2map train folder``: from a folder of pictures to a model with a card, in one command."""

import numpy as np
import pytest
from PIL import Image

from noise2map.cli import main
from noise2map.training.folder_recipe import folder_recipe

TINY = [
    "model.config.backbone_config.hidden_sizes=[8, 8, 16, 16]",
    "model.config.backbone_config.depths=[1, 1, 1, 1]",
    "model.config.hidden_size=16",
    "model.config.group_norm_groups=4",
    "model.config.decoder_layers=1",
    "model.config.decoder_attention_heads=2",
    "model.config.decoder_ffn_dim=16",
    "model.config.time_embed_dim=16",
    "model.config.auxiliary_channels=8",
    "train.iterations=4",
    "train.threads=1",
    "train.log_every=1",
    "train.save_every=4",
    "train.eval_every=0",
    "train.eval_steps=[1, 2]",
]


def write(folder, count, task="segmentation", size=(64, 48), unit=1000):
    for name in ("images", "maps"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    width, height = size
    for index in range(count):
        labels = (np.arange(width)[None] > rng.integers(9, width - 9)) * np.ones((height, 1), np.uint8)
        picture = (labels[..., None] * 150 + rng.integers(0, 50, (height, width, 3))).astype(np.uint8)
        Image.fromarray(picture).save(folder / "images" / f"{index:03}.png")
        values = labels * 2 if task == "segmentation" else ((1 + 4 * labels.astype(int)) * unit).astype(np.uint16)
        Image.fromarray(values.astype(np.uint8 if task == "segmentation" else np.uint16)).save(folder / "maps" / f"{index:03}.png")


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code or 0


@pytest.mark.parametrize("task, score", [("segmentation", "mIoU"), ("depth", "abs_rel")])
def test_one_command_trains_scores_and_writes_a_card(tmp_path, capsys, task, score):
    from noise2map.inference.loading import load_model

    write(tmp_path / "data", 10, task)
    changes = [word for change in TINY for word in ("--set", change)]
    assert run("train", "folder", "--root", tmp_path / "data", "--task", task, "--out", tmp_path / "run", *changes) == 0
    captured = capsys.readouterr()
    assert "10 pairs are whole" in captured.err and "8 to train on, 2 to validate on" in captured.err
    final = tmp_path / "run" / "final"
    card = (final / "README.md").read_text()
    assert f"| steps | {score} |" in card and "8 pairs of image and map" in card and "\n| 2 |" in card
    with Image.open(final / "predictions.png") as panel:
        # image, truth, two predictions, uncertainty; two rows
        assert panel.size == (5 * 64 + 4 * 4, 2 * 48 + 4)
    model, _ = load_model(final, "cpu")
    if task == "segmentation":
        assert model.config.id2label == {0: "class 0", 1: "class 1", 2: "class 2"}
    else:
        assert model.config.min_depth == pytest.approx(0.9, abs=0.01) and model.config.max_depth == pytest.approx(5.5, abs=0.01)


def test_defaults_follow_from_the_folder(tmp_path):
    write(tmp_path / "a", 16, size=(640, 480))
    (tmp_path / "a" / "classes.json").write_text('{"0": "floor", "1": "wall", "2": "door"}')
    said = []
    recipe = folder_recipe(tmp_path / "a", "segmentation", say=said.append)
    assert recipe.data.class_names == ["floor", "wall", "door"] and recipe.data.size == "320x256"
    assert recipe.data.hold_out_every == 8 and recipe.train.iterations == 300 and "3 classes" in said[0]
    for part in ("train", "val"):
        write(tmp_path / "b" / part, 5)
    split = folder_recipe(tmp_path / "b", "segmentation", overrides=["train.iterations=7"])
    assert (split.data.train, split.data.val) == (str(tmp_path / "b" / "train"), str(tmp_path / "b" / "val"))
    assert split.train.iterations == 7 and split.train.batch_size == 5 and split.data.hold_out_every == 0


def test_a_wrong_depth_scale_is_pointed_out(tmp_path):
    write(tmp_path / "data", 8, "depth")
    said = []
    recipe = folder_recipe(tmp_path / "data", "depth", depth_scale=1.0, say=said.append)
    assert "is --depth-scale 1 (metres per unit) right?" in said[0] and recipe.model.config["max_depth"] == 5500
    said.clear()
    folder_recipe(tmp_path / "data", "depth", say=said.append)
    assert len(said) == 1 and "warning" not in said[0]


def test_a_folder_that_cannot_be_trained_on_is_refused_before_training(tmp_path, capsys):
    def error(*words):
        assert run("train", "folder", "--out", tmp_path / "run", *words) == 2
        captured = capsys.readouterr()
        assert captured.err.count("noise2map: error: ") == 1 and "Traceback" not in captured.err
        return captured.err

    assert "--root DIR" in error()
    assert "no folder" in error("--root", tmp_path / "nowhere")
    write(tmp_path / "few", 2)
    assert "expected at least 4" in error("--root", tmp_path / "few")
    write(tmp_path / "torn", 8)
    (tmp_path / "torn" / "images" / "003.png").unlink()
    assert "003.png" in error("--root", tmp_path / "torn")
    write(tmp_path / "ids", 8)
    (tmp_path / "ids" / "classes.json").write_text('["floor", "wall"]')
    assert "unknown class ids 2" in error("--root", tmp_path / "ids")
    write(tmp_path / "broken", 8)
    (tmp_path / "broken" / "maps" / "005.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert "005.png" in error("--root", tmp_path / "broken")
    assert "task is 'normals'" in error("--root", tmp_path / "few", "--task", "normals")
    assert not (tmp_path / "run").exists()
