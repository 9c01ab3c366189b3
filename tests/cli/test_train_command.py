import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from noise2map.cli import main
from noise2map.data.freedoom.shipped import SAMPLES_ROOT
from noise2map.runs.output_folder import locked
from noise2map.runs.run_directory import find_start, write_config
from noise2map.training import read_metrics

TINY = """
data: {{name: folder, train: {root}, val: {root}, class_names: [floor, wall], size: none, crop_scale: none}}
model:
  config:
    backbone_config: {{model_type: resnet, embedding_size: 8, hidden_sizes: [8, 8, 8, 8], depths: [1, 1, 1, 1], layer_type: basic}}
    hidden_size: 16
    group_norm_groups: 4
    decoder_layers: 1
    decoder_attention_heads: 2
    decoder_n_points: 2
    decoder_ffn_dim: 16
    time_embed_dim: 16
    auxiliary_channels: 8
optim: {{lr: 1e-3}}
schedule: {{warmup_iterations: 2}}
train:
  {{iterations: 4, batch_size: 2, log_every: 1, save_every: 2, eval_every: 4, eval_steps: [1, 2], sample_images: 1, threads: 1}}
"""


@pytest.fixture
def recipe(tmp_path):
    root = tmp_path / "data"
    for name in ("images", "maps"):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(4):
        labels = (np.arange(40)[None] > rng.integers(5, 35)) * np.ones((32, 1), dtype=np.uint8)
        Image.fromarray((labels[..., None] * 200 + rng.integers(0, 50, (32, 40, 3))).astype(np.uint8)).save(
            root / "images" / f"{index}.png"
        )
        Image.fromarray(labels.astype(np.uint8)).save(root / "maps" / f"{index}.png")
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(root=root))
    return path


def run(*arguments):
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return exit_.value.code


def test_train_from_a_folder_writes_a_run_and_a_model_that_loads(tmp_path, recipe, capsys):
    from noise2map import Noise2MapForSemanticSegmentation

    out = tmp_path / "run"
    assert run("train", recipe, "--out", out) == 0
    assert "4 training and 4 validation samples" in capsys.readouterr().out
    config = json.loads((out / "config.json").read_text())
    assert config["recipe"]["optim"]["lr"] == 1e-3 and config["model"]["hidden_size"] == 16
    records = read_metrics(out)
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3, 4]
    assert any("final_mIoU_2" in record for record in records)
    model = Noise2MapForSemanticSegmentation.from_pretrained(out / "final")
    assert model.config.id2label == {0: "floor", 1: "wall"}


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_training_set_smaller_than_a_batch_leaves_nothing_behind(tmp_path, recipe, capsys):
    out = tmp_path / "run"
    assert run("train", recipe, "--out", out, "--set", "train.batch_size=5") == 2
    assert "the training set has 4 samples; expected at least one batch of 5" in capsys.readouterr().err
    assert not out.exists()
    assert run("train", recipe, "--out", out) == 0


def test_a_finished_run_is_left_alone_with_and_without_resume(tmp_path, recipe, capsys):
    out = tmp_path / "run"
    # Three steps in epochs of two: Trainer does one step more when it is resumed in the middle of an epoch.
    command = ("train", recipe, "--out", out, "--set", "train.iterations=3", "--set", "train.save_every=3")
    assert run(*command) == 0
    before = content(out)
    capsys.readouterr()
    for more in ((), ("--resume",)):
        assert run(*command, *more) == 0
        said = capsys.readouterr().out
        assert "is finished" in said and "nothing was done" in said
        assert content(out) == before


def test_a_run_killed_before_its_export_is_exported_without_a_further_step(tmp_path, recipe):
    out = tmp_path / "run"
    command = ("train", recipe, "--out", out, "--set", "train.iterations=3", "--set", "train.save_every=3")
    assert run(*command) == 0
    whole = (out / "final" / "model.safetensors").read_bytes()
    shutil.rmtree(out / "final")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"finished_steps": 0}))
    assert run(*command) == 0
    assert (out / "final" / "model.safetensors").read_bytes() == whole
    assert [record["step"] for record in read_metrics(out) if "loss" in record] == [1, 2, 3]


def test_the_same_command_goes_on_and_a_longer_run_needs_resume(tmp_path, recipe, capsys):
    out = tmp_path / "run"
    assert run("train", recipe, "--out", out, "--resume", "--set", "train.iterations=2", "--set", "train.eval_every=0") == 0
    before = content(out)
    assert run("train", recipe, "--out", out) == 2
    error = capsys.readouterr().err
    assert "train.iterations 2 there, 4 here" in error and "--resume" in error and content(out) == before
    assert run("train", recipe, "--out", out, "--resume") == 0
    assert [record["step"] for record in read_metrics(out) if "loss" in record] == [1, 2, 3, 4]
    assert json.loads((out / "config.json").read_text())["recipe"]["train"]["iterations"] == 4
    # As if killed in the fourth step: the same command, which says nothing of resuming, ends in the same weights.
    whole = (out / "final" / "model.safetensors").read_bytes()
    (out / "checkpoint-4" / "complete").unlink()
    shutil.rmtree(out / "final")
    capsys.readouterr()
    assert run("train", recipe, "--out", out) == 0
    assert "goes on from checkpoint-2" in capsys.readouterr().out
    assert (out / "final" / "model.safetensors").read_bytes() == whole


