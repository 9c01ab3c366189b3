"""Public names of a package that are imported on first use: whoever asks for one does not pay for the others."""

import importlib
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any


def lazy_names(
    package: str, names: Mapping[str, str], modules: Collection[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package (PEP 562), to be assigned in its ``__init__``.

    A table for the type checker stands beside it, under ``TYPE_CHECKING``: it does not see what is found here.

    Args:
        package: Its ``__name__``.
        names: Public name -> the module that defines it.
        modules: Modules of the package that are public names, too.

    Returns:
        What finds a name, and what lists them.
    """

    def find(name: str) -> Any:
        if name in names:
            return getattr(importlib.import_module(names[name]), name)
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def listed() -> list[str]:
        return sorted({*sys.modules[package].__all__, *names, *modules})

    return find, listed
