"""``noise2map experiment``: questions whose answer takes several trainings."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from noise2map.cli.options import CommandGroup

app = CommandGroup("Experiments of several steps in one command.")


@app.callback()
def _root() -> None:
    """Experiments of several steps in one command."""


def depth_from_generated(
    model: Annotated[str, typer.Option(help="Generator: shipped name, folder of a diffusers pipeline, or hub id.")],
    real: Annotated[
        str, typer.Option(help="Real images with depth to train on: a rendered Freedoom split, samples, or e.g. nyu/train:ROOT.")
    ],
    test: Annotated[str, typer.Option(help="Real images with depth to score on, of other places.")],
    out: Annotated[Path, typer.Option(help="Folder of samples, runs and results; an interrupted run is gone on with.")],
    predictor: Annotated[str | None, typer.Option(help="Depth predictor. [default: the one in the generator's folder]")] = None,
    prior: Annotated[str | None, typer.Option(help="Depth prior. [default: the one in the generator's folder]")] = None,
    arms: Annotated[
        list[str] | None, typer.Option(help="Training sets: real, real-predicted, unguided, guided, filtered. [default: all]")
    ] = None,
    images: Annotated[int, typer.Option(help="Images of each training set.")] = 1000,
    seeds: Annotated[int, typer.Option(help="Trainings on each set; intervals are over them.")] = 3,
    iterations: Annotated[int, typer.Option(help="Optimiser steps of a training, of 16 images.")] = 2000,
    keep: Annotated[float, typer.Option(help="Share of guided samples that the filter keeps.")] = 0.5,
    consistency_scale: Annotated[float, typer.Option(help="Scale of DCG.")] = 40.0,
    prior_scale: Annotated[float, typer.Option(help="Scale of DPG; not used without a prior.")] = 40.0,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 50,
    scheduler: Annotated[str, typer.Option(help="ddim, ddpm, or own: the generator's.")] = "own",
    convention: Annotated[str, typer.Option(help="Meaning of the scales: variance, plain, or own: the generator's.")] = "own",
    reduction: Annotated[str, typer.Option(help="Of the losses over pixels: sum, mean, or own: the generator's.")] = "own",
    on_nonfinite: Annotated[str, typer.Option(help="error, or skip: leave steps unguided whose gradient is not finite.")] = "error",
    probe_timestep: Annotated[int, typer.Option(help="Noise at which the depth of an image is read.")] = 50,
    test_limit: Annotated[int, typer.Option(help="At most this many test images, spread evenly; 0 for all.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Images at a time in sampling; images do not depend on it.")] = 8,
    bf16: Annotated[bool, typer.Option("--bf16", help="Draw under bfloat16 autocast.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    samples: Annotated[
        Path | None,
        typer.Option(help="Take images from here, or add them, e.g. samples/ of an `evaluate generator`. [default: OUT/samples]"),
    ] = None,
) -> None:
    """What images teach a small depth network: real ones, unguided and guided samples, and samples filtered by agreement."""
    for name, (value, least) in {"steps": (steps, 1), "batch-size": (batch_size, 1), "test-limit": (test_limit, 0)}.items():
        if value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")

    # Imported after the options have been checked: a mistake is reported at once, not after seconds of imports.
    import diffusers
    from transformers.utils import logging

    from noise2map.generation.experiments.depth_from_generated import run_experiment
    from noise2map.generation.experiments.training_sets import ARMS, ExperimentJob
    from noise2map.generation.sampling import SamplingPlan

    logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    job = ExperimentJob(
        model,
        real,
        test,
        out,
        predictor,
        prior,
        [one.strip() for one in ",".join(arms).split(",")] if arms else list(ARMS),
        images,
        seeds,
        iterations,
        keep,
        consistency_scale,
        prior_scale,
        SamplingPlan(steps, convention, reduction, 1, 0.0, on_nonfinite, bf16),
        scheduler,
        probe_timestep,
        test_limit,
        batch_size,
        device,
        samples,
    )
    report = run_experiment(job, say=lambda text: print(text, file=sys.stderr))
    print("\n\n".join(report.text()))
    for path in report.write(out):
        print(f"wrote {path}", file=sys.stderr)


app.command("depth-from-generated")(depth_from_generated)
