"""The table of tasks, and the commands that take their names from it."""

import subprocess
import sys

import pytest

from noise2map import cli
from noise2map.tasks import IMAGE_TASKS, TASKS


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
