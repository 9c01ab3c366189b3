"""Options that several commands share: one name, one type, one range each.

How to use them::

    from noise2map.cli import options

    def predict(
        device: options.Device = "auto",
        dtype: options.DType = "float32",           # --bf16 is understood, too, and not shown
        seed: options.Seed = 0,
        limit: options.Limit = 0,
        batch_size: options.BatchSize = 8,
        steps: options.Steps = None,                # an int, "auto" or None
        steps_list: options.StepsList = None,       # [1, 3, "auto"] or None
        size: options.Size = None,                  # ImageSize(width, height), "native" or None
        window: Annotated[ImageSize | None, options.size("Sliding windows.", multiple=32)] = None,
        counts: Annotated[list[str] | None, options.numbers("Labelled images.", least=1)] = None,     # list[int] or None
        average: Annotated[list[str] | None, options.words("Averages.", ("last", "steps"))] = None,   # list[str] or None
        overwrite: options.Overwrite = False,
    ) -> None: ...

Where only the help differs, write the option out with typer's own types, which show in ``--help`` and refuse with exit code 2:
``Annotated[int, typer.Option(min=1, help=...)]``, ``Annotated[Literal["drop", "keep"], typer.Option(help=...)]``.
The commands of a group are registered on ``app = options.CommandGroup("One line of help.")``. They, and those of one word, take
several values after one option (``--steps 1 3 10``) and the spellings of earlier releases (``commands.OLD_SPELLINGS``), and show
the examples that :mod:`noise2map.cli.examples` has for them.
"""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from noise2map.cli.commands import Command as Command
from noise2map.cli.commands import CommandGroup as CommandGroup
from noise2map.cli.commands import Group as Group
from noise2map.tasks import IMAGE_TASKS

MAX_STEPS = 1000  # denoising steps: the published schedules have no more noise levels

DTYPES = ("float32", "bfloat16", "float16")

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


class ImageSize(NamedTuple):
    """Width and height in pixels (or cells), in the order in which they are written: ``640x480``."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


# ---------------------------------------------------------------------------------------------------- values of one word
def parse_step_count(text: Any) -> int | str:
    """``"3"`` -> 3; ``"auto"`` as it is.

    Raises:
        typer.BadParameter: If it is neither ``auto`` nor a whole number from 1 to ``MAX_STEPS``.
    """
    word = str(text)
    if word == "auto":
        return word
    if not (word.isascii() and word.isdecimal() and 1 <= int(word) <= MAX_STEPS):
        raise typer.BadParameter(f"expected a whole number from 1 to {MAX_STEPS}, or auto, got {word!r}")
    return int(word)


def parse_image_size(text: Any, multiple: int = 1, least: int = 1) -> ImageSize:
    """``"640x480"`` -> ``ImageSize(640, 480)``.

    Args:
        text: The word.
        multiple: What both sides must be multiples of.
        least: The least side.

    Raises:
        typer.BadParameter: If it is something else.
    """
    if isinstance(text, ImageSize):
        return text
    sides = str(text).lower().split("x")
    good = len(sides) == 2 and all(side.isascii() and side.isdecimal() for side in sides)
    if not (good and all(int(side) >= least and int(side) % multiple == 0 for side in sides)):
        kind = f" in multiples of {multiple}" if multiple > 1 else ""
        kind += f", at least {least}" if least > 1 else ""
        raise typer.BadParameter(f"expected WIDTHxHEIGHT{kind}, such as {_example(multiple, least)}, got {str(text)!r}")
    return ImageSize(int(sides[0]), int(sides[1]))


def size(help: str, multiple: int = 1, least: int = 1) -> Any:
    """A typer option that gives an :class:`ImageSize`; a default is written ``"512x512"``."""
    return typer.Option(parser=lambda text: parse_image_size(text, multiple, least), metavar="WIDTHxHEIGHT", help=help)


def _size_or_native(text: Any) -> ImageSize | str:
    return text if text == "native" else parse_image_size(text)


def _example(multiple: int, least: int) -> str:
    side = max(512, -(-least // multiple) * multiple)
    return f"{side}x{side}"


def check_device(value: str) -> str:
    """A device as PyTorch calls it, or ``auto``; whether it is here is found out later, with PyTorch.

    Raises:
        typer.BadParameter: If no device is called so.
    """
    if value is not None and not _DEVICE.fullmatch(value):
        raise typer.BadParameter(f"expected auto, cpu, cuda, cuda:N or mps, got {value!r}")
    return value


def check_angle(value: float | None) -> float | None:
    """An angle between 0 and 180 degrees, ends excluded.

    Raises:
        typer.BadParameter: If it is not.
    """
    if value is not None and not 0 < value < 180:
        raise typer.BadParameter(f"expected an angle between 0 and 180 degrees, got {value:g}")
    return value


def check_finite(value: float | None) -> float | None:
    """A number that is neither infinite nor NaN.

    Raises:
        typer.BadParameter: If it is.
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"expected a finite number, got {value}")
    return value


