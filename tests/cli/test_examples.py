"""Examples in the help: every command has one, and each is a command line that parses."""

import shlex

import pytest
import typer

from noise2map import cli
from noise2map.cli.examples import EXAMPLES


def leaf_commands():
    """``predict``, ``evaluate generator``, ``data check`` ... -> click command."""
    root = typer.main.get_command(cli.app)
    found = {}
    for name in cli._COMMANDS:
        command = root.get_command(None, name)
        children = getattr(command, "commands", None)
        if children is None:
            found[name] = command
        else:
            found |= {f"{name} {child}": one for child, one in children.items() if not one.hidden}
            found.update((name, one) for one in children.values() if one.hidden)  # `train RECIPE`
    return found


def test_every_command_has_an_example():
    assert set(leaf_commands()) - {"train"} == set(EXAMPLES) - {"train"}
    assert "train" in EXAMPLES


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_parse(name):
    command = leaf_commands()[name]
    for example in EXAMPLES[name]:
        words = shlex.split(example)
        path = name.split()
        assert words[: len(path)] == path
        command.make_context(name, words[len(path) :])  # refuses unknown options, missing ones, values out of range


def test_examples_stand_in_the_help(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "model", "--help"])
    assert f"\n  noise2map {EXAMPLES['bench model'][0]}\n" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["models", "--help"])
    assert "\n  noise2map models\n" in capsys.readouterr().out
