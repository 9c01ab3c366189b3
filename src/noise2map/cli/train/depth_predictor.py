"""``noise2map train depth-predictor``: strong and weak depth predictors on the features of a generator."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from noise2map.cli import options

Model = Annotated[str, typer.Option(help="Generator: shipped name, folder of a diffusers pipeline, or hub id.")]
Dataset = Annotated[Literal["freedoom", "folder", "lsun"], typer.Option(help="Kind of data; folder: images/ and maps/.")]
Root = Annotated[str, typer.Option(help="Folder of the images to learn from.")]
ValRoot = Annotated[str, typer.Option(help="Folder of the images to score on.")]
Labels = Annotated[str, typer.Option(help="truth, or a depth model that labels: shipped name, folder or hub id.")]
ValLabels = Annotated[str | None, typer.Option(help="What is scored against. [default: as --labels]")]
Counts = Annotated[
    list[str] | None, options.numbers("Numbers of labelled images, e.g. 10,50,100,1000; final/ is the last. [default: 100]")
]
ValImages = Annotated[int, typer.Option(min=1, help="Images to score on.")]
Steps = Annotated[int, typer.Option(min=1, help="Optimizer steps of each predictor.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images of a step.")]
Timesteps = Annotated[list[str] | None, options.numbers("Noise levels to score at. [default: 50,200,400,600,800]", least=0)]
ByBlock = Annotated[bool, typer.Option(help="Also measure every decoder block alone.")]
Strong = Annotated[list[str] | None, options.numbers("Decoder blocks of the strong branch. [default: 2,4,5,6,7]", least=0)]
Weak = Annotated[list[str] | None, options.numbers("Decoder blocks of the weak branch. [default: 6]", least=0)]
MinDepth = Annotated[
    float, typer.Option(callback=options.check_positive, help="Nearest depth, metres; not used with relative labels.")
]
MaxDepth = Annotated[
    float, typer.Option(callback=options.check_positive, help="Farthest depth, metres; the prior must have the same range.")
]
Representation = Annotated[Literal["log", "linear"], typer.Option(help="Scale on which depth is learnt.")]
Missing = Annotated[Literal["far", "ignore"], typer.Option(help="Pixels without depth: far (sky), or ignore.")]
DepthScale = Annotated[
    float, typer.Option(callback=options.check_positive, help="With --dataset folder: metres per unit of the maps.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Try some steps (no data needed), say what time and memory it all takes, and stop.")
]
Dtype = Annotated[Literal["float32", "bfloat16"], typer.Option(help="Precision of training; scores are taken in float32.")]


def train_depth_predictor(
    model: Model,
    dataset: Dataset = "freedoom",
    root: Root = "data/freedoom/train",
    val_root: ValRoot = "data/freedoom/val",
    labels: Labels = "truth",
    val_labels: ValLabels = None,
    counts: Counts = None,
    val_images: ValImages = 100,
    steps: Steps = 2000,
    batch_size: BatchSize = 8,
    timesteps: Timesteps = None,
    by_block: ByBlock = True,
    strong: Strong = None,
    weak: Weak = None,
    min_depth: MinDepth = 0.5,
    max_depth: MaxDepth = 40.0,
    representation: Representation = "log",
    missing: Missing = "far",
    depth_scale: DepthScale = 0.001,
    dtype: Dtype = "float32",
    seed: options.Seed = 0,
    threads: options.Threads = 0,
    device: options.Device = "auto",
    out: options.Out = Path("runs/depth-predictor"),
    dry_run: DryRun = False,
) -> None:
    """Train depth predictors from a few labelled images, and measure what they know: by block, noise level, images.

    Writes images-N/ for each number of images, final/ (for guidance), accuracy.csv and plots.
    """
    from noise2map.generation.predictor_training import PredictorTrainingOptions, summary, train_predictors
    from noise2map.training.generators.predictor_study import PredictorStudyOptions

    def ascending(values: list | None, default: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(values)) if values else default

    study = PredictorStudyOptions(
        counts=ascending(counts, (100,)),
        steps=steps,
        batch_size=batch_size,
        timesteps=ascending(timesteps, PredictorStudyOptions.timesteps),
        probe=by_block,
        strong_blocks=ascending(strong, PredictorStudyOptions.strong_blocks),
        weak_blocks=ascending(weak, PredictorStudyOptions.weak_blocks),
        min_depth=min_depth,
        max_depth=max_depth,
        depth_representation=representation,
        missing=missing,
        bf16=dtype == "bfloat16",
        seed=seed,
    )
    training = PredictorTrainingOptions(
        model=model,
        out=out,
        study=study,
        data=dataset,
        root=root,
        val_root=val_root,
        labels=labels,
        val_labels=val_labels,
        val_images=val_images,
        depth_scale=depth_scale,
        threads=threads,
        device=device,
    )
    if dry_run:
        from noise2map.generation.forecast import forecast_predictor

        print(forecast_predictor(training).text())
        return
    rows = train_predictors(training)
    print(summary(rows, study))
    print(f"predictor written to {out / 'final'}")
