"""``noise2map data``: render Freedoom, copy the shipped frames out, write and check datasets."""

import logging
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from noise2map.cli import options
from noise2map.cli.options import CommandGroup, ImageSize

app = CommandGroup("Render and inspect data.")
logger = logging.getLogger(__name__)

Split = Annotated[Literal["train", "val", "test"], typer.Option(help="Different maps of the game.")]
Gore = Annotated[Literal["drop", "keep"], typer.Option(help="Views with corpses and gibs.")]
EngineSize = Annotated[ImageSize, options.size("Image size, one of the engine's.")]
Supersample = Annotated[int, typer.Option(help="Draw at 2 or 4 times the size and average the colors: no glitter, no stairs.")]
Workers = Annotated[int, typer.Option(min=1, help="Engines at a time, of walks one; what is drawn does not depend on it.")]
DrawSeed = Annotated[int, typer.Option(min=0, help="What is drawn depends on the seed, the split and its index, on nothing else.")]
NewFolder = Annotated[Path, typer.Option(help="Folder to make; it must not be there, or be empty.")]
Layout = Literal["ade20k", "cityscapes", "kitti", "nyu", "sun-rgbd", "lsun"]


def _command_line() -> str:
    return shlex.join(["noise2map", *sys.argv[1:]])


@app.command()
def freedoom(
    out: Annotated[Path, typer.Option(help="Folder of the split; an unfinished one is gone on with.")],
    split: Split = "train",
    frames: Annotated[int | None, typer.Option(min=1, help="Number of frames: 20000; 24 of each walk.")] = None,
    walks: Annotated[int | None, typer.Option(min=1, help="Render this many walks: consecutive frames, with exact flow.")] = None,
    size: EngineSize = "160x120",
    supersample: Supersample = 1,
    workers: Workers = 2,
    seed: DrawSeed = 0,
    gore: Gore = "drop",
) -> None:
    """Render rooms of Freedoom: images, depth in centimetres, classes, normals. Needs the ``render`` extra."""
    if walks is not None:
        from noise2map.rendering.walks import WalkOptions, render_walks

        chosen = WalkOptions(
            out=out.resolve(), split=split, walks=walks, frames=frames or 24, width=size.width, height=size.height,
            supersample=supersample, seed=seed, keep_gore=gore == "keep", command=_command_line(),
        )  # fmt: skip
        made = render_walks(chosen)
        logger.info("%s: %d %s walks of %d frames (%d rendered now)", out, walks, split, chosen.frames, made)
        return
    from noise2map.rendering.frames import RenderOptions, render

    frames = frames or 20000
    rendered = render(
        RenderOptions(
            out=out.resolve(),
            split=split,
            frames=frames,
            width=size.width,
            height=size.height,
            supersample=supersample,
            seed=seed,
            workers=workers,
            keep_gore=gore == "keep",
            command=_command_line(),
        )
    )
    there = frames - rendered
    logger.info("%s: %d %s frames of %s (%d rendered now, %d were there)", out, frames, split, size, rendered, there)


@app.command(name="freedoom-surround")
def freedoom_surround(
    out: Annotated[Path, typer.Option(help="Folder of the dataset, for all its splits; an unfinished split is gone on with.")],
    split: Split = "train",
    samples: Annotated[int, typer.Option(min=1, help="Number of places.")] = 2000,
    size: EngineSize = "160x120",
    supersample: Supersample = 1,
    workers: Workers = 2,
    seed: DrawSeed = 0,
    gore: Gore = "drop",
    beams: Annotated[int, typer.Option(min=1, help="Beams of the LiDAR.")] = 16,
    azimuths: Annotated[int, typer.Option(min=4, help="Shots of the LiDAR in a full turn, a multiple of 4.")] = 360,
    lidar_range: Annotated[
        float, typer.Option(callback=options.check_positive, help="Farthest return of the LiDAR, metres.")
    ] = 40.0,
    sweeps: Annotated[int, typer.Option(min=0, max=9, help="Readings of the LiDAR before each sample.")] = 2,
) -> None:
    """Make places of Freedoom seen all around, in nuScenes' format: six views, LiDAR, vector maps. Needs the ``render`` and
    ``bev`` extras."""
    from noise2map.rendering.lidar import LidarSpec
    from noise2map.rendering.surround import SurroundOptions, make_surround

    made = make_surround(
        SurroundOptions(
            out=out.resolve(),
            split=split,
            samples=samples,
            width=size.width,
            height=size.height,
            supersample=supersample,
            seed=seed,
            workers=workers,
            keep_gore=gore == "keep",
            lidar=LidarSpec(beams, azimuths, range_m=lidar_range),
            sweeps=sweeps,
            command=_command_line(),
        )
    )
    there = samples - made
    logger.info("%s: %d %s samples of six %s views (%d made now, %d were there)", out, samples, split, size, made, there)


