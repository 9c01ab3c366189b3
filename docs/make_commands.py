"""Writes ``docs/commands.md`` from the help of every command: ``python docs/make_commands.py``."""

from pathlib import Path
from typing import Any

import typer

from noise2map import cli
from noise2map.cli.examples import EXAMPLES

PAGE = Path(__file__).parent / "commands.md"
_HEAD = """# Commands

Made from `noise2map COMMAND --help` by `python docs/make_commands.py`; do not edit.

Every command is quick to refuse: a mistake is one line and exit code 2, before any work. Exit code 1 means that some inputs
failed, 130 that the command was interrupted. Several values follow one option as they are (`--steps 1 3 10`) or with commas
(`--steps 1,3,10`). `noise2map --install-completion` installs completion for your shell; `python -m noise2map` is the same command.
"""


def page() -> str:
    """The whole page."""
    root: Any = typer.main.get_command(cli.app)
    context = root.make_context("noise2map", ["--help"], resilient_parsing=True)
    parts = [_HEAD]
    commands = [(name, root.get_command(context, name), context) for name in cli._COMMANDS]
    parts.append("\n".join(f"- [`noise2map {name}`](#noise2map-{_anchor(name)}): {one.short_help}" for name, one, _ in commands))
    for name, command, parent in commands:
        parts += _sections(name, command, parent)
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _sections(name: str, command: Any, parent: Any) -> list[str]:
    context = command.make_context(name, [], parent=parent, resilient_parsing=True)
    children = getattr(command, "commands", None)
    if children is None:
        return [_section(name, command, context)]
    found = []
    for word, child in children.items():
        path = name if child.hidden else f"{name} {word}"  # `train RECIPE` is a hidden command of `train`
        found.append(_section(path, child, child.make_context(word, [], parent=context, resilient_parsing=True)))
    if not any(child.hidden for child in children.values()):
        found.insert(0, f"## noise2map {name}\n\n{_unwrapped(command.help)}")
    return found


def _section(path: str, command: Any, context: Any) -> str:
    records = [one.get_help_record(context) for one in command.params]
    lines = [
        f"- `{' '.join(names.split())}`: {' '.join((text or '').split())}".rstrip(": ") for names, text in filter(None, records)
    ]
    examples = "\n".join(f"noise2map {one}" for one in EXAMPLES.get(path, ()))
    parts = [f"## noise2map {path}", _unwrapped(command.help), "\n".join(lines), f"```bash\n{examples}\n```" * bool(examples)]
    return "\n\n".join(filter(None, parts))


def _unwrapped(text: str | None) -> str:
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))


def _anchor(name: str) -> str:
    return name.replace(" ", "-")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
