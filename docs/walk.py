"""Follows a command through the files of the library, as a reader would, and counts how often the reader comes back to one.

python docs/walk.py [--from FUNCTION] [--callers] -- predict photo.png --model freedoom-depth-laplace-tiny --out maps

The command runs for real, under a profiler, and its calls are read top-down: whoever has read a function goes on with the next
one that it calls and that was not read before, then with the next that its caller calls. A *stay* is a stretch of functions
read in one file, a *return* a stay in a file that was left before: stays minus files. Looking into a caller to see what comes
next is no stay, unless ``--callers`` is given. What is left out, with all that it calls, stands below.
"""

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import noise2map

# The folder of the package, not any of that name: a checkout is called so, too, and may hold an environment.
_PATH = re.compile(re.escape(f"{Path(noise2map.__file__).parent}/") + r"(.*)\.py$")

LEFT_OUT_FILES = {
    "the command line itself": r"__init__|registration|lazy|cli/(__init__|options|commands|launch)",
    "look-ups: names, checksums, colors, evenly spaced indices; bars": r"zoo/.*|runs/(files|words|progress)|data/subsets|"
    r"report/(palettes|canvas)|tasks/__init__|models/(labels|decoding)|inference/settings",
    "the inside of networks and of their mathematics": r"models/(?!map_model$|image_processing$).*|codecs/.*|diffusion/.*|"
    r"guidance/(?!pipeline$).*",
    "the inside of datasets": r"data/(freedoom|nuscenes)/.*",
}
LEFT_OUT_FUNCTIONS = {
    "constructors": r"__init__|__post_init__|__len__",
    "look-ups: devices, types, sizes, names": r"pick_device|pick_dtype|name|uncertainty_title|size|device|settings|seeds|to_dict",
}


@dataclass(frozen=True)
class Function:
    """A function of the library.

    Attributes:
        file: Below the package, without suffix: ``"inference/folder"``.
        name: With that of its class.
        line: Where it begins.
    """

    file: str
    name: str
    line: int


@dataclass
class Walk:
    """What a reader of a run walks.

    Attributes:
        stays: Files in the order of the stays.
    """

    stays: list[str] = field(default_factory=list)

    @property
    def returns(self) -> int:
        """Stays in a file that was left before."""
        return len(self.stays) - len(set(self.stays))

    def __str__(self) -> str:
        counts = f"{len(self.stays)} stays in {len(set(self.stays))} files, {self.returns} returns"
        return f"{counts}: {' → '.join(self.stays)}"


Calls = dict[Function | None, dict[Function, None]]
"""A function, None for the outside -> what it calls, in the order of the first calls."""


def record(work: Callable[[], Any]) -> Calls:
    """Calls between functions of the library while ``work()`` runs; what runs when a module is imported is passed over."""
    calls: Calls = {}
    stack: list[Function | None] = [None]
    importing = 0

    def watch(frame: Any, event: str, _: Any) -> None:
        nonlocal importing
        if event not in ("call", "return"):
            return
        code = frame.f_code
        if code.co_name == "<module>":
            importing += 1 if event == "call" else -1
            return
        path = _PATH.match(code.co_filename)
        # The body of a class is no function: it is not optimized.
        if importing or path is None or not code.co_flags & inspect.CO_OPTIMIZED:
            return
        if event == "call":
            if code.co_name.startswith("<"):  # a comprehension or lambda is part of the function around it
                stack.append(stack[-1])
                return
            name = getattr(code, "co_qualname", code.co_name)
            function = Function(path[1], name, code.co_firstlineno)
            calls.setdefault(stack[-1], {}).setdefault(function)
            stack.append(function)
        elif len(stack) > 1:
            stack.pop()

    sys.setprofile(watch)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def is_left_out(function: Function) -> bool:
    """True if a reader passes the function over."""
    files, names = "|".join(LEFT_OUT_FILES.values()), "|".join(LEFT_OUT_FUNCTIONS.values())
    return bool(re.fullmatch(files, function.file) or re.fullmatch(names, function.name.rpartition(".")[2]))


def walk(calls: Calls, begin: str, callers: bool = False) -> Walk:
    """Read the calls from a function on.

    Args:
        calls: As of `record`.
        begin: Name of the function with which reading begins.
        callers: Looking into a caller to see what comes next is a stay, too.

    Raises:
        ValueError: If there was no call of such a function.
    """
    starts = [function for function in all_functions(calls) if function.name == begin]
    if not starts:
        raise ValueError(f"no function {begin!r} was called")
    found, read = Walk(), set()

    def stay(file: str) -> None:
        if not found.stays or found.stays[-1] != file:
            found.stays.append(file)

    def follow(function: Function) -> None:
        read.add(function)
        stay(function.file)
        for called in calls.get(function, {}):
            if called not in read and not is_left_out(called):
                if callers:
                    stay(function.file)
                follow(called)

    follow(starts[0])
    return found


def all_functions(calls: Calls) -> Iterable[Function]:
    """Functions that were called."""
    return dict.fromkeys(function for called in calls.values() for function in called)


def main() -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="begin", help="function with which reading begins; by default that of the command")
    parser.add_argument("--callers", action="store_true", help="looking into a caller to see what comes next is a stay, too")
    parser.add_argument("command", nargs="+", help="words of a command of noise2map, after --")
    arguments = parser.parse_args()

    from noise2map.cli import main as run

    def command() -> None:
        try:
            run(arguments.command)
        except SystemExit as stop:
            if stop.code:
                raise

    print(walk(record(command), arguments.begin or arguments.command[0].replace("-", "_"), arguments.callers))


if __name__ == "__main__":
    main()