def test_a_run_without_a_checkpoint_starts_over(tmp_path, recipe, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run("train", recipe, "--out", whole) == 0
    broken.mkdir()
    (broken / "config.json").write_bytes((whole / "config.json").read_bytes())
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"finished_steps": 0}))
    (broken / "metrics.jsonl").write_text('{"step": 1, "loss": 9.0}\n')
    capsys.readouterr()
    assert run("train", recipe, "--out", broken) == 0
    assert "starts over" in capsys.readouterr().out
    assert [r["loss"] for r in read_metrics(broken) if "loss" in r] == [r["loss"] for r in read_metrics(whole) if "loss" in r]


def test_a_run_that_failed_before_its_first_checkpoint_does_not_bar_the_mended_command(tmp_path, recipe, capsys):
    out = tmp_path / "run"
    assert run("train", recipe, "--out", out, "--set", "optim.lr=1e30") == 2  # the loss is not finite
    said = capsys.readouterr().err
    assert "lower the learning rate" in said and (out / "config.json").is_file() and not list(out.glob("checkpoint-*"))
    assert run("train", recipe, "--out", out) == 0
    assert json.loads((out / "config.json").read_text())["recipe"]["optim"]["lr"] == 0.001


def test_options_of_a_folder_are_refused_for_a_recipe(tmp_path, recipe, capsys):
    assert run("train", recipe, "--out", tmp_path / "run", "--task", "depth") == 2
    assert "--task and --depth-scale are of your own data" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, named",
    [
        (["optim.lr=1e-2"], ["optim.lr 0.001 there, 0.01 here"]),
        (["model.config.hidden_size=64"], ["model.config.hidden_size 16 there, 64 here"]),
        (["data.size=32x32", "train.batch_size=1"], ['data.size null there, "32x32" here', "train.batch_size"]),
        (["train.iterations=3"], ["train.iterations 4 there, 3 here"]),
    ],
)
def test_resuming_with_other_settings_is_refused_by_name(tmp_path, recipe, capsys, changes, named):
    out = tmp_path / "run"
    assert run("train", recipe, "--out", out) == 0
    before = content(out)
    capsys.readouterr()
    words = [word for change in changes for word in ("--set", change)]
    assert run("train", recipe, "--out", out, "--resume", *words) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in named) and error.count("\n") == 1
    assert content(out) == before
    # What is looked at on the way may change.
    assert run("train", recipe, "--out", out, "--resume", "--set", "train.eval_every=1", "--set", "train.threads=2") == 0


def test_a_second_process_is_refused_before_it_has_read_anything(tmp_path, recipe, capsys):
    out = tmp_path / "run"
    with locked(out):
        assert run("train", recipe, "--out", out) == 2
        assert "another process" in capsys.readouterr().err and [path.name for path in out.iterdir()] == [".noise2map.lock"]
    assert not out.exists()


def test_other_files_are_not_trained_over(tmp_path, recipe, capsys):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "config.json").write_text('{"model_type": "resnet"}')
    assert run("train", recipe, "--out", out) == 2
    assert "no run of this command" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["config.json"]


