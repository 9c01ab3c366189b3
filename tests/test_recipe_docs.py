"""The pages about recipes and data sets: their commands exist, and the table of published scores is that of the package."""

import functools
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from noise2map.cli import app
from noise2map.evaluation.official import published_scores
from noise2map.training.recipe_files import recipe_names

ROOT = Path(__file__).parent.parent
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("recipes", "datasets")}
BLOCKS = [line for page in PAGES.values() for block in re.findall(r"```bash\n(.*?)```", page, re.S) for line in block.splitlines()]
INLINE = [text for page in PAGES.values() for text in re.findall(r"`(noise2map [^`\n]+)`", page)]
COMMANDS = sorted({line.split(" #")[0].strip() for line in [*BLOCKS, *INLINE] if line.startswith("noise2map ")})


@functools.cache
def help_of(path):
    result = CliRunner().invoke(app, [*path, "--help"])
    return result.output if result.exit_code == 0 else None


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_options_and_recipes_exist(command):
    words = shlex.split(command)[1:]
    path = tuple(words[: 2 if words[0] in ("data", "convert", "bench") else 1])
    assert help_of(path) is not None, f"there is no noise2map {' '.join(path)}"
    for option in (word.split("=")[0] for word in words if word.startswith("--")):
        assert option in help_of(path), f"{option} is not an option of {' '.join(path)}"
    assert {word for word in words if word.startswith("official/")} <= set(recipe_names())


def test_the_table_of_commands_has_every_published_score():
    path = ROOT / "benchmarks" / "update_tables.py"
    spec = importlib.util.spec_from_file_location("update_tables", path)
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    table = tables.command_table()
    assert table.strip() in PAGES["recipes"], "run benchmarks/update_tables.py"
    for row in published_scores():
        if row["dataset"] == "nuscenes":
            continue  # scored by docs/bev.md's command; there is no official recipe for it
        name = f"{row['dataset']}-{row['backbone']}" + "-aligned" * (row["self_aligned"] == "yes")
        line = next(line for line in table.splitlines() if f"official/{name} " in line)
        assert row["value"] in line and f"--dataset {row['dataset']} " in line
        if row["protocol"] == "official":
            assert row["steps"] in line.split("--steps ")[1].split("`")[0].split()
    chosen = tables.command_table(largest_only=True).splitlines()
    assert len(chosen) == 2 + 5 and all(line in table for line in chosen[2:])
