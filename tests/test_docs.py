"""The pages: their snippets run, their commands would start, their links lead somewhere, their tables are those of the results."""

import ast
import functools
import importlib
import importlib.util
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from noise2map.cli import app
from noise2map.training.maps.recipe import load_recipe
from noise2map.training.recipe_files import recipe_names

ROOT = Path(__file__).parent.parent
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CARDS = sorted((ROOT / "src" / "noise2map" / "zoo").glob("*/README.md"))
PAGES = {str(path.relative_to(ROOT)).replace("src/noise2map/", ""): path for path in [*DOCS, *CARDS]}
SLOW = {"docs/guidance.md", "docs/training.md", "zoo/freedoom-generator-64/README.md"}  # draw and train for some seconds
NOT_RUN = re.compile(r"<!-- not run: (needs [^\n]+?) -->\n")
FENCE = re.compile(r"(<!-- not run: [^\n]+ -->\n)?^```(\w*)\n(.*?)^```", re.S | re.M)


@functools.cache
def text_of(page):
    return PAGES[page].read_text(encoding="utf-8")


def fences(page, language):
    """The blocks of a page in one language: ``(line, code, whether it runs here)``."""
    for match in FENCE.finditer(text_of(page)):
        if match[2] == language:
            yield text_of(page).count("\n", 0, match.start(3)) + 1, match[3], match[1] is None


# ---- Python ----------------------------------------------------------------------------------------------------------------


WITH_SNIPPETS = [page for page in PAGES if any(fences(page, "python"))]


@pytest.mark.parametrize("page", [pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW)) for page in WITH_SNIPPETS])
def test_snippets_run_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    snippets = [(line, code) for line, code, runs in fences(page, "python") if runs]
    for line, code in snippets:
        exec(compile("\n" * (line - 1) + code, page, "exec"), scope)
    assert not snippets or len(scope) > 1  # names beside the interpreter's own


@pytest.mark.parametrize("page", WITH_SNIPPETS)
def test_names_that_snippets_import_exist(page):
    """Also in the snippets that need data or files from elsewhere, which do not run here."""
    for _, code, _ in fences(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{page}: {node.module} has no {alias.name}"


def test_what_does_not_run_says_what_it_needs():
    marked = sum(len(re.findall("<!-- not run", text_of(page))) for page in PAGES)
    assert marked == sum(len(NOT_RUN.findall(text_of(page))) for page in PAGES)
    assert marked == sum(not runs for page in PAGES for _, _, runs in fences(page, "python"))
    assert marked <= 6


# ---- commands --------------------------------------------------------------------------------------------------------------


def command_lines(page):
    """Every whole command of the page's blocks and tables, as words after ``noise2map``."""
    for match in FENCE.finditer(text_of(page)):
        for line in match[3].replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True) if "noise2map " in line else []
            while words and words[0] in ("noise2map", "accelerate", "torchrun", "$(which"):  # launchers stand before the command
                start = next((place for place, word in enumerate(words) if word in ("noise2map", "noise2map)")), None)
                words = words[start + 1 :] if start is not None else []
                yield tuple(words)
                break
    for row in re.findall(r"^\|.*\|$", text_of(page), re.M):
        yield from (tuple(shlex.split(command)) for command in re.findall(r"`noise2map ([^`]+)`", row) if "--" in command)


def mentions(page):
    """Commands in running text, which may leave out what does not matter there."""
    prose = re.sub(r"^\|.*\|$", "", FENCE.sub("", text_of(page)), flags=re.M)
    yield from (tuple(shlex.split(command)) for command in re.findall(r"`noise2map ([^`]+)`", prose))


def is_group(command):
    return hasattr(command, "resolve_command")


def parsed(words):
    """Parses a command line as the program would, without running it; what is required must be there."""
    command = typer.main.get_command(app)
    context = command.make_context("noise2map", list(words))
    while is_group(command):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)
    return context


COMMANDS = sorted({(page, words) for page in PAGES for words in command_lines(page)})


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=lambda value: " ".join(value) if isinstance(value, tuple) else value)
def test_commands_would_start(page, words):
    assert not is_group(parsed(words).command)
    assert {word for word in words if word.startswith("official/")} <= set(recipe_names())
    if words[0] == "train" and words[1] in recipe_names():  # what is set goes together, too
        load_recipe(words[1], [value for option, value in itertools.pairwise(words) if option == "--set"])


