"""``noise2map evaluate``: scores by steps, samples and averaging, with the uncertainty scored."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from noise2map.cli import options
from noise2map.cli.launch import hide_progress_of_files

if TYPE_CHECKING:
    from noise2map.evaluation.run import EvaluationOptions
    from noise2map.models.decoding import DecodingOptions

Model = Annotated[str | None, typer.Option(help="Shipped name, folder of a checkpoint, or hub id.")]
Member = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODEL",
        help="A further decoder on the encoder of --model (repeat): scored as one ensemble; each draws --ensemble maps.",
    ),
]
Predictions = Annotated[
    Path | None,
    typer.Option(
        help="Score the maps in this folder in place of a model's: what predict wrote, or PNG (class ids, 16-bit depth, RGB "
        "normals), .npy or .npz files named like the images."
    ),
]
Task = Annotated[
    options.ImageTask | None,
    typer.Option(help="What the maps of --predictions are. [default: as the folder says]"),
]
Classes = Annotated[Path | None, typer.Option(help="JSON file with the names of the classes of --predictions.")]
Dataset = Annotated[
    str,
    typer.Option(
        help="samples (shipped frames), freedoom, folder (images/ and maps/), or in its released layout: ade20k, cityscapes, "
        "kitti, nyu, nyu-labelled, sun-rgbd; for bird's-eye-view models nuscenes or freedoom-surround."
    ),
]
Root = Annotated[Path | None, typer.Option(help="Folder of the data; ROOT/SPLIT is taken where it exists.")]
Split = Annotated[str | None, typer.Option(help="Split of the data. [default: the one that scores are published for]")]
Protocol = Annotated[
    Literal["plain", "flip", "official", "multi-scale"],
    typer.Option(
        help="plain: the model's image processor; flip: mirrored, too; official: of the dataset; multi-scale: 6 scales, flip."
    ),
]
Window = Annotated[options.ImageSize | None, options.size("Sliding windows, multiples of 32.", multiple=32, least=32)]
Stride = Annotated[options.ImageSize | None, options.size("Their distance. [default: two thirds of the window]")]
Steps = Annotated[list[str] | None, options.step_counts("Decoder calls, e.g. 1 3 10 or 1,3,auto. [default: 1,3,10]")]
Ensemble = Annotated[list[str] | None, options.numbers("Noise samples, e.g. 1,4. [default: 1]")]
Average = Annotated[
    list[str] | None,
    options.words("The last step or the mean. [default: last; the model's with --protocol official]", ("last", "steps")),
]
Sampler = Annotated[Literal["ddim", "ddpm", "dpmpp_2m"], typer.Option(help="Sampler of the map.")]
Hide = Annotated[
    Literal["rectangle", "strips", "window", "mixed"] | None,
    typer.Option(help="Cover part of each image with grey: a rectangle, strips, all but a window, or one of them."),
]
Cells = Annotated[
    Literal["visible", "all"], typer.Option(help="Of freedoom-surround: also score, apart, cells that nobody can see.")
]
Sampling = Annotated[
    list[str] | None,
    options.words("A run of steps, one pass, or samples of one pass by a smooth field.", ("diffusion", "one_pass", "field")),
]
FieldSmoothness = Annotated[
    list[str] | None,
    options.scales("Widths of the smooth field, cells; inf: one luck for the whole map. [default: the model's]", infinite=True),
]
Refine = Annotated[
    list[str] | None,
    options.words("Tokens that steps after the first compute: all, or where the first is in doubt.", ("all", "uncertain")),
]
RefineShare = Annotated[
    list[str] | None,
    options.shares("Shares of the tokens that --refine uncertain computes. [default: the model's]", whole=True),
]
RefineThreshold = Annotated[
    list[str] | None,
    options.scales("In place of shares: uncertainties from which on --refine uncertain computes a token."),
]
SampleScores = Annotated[
    bool,
    typer.Option(
        "--sample-scores",
        help="Also score the single samples of --ensemble: CRPS, energy score, spread, coverage, set distances, sharpness.",
    ),
]
Seed = Annotated[int, typer.Option(help="With an image's id it fixes the image's noise.")]
Compare = Annotated[
    str | None, typer.Option(help="A second model (or folder, with --predictions): paired differences on the same images.")
]
Resamples = Annotated[int, typer.Option(min=0, help="Bootstrap resamples for 95 % intervals; 0 for none.")]
Cluster = Annotated[
    Literal["image", "map"], typer.Option(help="Resample images, or whole maps: what is said then holds for other places.")
]
MinDepth = Annotated[float | None, typer.Option(help="Score depth from here, meters. [default: the model's]")]
MaxDepth = Annotated[float | None, typer.Option(help="Score depth up to here, meters. [default: the model's]")]
DepthScale = Annotated[float, typer.Option(help="Meters per unit of a folder's depth maps.")]
FitTemperature = Annotated[bool, typer.Option("--fit-temperature", help="Also fit the logits' temperature.")]
Out = Annotated[Path | None, typer.Option(help="Folder for evaluation.json and evaluation.csv.")]
SavePerImage = Annotated[bool, typer.Option("--save-per-image", help="Also write per_image.csv to --out.")]


def evaluate(
    model: Model = None,
    member: Member = None,
    predictions: Predictions = None,
    task: Task = None,
    classes: Classes = None,
    dataset: Dataset = "samples",
    root: Root = None,
    split: Split = None,
    protocol: Protocol = "plain",
    window: Window = None,
    stride: Stride = None,
    steps: Steps = None,
    ensemble: Ensemble = None,
    average: Average = None,
    sampler: Sampler = "ddim",
    hide: Hide = None,
    cells: Cells = "visible",
    sampling: Sampling = None,
    field_smoothness: FieldSmoothness = None,
    refine: Refine = None,
    refine_share: RefineShare = None,
    refine_threshold: RefineThreshold = None,
    sample_scores: SampleScores = False,
    limit: options.Limit = 0,
    batch_size: options.BatchSize = 8,
    device: options.Device = "auto",
    dtype: options.DType = "float32",
    seed: Seed = 0,
    compare: Compare = None,
    resamples: Resamples = 1000,
    cluster: Cluster = "image",
    min_depth: MinDepth = None,
    max_depth: MaxDepth = None,
    depth_scale: DepthScale = 0.001,
    fit_temperature: FitTemperature = False,
    out: Out = None,
    save_per_image: SavePerImage = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Score a model: maps, calibration and every kind of uncertainty, by steps, samples and averaging.

    With --predictions score a folder of maps, whoever made them.
    """
    runs = bool(steps or ensemble or average or sampling or refine or window or fit_temperature)
    _check_source(model, predictions, runs, bool(member), bool(hide))
    _check_needs(bool(field_smoothness), sampling, save_per_image, out, (refine, refine_share, refine_threshold))
    # Imported after the options have been checked: a mistake is reported at once, not after seconds of imports.
    from noise2map.evaluation.run import EvaluationOptions

    chosen = EvaluationOptions(
        models=[name for name in (model, compare) if name] if predictions is None else [],
        members=member or [],
        predictions=[path for path in (predictions, compare and Path(compare)) if path] if predictions else [],
        task=task,
        classes=classes,
        dataset=dataset,
        root=root,
        split=split,
        protocols=_protocols(steps, ensemble, average, sampler, sampling, field_smoothness, refine, refine_share, refine_threshold),
        steps_chosen=steps is not None or ensemble is not None or sampling is not None or refine is not None,
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
    _run(chosen, out, save_per_image, overwrite)


def _run(chosen: "EvaluationOptions", out: Path | None, save_per_image: bool, overwrite: bool) -> None:
    from noise2map.evaluation.run import run_evaluation
    from noise2map.runs.output_folder import claim

    hide_progress_of_files()
    with claim(out, chosen.settings(), overwrite=overwrite) if out is not None else nullcontext():
        report = run_evaluation(chosen)
        print("\n\n".join(report.text()))
        for path in report.write(out, save_per_image) if out is not None else ():
            print(f"wrote {path}", file=sys.stderr)


def _protocols(
    steps: Sequence[int | str] | None,
    ensemble: Sequence[int] | None,
    average: Sequence[str] | None,
    sampler: str,
    sampling: Sequence[str] | None,
    field_smoothness: Sequence[float] | None,
    refine: Sequence[str] | None,
    refine_share: Sequence[float] | None,
    refine_threshold: Sequence[float] | None,
) -> "list[DecodingOptions]":
    """The decodings that are compared; what was not said has its default."""
    from noise2map.evaluation.protocols import protocol_grid

    return protocol_grid(
        steps or [1, 3, 10],
        ensemble or [1],
        average or ["last"],
        sampler,
        samplings=sampling or [None],
        smoothness=field_smoothness or [None],
        refinements=refine or [None],
        shares=refine_share or [None],
        thresholds=refine_threshold or [None],
    )


def _check_needs(
    smooth: bool, sampling: list[str] | None, save_per_image: bool, out: Path | None, refinement: tuple[Any, Any, Any]
) -> None:
    """Refuses options without those that they need.

    Args:
        smooth: A width of the smooth field is given.
        sampling: As given.
        save_per_image: As given.
        out: As given.
        refinement: What `options.check_refinement` takes.
    """
    if smooth and "field" not in (sampling or ()):
        raise ValueError("--field-smoothness needs --sampling field")
    if save_per_image and out is None:
        raise ValueError("--save-per-image needs --out, the folder to write to")
    options.check_refinement(*refinement)


def _check_source(model: str | None, predictions: Path | None, runs: bool, members: bool, hides: bool) -> None:
    """Refuses options of models where maps are scored as they are in files.

    Args:
        model: The model to score.
        predictions: The folder of maps to score in its place.
        runs: Options of the run of a model are given.
        members: Models of an ensemble are given.
        hides: Parts of the images are to be covered.
    """
    if (model is None) == (predictions is None):
        raise ValueError("expected --model or --predictions, one of them")
    if predictions is None:
        return
    if runs:
        raise ValueError(
            "--steps, --ensemble, --average, --sampler, --refine, --window and --fit-temperature are for models; "
            "maps are scored as stored"
        )
    if members:
        raise ValueError("--member makes an ensemble of --model; --predictions are scored as stored")
    if hides:
        raise ValueError("--hide covers the images that a model sees; --predictions are scored as stored")
