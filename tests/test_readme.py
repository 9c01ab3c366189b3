"""The README's snippets run, its commands exist, and its tables are those of the result files."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from noise2map.cli import app

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = sorted({line.strip("` ") for line in re.findall(r"(?:^|\| `|^`?)(noise2map [^`\n]+)", README, flags=re.MULTILINE)})


@pytest.mark.parametrize("index", range(len(SNIPPETS)))
def test_python_snippets_run(index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(compile(SNIPPETS[index], f"README.md snippet {index}", "exec"), scope)
    if "labels" in scope and "uncertainty" in scope:
        assert tuple(scope["labels"].shape) == scope["image"].size[::-1]
        assert float(scope["uncertainty"].min()) >= 0 and float(scope["uncertainty"].max()) <= 1


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_and_their_options_exist(command):
    words = shlex.split(command)[1:]
    path = []
    for word in words:  # the command and its subcommand, up to the first argument
        if word.startswith("-") or not re.fullmatch(r"[a-z-]+", word):
            break
        path.append(word)
    runner = CliRunner()
    for length in range(len(path), 0, -1):
        result = runner.invoke(app, [*path[:length], "--help"])
        if result.exit_code == 0:
            break
    assert result.exit_code == 0, result.output
    for option in (word.split("=")[0] for word in words if word.startswith("--")):
        assert option in result.output, f"{option} is not an option of {' '.join(path[:length])}"


def test_readme_has_snippets_and_commands():
    assert SNIPPETS and len(COMMANDS) >= 7
