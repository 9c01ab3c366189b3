"""Exported programs compiled ahead of time for this machine's processor, by AOTInductor."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from noise2map.export.graphs import quiet


def check_compiler() -> None:
    """Refuses to begin where nothing can be compiled: tracing takes minutes.

    Raises:
        OSError: if there is no C++ compiler.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise OSError("format 'aoti' needs a C++ compiler; expected g++ or clang++ on the PATH, or its path in CXX") from error


def compile_program(program: Any, path: Path) -> Callable[..., Any]:
    """Compiles an exported program into a package.

    Args:
        program: of `torch.export.export`.
        path: file to write, ``.pt2``.

    Returns:
        The package, loaded: it takes what the program takes, laid out in memory as the traced example was. It does not look (as of
        PyTorch 2.13): what lies otherwise is read as something else.
    """
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    with torch.no_grad(), quiet():
        aoti_compile_and_package(program, package_path=str(path))
        package: Callable[..., Any] = aoti_load_package(str(path))
    return package
