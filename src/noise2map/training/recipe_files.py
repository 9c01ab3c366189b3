"""Recipe files: YAML with bases and overrides into typed dataclasses, every key and type named when it is wrong."""

import dataclasses
import difflib
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

R = TypeVar("R")


def build(kind: type, tree: Any, prefix: str) -> Any:
    """A (nested) dataclass from a mapping, every key and type checked."""
    if not isinstance(tree, dict):
        raise ValueError(f"recipe section {prefix.rstrip('.') or 'recipe'} is {tree!r}; expected a mapping")
    hints = get_type_hints(kind)
    known = [item.name for item in dataclasses.fields(kind)]
    values = {}
    for key, value in tree.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            hint = f"; did you mean {prefix}{close[0]}?" if close else f"; known: {', '.join(known)}"
            raise ValueError(f"unknown recipe key {prefix}{key}{hint}")
        hint_type = hints[key]
        if dataclasses.is_dataclass(hint_type):
            values[key] = build(hint_type, value, f"{prefix}{key}.")
        else:
            values[key] = _convert(value, hint_type, f"{prefix}{key}")
    return kind(**values)


def _convert(value: Any, hint: Any, name: str) -> Any:
    """``value`` as the annotated type. YAML 1.1 reads ``1e-4`` as a string and ``none`` as one: both are meant as written."""
    options = get_args(hint) if get_origin(hint) not in (list, dict) else (hint,)
    options = options or (hint,)
    if type(None) in options and (value is None or value == "none"):
        return None
    for option in options:
        if option is Any:
            return value
        origin = get_origin(option) or option
        if origin is bool and isinstance(value, bool):
            return value
        if origin is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if origin is float and not isinstance(value, bool):
            number = _as_number(value)
            if number is not None:
                return number
        if origin is str and isinstance(value, str):
            return value
        if origin is dict and isinstance(value, dict):
            return _numbers(value)
        if origin is list and isinstance(value, list):
            return [_convert(item, get_args(option)[0], f"{name}[{i}]") for i, item in enumerate(value)]
    wanted = " or ".join("none" if option is type(None) else getattr(option, "__name__", str(option)) for option in options)
    raise ValueError(f"recipe field {name} is {value!r}; expected {wanted}")


def _as_number(value: Any) -> float | None:
    if isinstance(value, int | float):
        return float(value)
    try:
        return float(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _numbers(value: Any) -> Any:
    """In free mappings, strings such as ``1e-4`` become numbers."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, str) and value[:1].isdigit() and _as_number(value) is not None:
        return _as_number(value)
    return value


def recipe_names(folder: str = "") -> list[str]:
    """Names of the recipes shipped with the package.

    Those of the published runs start with ``official/``, those of decoders on one frozen encoder with ``decoders/``.

    Args:
        folder: another kind of recipe than that of maps: ``"generator"``.
    """
    root = resources.files("noise2map.training").joinpath("recipes", folder)
    names = [file.name for file in root.iterdir()]
    if not folder:
        for part in ("decoders", "official"):
            names += [f"{part}/{file.name}" for file in root.joinpath(part).iterdir() if not file.name.startswith("_")]
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def recipe_tree(name_or_path: str | Path, folder: str = "") -> dict[str, Any]:
    """A recipe and its bases as nested mappings; ``folder`` as of :func:`recipe_names`, errors of :func:`load_recipe`."""
    return _read_with_bases(name_or_path, [], folder)


def _read_with_bases(name_or_path: str | Path, including: list[str], folder: str) -> dict[str, Any]:
    """The mapping of a recipe merged into that of its base, and so on down to a recipe without one."""
    text, source = _read(name_or_path, including, folder)
    if source in including:
        raise ValueError(f"recipes name each other as base: {' -> '.join([*including, source])}")
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{source}: expected a mapping of sections such as data, model and train")
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ValueError(f"{source}: base is {base!r}; expected the name or the path of one recipe")
    beside = Path(name_or_path).parent / base
    is_file = Path(name_or_path).is_file() and beside.is_file()
    return _deep_merge(_read_with_bases(beside if is_file else base, [*including, source], folder), tree)


def _deep_merge(base: Any, change: Any) -> Any:
    """``change`` where it says something, else ``base``; a backbone of another type replaces the base's as a whole."""
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return change
    if "model_type" in base and change.get("model_type", base["model_type"]) != base["model_type"]:
        return change
    return base | {key: _deep_merge(base[key], value) if key in base else value for key, value in change.items()}


def _read(name_or_path: str | Path, including: list[str], folder: str) -> tuple[str, str]:
    path = Path(name_or_path)
    if path.is_file():
        return path.read_text(encoding="utf-8"), str(path)
    names = recipe_names(folder)
    # Only a recipe may name an unlisted one (_ade20k) as its base.
    file = resources.files("noise2map.training").joinpath("recipes", folder, f"{name_or_path}.yaml")
    if str(name_or_path) in names or (including and not path.is_absolute() and file.is_file()):
        return file.read_text(encoding="utf-8"), f"recipe {name_or_path}"
    asked = f" (base of {including[-1]})" if including else ""
    raise FileNotFoundError(f"no recipe file {path}{asked}; shipped recipes: {', '.join(names)}")


def load_as(kind: type[R], name_or_path: str | Path, overrides: list[str] | None = None, folder: str = "") -> R:
    """Read a recipe file, or a shipped recipe by name, into a dataclass and apply ``section.field=value`` overrides.

    Args:
        kind: the dataclass of the recipe.
        name_or_path: a YAML file, or a name of :func:`recipe_names`.
        overrides: assignments such as ``"optim.lr=1e-4"``; values are YAML.
        folder: as of :func:`recipe_names`.

    Raises:
        FileNotFoundError: if there is no such file nor shipped recipe.
        ValueError: for broken YAML, an unknown key (with the closest known one) or a value of the wrong type.
    """
    return make_as(kind, recipe_tree(name_or_path, folder), overrides)


def make_as(kind: type[R], tree: dict[str, Any], overrides: list[str] | None = None) -> R:
    """A recipe from nested mappings and ``section.field=value`` overrides; errors as in :func:`load_as`."""
    for assignment in overrides or []:
        assign(tree, assignment)
    return build(kind, tree, "")


def assign(tree: dict[str, Any], assignment: str) -> None:
    """Apply one ``a.b.c=value`` to the nested mapping."""
    key, separator, value = assignment.partition("=")
    parts = key.strip().split(".")
    if not separator or len(parts) < 2 or not all(parts):
        raise ValueError(f"override {assignment!r}: expected section.field=value, e.g. optim.lr=1e-4")
    node = tree
    for part in parts[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ValueError(f"override {assignment!r}: {part!r} is not a mapping")
    try:
        node[parts[-1]] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"override {assignment!r} is not YAML ({error}); put a text with colons in quotes") from error
