"""The table of tasks, and the commands that take their names from it."""

import subprocess
import sys
import types

import pytest
import torch
from tiny_models import tiny_depth_model

from noise2map import cli
from noise2map.tasks import IMAGE_TASKS, TASKS, scoring
from noise2map.tasks.scoring import ScoringOptions


def test_the_table_says_which_maps_are_of_images():
    assert tuple(name for name in TASKS if TASKS[name].of_images) == IMAGE_TASKS


@pytest.mark.parametrize("words", [["train", "folder"], ["evaluate"], ["data", "check", "folder", "x"]], ids=" ".join)
def test_commands_offer_every_task_of_images(words, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([*words, "--task", "bev"])
    message = capsys.readouterr().err
    assert caught.value.code == 2 and all(f"'{name}'" in message for name in IMAGE_TASKS)


def test_names_are_known_without_torch():
    code = "import sys, noise2map.cli.options, noise2map.cli.data; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_right_or_wrong_is_said_of_classes_alone():
    assert {name: task.binary_errors for name, task in TASKS.items()} == {
        "segmentation": True,
        "depth": False,
        "bev": True,
        "normals": False,
    }


def test_maps_at_full_size_are_scored_in_parts_that_fit(monkeypatch):
    scorer, floats = TASKS["depth"].scorer(tiny_depth_model(), ScoringOptions()), 2 * 7 * 10 * 12  # two maps of 7 channels
    monkeypatch.setattr(scoring, "_CHUNK_FLOATS", floats)
    output = types.SimpleNamespace(prediction=torch.zeros(5, 7, 3, 4))
    parts = [part for part, size in scorer._parts(output, [(10, 12)] * 5)]
    assert parts == [[0, 1], [2, 3], [4]]
