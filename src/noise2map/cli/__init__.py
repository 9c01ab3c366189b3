"""The ``noise2map`` command. One module per command; each is imported only when it is called for.

What the library logs is shown here: ``logging.getLogger("noise2map")`` and the loggers below it print their bare messages,
information to standard output, warnings and errors to standard error. Progress bars are not broken by them.
"""

import functools
import importlib
import logging
import os
import re
import sys

import typer

from noise2map.cli.launch import end_process, leave_process_group, share_processor
from noise2map.runs.memory import keep_freed_memory

# command -> (module, attribute, one-line help). A Typer app becomes a group, a function a command, which may have two words.
_COMMANDS: dict[str, tuple[str, str, str]] = {
    "demo": ("noise2map.cli.demo", "demo", "Maps, uncertainty and scores on shipped frames: one HTML page."),
    "app": ("noise2map.cli.app_page", "app", "The models in a browser, on this machine."),
    "models": ("noise2map.cli.models", "models", "The models that ship: task, size, score, limit."),
    "predict": ("noise2map.cli.predict", "predict", "Maps for an image or a folder of images."),
    "predict-bev": ("noise2map.cli.predict_bev", "predict_bev", "Bird's-eye-view maps from cameras and LiDAR."),
    "sample": ("noise2map.cli.sample", "sample", "Images from a generator, guided by depth."),
    "evaluate": ("noise2map.cli.evaluate", "evaluate", "Scores by steps and ensemble, uncertainty scored."),
    "evaluate generator": (
        "noise2map.cli.evaluate_generator",
        "evaluate_generator",
        "FID, dFID and geometry with and without depth guidance.",
    ),
    "calibrate": ("noise2map.cli.trust.calibrate", "calibrate", "What a model states, fitted to labelled images."),
    "audit": ("noise2map.cli.trust.audit", "audit", "Labels that are likely wrong, and what to label next."),
    "train": ("noise2map.cli.train", "app", "Train a model from a recipe, a generator, or parts of its guidance."),
    "data": ("noise2map.cli.data", "app", "Render and inspect data."),
    "experiment": ("noise2map.cli.experiment", "app", "Experiments of several steps in one command."),
    "bench": ("noise2map.cli.bench", "app", "Time and memory, stage by stage."),
    "convert": ("noise2map.cli.exchange.convert", "app", "Official checkpoints to this library's format."),
    "export": ("noise2map.cli.exchange.export", "export", "A model as ONNX or PyTorch graphs for other programs."),
    "push": ("noise2map.cli.exchange.push", "push", "A model and its card to a repository of the hub."),
}

# Commands that run a model from their first second on; `train` looks at its recipe first.
_MODEL_COMMANDS = ("demo", "app", "predict", "predict-bev", "sample", "evaluate", "calibrate", "audit", "experiment", "bench")

# Interrupted, these begin again from the start; all others go on where they were.
_START_AGAIN = (
    *("demo", "app", "models", "evaluate", "calibrate", "bench", "convert", "export", "push"),
    *("data samples", "data export", "data check", "data select", "data cut-surround"),
)

# What an error of the library calls an argument -> the option that a user of the command line knows it by.
_OPTION_OF = {
    "on_nonfinite='skip'": "--on-nonfinite skip",
    "allow_singular=True": "--allow-singular",
    "num_inference_steps is": "--steps is",
    "consistency_scale is": "--consistency-scale is",
    "or prior_scale=0": "or --prior-scale 0",
    "prior_scale is": "--prior-scale is",
    "the pipeline has no depth_predictor; pass one to from_pipe or from_pretrained": "there is no --depth-predictor",
    "the pipeline has no depth_prior; pass one": "there is none; pass --depth-prior",
}

EXIT_BAD_INPUT = 2

EXIT_INTERRUPTED = 130


