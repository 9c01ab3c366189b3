"""The ``noise2map`` command. One module per command; each is imported only when it is called for."""

import importlib
import os
import sys

import typer

# command -> (module, attribute, one-line help). A Typer app becomes a group, a function becomes a command.
_COMMANDS: dict[str, tuple[str, str, str]] = {
    "demo": ("noise2map.cli.demo", "demo", "Maps, uncertainty and scores on shipped frames: one HTML page."),
    "predict": ("noise2map.cli.predict", "predict", "Maps for an image or a folder of images."),
    "evaluate": ("noise2map.cli.evaluate", "evaluate", "Scores of a model by steps and ensemble, uncertainty scored."),
    "train": ("noise2map.cli.train", "app", "Train a model from a recipe."),
    "data": ("noise2map.cli.data", "app", "Render and inspect data."),
    "bench": ("noise2map.cli.bench", "app", "Time and memory, stage by stage."),
    "convert": ("noise2map.cli.convert", "app", "Official checkpoints to this library's format."),
}

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class _LazyGroup(typer.core.TyperGroup):
    """Imports a command's module when the command is looked up, so that ``--help`` and errors are quick."""

    def list_commands(self, ctx):  # noqa: ANN001, ANN201, D102
        return list(_COMMANDS)

    def get_command(self, ctx, name):  # noqa: ANN001, ANN201, D102
        if name not in _COMMANDS:
            return None
        module, attribute, help_text = _COMMANDS[name]
        target = getattr(importlib.import_module(module), attribute)
        if isinstance(target, typer.Typer):
            command = typer.main.get_group(target)
        else:
            single = typer.Typer(add_completion=False)
            single.command(name=name)(target)
            command = typer.main.get_command(single)
        command.name = name
        command.short_help = help_text
        return command


app = typer.Typer(
    cls=_LazyGroup, no_args_is_help=True, add_completion=False, help="Dense maps from images by diffusion.", rich_markup_mode=None
)


@app.callback()
def _root() -> None:
    """Dense maps from images by diffusion: segmentation and depth with a compute dial and a scored uncertainty."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's error is one line on standard error and exit code 2, never a traceback."""
    try:
        app(args=arguments, prog_name="noise2map", standalone_mode=True)
    except KeyboardInterrupt:
        print("noise2map: interrupted; run the same command again to go on", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("NOISE2MAP_TRACEBACK"):
            raise
        print(f"noise2map: error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from None
