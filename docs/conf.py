"""The documentation as a site: ``make docs`` writes it to ``build/site``; every warning, such as a broken link, is an error.

The pages are the Markdown files of this folder, which read as well without the site; ``api/`` is made from docstrings.
"""

import importlib
import re
import shutil
from pathlib import Path

import noise2map

HERE = Path(__file__).parent
project, author, copyright = "noise2map", "the authors of noise2map", "the authors of noise2map, Apache-2.0"
release = version = noise2map.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
html_theme, html_title = "furo", "noise2map"
html_static_path: list[str] = []
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 4
# A docstring says `name` in single backquotes for code, and shapes in plain text.
default_role = "code"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True
# What of the package is public: the rooms that a user imports from.
ROOMS = (
    "models", "diffusion", "codecs", "inference.predictor", "guidance", "metrics", "data", "data.freedoom", "training",
    "evaluation", "geometry", "zoo", "hub.cards", "hub.upload", "hub.push",
)  # fmt: skip


def public_names(module: object) -> list[str]:
    """Names of a module's interface: its ``__all__``, else the public ones defined in it."""
    names = getattr(module, "__all__", None)
    if names is not None:
        return sorted(names)
    here = module.__name__  # type: ignore[attr-defined]
    return sorted(name for name, value in vars(module).items() if name[0] != "_" and getattr(value, "__module__", None) == here)


def write_api(folder: Path) -> None:
    """One page for each room, with the whole docstring of each public name."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    told: set[int] = set()
    for room in ROOMS:
        module = importlib.import_module(f"noise2map.{room}")
        title = f"noise2map.{room}"
        lines = [title, "=" * len(title), "", f".. currentmodule:: {title}", "", (module.__doc__ or "").strip(), ""]
        for name in public_names(module):
            value = getattr(module, name)
            if not callable(value):
                lines += [f".. py:data:: {title}.{name}", "   :no-index:", ""]
                continue
            lines += [f".. {'autoclass' if isinstance(value, type) else 'autofunction'}:: {title}.{name}"]
            lines += ["   :no-index:", ""] if id(value) in told else [""]
            told.add(id(value))
        (folder / f"{room}.rst").write_text("\n".join(lines), encoding="utf-8")
    toctree = "\n".join(f"   {page}" for page in ROOMS)
    head = "Python interface\n================\n\nFrom the docstrings; shapes, units and errors stand with each name.\n\n"
    (folder / "index.rst").write_text(f"{head}.. toctree::\n   :maxdepth: 1\n\n{toctree}\n", encoding="utf-8")


def markdown_to_rst(app: object, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Blocks of code and links in docstrings are written as in Markdown."""
    made, inside = [], False
    for line in lines:
        bare, indent = line.strip(), line[: len(line) - len(line.lstrip())]
        if bare.startswith("```"):
            made += [""] if inside else ["", f"{indent}.. code-block:: {bare[3:] or 'text'}", ""]
            inside = not inside
        else:
            made.append(f"    {line}" if inside and bare else re.sub(r"\[([^\]]+)\]\((https?://[^)]+)\)", r"`\1 <\2>`__", line))
    lines[:] = made


def complete_index(app: object, name: str, source: list[str]) -> None:
    """The table of pages is the first page's own; the site needs its order once more, and files from outside of this folder."""
    source[0] = source[0].replace("(../CONTRIBUTING.md)", "(api/contributing.md)")
    if name == "index":
        pages = re.findall(r"^\| \[[^\]]+\]\((\w+)\.md\)", source[0], re.MULTILINE)
        listed = "\n".join([*pages, "api/index", "api/contributing", "api/changelog"])
        source[0] += f"\n```{{toctree}}\n:hidden:\n\n{listed}\n```\n"


def setup(app: object) -> None:
    """Called by Sphinx."""
    write_api(HERE / "api")
    for name in ("CONTRIBUTING", "CHANGELOG"):
        text = (HERE.parent / f"{name}.md").read_text(encoding="utf-8")
        text = text.replace("](docs/", "](../")
        text = text.replace("](CHANGELOG.md)", "](changelog.md)").replace("](CONTRIBUTING.md)", "](contributing.md)")
        text = re.sub(r"\[([^\]]+)\]\((?!https?:|\.\./|changelog|contributing)[^)]*\)", r"\1", text)  # files that the site lacks
        (HERE / "api" / f"{name.lower()}.md").write_text(text, encoding="utf-8")
    app.connect("autodoc-process-docstring", markdown_to_rst)  # type: ignore[attr-defined]
    app.connect("source-read", complete_index)  # type: ignore[attr-defined]
