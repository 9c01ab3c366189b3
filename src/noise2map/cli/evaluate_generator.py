"""``noise2map evaluate generator``: images with and without depth guidance at equal seeds, against real ones."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from noise2map.cli.launch import hide_progress_of_files
from noise2map.cli.options import (
    BatchSize,
    DepthPredictor,
    Device,
    DType,
    Fov,
    ImageSampler,
    TimestepSpacing,
    numbers,
    scales,
    words,
)
from noise2map.cli.sample import (
    Convention,
    Generator,
    GuidanceEvery,
    GuidanceLogSnr,
    ImageSteps,
    OnNonfinite,
    ProbeTimestep,
    Reduction,
    Scale,
    as_saved,
)

if TYPE_CHECKING:
    from noise2map.generation.evaluation.study import GeneratorOptions
    from noise2map.generation.sampling import SamplingOptions
    from noise2map.guidance import GuidanceConfig

_PLACEBOS = ("neighbor", "noise", "reversed")
_PULLS = ("hinge", "square")

References = Annotated[
    str,
    typer.Option(help="Real images: a folder, a rendered Freedoom split, an LSUN ..._lmdb, samples, or e.g. nyu:ROOT."),
]
Out = Annotated[Path, typer.Option(help="Folder of samples, measurements and results; an interrupted run is gone on with.")]
DepthPrior = Annotated[
    list[str] | None,
    typer.Option(help="Depth prior; several (repeat the option): the first in the table, all swept."),
]
Samples = Annotated[int, typer.Option(min=2, help="Images of each row.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the first image; the others follow.")]
Scales = Annotated[list[str] | None, scales("Sweep the scale of both guidances, e.g. 0,10,20,40,80.")]
SweepSamples = Annotated[int, typer.Option(min=2, help="Images of each row of a sweep.")]
UnguidedSteps = Annotated[list[str] | None, numbers("Also show the unguided generator at these numbers of steps, e.g. 25,100,250.")]
EqualCost = Annotated[
    bool, typer.Option("--equal-cost", help="Also draw unguided images in as many steps as cost what the dearest guided row does.")
]
Placebos = Annotated[
    list[str] | None,
    words("Also guide by what cannot know the geometry: another image's gradient, noise of its norm, its reverse.", _PLACEBOS),
]
Pulls = Annotated[
    list[str] | None,
    words("Also guide by consistency only as far as real images agree: to that level, or towards it from both sides.", _PULLS),
]
Training = Annotated[
    str | None,
    typer.Option(help="Images that the generator was trained on, as of --references: are the drawn ones copies of them?"),
]
Extractor = Annotated[str, typer.Option(help="Features: a shipped model, a folder or hub id of a vision model, or inception.")]
Estimator = Annotated[str, typer.Option(help="Depth: a shipped model, or a folder or hub id.")]
Rendering = Annotated[
    Literal["disparity", "metric"], typer.Option(help="How depth is painted: disparity (without scale) or metric.")
]
EyeHeight = Annotated[float, typer.Option(min=0.01, help="Of the camera above the floor, m. The default is Freedoom's.")]
Limit = Annotated[int, typer.Option(min=0, help="At most this many references, evenly spaced; 0 for all.")]
Resamples = Annotated[int, typer.Option(min=0, help="Bootstrap resamples for intervals and differences; 0 for none.")]
AllowSingular = Annotated[bool, typer.Option("--allow-singular", help="Have a FID of no more images than features all the same.")]
Pairs = Annotated[int, typer.Option(min=0, help="Seeds to show on the page.")]
Draw = Annotated[
    str | None,
    typer.Option(help="Draw only these rows, e.g. none,dcg, and stop: processes can share the work in one --out."),
]
Cache = Annotated[Path | None, typer.Option(help="Kept measurements of references. [default: ~/.cache/noise2map]")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace results of other settings; images and measurements that fit are kept.")
]


def evaluate_generator(
    model: Generator,
    references: References,
    out: Out,
    depth_predictor: DepthPredictor = None,
    depth_prior: DepthPrior = None,
    samples: Samples = 2048,
    seed: Seed = 0,
    consistency_scale: Scale = 40.0,
    prior_scale: Scale = 40.0,
    scales: Scales = None,
    sweep_samples: SweepSamples = 512,
    unguided_steps: UnguidedSteps = None,
    equal_cost: EqualCost = False,
    placebos: Placebos = None,
    pulls: Pulls = None,
    training: Training = None,
    steps: ImageSteps = 50,
    sampler: ImageSampler = "default",
    timestep_spacing: TimestepSpacing = "default",
    convention: Convention = "default",
    reduction: Reduction = "default",
    guidance_every: GuidanceEvery = 1,
    guidance_log_snr: GuidanceLogSnr = None,
    on_nonfinite: OnNonfinite = "error",
    extractor: Extractor = "freedoom-segmentation-tiny",
    estimator: Estimator = "freedoom-depth-laplace-tiny",
    rendering: Rendering = "disparity",
    probe_timestep: ProbeTimestep = 50,
    eye_height: EyeHeight = 1.28125,
    limit: Limit = 0,
    resamples: Resamples = 200,
    allow_singular: AllowSingular = False,
    pairs: Pairs = 8,
    fov: Fov = None,
    batch_size: BatchSize = 8,
    device: Device = "auto",
    dtype: DType = "float32",
    draw: Draw = None,
    cache: Cache = None,
    overwrite: Overwrite = False,
) -> None:
    """None, DCG, DPG and both at equal seeds: FID, dFID, KID, geometry, time; sweeps; a page of pairs."""
    # Imported after the options have been checked: a mistake is reported at once, not after seconds of imports.
    from noise2map.generation.evaluation.study import GeneratorOptions
    from noise2map.inference.loading import pick_device

    options = GeneratorOptions(
        model=model,
        references=references,
        out=out,
        depth_predictor=depth_predictor,
        depth_priors=depth_prior or (),
        images=samples,
        first_seed=seed,
        consistency_scale=consistency_scale,
        prior_scale=prior_scale,
        sweep_scales=scales or (),
        sweep_images=sweep_samples,
        unguided_steps=unguided_steps or (),
        equal_cost=equal_cost,
        placebos=placebos or (),
        pulls=pulls or (),
        training=training,
        sampling=_sampling(steps, dtype, batch_size),
        guidance=_guidance(convention, reduction, guidance_every, guidance_log_snr, on_nonfinite),
        sampler=sampler,
        timestep_spacing=timestep_spacing,
        limit=limit,
        extractor=extractor,
        estimator=estimator,
        rendering=rendering,
        probe_timestep=probe_timestep,
        eye_height_m=eye_height,
        device=pick_device(device),
        resamples=resamples,
        allow_singular=allow_singular,
        cache=cache,
    )
    _run(options, draw, pairs, fov, overwrite)


def _sampling(steps: int, dtype: str, batch_size: int) -> "SamplingOptions":
    """How all rows are drawn."""
    from noise2map.generation.sampling import SamplingOptions

    return SamplingOptions(num_inference_steps=steps, dtype=dtype, batch_size=batch_size)


def _guidance(
    convention: str, reduction: str, every: int, log_snr: tuple[float, float] | None, on_nonfinite: str
) -> "GuidanceConfig":
    """What all guided rows share; their losses follow."""
    from noise2map.guidance import GuidanceConfig

    return GuidanceConfig(
        convention=as_saved(convention), reduction=as_saved(reduction), every=every, log_snr=log_snr, on_nonfinite=on_nonfinite
    )


def _run(options: "GeneratorOptions", draw: str | None, pairs: int, fov: float | None, overwrite: bool) -> None:
    from noise2map.generation.evaluation.page import write_page
    from noise2map.generation.evaluation.report import study_facts, study_text, write_study
    from noise2map.generation.evaluation.study import draw_only, run_study
    from noise2map.runs.output_folder import claim

    hide_progress_of_files()
    if draw is not None:
        for path in draw_only(options, [word.strip() for word in draw.split(",")], overwrite):
            print(f"drawn into {path}", file=sys.stderr)
        return
    with claim(options.out, options.settings, overwrite=overwrite):
        study = run_study(options)
        facts = study_facts(study)
        print("\n\n".join(study_text(study, facts)))
        for path in [*write_study(study, facts, options.out), *write_page(study, facts, options.out / "page.html", pairs, fov)]:
            print(f"wrote {path}", file=sys.stderr)
