"""``noise2map experiment shifts``: what is left of a calibration where images are not as in training."""

from pathlib import Path
from typing import Annotated

import typer

from noise2map.cli import options
from noise2map.cli.launch import hide_progress_of_files, report_into

SHIFTS = ("darkness", "noise", "blur", "zoom", "hide_share")


def shifts(
    model: Annotated[str, typer.Argument(help="Shipped name, folder of a checkpoint, or hub id.")],
    out: Annotated[Path, typer.Option(help="Folder for shifts.csv, shifts.json and plots.")],
    calibrated: Annotated[
        list[str] | None, typer.Option(metavar="DIR", help="What `calibrate` wrote (repeat the option). [default: the model's own]")
    ] = None,
    dataset: Annotated[str, typer.Option(help="Labelled images, as of `evaluate`; best of places not calibrated on.")] = "samples",
    root: Annotated[Path | None, typer.Option(help="Folder of the data; ROOT/SPLIT is taken where it exists.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data. [default: the one that scores are published for]")] = None,
    limit: options.Limit = 0,
    shift: Annotated[list[str] | None, options.words("Shifts. [default: all]", SHIFTS)] = None,
    steps: options.Steps = None,
    ensemble: options.Ensemble = None,
    average: options.Average = None,
    pixels: Annotated[int, typer.Option(min=1, help="Most pixels of an image, drawn by seed and id.")] = 2000,
    batch_size: options.BatchSize = 8,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
) -> None:
    """Score what a model states, before and after calibration, on images made darker, noisier, blurred, magnified or covered.

    Baselines: the model as it is, a temperature alone, and an interval of the same width everywhere.
    """
    # Imported after the options have been checked: a mistake is reported at once, not after seconds of imports.
    from noise2map.calibration.shifts import ShiftOptions, run_shifts
    from noise2map.models.decoding import DecodingOptions

    hide_progress_of_files()
    chosen = ShiftOptions(
        model=model,
        calibrated=calibrated or (),
        dataset=dataset,
        root=root,
        split=split,
        limit=limit,
        shifts=shift or (),
        decoding=DecodingOptions(num_inference_steps=steps, ensemble_size=ensemble, average=average, seed=seed),
        pixels=pixels,
        batch_size=batch_size,
        device=device,
    )
    report_into(out, chosen.settings(), lambda: run_shifts(chosen, out=out), overwrite=overwrite)
