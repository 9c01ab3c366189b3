"""``noise2map train folder``: from a folder of images to a model with a card, in one command."""

import numpy as np
import pytest
from PIL import Image

from noise2map.cli import main
from noise2map.training.maps.folder_recipe import folder_recipe

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


def write(folder, count, task="segmentation", size=(64, 48), unit=1000, seed=0):
    for name in ("images", "maps"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(seed)
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
    assert "10 pairs are whole" in captured.out and "8 to train on, 2 to validate on" in captured.out
    final = tmp_path / "run" / "final"
    card = (final / "README.md").read_text()
    assert f"| steps | {score} |" in card and "8 pairs of image and map" in card and "\n| 2 |" in card
    with Image.open(final / "predictions.png") as panel:
        # image, truth, two predictions, uncertainty; two rows
        assert panel.width > 5 * 64 and panel.height > 2 * 48
    model, _ = load_model(final, "cpu")
    if task == "segmentation":
        assert model.config.id2label == {0: "class 0", 1: "class 1", 2: "class 2"}
    else:
        assert model.config.min_depth == pytest.approx(0.9, abs=0.01) and model.config.max_depth == pytest.approx(5.5, abs=0.01)


def test_defaults_follow_from_the_folder(tmp_path, caplog):
    write(tmp_path / "a", 16, size=(640, 480))
    (tmp_path / "a" / "classes.json").write_text('{"0": "floor", "1": "wall", "2": "door"}')
    caplog.set_level("INFO", "noise2map")
    recipe = folder_recipe(tmp_path / "a", "segmentation")
    assert recipe.data.class_names == ["floor", "wall", "door"] and recipe.data.size == "320x256"
    assert recipe.data.hold_out_every == 8 and recipe.train.iterations == 300 and "3 classes" in caplog.messages[0]
    for part in ("train", "val"):
        write(tmp_path / "b" / part, 5)
    split = folder_recipe(tmp_path / "b", "segmentation", overrides=["train.iterations=7"])
    assert (split.data.train, split.data.val) == (str(tmp_path / "b" / "train"), str(tmp_path / "b" / "val"))
    assert split.train.iterations == 7 and split.train.batch_size == 5 and split.data.hold_out_every == 0


def test_a_wrong_depth_scale_is_pointed_out(tmp_path, caplog):
    write(tmp_path / "data", 8, "depth")
    caplog.set_level("INFO", "noise2map")
    recipe = folder_recipe(tmp_path / "data", "depth", depth_scale=1.0)
    assert "is --depth-scale 1 (metres per unit) right?" in caplog.messages[0] and recipe.model.config["max_depth"] == 5500
    caplog.clear()
    folder_recipe(tmp_path / "data", "depth")
    assert len(caplog.messages) == 1 and "warning" not in caplog.messages[0]


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
    assert run("train", "folder", "--root", tmp_path / "few", "--task", "pose") == 2
    assert "'pose' is not one of 'segmentation', 'depth', 'normals'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def evaluate(capsys, model, root, *words):
    code = run(
        *("evaluate", "--model", model, "--dataset", "folder", "--root", root, "--steps", "1", "--resamples", "0", *words),
    )
    return code, "".join(capsys.readouterr())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of ten pictures, of which the first and the ninth are held out; and a model that has a folder of its own for them."""
    root = tmp_path_factory.mktemp("trained")
    write(root / "flat", 10)
    for part, count in (("train", 4), ("val", 3)):
        write(root / "parts" / part, count, seed=count)
    changes = [word for change in TINY for word in ("--set", change)]
    for name in ("flat", "parts"):
        assert run("train", "folder", "--root", root / name, "--out", root / f"run-{name}", *changes) == 0
    return root


def test_evaluation_of_the_own_folder_scores_what_was_held_out(trained, capsys, tmp_path):
    model, root = trained / "run-flat" / "final", trained / "flat"
    code, said = evaluate(capsys, model, root, "--out", tmp_path, "--save-per-image")
    assert code == 0 and "split val of" in said and "2 images, none of them trained on" in said
    lines = (tmp_path / "per_image.csv").read_text().splitlines()
    assert sorted({name for line in lines[1:] for name in line.split(",") if name in ("000", "008")}) == ["000", "008"]
    assert len(lines) == 1 + 2
    code, said = evaluate(capsys, model, root, "--split", "train")
    assert code == 0 and "8 images, 8 of these were trained on" in said
    code, said = evaluate(capsys, model, root, "--split", "all")
    assert code == 0 and "10 images, 8 of these were trained on" in said
    code, said = evaluate(capsys, model, root, "--split", "foo")
    assert code == 2 and "must be one of all, train, val, got 'foo'" in said and said.count("\n") == 1


def test_images_are_known_again_by_content_not_by_name(trained, capsys, tmp_path):
    import shutil

    model = trained / "run-flat" / "final"
    shutil.copytree(trained / "flat", tmp_path / "moved")
    (tmp_path / "moved" / "images" / "000.png").rename(tmp_path / "moved" / "images" / "first.png")
    (tmp_path / "moved" / "maps" / "000.png").rename(tmp_path / "moved" / "maps" / "first.png")
    code, said = evaluate(capsys, model, tmp_path / "moved")
    assert code == 0 and "2 images, none of them trained on" in said
    write(tmp_path / "other", 3, size=(64, 40))  # pictures of the same names
    code, said = evaluate(capsys, model, tmp_path / "other")
    assert code == 0 and "split all of" in said and "3 images, none of them trained on" in said


def test_evaluation_of_a_folder_of_parts(trained, capsys):
    model, root = trained / "run-parts" / "final", trained / "parts"
    code, said = evaluate(capsys, model, root)
    assert code == 0 and "split val of" in said and "3 images, none of them trained on" in said
    code, said = evaluate(capsys, model, root, "--split", "train")
    assert code == 0 and "4 images, 4 of these were trained on" in said
    code, said = evaluate(capsys, model, root, "--split", "test")
    assert code == 2 and "must be one of train, val, got 'test'" in said


def test_a_run_is_not_gone_on_with_on_other_pictures(trained, capsys, tmp_path):
    import shutil

    shutil.copytree(trained / "flat", tmp_path / "data")
    changes = [word for change in TINY for word in ("--set", change)]
    command = ("train", "folder", "--root", tmp_path / "data", "--out", tmp_path / "run", *changes)
    assert run(*command) == 0
    shutil.rmtree(tmp_path / "run" / "final")
    Image.new("RGB", (64, 48), (9, 9, 9)).save(tmp_path / "data" / "images" / "004.png")
    before = content(tmp_path / "run")
    capsys.readouterr()
    assert run(*command) == 2
    assert "the training images are not those that" in capsys.readouterr().err and content(tmp_path / "run") == before


def test_another_task_in_the_same_run_is_refused_in_one_line(trained, capsys, tmp_path):
    write(tmp_path / "depth", 10, "depth")
    run("train", "folder", "--root", tmp_path / "depth", "--task", "depth", "--out", trained / "run-flat", "--resume")
    error = capsys.readouterr().err
    assert 'model.task "segmentation" there, "depth" here' in error and "Traceback" not in error


def test_the_folder_is_looked_through_once(trained, tmp_path):
    """In a process of its own, as the console script runs."""
    import subprocess
    import sys

    script = tmp_path / "noise2map"
    script.write_text("from noise2map.cli import main; main()")
    words = [sys.executable, str(script), "train", "folder", "--root", str(trained / "flat"), "--out", str(trained / "run-flat")]
    changes = [word for change in TINY for word in ("--set", change)]
    done = subprocess.run([*words, *changes], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("pairs are whole") == 1 and done.stdout.count("is finished") == 1


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_all_files_at_fault_are_named_at_once(tmp_path, capsys, task):
    root = tmp_path / "data"
    write(root, 12, task)
    (root / "images" / "003.png").unlink()
    (root / "maps" / "005.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (root / "images" / "007.png").write_bytes((root / "images" / "007.png").read_bytes()[:300])
    Image.open(root / "maps" / "009.png").resize((32, 24), 0).save(root / "maps" / "009.png")
    assert run("train", "folder", "--root", root, "--task", task, "--out", tmp_path / "run") == 2
    text = capsys.readouterr().err
    assert "4 files are at fault:" in text and "Traceback" not in text
    assert all(name in text for name in ("003.png", "005.png", "007.png", "009.png is 64x48 and its map"))


def test_masks_that_are_not_what_they_seem(tmp_path, capsys, caplog):
    def error(root):
        assert run("train", "folder", "--root", root, "--out", tmp_path / "run") == 2
        return capsys.readouterr().err

    binary, photos, stray = (tmp_path / name for name in ("binary", "photos", "stray"))
    for root in (binary, photos, stray):
        write(root, 8)
    for path in (binary / "maps").iterdir():
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8) * 255).save(path)
    assert "only 0, 255; 255 means 'not known': for a mask of two classes write 0 and 1" in error(binary)
    for path in list((photos / "maps").iterdir()):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    text = error(photos)
    assert (
        "8 files are at fault:" in text and "000.jpg is a JPEG, whose compression changes class ids; save class maps as PNG" in text
    )
    ids = np.array(Image.open(stray / "maps" / "004.png"))
    ids[0, 0] = 254
    Image.fromarray(ids).save(stray / "maps" / "004.png")
    caplog.set_level("INFO", "noise2map")
    recipe = folder_recipe(stray, "segmentation")
    assert len(recipe.data.class_names) == 255
    assert (
        "warning: class ids reach 254" in caplog.messages[0]
        and "only 3 of them occur (0, 2, 254); id 254 is in" in caplog.messages[0]
    )
    assert "004.png: is it meant?" in caplog.messages[0]