@app.command(name="cut-surround")
def cut_surround_samples(
    samples: Annotated[list[str], typer.Argument(metavar="SAMPLE...", help="Tokens of samples.")],
    source: Annotated[Path, typer.Option("--from", help="Folder of a Freedoom surround set.")],
    out: NewFolder,
    split: Split = "test",
    sweeps: Annotated[int, typer.Option(min=0, max=9, help="Readings of the LiDAR to keep before each sample.")] = 0,
) -> None:
    """Cut a few samples out of a Freedoom surround set, maps and tables included: how the shipped ones were made."""
    from noise2map.rendering.surround import cut_surround
    from noise2map.runs.words import counted

    cut_surround(source, out, samples, split, sweeps)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    logger.info("%s: %s, %.2f MB", out, counted(len(set(samples)), f"{split} sample"), size / 1e6)


@app.command()
def select(
    source: Annotated[Path, typer.Option("--from", help="A rendered split.")],
    out: Annotated[Path, typer.Option(help="Folder to make; files are linked, so it takes next to no room.")],
    min_brightness: Annotated[float, typer.Option(help="Mean luma of the center crop as drawn, 0 to 255.")] = 0.0,
    max_redness: Annotated[float, typer.Option(help="Mean of red minus luma; lava and red skies are above 20.")] = 255.0,
    min_median_depth: Annotated[float, typer.Option(help="Metres.")] = 0.0,
    min_depth_contrast: Annotated[
        float, typer.Option(help="95th over 5th percentile of depth; a wall seen from the front has 1.")
    ] = 1.0,
) -> None:
    """Pick the frames that show a place, bright and deep enough: what the shipped generator has learnt from."""
    from noise2map.rendering.selection import Selection, select_frames

    wanted = Selection(min_brightness, max_redness, min_median_depth, min_depth_contrast)
    taken, total = select_frames(source, out, wanted, _command_line(), progress=True)
    logger.info("%s: %d of %d frames of %s", out, taken, total, source)


@app.command()
def samples(
    out: Annotated[Path, typer.Option(help="Folder to copy to.")],
    split: Split = "test",
    overwrite: options.Overwrite = False,
) -> None:
    """Copy the shipped sample frames out, brightened, as an ``images`` + ``maps`` folder with depth and licence."""
    from noise2map.data.freedoom.shipped import export_samples
    from noise2map.runs.output_folder import claim

    with claim(out, {"copied": "shipped frames of Freedoom", "split": split}, overwrite=overwrite):
        count = export_samples(out, split)
    logger.info("%s: %d %s frames", out, count, split)


