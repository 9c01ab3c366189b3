"""``noise2map data``: render Freedoom frames, copy the shipped ones out."""

import shlex
import sys
from pathlib import Path

import typer

from noise2map.cli.options import CommandGroup

app = CommandGroup("Render and inspect data.")


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
    from noise2map.rendering.render_run import RenderJob, render

    if gore not in ("drop", "keep"):
        raise ValueError(f"--gore must be drop or keep, got {gore!r}")
    width, height = _parse_size(size)
    job = RenderJob(
        out.resolve(), split, frames, width, height, seed, workers, gore == "keep", shlex.join(["noise2map", *sys.argv[1:]])
    )
    rendered = render(job)
    print(f"{out}: {frames} {split} frames of {width}x{height} ({rendered} rendered now, {frames - rendered} were there)")


@app.command(name="freedoom-surround")
def freedoom_surround(
    out: Path = typer.Option(..., help="Folder of the data set, for all its splits; an unfinished split is gone on with."),
    split: str = typer.Option("train", help="train, val or test: different maps."),
    samples: int = typer.Option(2000, help="Number of places."),
    size: str = typer.Option("160x120", help="Picture size, WIDTHxHEIGHT."),
    workers: int = typer.Option(2, help="Engines at a time."),
    seed: int = typer.Option(0, help="Samples depend on the seed, the split and their index, on nothing else."),
    gore: str = typer.Option("drop", help="drop or keep places with corpses and gibs in view."),
    beams: int = typer.Option(16, help="Beams of the LiDAR."),
    azimuths: int = typer.Option(360, help="Shots of the LiDAR in a full turn, a multiple of 4."),
    lidar_range: float = typer.Option(40.0, help="Farthest return of the LiDAR, metres."),
    sweeps: int = typer.Option(2, help="Readings of the LiDAR before each sample, 0 to 9."),
) -> None:
    """Make places of Freedoom seen all around, in nuScenes' format: six views, LiDAR, vector maps. Needs the ``render`` and
    ``bev`` extras."""
    from noise2map.rendering.lidar import LidarSpec
    from noise2map.rendering.surround import SurroundJob, make_surround

    if gore not in ("drop", "keep"):
        raise ValueError(f"--gore must be drop or keep, got {gore!r}")
    width, height = _parse_size(size)
    lidar = LidarSpec(beams, azimuths, range_m=lidar_range)
    command = shlex.join(["noise2map", *sys.argv[1:]])
    job = SurroundJob(out.resolve(), split, samples, width, height, seed, workers, gore == "keep", lidar, sweeps, command)
    made = make_surround(job)
    print(f"{out}: {samples} {split} samples of six {width}x{height} views ({made} made now, {samples - made} were there)")


@app.command(name="cut-surround")
def cut_surround_samples(
    samples: list[str] = typer.Argument(metavar="SAMPLE...", help="Tokens of samples."),
    source: Path = typer.Option(..., "--from", help="Folder of a Freedoom surround set."),
    out: Path = typer.Option(..., help="Folder to make; it must not be there, or be empty."),
    split: str = typer.Option("test", help="Split of the samples."),
    sweeps: int = typer.Option(0, help="Readings of the LiDAR to keep before each sample."),
) -> None:
    """Cut a few samples out of a Freedoom surround set, maps and tables included: how the shipped ones were made."""
    from noise2map.rendering.surround import cut_surround

    cut_surround(source, out, samples, split, sweeps)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {len(set(samples))} {split} samples, {size / 1e6:.2f} MB")


@app.command(name="select")
def select(
    source: Path = typer.Option(..., "--from", help="A rendered split."),
    out: Path = typer.Option(..., help="Folder to make; files are linked, so it takes next to no room."),
    min_brightness: float = typer.Option(0.0, help="Mean luma of the middle square as drawn, 0 to 255."),
    max_redness: float = typer.Option(255.0, help="Mean of red minus luma; lava and red skies are above 20."),
    min_median_depth: float = typer.Option(0.0, help="Metres."),
    min_depth_contrast: float = typer.Option(1.0, help="95th over 5th percentile of depth; a wall seen from the front has 1."),
) -> None:
    """Pick the frames that show a place, bright and deep enough: what the shipped generator has learnt from."""
    from tqdm import tqdm

    from noise2map.rendering.selection import Selection, select_frames

    wanted = Selection(min_brightness, max_redness, min_median_depth, min_depth_contrast)
    with tqdm(desc="looking at frames", unit="frame") as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        taken, total = select_frames(source, out, wanted, shlex.join(["noise2map", *sys.argv[1:]]), advance)
    print(f"{out}: {taken} of {total} frames of {source}")


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
    from noise2map.data.freedoom.shipped import export_samples

    count = export_samples(out, split)
    print(f"{out}: {count} {split} frames")


