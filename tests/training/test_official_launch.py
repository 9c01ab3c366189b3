"""An official recipe under ``accelerate launch``: sixteen pictures a step on any number of processes, resumed after a kill."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launching import accelerate_launch, launch_environment
from tiny_recipes import TINY

from noise2map.rendering.export import export_frames
from noise2map.runs.run_directory import read_metrics

OWN = {"train.total_batch", "train.batch_size", "train.iterations", "train.save_every", "train.eval_steps"}


def commands(data, out, processes):
    changes = [change for change in TINY if change.split("=")[0] not in OWN]
    changes += [f"data.root={data}", "data.size=256x96", "data.crop=96x64", "train.batch_size=2", "train.iterations=3"]
    changes += ["train.save_every=1", "train.eval_steps=[1]", "train.sample_images=0", "train.threads=1"]
    words = ["train", "official/ade20k-swin-t", "--out", str(out), *(word for change in changes for word in ("--set", change))]
    script = [str(Path(sys.executable).with_name("noise2map")), *words]
    if processes == 1:
        return [sys.executable, *script]
    return [*accelerate_launch(processes), *script]


def run(words, environment):
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_sixteen_pictures_a_step_on_one_process_and_on_two(tmp_path):
    export_frames("ade20k", "samples", tmp_path / "data", limit=20)
    environment = launch_environment()
    for processes in (1, 2):
        out = tmp_path / f"run{processes}"
        printed = run(commands(tmp_path / "data", out, processes), environment)
        assert set(re.findall(r"(\d+) steps of (\d+)", printed)) == {("3", "16")}
        losses = [record["loss"] for record in read_metrics(out) if "loss" in record]
        assert len(losses) == 3 and (out / "final" / "model.safetensors").is_file()

    # As if killed in the third step: its checkpoint is not complete, its record goes, and both come out the same.
    weights = (out / "final" / "model.safetensors").read_bytes()
    (out / "checkpoint-3" / "complete").unlink()
    shutil.rmtree(out / "final")
    run([*commands(tmp_path / "data", out, 2), "--resume"], environment)
    assert [record["loss"] for record in read_metrics(out) if "loss" in record] == losses
    assert (out / "final" / "model.safetensors").read_bytes() == weights
