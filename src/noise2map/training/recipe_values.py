"""Checked values of recipes: a nested mapping into dataclasses, every key and every type named when it is wrong."""

import dataclasses
import difflib
from typing import Any, get_args, get_origin, get_type_hints


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
