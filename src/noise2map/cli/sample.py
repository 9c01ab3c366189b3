"""``noise2map sample``: images from a diffusion model, guided towards plausible geometry, with their depth."""

import math
from pathlib import Path

import typer


def sample(
    model: str = typer.Option(..., help="Generator: shipped name, folder of a diffusers pipeline, or hub id."),
    out: Path = typer.Option(..., help="Folder to write to; an unfinished run is gone on with."),
    seeds: str = typer.Option("0-15", help="Seeds, one picture each: 0-15 or 0,3,7."),
    steps: int = typer.Option(50, help="Sampling steps."),
    consistency_scale: float = typer.Option(0.0, help="Weight of depth consistency guidance."),
    prior_scale: float = typer.Option(0.0, help="Weight of depth prior guidance."),
    convention: str = typer.Option("own", help="What a scale multiplies: variance, plain, or own: as the generator was saved."),
    reduction: str = typer.Option("own", help="Of the losses over pixels: sum, mean, or own: as the generator was saved."),
    depth_predictor: str | None = typer.Option(None, help="Folder or hub id; default: depth_predictor/ of the generator."),
    depth_prior: str | None = typer.Option(None, help="Folder or hub id; default: depth_prior/ of the generator."),
    sampler: str = typer.Option("own", help="ddim, ddpm, or own: the one that the generator was saved with."),
    eta: float = typer.Option(0.0, help="Noise of ddim steps, 0 to 1."),
    guidance_every: int = typer.Option(1, help="Guide every so many steps."),
    on_nonfinite: str = typer.Option("error", help="A gradient that is not finite: error, or skip the guidance of that step."),
    pair: bool = typer.Option(True, help="Also draw the same seeds without guidance."),
    fov: float | None = typer.Option(None, help="Horizontal field of view in degrees; default: the generator's camera, else 60."),
    batch_size: int = typer.Option(8, help="Pictures at a time; a seed's picture does not depend on it."),
    device: str = typer.Option("auto", help="auto, cpu, cuda, cuda:N or mps."),
    dtype: str = typer.Option("float32", help="float32, bfloat16 or float16."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace pictures of other settings."),
) -> None:
    """Draw images; with a depth predictor also depth (16-bit PNG and npz), normals, point clouds (PLY) and a sheet of pairs."""
    for name, value in (("consistency-scale", consistency_scale), ("prior-scale", prior_scale)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"--{name} must be a finite number of at least 0, got {value}")
    for name, count in (("steps", steps), ("batch-size", batch_size), ("guidance-every", guidance_every)):
        if count < 1:
            raise ValueError(f"--{name} must be at least 1, got {count}")
    if fov is not None and not 0 < fov < 180:
        raise ValueError(f"--fov must be an angle between 0 and 180 degrees, got {fov}")

    import diffusers
    from tqdm import tqdm

    from noise2map.generation.loading import OWN, camera_of, load_generator, sampler_of
    from noise2map.generation.sampling import SHEET_FILE, SamplingSettings, parse_seeds, run_sampling
    from noise2map.inference.loading import pick_device, pick_dtype
    from noise2map.runs.files import check_writable

    diffusers.utils.logging.disable_progress_bar()
    chosen = parse_seeds(seeds)
    check_writable(out)
    pipe = load_generator(model, depth_predictor, depth_prior, sampler=sampler, device=pick_device(device), dtype=pick_dtype(dtype))
    intrinsics, camera = camera_of(model, pipe.unet.config.sample_size, fov)
    settings = SamplingSettings(
        model=model,
        depth_predictor=depth_predictor,
        depth_prior=depth_prior,
        sampler=sampler_of(pipe),
        steps=steps,
        consistency_scale=consistency_scale,
        prior_scale=prior_scale,
        convention=pipe.config.convention if convention == OWN else convention,
        reduction=pipe.config.reduction if reduction == OWN else reduction,
        guidance_every=guidance_every,
        eta=eta,
        on_nonfinite=on_nonfinite,
        dtype=dtype,
        intrinsics_px=tuple(intrinsics),
        camera=camera,
        pair=pair,
    )
    runs = 2 if settings.guided and pair else 1
    with tqdm(total=len(chosen) * steps * runs, desc="sample", unit="step") as bar:
        report = run_sampling(pipe, settings, chosen, out, batch_size=batch_size, overwrite=overwrite, tick=bar.update)
        bar.update(len(report.kept) * steps * runs)
    told = f"{out}: {len(report.written)} drawn" + (f", {len(report.kept)} done before" if report.kept else "")
    print(told + (f", {SHEET_FILE}" if report.with_depth else ", no depth (no depth predictor)"))
    if report.metric and camera == "assumed":
        print("point clouds assume a field of view of 60 degrees; say --fov if you know better")
    if report.with_depth and not report.metric:
        print("depth is relative: no normals and no point clouds")
