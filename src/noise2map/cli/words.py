"""``--steps 1 3 10``: several values after an option that takes several, as people write them."""

from collections.abc import Iterable, Sequence
from typing import Any

import typer


def spread_values(words: Sequence[str], lists: Iterable[str]) -> list[str]:
    """``["--steps", "1", "3"]`` -> ``["--steps", "1", "--steps", "3"]`` for the options that take several values.

    Args:
        words: The words of a command that takes no arguments beside its options.
        lists: The names of those options.
    """
    names, spread = set(lists), []
    option, expected = "", False  # the option that further values belong to, and whether its first is still to come
    for word in words:
        if expected:
            spread.append(word)
            expected = False
        elif word.startswith("-"):
            name, equals, _ = word.partition("=")
            option, expected = (name, not equals) if name in names else ("", False)
            spread.append(word)
        else:
            spread += [option, word] if option else [word]
    return spread


class SpreadCommand(typer.core.TyperCommand):
    """A command whose list options take values separated by spaces, unless bare words could be arguments."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the words of the command line."""
        if not any(parameter.param_type_name == "argument" for parameter in self.params):
            lists = [name for parameter in self.params if getattr(parameter, "multiple", False) for name in parameter.opts]
            args = spread_values(args, lists)
        return super().parse_args(ctx, args)
