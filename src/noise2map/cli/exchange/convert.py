"""``noise2map convert``: official checkpoints -> folders that ``from_pretrained`` reads."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from noise2map.cli.options import CommandGroup

app = CommandGroup("Official checkpoints to this library's format.")

Out = Annotated[Path, typer.Option(help="New folder for the converted model.")]


@app.command()
def ddp(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="Official checkpoint (.pth), its tensors (.safetensors), or a file on the hub: yfji/DDP-Weight:FILE.",
            show_default=False,
        ),
    ],
    out: Out,
    max_depth: Annotated[
        float | None,
        typer.Option(min=0.01, help="Farthest depth in meters: 80 for KITTI, 10 for NYU. [default: as the file says, else 80]"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Default number of steps. [default: as the file says, else 3, or 10 if self-aligned]"),
    ] = None,
    self_aligned: Annotated[
        bool | None,
        typer.Option(
            "--self-aligned/--not-self-aligned", help="Weights of a self-aligned run. [default: as the file says, else not]"
        ),
    ] = None,
) -> None:
    """Convert an official DDP segmentation, depth or bird's-eye-view checkpoint. Code in the file is never run.

    Sizes are read off the shapes; steps, averaging, depth range, names and colors of classes off the file's meta data, if any.
    Writes config.json, model.safetensors, preprocessor_config.json and conversion.json, which says what became of every key.
    """
    from noise2map.convert.ddp_folder import convert_ddp

    typer.echo(convert_ddp(checkpoint, out, max_depth, steps, self_aligned))


@app.command()
def adm(
    checkpoint: Annotated[
        str,
        typer.Argument(help="Official checkpoint (.pt), its tensors (.safetensors), or a file on the hub: OWNER/NAME:FILE."),
    ],
    out: Out,
    preset: Annotated[
        Literal["lsun-256", "none"],
        typer.Option(help="Flags to begin with: those of the LSUN bedroom, cat and horse models, or the official defaults."),
    ] = "lsun-256",
    flag: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An official flag, e.g. image_size=64; may be repeated.")
    ] = None,
) -> None:
    """Convert an official ADM (guided-diffusion) image generator. Code in the file is never run.

    Writes the folder of a diffusers pipeline, which `noise2map sample` draws from, and conversion.json, which says what became of
    every key. An ADM checkpoint does not hold its architecture: the flags of its training must be given.
    """
    from noise2map.convert.adm_folder import PRESETS, convert_adm, read_flags

    typer.echo(convert_adm(checkpoint, out, {**PRESETS[preset], **read_flags(flag or [])}))