def test_missing_data_is_found_out_before_anything_heavy_is_imported(tmp_path):
    code = (
        "import sys\nfrom noise2map.cli import main\n"
        "try: main(['train', 'official/ade20k-swin-t', '--set', 'data.root=nowhere'])\n"
        "finally: print(sorted({'torch', 'transformers', 'diffusers', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "no folder nowhere" in done.stderr and done.stderr.count("\n") == 1
    assert done.stdout.strip() == "[]" and not list(tmp_path.iterdir())


def test_dry_run_resolves_the_recipe_and_trains_nothing(tmp_path, recipe, capsys):
    out = tmp_path / "run"
    assert run("train", recipe, "--out", out, "--dry-run", "--set", "optim.lr=2e-3") == 0
    printed = capsys.readouterr().out
    assert "lr: 0.002" in printed and not printed.strip().splitlines()[-1].startswith(" ")
    assert printed.index("lr: 0.002") < printed.index("M parameters")  # what one wants to know comes last
    assert not out.exists()


def test_dry_run_needs_no_data(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("train", "official/ade20k-swin-t", "--dry-run", "--set", "model.config.decoder_layers=5") == 0
    printed = capsys.readouterr().out
    # 39666734 parameters less those of one decoder layer.
    offsets, weights, projections, norms = 256 * 64 + 64, 256 * 32 + 32, 2 * (256 * 256 + 256), 2 * 2 * 256
    feed_forward, time = 256 * 1024 + 1024 + 1024 * 256 + 256, 1024 * 512 + 512
    count = 39666734 - (offsets + weights + projections + norms + feed_forward + time)
    assert f"{count / 1e6:.2f}M parameters" in printed and "no folder data/ade20k yet" in printed and "crop: 512x512" in printed
    assert not list(tmp_path.iterdir())


def test_list(capsys):
    assert run("train", "--list") == 0
    assert "freedoom-depth-tiny" in capsys.readouterr().out.split()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--set", "optim.lrr=1"], "did you mean optim.lr?"),
        (["--set", "data.train=nowhere"], "nowhere"),
        (["--set", "model.config.hiden_size=1"], "hiden_size"),
        (["--set", "model.init_from=./nowhere"], "./nowhere"),
    ],
)
def test_mistakes_are_one_line_without_traceback(tmp_path, recipe, capsys, arguments, message):
    assert run("train", recipe, "--out", tmp_path / "run", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and error.strip().count("\n") == 0


def test_no_recipe_and_an_unknown_one(capsys):
    assert run("train") == 2
    assert "freedoom-segmentation-tiny" in capsys.readouterr().err
    assert run("train", "no-such-recipe") == 2
    assert "no-such-recipe" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_from_outside_and_resumed(tmp_path, recipe):
    """A process that is killed in the middle of a step, not asked to stop; the curve must be that of an undisturbed run."""
    die = (
        "import os, noise2map.training.maps.trainer as t\n"
        "step = t.MapTrainer.training_step\n"
        "def training_step(self, *a, **k):\n"
        "    if self.state.global_step == 3: os._exit(9)\n"
        "    return step(self, *a, **k)\n"
        "t.MapTrainer.training_step = training_step\n"
    )
    command = "from noise2map.cli import main; main()"
    outs = [tmp_path / "whole", tmp_path / "killed"]
    arguments = ["train", str(recipe), "--resume", "--out"]
    assert subprocess.run([sys.executable, "-c", command, *arguments, str(outs[0])]).returncode == 0
    assert subprocess.run([sys.executable, "-c", die + command, *arguments, str(outs[1])]).returncode == 9
    assert subprocess.run([sys.executable, "-c", command, *arguments, str(outs[1])]).returncode == 0
    curves = [[r["loss"] for r in read_metrics(out) if "loss" in r] for out in outs]
    assert curves[0] == curves[1] and len(curves[0]) == 4
    assert (outs[0] / "final" / "model.safetensors").read_bytes() == (outs[1] / "final" / "model.safetensors").read_bytes()


def test_a_finished_run_without_checkpoints_is_not_begun_again(tmp_path, recipe, capsys):
    """Checkpoints were deleted to save room, and a longer run would have started over upon what was there."""
    out = tmp_path / "run"
    assert run("train", recipe, "--out", out, "--set", "train.iterations=2", "--set", "train.eval_every=0") == 0
    for checkpoint in out.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    before = content(out)
    capsys.readouterr()
    assert run("train", recipe, "--out", out, "--resume") == 2
    assert "is finished and holds no checkpoint to go on from; choose another --out" in capsys.readouterr().err
    assert content(out) == before


def test_the_same_folders_may_be_spelt_otherwise(tmp_path):
    recipe = {"data": {"root": "d", "train": "train"}, "train": {"iterations": 2, "cache_features": "f"}}
    write_config(tmp_path, {"recipe": recipe, "finished_steps": 2})
    (tmp_path / "final").mkdir()
    spelt = {"root": os.path.abspath("d"), "train": os.path.abspath("train")}
    same = {"data": spelt, "train": {"iterations": 2, "cache_features": os.path.abspath("./x/../f")}}
    assert find_start(tmp_path, same).state == "finished"
    with pytest.raises(ValueError, match="holds a run of other settings"):
        find_start(tmp_path, {**same, "data": {**spelt, "root": "/elsewhere/d"}})


def test_a_run_that_is_begun_anew_forgets_which_images_another_was_trained_on(tmp_path, recipe):
    out = tmp_path / "run"
    out.mkdir()
    write_config(out, {"recipe": {"data": {"name": "folder"}}, "finished_steps": 0})
    rooms = [f"data.{name}={value}" for name, value in {"name": "freedoom", "train": SAMPLES_ROOT, "val": SAMPLES_ROOT}.items()]
    rooms += ["data.train_limit=4", "data.class_names=none", "train.iterations=1", "train.eval_images=1", "train.eval_every=0"]
    (out / "data_split.json").write_text(json.dumps({"train": {"a.png": "0"}, "val": {}}))
    assert run("train", recipe, "--out", out, *(word for change in rooms for word in ("--set", change))) == 0
    assert not (out / "data_split.json").exists()