def check_positive(value: float | None) -> float | None:
    """A finite number above 0.

    Raises:
        typer.BadParameter: If it is not.
    """
    if value is not None and not 0 < value < math.inf:
        raise typer.BadParameter(f"expected a positive number, got {value:g}")
    return value


# ---------------------------------------------------------------------------------------------------- several values
def split_words(texts: Sequence[str] | None) -> list[str]:
    """``["1", "3,10"]`` -> ``["1", "3", "10"]``."""
    return [word for text in texts or () for word in text.replace(",", " ").split()]


def _list_option(help: str, metavar: str, parse: Callable[[str], Any]) -> Any:
    def callback(value: list[str] | None) -> list[Any] | None:
        if not value:
            return None
        found = list(dict.fromkeys(parse(word) for word in split_words(value)))
        if not found:
            raise typer.BadParameter("expected at least one value")
        return found

    return typer.Option(callback=callback, metavar=metavar, help=help)


def numbers(help: str, least: int = 1) -> Any:
    """A typer option of whole numbers; annotate it ``list[str] | None``.

    ``1,3 10`` gives ``[1, 3, 10]``, without repetition; None if it is not there.
    """

    def parse(word: str) -> int:
        if not (word.isascii() and word.isdecimal() and int(word) >= least):
            raise typer.BadParameter(f"expected whole numbers of at least {least}, got {word!r}")
        return int(word)

    return _list_option(help, "N,N,...", parse)


def step_counts(help: str) -> Any:
    """A typer option of numbers of denoising steps; annotate it ``list[str] | None``.

    ``1,3 auto`` gives ``[1, 3, "auto"]``, without repetition; None if it is not there.
    """
    return _list_option(help, "N|auto,...", parse_step_count)


def scales(help: str, *, infinite: bool = False) -> Any:
    """A typer option of numbers of at least 0, finite ones if nothing else is said; annotate it ``list[str] | None``.

    ``0,10 2.5`` gives ``[0.0, 10.0, 2.5]``, without repetition; None if it is not there.
    """

    def parse(word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not value >= 0 or (value == math.inf and not infinite):
            raise typer.BadParameter(f"expected numbers of at least 0, such as 0,10,20, got {word!r}")
        return value

    return _list_option(help, "X,X,...", parse)


def shares(help: str, *, whole: bool = False) -> Any:
    """A typer option of numbers between 0 and 1, ends excluded, or with 1 if ``whole``; annotate it ``list[str] | None``.

    ``0.5,0.9`` gives ``[0.5, 0.9]``, without repetition; None if it is not there.
    """
    return _list_option(help, "S,S,..." if whole else "P,P,...", check_positive_share if whole else check_share)


def _number(word: Any) -> float:
    """What a word says, NaN if that is no number."""
    try:
        return float(word)
    except ValueError:
        return math.nan


def check_share(word: Any) -> float:
    """A number between 0 and 1, ends excluded.

    Raises:
        typer.BadParameter: If it is not.
    """
    value = _number(word)
    if not 0 < value < 1:
        raise typer.BadParameter(f"expected a number between 0 and 1, such as 0.9, got {str(word)!r}")
    return value


def check_positive_share(word: Any) -> float:
    """A number above 0, at most 1.

    Raises:
        typer.BadParameter: If it is not.
    """
    value = _number(word)
    if not 0 < value <= 1:
        raise typer.BadParameter(f"expected a share above 0, at most 1, such as 0.3, got {str(word)!r}")
    return value


def check_uncertainty(word: Any) -> float:
    """A number of at least 0.

    Raises:
        typer.BadParameter: If it is not.
    """
    value = _number(word)
    if not 0 <= value < math.inf:
        raise typer.BadParameter(f"expected an uncertainty of at least 0, such as 0.2, got {str(word)!r}")
    return value


def check_refinement(refine: Any, share: Any, threshold: Any) -> None:
    """Refuses `--refine-share` and `--refine-threshold` of nothing; that both do not go together, `DecodingOptions` says.

    Args:
        refine: What was said of `--refine`: a word, several, or None.
        share: Of `--refine-share`, None or empty if nothing was said.
        threshold: Of `--refine-threshold`, likewise.

    Raises:
        ValueError: If no sparse refinement was asked for.
    """
    kinds = (refine,) if isinstance(refine, str) else tuple(refine or ())
    given = [name for name, value in (("share", share), ("threshold", threshold)) if value not in (None, [])]
    if given and "uncertain" not in kinds:
        raise ValueError(f"--refine-{given[0]} needs --refine uncertain")


def words(help: str, choices: Sequence[str]) -> Any:
    """A typer option of words out of some; annotate it ``list[str] | None``.

    ``last,steps`` gives ``["last", "steps"]``, without repetition; None if it is not there.
    """

    def parse(word: str) -> str:
        if word not in choices:
            raise typer.BadParameter(f"expected {', '.join(choices)}, got {word!r}")
        return word

    return _list_option(help, f"<{'|'.join(choices)}>,...", parse)


# ---------------------------------------------------------------------------------------------------- the shared options
# What the maps of images are, as choices: a new task is among them.
if TYPE_CHECKING:
    ImageTask = str
else:
    ImageTask = Literal[IMAGE_TASKS]

Device = Annotated[str, typer.Option(callback=check_device, metavar="auto|cpu|cuda[:N]|mps", help="Where to compute.")]

DType = Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Precision of most arithmetic.")]

DTypes = Annotated[list[str] | None, words("Precisions of most arithmetic.", DTYPES)]

Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]

