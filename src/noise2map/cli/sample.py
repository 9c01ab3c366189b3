"""``noise2map sample``: images from a diffusion model, guided towards plausible geometry, with their depth."""

from typing import Annotated, Literal

import typer

from noise2map.cli.options import (
    MAX_STEPS,
    BatchSize,
    DepthPredictor,
    DepthPrior,
    Device,
    DType,
    Fov,
    ImageSampler,
    Out,
    Overwrite,
    TimestepSpacing,
    check_finite,
)

# Options of every command that draws images; "default" is as the generator was saved.
Generator = Annotated[str, typer.Option(help="Generator: shipped name, folder of a diffusers pipeline, or hub id.")]
Scale = Annotated[float, typer.Option(min=0, callback=check_finite, help="Weight of the guidance; 0 for none.")]
ImageSteps = Annotated[int, typer.Option(min=1, max=MAX_STEPS, help="Sampling steps.")]
Eta = Annotated[float, typer.Option(min=0, max=1, help="Noise of ddim steps.")]
Convention = Annotated[Literal["variance", "plain", "default"], typer.Option(help="What a scale of guidance multiplies.")]
Reduction = Annotated[Literal["sum", "mean", "default"], typer.Option(help="Of the guidance losses over pixels.")]
GuidanceEvery = Annotated[int, typer.Option(min=1, help="Guide every so many steps.")]


def _log_snr(text: str | None) -> tuple[float, float] | None:
    words = [] if text is None else text.split(",")
    try:
        found = tuple(float(word) for word in words)
    except ValueError:
        found = ()
    if text is not None and (len(found) != 2 or not found[0] < found[1]):
        raise typer.BadParameter(f"expected LOW,HIGH with LOW < HIGH, such as -6.5,2 or -inf,0, got {text!r}")
    return (found[0], found[1]) if found else None


GuidanceLogSnr = Annotated[
    str | None,
    typer.Option(
        metavar="LOW,HIGH",
        callback=_log_snr,
        help="Guide steps whose log signal-to-noise ratio lies in here, e.g. -2,2. [default: all that the predictor can read]",
    ),
]
OnNonfinite = Annotated[
    Literal["error", "skip"], typer.Option(help="A gradient that is not finite: error, or skip the guidance of that step.")
]
ProbeTimestep = Annotated[int, typer.Option(min=0, help="Noise level at which the depth of an image is read from the features.")]


def as_saved(word: str) -> str | None:
    """None for ``default``: the pipeline's own."""
    return None if word == "default" else word


def sample(
    model: Generator,
    out: Out,
    seeds: Annotated[str, typer.Option(help="Seeds, one image each: 0-15 or 0,3,7.")] = "0-15",
    steps: ImageSteps = 50,
    consistency_scale: Scale = 0.0,
    prior_scale: Scale = 0.0,
    convention: Convention = "default",
    reduction: Reduction = "default",
    depth_predictor: DepthPredictor = None,
    depth_prior: DepthPrior = None,
    sampler: ImageSampler = "default",
    timestep_spacing: TimestepSpacing = "default",
    eta: Eta = 0.0,
    guidance_every: GuidanceEvery = 1,
    guidance_log_snr: GuidanceLogSnr = None,
    on_nonfinite: OnNonfinite = "error",
    pair: Annotated[bool, typer.Option(help="Also draw the same seeds without guidance.")] = True,
    fov: Fov = None,
    batch_size: BatchSize = 8,
    device: Device = "auto",
    dtype: DType = "float32",
    overwrite: Overwrite = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Try a step, say what time and memory it all takes, and stop.")
    ] = False,
) -> None:
    """Draw images; with a depth predictor also depth (16-bit PNG and npz), normals, point clouds (PLY) and a sheet of pairs."""
    chosen = parse_seeds(seeds)
    # Imported after the options have been checked: a mistake is reported at once, not after seconds of imports.
    import diffusers

    from noise2map.generation.image_files import SHEET_FILE
    from noise2map.generation.loading import camera_of, load_generator
    from noise2map.generation.sampling import SamplingOptions, describe, sample_images
    from noise2map.guidance import GuidanceConfig
    from noise2map.runs.files import check_writable
    from noise2map.zoo import label_of

    diffusers.utils.logging.disable_progress_bar()
    if not dry_run:
        check_writable(out)
    pipe = load_generator(model, depth_predictor, depth_prior, sampler=sampler, timestep_spacing=timestep_spacing, device=device)
    options = SamplingOptions(num_inference_steps=steps, eta=eta, dtype=dtype, batch_size=batch_size)
    guidance = GuidanceConfig.from_scales(
        consistency_scale,
        prior_scale,
        convention=as_saved(convention) or pipe.config.convention,
        reduction=as_saved(reduction) or pipe.config.reduction,
        every=guidance_every,
        log_snr=guidance_log_snr,
        on_nonfinite=on_nonfinite,
    )
    if dry_run:
        from noise2map.generation.forecast import forecast_sampling

        print(forecast_sampling(pipe, len(chosen), options, guidance, pair=pair).text())
        return
    camera = camera_of(model, pipe.unet.config.sample_size, fov)
    title = f"{label_of(model)}: {steps} steps, {describe(guidance)}"
    report = sample_images(pipe, chosen, out, options, guidance, camera=camera, title=title, pair=pair, overwrite=overwrite)
    summary = f"{out}: {len(report.written)} drawn" + (f", {len(report.kept)} done before" if report.kept else "")
    print(summary + (f", {SHEET_FILE}" if report.with_depth else ", no depth (no depth predictor)"))
    if report.metric and camera.source == "assumed":
        print("point clouds assume a field of view of 60 degrees; say --fov if you know better")
    if report.with_depth and not report.metric:
        print("depth is relative: no normals and no point clouds")


LARGEST_SEED = 2**64 - 1
"""Of PyTorch's generators."""


def parse_seeds(text: str) -> list[int]:
    """``"0-15"``, ``"3"``, ``"0-3,8,10-11"`` -> seeds in that order, each once.

    Raises:
        typer.BadParameter: if it is something else.
    """
    seeds: list[int] = []
    for word in text.replace(" ", "").split(","):
        first, dash, last = word.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise typer.BadParameter(f"--seeds must be whole numbers and ranges such as 0-15 or 0,3,7, got {text!r}")
        low, high = int(first), int(last or first)
        if high > LARGEST_SEED:
            raise typer.BadParameter(f"--seeds {word!r} is more than a seed can be; expected at most {LARGEST_SEED}")
        if high < low or high - low > 1_000_000:
            raise typer.BadParameter(f"--seeds {word!r} are no range; expected the smaller number first, at most a million seeds")
        seeds += range(low, high + 1)
    return list(dict.fromkeys(seeds))
