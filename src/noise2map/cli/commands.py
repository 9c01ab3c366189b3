"""Commands and groups of them: several values after one option, spellings of earlier releases, examples in the help."""

from collections.abc import Iterable, Sequence
from typing import Any

import typer

from noise2map.cli.examples import EXAMPLES

# Spelling of earlier releases -> today's words. Used where a command has the new option and not the old one.
OLD_SPELLINGS: dict[str, tuple[str, ...]] = {
    "--bf16": ("--dtype", "bfloat16"),
    "--scheduler": ("--sampler",),
    "--data": ("--dataset",),
    "--predictor": ("--depth-predictor",),
    "--prior": ("--depth-prior",),
    "--generator": ("--model",),
    "--reference-limit": ("--limit",),
    "--test-limit": ("--limit",),
}


class Command(typer.core.TyperCommand):
    """A command that takes several values after one option, unless bare words could be arguments, old spellings, and examples."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the words of the command line."""
        names = {name for parameter in self.params for name in parameter.opts}
        has_default = {name for parameter in self.params if parameter.default == "default" for name in parameter.opts}
        args = modern_spelling(args, names, has_default)
        if not any(parameter.param_type_name == "argument" for parameter in self.params):
            lists = [name for parameter in self.params if getattr(parameter, "multiple", False) for name in parameter.opts]
            args = repeat_options(args, lists)
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """Writes the line of usage."""
        formatter.write_usage(command_path(ctx), " ".join(self.collect_usage_pieces(ctx)))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Writes examples at the end of the help."""
        super().format_epilog(ctx, formatter)
        write_examples(ctx, formatter)


class Group(typer.core.TyperGroup):
    """A group whose help shows the first sentence of each command whole."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the list of commands."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, first_sentence(one.help or one.short_help or "")) for name, one in commands if one and not one.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class CommandGroup(typer.Typer):
    """A typer application of commands that are :class:`Command`.

    Args:
        help: What the group is for, one line.
    """

    def __init__(self, help: str, cls: type[Group] = Group) -> None:
        super().__init__(cls=cls, no_args_is_help=True, add_completion=False, help=help, rich_markup_mode=None)

    def command(self, name: str | None = None, **options: Any) -> Any:
        """As typer's, for a :class:`Command`."""
        return super().command(name, **{"cls": Command, **options})


def first_sentence(text: str) -> str:
    """The first sentence of a help text, on one line and without its full stop."""
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    return paragraph.split(". ")[0].removesuffix(".")


def command_path(ctx: Any) -> str:
    """``"noise2map train"``, without the name of a hidden command that stands for its group."""
    hides = ctx.parent is not None and ctx.command.hidden
    return ctx.parent.command_path if hides else ctx.command_path


def write_examples(ctx: Any, formatter: Any) -> None:
    """Write the examples of a command, one a line, unbroken."""
    examples = EXAMPLES.get(command_path(ctx).removeprefix("noise2map "), ())
    if examples:
        with formatter.section("Examples"):
            formatter.write("".join(f"  noise2map {one}\n" for one in examples))


def repeat_options(words: Sequence[str], lists: Iterable[str]) -> list[str]:
    """``["--steps", "1", "3"]`` -> ``["--steps", "1", "--steps", "3"]`` for the options that take several values.

    Args:
        words: The words of a command that takes no arguments beside its options.
        lists: The names of those options.
    """
    names, repeated = set(lists), []
    option, expected = "", False  # the option that further values belong to, and whether its first is still to come
    for word in words:
        if expected:
            repeated.append(word)
            expected = False
        elif word.startswith("-"):
            name, equals, _ = word.partition("=")
            option, expected = (name, not equals) if name in names else ("", False)
            repeated.append(word)
        else:
            repeated += [option, word] if option else [word]
    return repeated


def modern_spelling(words: Sequence[str], names: set[str], has_default: Iterable[str] = ()) -> list[str]:
    """The words of a command line with the options of earlier releases replaced by today's.

    Args:
        words: The words of a command.
        names: The options that the command has.
        has_default: Those that take the word ``default``, which was called ``own``.
    """
    has_default = set(has_default)
    written: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        new = OLD_SPELLINGS.get(name)
        if new and name not in names and new[0] in names:
            written += [f"{new[0]}={value}"] if equals else new
        else:
            written.append(word)
    for index, word in enumerate(written):
        name, _, value = word.partition("=")
        if word == "own" and index and written[index - 1] in has_default:
            written[index] = "default"
        elif value == "own" and name in has_default:
            written[index] = f"{name}=default"
    return written
