"""``noise2map data``: render Freedoom frames, copy the shipped ones out."""

import shlex
import sys
from pathlib import Path

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Render and inspect data.", rich_markup_mode=None)


@app.command()
def freedoom(
    out: Path = typer.Option(..., help="Folder of the split; an unfinished one is gone on with."),
    split: str = typer.Option("train", help="train, val or test: different maps."),
    frames: int = typer.Option(20000, help="Number of frames."),
    size: str = typer.Option("160x120", help="Picture size, WIDTHxHEIGHT."),
    workers: int = typer.Option(2, help="Engines at a time."),
    seed: int = typer.Option(0, help="Frames depend on the seed, the split and their index, on nothing else."),
    gore: str = typer.Option("drop", help="drop or keep views with corpses and gibs."),
) -> None:
    """Render rooms of Freedoom: images, depth in centimetres, classes. Needs the ``render`` extra."""
    from noise2map.data.freedoom.render import RenderJob, render

    if gore not in ("drop", "keep"):
        raise ValueError(f"--gore must be drop or keep, got {gore!r}")
    width, height = _parse_size(size)
    job = RenderJob(
        out.resolve(), split, frames, width, height, seed, workers, gore == "keep", shlex.join(["noise2map", *sys.argv[1:]])
    )
    rendered = render(job)
    print(f"{out}: {frames} {split} frames of {width}x{height} ({rendered} rendered now, {frames - rendered} were there)")


def _parse_size(text: str) -> tuple[int, int]:
    width, times, height = text.lower().partition("x")
    if not (times and width.isdecimal() and height.isdecimal()):
        raise ValueError(f"--size must be WIDTHxHEIGHT in pixels, such as 160x120, got {text!r}")
    return int(width), int(height)


@app.command()
def samples(
    out: Path = typer.Option(..., help="Folder to copy to."),
    split: str = typer.Option("test", help="train, val or test."),
) -> None:
    """Copy the shipped sample frames out, brightened, as an ``images`` + ``maps`` folder with depth and licence."""
    from noise2map.data.freedoom.samples import export_samples

    count = export_samples(out, split)
    print(f"{out}: {count} {split} frames")
