"""``noise2map evaluate``: scores by steps, samples and averaging, with the uncertainty scored."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from noise2map.cli import options


def evaluate(
    model: Annotated[str | None, typer.Option(help="Shipped name, folder of a checkpoint, or hub id.")] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="Score the maps in this folder in place of a model's: what predict wrote, or PNG (class ids, 16-bit depth, RGB "
            "normals), .npy or .npz files named like the images."
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(help="What the maps of --predictions are. [default: as the folder says]")] = None,
    classes: Annotated[Path | None, typer.Option(help="JSON file with the names of the classes of --predictions.")] = None,
    dataset: Annotated[
        str,
        typer.Option(
            help="samples (shipped frames), freedoom, folder (images/ and maps/), or in its released layout: ade20k, cityscapes, "
            "kitti, nyu, nyu-labelled, sun-rgbd; for bird's-eye-view models nuscenes or freedoom-surround."
        ),
    ] = "samples",
    root: Annotated[Path | None, typer.Option(help="Folder of the data; ROOT/SPLIT is taken where it exists.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data. [default: the one that scores are published for]")] = None,
    protocol: Annotated[
        str, typer.Option(help="plain (the model's image processor), official (of the data set) or multi-scale (6 scales, flip).")
    ] = "plain",
    window: Annotated[str | None, typer.Option(help="Sliding windows WIDTHxHEIGHT in pixels, multiples of 32.")] = None,
    stride: Annotated[str | None, typer.Option(help="Their distance WIDTHxHEIGHT. [default: two thirds of the window]")] = None,
    steps: Annotated[
        list[str] | None, typer.Option(help="Decoder calls: numbers or auto, e.g. 1 3 10 or 1,3,auto. [default: 1,3,10]")
    ] = None,
    ensemble: Annotated[list[str] | None, typer.Option(help="Noise samples, e.g. 1,4. [default: 1]")] = None,
    average: Annotated[
        list[str] | None,
        typer.Option(help="last and/or steps. [default: last; the model's with --protocol official]"),
    ] = None,
    sampler: Annotated[str, typer.Option(help="ddim or ddpm.")] = "ddim",
    limit: Annotated[int, typer.Option(help="Score this many images, spread evenly over the data; 0 for all.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Images at a time; scores do not depend on it.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    seed: Annotated[int, typer.Option(help="With an image's id it fixes the image's noise.")] = 0,
    compare: Annotated[
        str | None, typer.Option(help="A second model (or folder, with --predictions): paired differences on the same images.")
    ] = None,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples for 95 % intervals over images; 0 for none.")] = 1000,
    min_depth: Annotated[float | None, typer.Option(help="Score depth from here, metres; default as the model.")] = None,
    max_depth: Annotated[float | None, typer.Option(help="Score depth up to here, metres; default as the model.")] = None,
    depth_scale: Annotated[float, typer.Option(help="Metres per unit of a folder's depth maps.")] = 0.001,
    fit_temperature: Annotated[bool, typer.Option("--fit-temperature", help="Also fit the logits' temperature.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for evaluation.json and evaluation.csv.")] = None,
    save_per_image: Annotated[bool, typer.Option("--save-per-image", help="Also write per_image.csv to --out.")] = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Score a model: maps, calibration and every kind of uncertainty, by steps, samples and averaging.

    With --predictions score a folder of maps, whoever made them.
    """
    if (model is None) == (predictions is None):
        raise ValueError("expected --model or --predictions, one of them")
    if predictions is not None and (steps or ensemble or average or window or fit_temperature):
        raise ValueError("--steps, --ensemble, --average, --window and --fit-temperature are for models; maps are scored as stored")
    from noise2map.evaluation.protocols import parse_choices, parse_counts, parse_steps, protocol_grid

    grid = protocol_grid(
        parse_steps(steps or ["1,3,10"]),
        parse_counts(ensemble or ["1"], "ensemble"),
        parse_choices(average or ["last"], "average", ("last", "steps")),
        sampler,
    )
    for name, value, least in (("limit", limit, 0), ("batch-size", batch_size, 1), ("resamples", resamples, 0)):
        if value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")
    if protocol not in ("plain", "official", "multi-scale"):
        raise ValueError(f"--protocol must be plain, official or multi-scale, got {protocol!r}")
    if save_per_image and out is None:
        raise ValueError("--save-per-image needs --out, the folder to write to")
    # Imported after the dials have been checked: a mistake is reported at once, not after seconds of imports.
    from transformers.utils import logging

    from noise2map.evaluation.run import EvaluationJob, run_evaluation
    from noise2map.runs.output_folder import claim

    logging.disable_progress_bar()  # of loading weights, which takes no time

    job = EvaluationJob(
        models=[name for name in (model, compare) if name] if predictions is None else [],
        predictions=[path for path in (predictions, compare and Path(compare)) if path] if predictions else [],
        task=task,
        classes=classes,
        dataset=dataset,
        root=root,
        split=split,
        protocols=grid,
        steps_chosen=steps is not None or ensemble is not None,
        limit=limit,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        seed=seed,
        resamples=resamples,
        depth_range=(min_depth, max_depth),
        depth_scale=depth_scale,
        fit_temperature=fit_temperature,
        test_protocol=protocol,
        window=_sides("window", window),
        stride=_sides("stride", stride),
        average_of_model=average is None and protocol != "plain",
    )
    with claim(out, job.settings(), overwrite=overwrite) if out is not None else nullcontext():
        report = run_evaluation(job, say=lambda text: print(text, file=sys.stderr))
        print("\n\n".join(report.text()))
        for path in report.write(out, save_per_image) if out is not None else ():
            print(f"wrote {path}", file=sys.stderr)


def _sides(name: str, text: str | None) -> tuple[int, int] | None:
    """Height and width from ``WIDTHxHEIGHT``."""
    if text is None:
        return None
    width, times, height = text.lower().partition("x")
    if not (times and width.isdecimal() and height.isdecimal()):
        raise ValueError(f"--{name} must be WIDTHxHEIGHT in pixels, such as 512x512, got {text!r}")
    return int(height), int(width)