@app.command()
def export(
    layout: str = typer.Option(..., help="ade20k, cityscapes, kitti, nyu, sun-rgbd or lsun."),
    source: str = typer.Option(..., "--from", help="samples (shipped), a folder of rendered splits, or one rendered split."),
    out: Path = typer.Option(..., help="Folder to make; it must not be there, or be empty."),
    evaluation: str = typer.Option("test", help="Freedoom split that the evaluation split is made of: test or val."),
    limit: int = typer.Option(0, help="At most this many frames of each split; 0 for all."),
) -> None:
    """Write Freedoom in the layout of a public data set, byte formats included, to try everything that reads it."""
    from tqdm import tqdm

    from noise2map.rendering.export import export_frames

    if limit < 0:
        raise ValueError(f"--limit must be at least 0, got {limit}")
    with tqdm(unit="frame", disable=None) as bar:
        report = export_frames(layout, source, out, evaluation, limit=limit or None, progress=_on(bar))
    frames = " and ".join(f"{count} {split}" for split, count in report.frames.items())
    print(f"{out}: {frames} frames in the layout of {layout}")
    if report.lost_pixels:
        print(f"{report.lost_pixels} pixels are farther away than the format can hold; they are stored as not known")
    print(f"look at them with: {shlex.join(['noise2map', 'data', 'check', layout, str(out)])}")


@app.command()
def check(
    dataset: str = typer.Argument(help="ade20k, cityscapes, kitti, nyu, nyu-labelled, sun-rgbd, lsun, freedoom or folder."),
    root: Path = typer.Argument(help="Folder of the data."),
    split: str = typer.Option("", help="Split; by default the one that scores are published for."),
    task: str = typer.Option("segmentation", help="What the maps of a folder or of Freedoom are: segmentation or depth."),
    depth_scale: float = typer.Option(0.001, help="Metres per unit of a folder's depth maps."),
    limit: int = typer.Option(0, help="Read this many samples, spread evenly; 0 for all."),
    broken: str = typer.Option("skip", help="skip (collect what is broken) or raise (stop at the first)."),
    sheet: Path | None = typer.Option(None, help="Write a contact sheet of samples and maps to this PNG."),
    shown: int = typer.Option(9, help="Samples on the contact sheet."),
) -> None:
    """Report counts, missing and broken files, sizes, classes, the range of depth; exit code 1 if files are at fault."""
    from noise2map.data.folder import split_names

    if broken not in ("skip", "raise"):
        raise ValueError(f"--broken must be skip or raise, got {broken!r}")
    if shown < 1:
        raise ValueError(f"--shown must be at least 1, got {shown}")
    parts = split_names(root) if dataset == "folder" and not split else [split]
    whole = True
    for part in parts:
        picture = sheet if sheet is None or len(parts) == 1 else sheet.with_stem(f"{sheet.stem}-{part}")
        whole &= _check_split(dataset, root, part, task, depth_scale, limit, broken == "skip", picture, shown)
    if not whole:
        raise typer.Exit(1)


def _check_split(
    name: str, root: Path, split: str, task: str, depth_scale: float, limit: int, skip: bool, sheet: Path | None, shown: int
) -> bool:
    """Check one split and print what was found; whether it is complete."""
    from tqdm import tqdm

    from noise2map.data.checking import check_dataset, check_lines
    from noise2map.data.opening import dataset_facts, open_dataset

    facts = dataset_facts(name)
    if len(facts.tasks) < 2:
        task = (facts.task if facts.images else None) or "image"
    data = open_dataset(name, root, split or None, task, depth_scale=depth_scale, missing="drop")
    split = split or facts.evaluation_split or "" if name != "freedoom" else data.split
    with tqdm(unit="sample", disable=None) as bar:
        report = check_dataset(
            data,
            f"{facts.title if facts.takes_root and name != 'folder' else name} {split}".strip(),
            limit,
            skip,
            facts.depth_median_m or (0.2, 100.0),
            1 / depth_scale if name == "folder" else facts.units_per_metre,
            facts.released.get(split),
            _on(bar),
        )
    id2label = getattr(data, "id2label", {})
    print("\n".join(check_lines(report, id2label)))
    if sheet is not None and report.images:
        _write_sheet(sheet, data, shown, report.name)
        print(f"wrote {sheet}", file=sys.stderr)
    return report.complete


def _on(bar):
    def progress(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return progress


def _write_sheet(path: Path, data, shown: int, heading: str) -> None:
    """Draw samples at even distances; those that cannot be read have been reported and are left out."""
    from noise2map.data.subsets import UNREADABLE, evenly_spaced
    from noise2map.report.panels import contact_sheet
    from noise2map.runs.files import write_file

    samples = []
    for index in evenly_spaced(len(data), shown):
        try:
            samples.append(data[index])
        except UNREADABLE:
            continue
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = contact_sheet(samples or [data[0]], data.id2label, data.palette, heading)
    write_file(path, lambda file: picture.save(file, "PNG"))
