"""``noise2map calibrate``: what a model states, fitted to labelled images."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from noise2map.cli import options

Dataset = Annotated[str, typer.Option(help="Labelled images, as of `evaluate`: samples, freedoom, folder, nyu, ...")]
Levels = Annotated[list[str] | None, options.shares("Levels of coverage to fit. [default: 0.1, 0.2 ... 0.9, 0.95, 0.99]")]


def calibrate(
    model: Annotated[str, typer.Argument(help="Shipped name, folder of a checkpoint, or hub id.")],
    out: Annotated[Path, typer.Option(help="Folder of the calibrated checkpoint; the model itself is left as it is.")],
    dataset: Dataset = "samples",
    root: Annotated[Path | None, typer.Option(help="Folder of the data; ROOT/SPLIT is taken where it exists.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data. [default: the one that scores are published for]")] = None,
    limit: options.Limit = 0,
    steps: options.Steps = None,
    ensemble: options.Ensemble = None,
    average: options.Average = None,
    sampler: options.MapSampler = None,
    sampling: options.MapSampling = None,
    method: Annotated[
        Literal["temperature", "isotonic", "thresholds"],
        typer.Option(
            help="One temperature; for classes also isotonic: after it, the confidence that came true. For the layers of "
            "bird's-eye views also thresholds: those from which layers are shown, and nothing else; temperature fits them, too."
        ),
    ] = "temperature",
    levels: Levels = None,
    held_out: Annotated[float, typer.Option(min=0, max=0.95, help="Share of the images to score on, not to calibrate on.")] = 0.5,
    cluster: Annotated[
        Literal["image", "map"] | None, typer.Option(help="What is held out whole. [default: maps, where the data tells them]")
    ] = None,
    cells: Annotated[
        Literal["visible", "all"], typer.Option(help="Of freedoom-surround: also calibrate on cells that nobody can see.")
    ] = "visible",
    unit: Annotated[
        Literal["pixel", "image", "map"], typer.Option(help="What is exchangeable: coverage is that of a pixel of a new one.")
    ] = "image",
    pixels: Annotated[int, typer.Option(min=1, help="Most pixels of an image, drawn by seed and id.")] = 2000,
    batch_size: options.BatchSize = 8,
    device: options.Device = "auto",
    seed: Annotated[int, typer.Option(help="Of the maps' noise, the pixels and the images that are held out.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier calibrated checkpoint.")] = False,
) -> None:
    """Calibrate a model on labelled images: temperatures, sets of classes, intervals of depth, cones of directions.

    Writes a checkpoint whose probabilities, intervals and sets are corrected wherever it is loaded, with scores before and after on
    images that were not calibrated on.
    """
    # Imported after the options have been checked: a mistake is reported at once, not after seconds of imports.
    from transformers.utils import logging

    from noise2map.calibration.run import CalibrationOptions, run_calibration
    from noise2map.models.decoding import DecodingOptions
    from noise2map.tasks.calibrating import LEVELS

    logging.disable_progress_bar()
    decoding = DecodingOptions(
        num_inference_steps=steps, ensemble_size=ensemble, average=average, sampler=sampler, sampling=sampling, seed=seed
    )
    chosen = CalibrationOptions(
        model=model,
        out=out,
        dataset=dataset,
        root=root,
        split=split,
        limit=limit,
        decoding=decoding,
        method=method,
        levels=levels or LEVELS,
        held_out=held_out,
        cluster=cluster,
        cells=cells,
        unit=unit,
        pixels=pixels,
        batch_size=batch_size,
        device=device,
    )
    report = run_calibration(chosen, overwrite)
    print("\n\n".join(report.text()))
    print(f"wrote {out}", file=sys.stderr)