@pytest.mark.parametrize(("page", "words"), sorted({(page, words) for page in PAGES for words in mentions(page)}), ids=str)
def test_commands_in_the_text_exist(page, words):
    if words[0].isupper() or words[0].startswith("-"):
        return
    command = typer.main.get_command(app)
    context, rest = command.make_context("noise2map", ["demo"]), list(words)
    while is_group(command) and rest and (command.name != "train" or rest[0] in command.commands):
        _, command, rest = command.resolve_command(context, rest)
    commands = command.commands.values() if command.name == "train" else [command]  # "train RECIPE" is "train recipe RECIPE"
    known = {option for one in commands for parameter in one.params for option in [*parameter.opts, *parameter.secondary_opts]}
    assert {word.split("=")[0] for word in rest if word.startswith("--")} <= known | {"--help"}


def test_parsing_sees_what_is_missing():
    usage_error = typer.BadParameter.__mro__[1]
    for words in (("sample", "--seeds", "3"), ("demo", "--nothing"), ("nothing",), ("predict", "--model", "freedoom-normals-tiny")):
        with pytest.raises(usage_error):
            parsed(words)
    assert len(COMMANDS) > 80


# ---- notebooks -------------------------------------------------------------------------------------------------------------


NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_from_top_to_bottom(path, tmp_path):
    """In a process of their own, as a kernel would; what they hold was made without an error."""
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert all(output["output_type"] != "error" for cell in cells for output in cell["outputs"])
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"])
    script = tmp_path / "notebook.py"
    script.write_text("\n\n".join("".join(cell["source"]) for cell in cells), encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "MPLBACKEND": "agg", "PATH": path}
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]


# ---- the site --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    """Broken links, pages that nothing leads to and docstrings that cannot be read are warnings."""
    pytest.importorskip("sphinx")
    copy = tmp_path / "docs"
    shutil.copytree(ROOT / "docs", copy, ignore=shutil.ignore_patterns("api", "__pycache__"))
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "results", "benchmarks", "src", "tests", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    words = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-E", "-b", "html", str(copy), str(tmp_path / "site")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "site" / "api" / "models.html").read_text(encoding="utf-8")
    assert "Noise2MapForDepthEstimation" in page and "in metres" in page


# ---- links and tables ------------------------------------------------------------------------------------------------------


def anchors(path):
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    path = PAGES.get(page, ROOT / page)
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", path.read_text(encoding="utf-8"))):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        other = (path.parent / name).resolve() if name else path
        assert other.exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(other), f"{page} links to {target}; there is no such heading"


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_files_and_modules_in_the_text_exist(page):
    text = (PAGES.get(page) or ROOT / page).read_text(encoding="utf-8")
    for name in re.findall(r"`((?:tests|benchmarks|models|noise2map)/[\w/]+\.\w+)`", text):
        assert any((folder / name).exists() for folder in (ROOT, ROOT / "src", ROOT / "src" / "noise2map")), f"{page}: no {name}"
    for name in re.findall(r"`(noise2map(?:\.\w+)+)`", text):
        module, _, last = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), last), f"{page}: no {name}"


