"""The list of what a new task takes (docs/architecture.md), held against the task that was added last: surface normals."""

import ast
import re
from pathlib import Path

import noise2map

PACKAGE = Path(noise2map.__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"

# Not part of what a task is: these know normals as geometry of points and images, as truth of one renderer and its walks, as one
# head of an encoder for many tasks, or show a model of normals because it ships.
OTHERS = (
    "geometry.py", "report/palettes.py", "generation/", "rendering/", "data/freedoom/format.py", "training/encoders/", "cli/",
    "demo/", "app/", "zoo/", "metrics/samples/", "models/distributions/", "metrics/room_geometry/", "metrics/temporal/",
    "data/freedoom/motion.py")  # fmt: skip
# Shorthand of one line each for users of Python.
SHORTHAND = {"tasks/prediction.py"}


def words_of(path):
    """Identifiers and texts of a module, docstrings aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docs = {id(node.value) for holder in ast.walk(tree) if isinstance(holder, holders) for node in holder.body
            if isinstance(node, ast.Expr)}  # fmt: skip
    for node in ast.walk(tree):
        for name in ("id", "attr", "name", "arg", "module"):
            yield str(getattr(node, name, ""))
        if isinstance(node, ast.Constant) and id(node) not in docs:
            yield str(node.value)


def test_the_page_lists_all_files_that_know_of_normals():
    section = PAGE.read_text(encoding="utf-8").partition("**A task.**")[2].partition("**A command.**")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`([a-z_/]+\.py)`", row.split("|")[1])}
    knowing = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(re.search(r"normals\b|NormalEst", word, re.IGNORECASE) for word in words_of(path))
    }
    assert {name for name in knowing if not name.startswith(OTHERS)} - SHORTHAND == listed
    assert len(listed) == 11


def test_the_list_would_notice_another_file():
    assert "open_normals_map" in set(words_of(PACKAGE / "tasks" / "normals.py"))
    assert not any("normals" in word for word in words_of(PACKAGE / "data" / "folder.py"))