@app.command()
def export(
    layout: Annotated[Layout, typer.Option(help="The dataset to look like.")],
    source: Annotated[str, typer.Option("--from", help="samples (shipped), a folder of rendered splits, or one rendered split.")],
    out: NewFolder,
    evaluation: Annotated[
        Literal["test", "val"], typer.Option(help="Freedoom split that the evaluation split is made of.")
    ] = "test",
    limit: Annotated[int, typer.Option(min=0, help="At most this many frames of each split; 0 for all.")] = 0,
) -> None:
    """Write Freedoom in the layout of a public dataset, byte formats included, to try everything that reads it."""
    from noise2map.rendering.export import export_frames
    from noise2map.runs.words import counted

    report = export_frames(layout, source, out, evaluation, limit=limit or None, progress=True)
    frames = " and ".join(f"{count} {split}" for split, count in report.frames.items())
    logger.info("%s: %s frames in the layout of %s", out, frames, layout)
    if report.lost_pixels:
        lost = counted(report.lost_pixels, "pixel")
        logger.info("farther away than the format can hold, and stored as not known: %s", lost)
    logger.info("look at them with: %s", shlex.join(["noise2map", "data", "check", layout, str(out)]))


@app.command()
def check(
    dataset: Annotated[
        str, typer.Argument(help="ade20k, cityscapes, kitti, nyu, nyu-labelled, sun-rgbd, lsun, freedoom or folder.")
    ],
    root: Annotated[Path, typer.Argument(help="Folder of the data.")],
    split: Annotated[str, typer.Option(help="Split; by default the one that scores are published for.")] = "",
    task: Annotated[options.ImageTask, typer.Option(help="What the maps of a folder or of Freedoom are.")] = "segmentation",
    depth_scale: Annotated[
        float, typer.Option(callback=options.check_positive, help="Metres per unit of a folder's depth maps.")
    ] = 0.001,
    limit: options.Limit = 0,
    broken: Annotated[
        Literal["skip", "raise"], typer.Option(help="skip: collect what is broken; raise: stop at the first.")
    ] = "skip",
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet of samples and maps to this PNG.")] = None,
    shown: Annotated[int, typer.Option(min=1, help="Samples on the contact sheet.")] = 9,
) -> None:
    """Report counts, missing and broken files, sizes, classes, the range of depth; exit code 1 if files are at fault."""
    from noise2map.data.folder import split_names

    parts = split_names(root) if dataset == "folder" and not split else [split]
    whole = True
    for part in parts:
        image = sheet if sheet is None or len(parts) == 1 else sheet.with_stem(f"{sheet.stem}-{part}")
        whole &= _check_split(dataset, root, part, task, depth_scale, limit, broken == "skip", image, shown)
    if not whole:
        raise typer.Exit(1)


def _check_split(
    name: str, root: Path, split: str, task: str, depth_scale: float, limit: int, skip: bool, sheet: Path | None, shown: int
) -> bool:
    """Check one split and say what was found; whether it is complete."""
    from noise2map.data.checking import check_dataset, check_lines
    from noise2map.data.opening import dataset_facts, open_dataset

    facts = dataset_facts(name)
    if len(facts.tasks) < 2:
        task = (facts.task if facts.images else None) or "image"
    data = open_dataset(name, root, split or None, task, depth_scale=depth_scale, missing="drop")
    split = split or facts.evaluation_split or "" if name != "freedoom" else data.split
    report = check_dataset(
        data,
        f"{facts.title if facts.takes_root and name != 'folder' else name} {split}".strip(),
        limit,
        skip,
        facts.depth_median_m or (0.2, 100.0),
        1 / depth_scale if name == "folder" else facts.units_per_metre,
        facts.released.get(split),
        progress=True,
    )
    logger.info("%s", "\n".join(check_lines(report, getattr(data, "id2label", {}))))
    if sheet is not None and report.images:
        _write_sheet(sheet, data, shown, report.name)
        logger.info("wrote %s", sheet)
    return report.complete


def _write_sheet(path: Path, data: Any, shown: int, heading: str) -> None:
    """Draw samples at even distances; those that cannot be read have been reported and are left out."""
    from noise2map.data.subsets import UNREADABLE, evenly_spaced
    from noise2map.report.panels import contact_sheet
    from noise2map.runs.files import write_image

    found = []
    for index in evenly_spaced(len(data), shown):
        try:
            found.append(data[index])
        except UNREADABLE:
            continue
    sheet = contact_sheet(found or [data[0]], getattr(data, "id2label", {}), getattr(data, "palette", None), heading)
    write_image(path, sheet)