@functools.cache
def tables():
    spec = importlib.util.spec_from_file_location("update_tables", ROOT / "benchmarks" / "update_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_those_of_the_results():
    for (path, name), table in tables().blocks().items():
        assert f"<!-- {name} -->\n{table}\n<!-- /{name} -->" in path.read_text(encoding="utf-8"), (
            f"{path.relative_to(ROOT)}, {name}: run benchmarks/update_tables.py"
        )


def test_no_page_has_a_generated_table_that_nothing_generates():
    known = {(path, name) for path, name in tables().blocks()}
    for path in PAGES.values():
        marks = re.findall(r"<!-- /(.+?) -->", path.read_text(encoding="utf-8"))
        assert {(path, name) for name in marks} <= known


def test_the_table_of_commands_has_every_published_score():
    table = tables().command_table()
    for row in tables().published_scores():
        if row["dataset"] == "nuscenes":
            continue  # scored by docs/bev.md's command; there is no official recipe for it
        name = f"{row['dataset']}-{row['backbone']}" + "-aligned" * (row["self_aligned"] == "yes")
        line = next(line for line in table.splitlines() if f"official/{name} " in line)
        assert row["value"] in line and f"--dataset {row['dataset']} " in line
        if row["protocol"] == "official":
            assert row["steps"] in line.split("--steps ")[1].split("`")[0].split()


def test_uncertainty_tables_have_every_kind_that_was_scored():
    for task in tables().SCORES:
        header = tables().uncertainty_table(task).splitlines()[0]
        columns = tables().read_csv(ROOT / "results" / f"evaluate_{task}.csv")[0]
        kinds = {name.removesuffix("_auroc").replace("_", " ") for name in columns if name.endswith("_auroc")}
        assert kinds <= set(header.strip("| ").split(" | "))


# ---- the house -------------------------------------------------------------------------------------------------------------


def names_in(path):
    """Names of classes and functions that a file defines, methods included."""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, kinds)}


def test_the_page_of_the_house_names_what_is_there():
    text, package = text_of("docs/architecture.md"), ROOT / "src" / "noise2map"
    for name in re.findall(r"`((?:[a-z_0-9]+/)+(?:[a-z_0-9]+\.(?:py|csv))?|[a-z]+\.py)`", text):
        assert (package / name).exists() or (ROOT / name).exists(), f"there is no {name}"
    for path, name in re.findall(r"^\| `(\S+\.py)` \| `(\w+)` \|", text, re.M):
        assert name in names_in(package / path), f"{path} has no {name}"
    rooms = {path.name + "/" * path.is_dir() for path in package.iterdir() if not path.name.startswith(("__", "py.typed"))}
    assert rooms == set(re.findall(r"^\| `([a-z]+(?:/|\.py))` \|", text, re.M))


def test_the_picture_of_the_house_can_be_drawn(tmp_path):
    spec = importlib.util.spec_from_file_location("make_architecture", ROOT / "docs" / "make_architecture.py")
    drawing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawing)
    edges, lines = drawing.real_imports()
    assert set(edges) == set(lines) == set(drawing.JOBS)
    assert {room for members in drawing.GROUPS.values() for room in members} == set(drawing.JOBS)
    drawing.draw().savefig(tmp_path / "house.png")


# ---- numbers ---------------------------------------------------------------------------------------------------------------


@functools.cache
def known_intervals():
    """Every ``(value, low, high)`` of the results."""
    found = set()
    for path in sorted((ROOT / "results").glob("*.csv")):
        for row in tables().read_csv(path):
            if "difference" in row and "low" in row:
                found.add((row["difference"], row["low"], row["high"]))
            for name in row:
                ends = (row.get(f"{name}_low"), row.get(f"{name}_high"))
                if all(isinstance(end, (int, float)) for end in (row[name], *ends)):
                    found.add((row[name], *ends))
    return found


def is_known(value, low, high):
    """Whether a row, as it is or in percent or turned round, gives these numbers at the digits that they are written with."""
    written = [text.lstrip("+") for text in (value, low, high)]
    digits = [len(text.partition(".")[2]) for text in written]
    for row in known_intervals():
        for factor in (1, 100, -1, -100):
            ends = row if factor > 0 else (row[0], row[2], row[1])
            if all(abs(factor * end - float(text)) <= 0.5001 * 10**-d for end, text, d in zip(ends, written, digits)):
                return True
    return False


NUMBER = r"[-+]?\d+\.\d+"
INTERVAL = re.compile(rf"[\[(,] ?(?:95 % interval (?:over places )?)?({NUMBER})(?:, | to )({NUMBER})(?=[\]);,])")


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("zoo/") or page in ("README.md", "docs/findings.md")])
def test_intervals_in_the_text_are_rows_of_the_results(page):
    text = re.sub(r"<!-- (.+?) -->\n.*?<!-- /\1 -->", "", FENCE.sub("", text_of(page)), flags=re.S).replace("\n", " ")
    for match in INTERVAL.finditer(text):
        before = re.findall(NUMBER, text[max(0, match.start() - 120) : match.start()])[-2:]
        assert any(is_known(value, *match.groups()) for value in before), f"{page}: {before} {match[0]} has no row in results/"
