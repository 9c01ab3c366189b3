"""``docs/commands.md`` is what its script makes of the help."""

import importlib.util
import re
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PINNED = re.search(r"^typer==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]


@pytest.mark.skipif(version("typer") != PINNED, reason="other versions of typer write types otherwise")
def test_the_page_of_commands_is_that_of_the_help():
    spec = importlib.util.spec_from_file_location("make_commands", ROOT / "docs" / "make_commands.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    committed = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert script.page() == committed, "run python docs/make_commands.py"