class _LazyGroup(typer.core.TyperGroup):
    """Imports a command's module when that command is run; ``--help`` and a misspelt command import none."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.commands = dict.fromkeys(_COMMANDS)  # only the names are read: "Did you mean 'predict'?"

    def list_commands(self, ctx):
        return [name for name in _COMMANDS if " " not in name]

    def resolve_command(self, ctx, args):
        pair = " ".join(args[:2])
        ctx.meta["noise2map.command"] = pair if pair in (*_COMMANDS, *_START_AGAIN) else " ".join(args[:1])
        if pair in _COMMANDS:
            return pair, self.get_command(ctx, pair), args[2:]
        return super().resolve_command(ctx, args)

    def get_command(self, ctx, cmd_name):
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, help_text = _COMMANDS[cmd_name]
        target = getattr(importlib.import_module(module), attribute)
        if isinstance(target, typer.Typer):
            command = typer.main.get_group(target)
        else:
            from noise2map.cli.options import Command

            single = typer.Typer(add_completion=False, rich_markup_mode=None)
            single.command(name=cmd_name, cls=Command)(target)
            command = typer.main.get_command(single)
        command.name = cmd_name
        command.short_help = help_text
        return command

    def format_commands(self, ctx, formatter):
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_text) for name, (_, _, help_text) in _COMMANDS.items()])

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # caught here because versions of Typer differ in what they make of it
            again = ctx.meta.get("noise2map.command") in _START_AGAIN
            how = "nothing was kept; the same command begins again" if again else "run the same command again to go on"
            print(f"noise2map: interrupted; {how}", file=sys.stderr)
            raise SystemExit(EXIT_INTERRUPTED) from None


app = typer.Typer(
    cls=_LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from noise2map import __version__

        typer.echo(f"noise2map {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    """Dense maps from images by diffusion, and depth-aware guidance of image generators."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's error is one line on standard error and exit code 2, never a traceback.

    Args:
        arguments: The words after ``noise2map``; those of the process by default.

    Raises:
        SystemExit: Always, with the exit code: 0, 1 (some inputs failed), 2 (bad input) or 130 (interrupted).
    """
    share_processor()
    show_log()
    if arguments is None and sys.argv[1:2] and sys.argv[1] in _MODEL_COMMANDS:
        keep_freed_memory()
    code: int | str | None = None
    try:
        app(args=arguments, prog_name="noise2map", standalone_mode=True)
    except SystemExit as end:
        code = end.code
    except (ValueError, OSError, ImportError, MemoryError) as error:
        if os.environ.get("NOISE2MAP_TRACEBACK"):
            raise
        print(f"noise2map: error: {_one_line(error)}", file=sys.stderr)
        code = EXIT_BAD_INPUT
    finally:
        launched = leave_process_group()
    if launched and not isinstance(code, str):
        end_process(code or 0)
    if code is not None:
        raise SystemExit(code)


class _Printer(logging.Handler):
    """Prints log messages, above the progress bars if there are any."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            stream = sys.stdout if record.levelno < logging.WARNING else sys.stderr
            bars = sys.modules.get("tqdm")  # whoever shows a bar has imported it
            write = functools.partial(bars.tqdm.write, file=stream) if bars else functools.partial(print, file=stream, flush=True)
            write(self.format(record))
        except Exception:
            self.handleError(record)


def show_log(level: int = logging.INFO) -> None:
    """Print what the library logs from a level on. A second call changes the level only."""
    logger = logging.getLogger("noise2map")
    logger.setLevel(level)
    if not any(isinstance(handler, _Printer) for handler in logger.handlers):
        logger.addHandler(_Printer())


_OF_A_WORKER = re.compile(r"(?sm)Caught \w+ in DataLoader worker process \d+\.\nOriginal Traceback.*^[\w.]+: (.*)")


def _one_line(error: BaseException) -> str:
    text = str(error)
    if worker := _OF_A_WORKER.match(text):  # what a process that loads data met comes with its whole traceback
        text = worker[1]
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror}"  # without "[Errno 28]"
    for argument, option in _OPTION_OF.items():
        text = text.replace(argument, option)
    return " ".join(text.split()) or type(error).__name__
