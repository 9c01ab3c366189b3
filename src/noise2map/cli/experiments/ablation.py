"""``noise2map experiment ablation``: the published ablations, repeated on one's own data."""

from pathlib import Path
from typing import Annotated

import typer

from noise2map.cli.launch import report_into
from noise2map.cli.options import Limit, Overwrite

_NAMES = ("encoding", "scale", "schedule", "layers", "decoder", "time-difference", "steps")


def ablation(
    names: Annotated[list[str], typer.Argument(help=f"Which: {', '.join(_NAMES)}, or all.", metavar="NAME...")],
    out: Annotated[Path, typer.Option(help="Folder of trainings and results; an interrupted call is gone on with.")],
    encoder: Annotated[
        str, typer.Option(help="Model whose image encoder is kept: shipped name, folder or hub id.")
    ] = "freedoom-segmentation-tiny",
    dataset: Annotated[str, typer.Option(help="Data with class maps: freedoom, folder, ade20k, cityscapes.")] = "freedoom",
    root: Annotated[Path, typer.Option(help="Folder of the data.")] = Path("data/freedoom"),
    train: Annotated[str, typer.Option(help="Folder in ROOT, or split, that is trained on.")] = "train",
    val: Annotated[str, typer.Option(help="Folder in ROOT, or split, that is scored on.")] = "val",
    iterations: Annotated[int, typer.Option(min=1, help="Optimizer steps of each training.")] = 600,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each arm; may grow from call to call.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Images, or windows, of a step.")] = 8,
    window: Annotated[
        str | None, typer.Option(help="Train on random windows WxH of the features of whole images. [default: whole images]")
    ] = None,
    train_limit: Annotated[int, typer.Option(min=0, help="Train on the first so many images; 0 for all.")] = 0,
    limit: Limit = 0,
    features: Annotated[
        Path | None, typer.Option(help="Folder of the features of the training images. [default: OUT/features]")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of every recipe; repeatable.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples for 95 % intervals.")] = 1000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be trained and what it costs, and stop.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train decoders that differ in one choice of the published method on a frozen encoder, and compare them.

    The features of the training images are computed once. Every arm is trained with each seed; the first seed of all arms comes
    first. Scores, intervals over places and over seeds, and plots are written to OUT; trainings and scores that are there are
    not made again, so that names and seeds can be added in later calls.
    """
    # Imported after the options have been checked: a mistake is reported at once, not after seconds of imports.
    from noise2map.ablation.options import AblationOptions

    options = AblationOptions(
        names=_NAMES if "all" in names else names,
        out=out,
        encoder=encoder,
        dataset=dataset,
        root=root,
        train=train,
        val=val,
        iterations=iterations,
        seeds=seeds,
        batch_size=batch_size,
        window=window,
        train_limit=train_limit,
        limit=limit,
        features=features,
        changes=tuple(set_ or ()),
        resamples=resamples,
    )

    from noise2map.ablation.experiment import Experiment, make_plan
    from noise2map.cli.launch import hide_progress_of_files

    hide_progress_of_files()
    plan = make_plan(options, overwrite)
    print(plan.text(), flush=True)
    if dry_run:
        return
    report_into(out, options.settings(), lambda: Experiment(options, plan).run(), overwrite=overwrite)
