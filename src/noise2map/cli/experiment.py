"""``noise2map experiment``: questions whose answer takes several steps."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from noise2map.cli.experiments.ablation import ablation
from noise2map.cli.launch import hide_progress_of_files, report_into
from noise2map.cli.options import (
    BatchSize,
    CommandGroup,
    DepthPredictor,
    DepthPrior,
    Device,
    DType,
    ImageSampler,
    Limit,
    Overwrite,
    TimestepSpacing,
    numbers,
    words,
)
from noise2map.cli.sample import Convention, Generator, ImageSteps, OnNonfinite, ProbeTimestep, Reduction, Scale, as_saved
from noise2map.cli.trust.shifts import shifts

_ARMS = ("real", "real-predicted", "unguided", "guided", "filtered-unguided", "filtered")

app = CommandGroup("Experiments of several steps in one command.")


@app.callback()
def _root() -> None:
    """Experiments of several steps in one command."""


def depth_from_generated(
    model: Generator,
    real: Annotated[
        str, typer.Option(help="Real images with depth to train on: a rendered Freedoom split, samples, or e.g. nyu/train:ROOT.")
    ],
    test: Annotated[str, typer.Option(help="Real images with depth to score on, of other places.")],
    out: Annotated[Path, typer.Option(help="Folder of samples, runs and results; an interrupted run is gone on with.")],
    depth_predictor: DepthPredictor = None,
    depth_prior: DepthPrior = None,
    arms: Annotated[list[str] | None, words("Training sets. [default: all]", _ARMS)] = None,
    images: Annotated[int, typer.Option(min=1, help="Images of each training set.")] = 1000,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings on each set; intervals are over them.")] = 3,
    iterations: Annotated[int, typer.Option(min=1, help="Optimiser steps of a training.")] = 2000,
    recipe: Annotated[
        str, typer.Option(help="Recipe of the depth model that learns, by name or file; its data are not used.")
    ] = "freedoom-depth-mini",
    keep: Annotated[float, typer.Option(min=0.001, max=1, help="Share of samples that a filter keeps.")] = 0.5,
    consistency_scale: Scale = 40.0,
    prior_scale: Scale = 40.0,
    steps: ImageSteps = 50,
    sampler: ImageSampler = "default",
    timestep_spacing: TimestepSpacing = "default",
    convention: Convention = "default",
    reduction: Reduction = "default",
    on_nonfinite: OnNonfinite = "error",
    probe_timestep: ProbeTimestep = 50,
    limit: Annotated[int, typer.Option(min=0, help="At most this many test images, evenly spaced; 0 for all.")] = 0,
    batch_size: BatchSize = 8,
    device: Device = "auto",
    dtype: DType = "float32",
    samples: Annotated[
        Path | None,
        typer.Option(help="Take images from here, or add them, e.g. samples/ of an `evaluate generator`. [default: OUT/samples]"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results of other settings; images and trainings that fit are kept.")
    ] = False,
) -> None:
    """Train a depth model on real images, unguided and guided samples, and samples filtered by agreement, and compare."""
    # Imported after the options have been checked: a mistake is reported at once, not after seconds of imports.
    from noise2map.generation.experiments.depth_from_generated import run_experiment
    from noise2map.generation.experiments.training_sets import ExperimentOptions
    from noise2map.generation.sampling import SamplingOptions
    from noise2map.guidance import GuidanceConfig

    hide_progress_of_files()
    options = ExperimentOptions(
        model=model,
        real=real,
        test=test,
        out=out,
        depth_predictor=depth_predictor,
        depth_prior=depth_prior,
        arms=arms or _ARMS,
        images=images,
        trainings=seeds,
        iterations=iterations,
        recipe=recipe,
        keep=keep,
        sampling=SamplingOptions(num_inference_steps=steps, dtype=dtype, batch_size=batch_size),
        guidance=GuidanceConfig.from_scales(
            consistency_scale,
            prior_scale,
            convention=as_saved(convention),
            reduction=as_saved(reduction),
            on_nonfinite=on_nonfinite,
        ),
        sampler=sampler,
        timestep_spacing=timestep_spacing,
        probe_timestep=probe_timestep,
        limit=limit,
        device=device,
        samples=samples,
    )
    report_into(out, options.settings, lambda: run_experiment(options), overwrite=overwrite)


app.command("depth-from-generated")(depth_from_generated)


def map_use(
    model: Annotated[str, typer.Argument(help="Shipped name, folder of a checkpoint, or hub id; converted checkpoints, too.")],
    out: Annotated[Path, typer.Option(help="Folder for map_use.json, tables and a plot.")],
    dataset: Annotated[str, typer.Option(help="As of `evaluate`.")] = "samples",
    root: Annotated[Path | None, typer.Option(help="Folder of the data; ROOT/SPLIT is taken where it exists.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data. [default: the one that scores are published for]")] = None,
    steps: Annotated[list[str] | None, numbers("Decoder calls of the runs. [default: 3,10]")] = None,
    hide: Annotated[
        Literal["rectangle", "strips", "window", "mixed"] | None, typer.Option(help="Cover part of each image with grey.")
    ] = None,
    limit: Limit = 0,
    batch_size: BatchSize = 8,
    device: Device = "auto",
    dtype: DType = "float32",
    seed: Annotated[int, typer.Option(help="With an image's id it fixes the image's noise.")] = 0,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples for 95 % intervals.")] = 1000,
    cluster: Annotated[Literal["image", "map"], typer.Option(help="Resample images, or whole maps.")] = "image",
    overwrite: Overwrite = False,
) -> None:
    """Ask whether a map model reads its noisy map, and whether its steps bring anything.

    One decoder call at each noise level is shown noise, nothing, the model's own guess, the truth, and the truth of another image.
    Runs are compared with as many first calls averaged, with fresh noise at each step, with time frozen, and from no noise.
    """
    # Imported after the options have been checked: a mistake is reported at once, not after seconds of imports.
    from noise2map.evaluation.experiments.map_use import MapUseOptions, run_map_use

    hide_progress_of_files()
    chosen = MapUseOptions(
        model=model,
        dataset=dataset,
        root=root,
        split=split,
        counts=tuple(int(count) for count in steps or (3, 10)),
        hide=hide,
        limit=limit,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        seed=seed,
        resamples=resamples,
        cluster=cluster,
    )
    report_into(out, chosen.settings(), lambda: run_map_use(chosen), overwrite=overwrite)


app.command("map-use")(map_use)
app.command("shifts")(shifts)
app.command("ablation")(ablation)
