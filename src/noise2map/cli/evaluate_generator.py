"""``noise2map evaluate generator``: images with and without depth guidance at equal seeds, against real ones."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def evaluate_generator(
    model: Annotated[str, typer.Option(help="Generator: shipped name, folder of a diffusers pipeline, or hub id.")],
    references: Annotated[
        str,
        typer.Option(help="Real pictures: a folder, a rendered Freedoom split, an LSUN ..._lmdb, samples, or e.g. nyu:ROOT."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of samples, measurements and results; an interrupted run is gone on with.")],
    predictor: Annotated[str | None, typer.Option(help="Depth predictor. [default: the one in the generator's folder]")] = None,
    prior: Annotated[
        list[str] | None, typer.Option(help="Depth prior; several (repeat the option): the first in the table, all swept.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Images of each setting.")] = 2048,
    seed: Annotated[int, typer.Option(help="Seed of the first image; the others follow.")] = 0,
    consistency_scale: Annotated[float, typer.Option(help="Scale of DCG.")] = 40.0,
    prior_scale: Annotated[float, typer.Option(help="Scale of DPG.")] = 40.0,
    scales: Annotated[list[str] | None, typer.Option(help="Sweep the scale of both guidances, e.g. 0,10,20,40,80.")] = None,
    sweep_samples: Annotated[int, typer.Option(help="Images of each setting of a sweep.")] = 512,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 50,
    scheduler: Annotated[str, typer.Option(help="ddim, ddpm, or own: the generator's.")] = "own",
    convention: Annotated[str, typer.Option(help="Meaning of the scales: variance, plain, or own: the generator's.")] = "own",
    reduction: Annotated[str, typer.Option(help="Of the losses over pixels: sum, mean, or own: the generator's.")] = "own",
    guidance_every: Annotated[int, typer.Option(help="Guide every so many steps.")] = 1,
    on_nonfinite: Annotated[str, typer.Option(help="error, or skip: leave steps unguided whose gradient is not finite.")] = "error",
    extractor: Annotated[
        str, typer.Option(help="Features: a shipped model, a folder or hub id of a vision model, or inception.")
    ] = "freedoom-segmentation-tiny",
    estimator: Annotated[str, typer.Option(help="Depth: a shipped model, or a folder or hub id.")] = "freedoom-depth-tiny",
    rendering: Annotated[str, typer.Option(help="How depth is painted: disparity (without scale) or metric.")] = "disparity",
    probe_timestep: Annotated[int, typer.Option(help="Noise at which strong and weak depth of an image are read.")] = 50,
    reference_limit: Annotated[int, typer.Option(help="At most this many references, spread evenly; 0 for all.")] = 0,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples for intervals and differences; 0 for none.")] = 200,
    allow_singular: Annotated[
        bool, typer.Option("--allow-singular", help="Have a FID of no more images than features all the same.")
    ] = False,
    pairs: Annotated[int, typer.Option(help="Seeds to show on the page.")] = 8,
    fov: Annotated[float | None, typer.Option(help="Horizontal field of view, degrees. [default: the references', or 74]")] = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time; images do not depend on it.")] = 8,
    bf16: Annotated[bool, typer.Option("--bf16", help="Draw under bfloat16 autocast; measurements stay in float32.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    draw: Annotated[
        str | None,
        typer.Option(help="Draw only these settings, e.g. none,dcg, and stop: processes can share the work in one --out."),
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Kept measurements of references. [default: ~/.cache/noise2map]")] = None,
) -> None:
    """None, DCG, DPG and both at equal seeds: FID, dFID, KID, geometry, time; sweeps; a page of pairs."""
    numbers = {"samples": (samples, 2), "sweep-samples": (sweep_samples, 2), "steps": (steps, 1), "batch-size": (batch_size, 1)}
    numbers |= {"reference-limit": (reference_limit, 0), "resamples": (resamples, 0), "pairs": (pairs, 0), "seed": (seed, 0)}
    numbers |= {"guidance-every": (guidance_every, 1), "probe-timestep": (probe_timestep, 0)}
    choices: dict[str, tuple[str, ...]] = {
        "scheduler": (scheduler, "own", "ddim", "ddpm"),
        "convention": (convention, "own", "variance", "plain"),
    }
    choices |= {"reduction": (reduction, "own", "sum", "mean"), "on-nonfinite": (on_nonfinite, "error", "skip")}
    choices |= {"rendering": (rendering, "disparity", "metric")}
    _check(numbers, {"consistency-scale": consistency_scale, "prior-scale": prior_scale}, choices)
    if fov is not None and not 0 < fov < 180:
        raise ValueError(f"--fov must be between 0 and 180 degrees, got {fov}")
    swept = parse_scales(scales or [])

    # Imported after the options have been checked: a mistake is reported at once, not after seconds of imports.
    import diffusers
    from transformers.utils import logging

    from noise2map.generation.evaluation.page import write_page
    from noise2map.generation.evaluation.report import study_text, write_study
    from noise2map.generation.evaluation.study import GeneratorJob, draw_only, run_study
    from noise2map.generation.sampling import SamplingPlan

    logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    job = GeneratorJob(
        model,
        references,
        out,
        predictor,
        prior or [],
        samples,
        seed,
        consistency_scale,
        prior_scale,
        swept,
        sweep_samples,
        SamplingPlan(steps, convention, reduction, guidance_every, 0.0, on_nonfinite, bf16),
        scheduler,
        reference_limit,
        extractor,
        estimator,
        rendering,
        probe_timestep,
        batch_size,
        device,
        resamples,
        allow_singular,
        cache,
    )
    if draw is not None:
        for path in draw_only(job, [word.strip() for word in draw.split(",")], say=lambda text: print(text, file=sys.stderr)):
            print(f"drawn into {path}", file=sys.stderr)
        return
    study = run_study(job, say=lambda text: print(text, file=sys.stderr))
    print("\n\n".join(study_text(study)))
    for path in [*write_study(study, out), *write_page(study, out / "page.html", pairs, fov)]:
        print(f"wrote {path}", file=sys.stderr)


def _check(numbers: dict[str, tuple[int, int]], scales: dict[str, float], choices: dict[str, tuple[str, ...]]) -> None:
    """Numbers with the least that is allowed, scales, and words with what is allowed, all by option."""
    for name, (value, least) in numbers.items():
        if value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")
    for name, scale in scales.items():
        if not 0 < scale < float("inf"):
            raise ValueError(f"--{name} must be a positive number, got {scale}")
    for name, (word, *allowed) in choices.items():
        if word not in allowed:
            raise ValueError(f"--{name} must be {' or '.join(allowed)}, got {word!r}")


def parse_scales(words: list[str]) -> list[float]:
    """Guidance scales from words such as `0,10,20`.

    Raises:
        ValueError: If one is not a number of at least 0.
    """
    found = []
    for word in ",".join(words).split(",") if words else []:
        try:
            scale = float(word)
        except ValueError:
            scale = float("nan")
        if not 0 <= scale < float("inf"):
            raise ValueError(f"--scales must be numbers of at least 0, e.g. 0,10,20,40,80, got {word!r}")
        found.append(scale)
    return found
