"""``noise2map evaluate``: scores by steps, samples and averaging, with the uncertainty scored."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from noise2map.cli import options


def evaluate(
    model: Annotated[str | None, typer.Option(help="Shipped name, folder of a checkpoint, or hub id.")] = None,
    member: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL", help="A further decoder on the encoder of --model (repeat the option): scored as one ensemble."
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="Score the maps in this folder in place of a model's: what predict wrote, or PNG (class ids, 16-bit depth, RGB "
            "normals), .npy or .npz files named like the images."
        ),
    ] = None,
    task: Annotated[
        options.ImageTask | None,
        typer.Option(help="What the maps of --predictions are. [default: as the folder says]"),
    ] = None,
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
        Literal["plain", "official", "multi-scale"],
        typer.Option(help="plain: the model's image processor; official: of the dataset; multi-scale: 6 scales, flip."),
    ] = "plain",
    window: Annotated[options.ImageSize | None, options.size("Sliding windows, multiples of 32.", multiple=32, least=32)] = None,
    stride: Annotated[options.ImageSize | None, options.size("Their distance. [default: two thirds of the window]")] = None,
    steps: Annotated[list[str] | None, options.step_counts("Decoder calls, e.g. 1 3 10 or 1,3,auto. [default: 1,3,10]")] = None,
    ensemble: Annotated[list[str] | None, options.numbers("Noise samples, e.g. 1,4. [default: 1]")] = None,
    average: Annotated[
        list[str] | None,
        options.words("The last step or the mean. [default: last; the model's with --protocol official]", ("last", "steps")),
    ] = None,
    sampler: Annotated[Literal["ddim", "ddpm", "dpmpp_2m"], typer.Option(help="Sampler of the map.")] = "ddim",
    hide: Annotated[
        Literal["rectangle", "strips", "window", "mixed"] | None,
        typer.Option(help="Cover part of each image with grey: a rectangle, strips, all but a window, or one of them."),
    ] = None,
    cells: Annotated[
        Literal["visible", "all"], typer.Option(help="Of freedoom-surround: also score, apart, cells that nobody can see.")
    ] = "visible",
    sampling: Annotated[
        list[str] | None,
        options.words("A run of steps, one pass, or samples of one pass by a smooth field.", ("diffusion", "one_pass", "field")),
    ] = None,
    field_smoothness: Annotated[
        list[str] | None,
        options.scales("Widths of the smooth field, cells; inf: one luck for the whole map. [default: the model's]", infinite=True),
    ] = None,
    sample_scores: Annotated[
        bool,
        typer.Option(
            "--sample-scores",
            help="Also score the single samples of --ensemble: CRPS, energy score, spread, coverage, set distances, sharpness.",
        ),
    ] = False,
    limit: options.Limit = 0,
    batch_size: options.BatchSize = 8,
    device: options.Device = "auto",
    dtype: options.DType = "float32",
    seed: Annotated[int, typer.Option(help="With an image's id it fixes the image's noise.")] = 0,
    compare: Annotated[
        str | None, typer.Option(help="A second model (or folder, with --predictions): paired differences on the same images.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=0, help="Bootstrap resamples for 95 % intervals; 0 for none.")] = 1000,
    cluster: Annotated[
        Literal["image", "map"], typer.Option(help="Resample images, or whole maps: what is said then holds for other places.")
    ] = "image",
    min_depth: Annotated[float | None, typer.Option(help="Score depth from here, meters. [default: the model's]")] = None,
    max_depth: Annotated[float | None, typer.Option(help="Score depth up to here, meters. [default: the model's]")] = None,
    depth_scale: Annotated[float, typer.Option(help="Meters per unit of a folder's depth maps.")] = 0.001,
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
    if predictions is not None and (steps or ensemble or average or sampling or window or fit_temperature):
        raise ValueError(
            "--steps, --ensemble, --average, --sampling, --window and --fit-temperature are for models; maps are scored as stored"
        )
    if predictions is not None and member:
        raise ValueError("--member makes an ensemble of --model; --predictions are scored as stored")
    if predictions is not None and hide:
        raise ValueError("--hide covers the images that a model sees; --predictions are scored as stored")
    if field_smoothness and "field" not in (sampling or ()):
        raise ValueError("--field-smoothness needs --sampling field")
    if save_per_image and out is None:
        raise ValueError("--save-per-image needs --out, the folder to write to")
    # Imported after the options have been checked: a mistake is reported at once, not after seconds of imports.
    from transformers.utils import logging

    from noise2map.evaluation.protocols import protocol_grid
    from noise2map.evaluation.run import EvaluationOptions, run_evaluation
    from noise2map.runs.output_folder import claim

    logging.disable_progress_bar()  # of loading weights, which takes no time

    chosen = EvaluationOptions(
        models=[name for name in (model, compare) if name] if predictions is None else [],
        members=member or [],
        predictions=[path for path in (predictions, compare and Path(compare)) if path] if predictions else [],
        task=task,
        classes=classes,
        dataset=dataset,
        root=root,
        split=split,
        protocols=protocol_grid(
            steps or [1, 3, 10],
            ensemble or [1],
            average or ["last"],
            sampler,
            samplings=sampling or [None],
            smoothness=field_smoothness or [None],
        ),
        steps_chosen=steps is not None or ensemble is not None or sampling is not None,
        hide=hide,
        cells=cells,
        limit=limit,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        seed=seed,
        resamples=resamples,
        depth_range=(min_depth, max_depth),
        depth_scale=depth_scale,
        fit_temperature=fit_temperature,
        sample_scores=sample_scores,
        cluster=cluster,
        test_protocol=protocol,
        window=window and (window.height, window.width),
        stride=stride and (stride.height, stride.width),
        average_of_model=average is None and protocol != "plain",
    )
    with claim(out, chosen.settings(), overwrite=overwrite) if out is not None else nullcontext():
        report = run_evaluation(chosen)
        print("\n\n".join(report.text()))
        for path in report.write(out, save_per_image) if out is not None else ():
            print(f"wrote {path}", file=sys.stderr)