Limit = Annotated[int, typer.Option(min=0, help="At most this many, evenly spaced over the data; 0 for all.")]

BatchSize = Annotated[int, typer.Option(min=1, help="Images at a time; results do not depend on it.")]

Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0 for PyTorch's choice.")]

Steps = Annotated[
    Any,
    typer.Option(
        parser=parse_step_count,
        metavar="N|auto",
        help="Denoising steps, or auto: until the map stops changing. [default: the model's]",
    ),
]

StepsList = Annotated[
    list[str] | None,
    step_counts("Denoising steps: numbers or auto, e.g. 1 3 10 or 1,3,auto."),
]

Ensemble = Annotated[int | None, typer.Option(min=1, help="Noise samples of an image. [default: the model's]")]

Average = Annotated[Literal["last", "steps"] | None, typer.Option(help="The last step, or the mean of all. [default: the model's]")]

MapSampler = Annotated[
    Literal["ddim", "ddpm", "dpmpp_2m"] | None, typer.Option("--sampler", help="Sampler of the map. [default: the model's]")
]

MapSampling = Annotated[
    Literal["diffusion", "one_pass", "field"] | None,
    typer.Option(
        "--sampling", help="A run of steps, one pass, or maps drawn from one pass by a smooth field. [default: the model's]"
    ),
]

Refine = Annotated[
    Literal["all", "uncertain"] | None,
    typer.Option(help="Tokens that steps after the first compute: all, or where the first is in doubt. [default: the model's]"),
]

RefineShare = Annotated[
    Any, typer.Option(parser=check_positive_share, metavar="S", help="Share of the tokens that --refine uncertain computes.")
]

RefineThreshold = Annotated[
    Any,
    typer.Option(
        parser=check_uncertainty, metavar="U", help="In place of a share: the uncertainty from which on it computes a token."
    ),
]

ImageSampler = Annotated[
    Literal["ddim", "ddpm", "default"],
    typer.Option("--sampler", help="Sampler of the images; default: as the generator was saved."),
]

TimestepSpacing = Annotated[
    Literal["trailing", "leading", "linspace", "default"],
    typer.Option(help="How steps are spread over those of training; default: as the generator was saved."),
]

Size = Annotated[
    Any,
    typer.Option(
        parser=_size_or_native, metavar="WIDTHxHEIGHT|native", help="Size to process at. [default: as the checkpoint says]"
    ),
]

Fov = Annotated[float | None, typer.Option(callback=check_angle, metavar="DEGREES", help="Horizontal field of view.")]

DepthPredictor = Annotated[str | None, typer.Option(help="Folder or hub id. [default: depth_predictor/ of the generator]")]

DepthPrior = Annotated[str | None, typer.Option(help="Folder or hub id. [default: depth_prior/ of the generator]")]

Out = Annotated[Path, typer.Option(help="Folder to write to; an unfinished run is gone on with.")]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what was made with other settings.")]
