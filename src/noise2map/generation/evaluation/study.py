"""One run of ``noise2map evaluate generator``: draw with every setting at equal seeds, measure, compare with real pictures."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from noise2map.generation.depth_reading import depth_probe, probe_name
from noise2map.generation.evaluation.depth_models import DEFAULT_ESTIMATOR, make_estimator
from noise2map.generation.evaluation.feature_extractors import DEFAULT_EXTRACTOR, make_extractor
from noise2map.generation.evaluation.measurements import Instruments, Measured, content_hash, measure, stack_pictures
from noise2map.generation.evaluation.references import PictureFiles, ReferencePictures
from noise2map.generation.evaluation.scores import SettingScores, score_settings
from noise2map.generation.loading import camera_of, load_generator, load_part, sampler_of
from noise2map.generation.sampling import GuidanceSetting, SamplingPlan, draw_images, prior_name
from noise2map.guidance import DepthGuidedPipeline, DepthPrior
from noise2map.inference.loading import pick_device
from noise2map.metrics.fid import ENOUGH_SAMPLES, check_samples
from noise2map.runs.files import check_writable, user_cache
from noise2map.runs.provenance import provenance
from noise2map.zoo import label_of, resolve_generator

Say = Callable[[str], object]


@dataclass
class GeneratorJob:
    """What to evaluate; see ``noise2map evaluate generator --help``.

    Attributes:
        model: The generator, by folder or hub id.
        references: Real pictures, see :func:`~noise2map.generation.evaluation.references.open_references`.
        out: Folder of samples, measurements and results.
        predictor: Depth predictor, if the generator's folder has none.
        priors: Depth priors; the first is the one of the main table, all of them are swept if there are several.
        samples: Images of each setting of the main table.
        first_seed: Of the images.
        consistency_scale: Of the main table.
        prior_scale: Of the main table.
        sweep_scales: Scales of both guidances to sweep.
        sweep_samples: Images of each setting of the sweeps.
        plan: What all settings share.
        scheduler: `"ddim"`, `"ddpm"` or `"own"`, the generator's.
        reference_limit: At most this many references, 0 for all.
        extractor: Of features, by name.
        estimator: Of depth, by name.
        rendering: Of depth as pictures.
        probe_timestep: Noise at which strong and weak depth are read.
        batch_size: Images at a time.
        device: By name.
        resamples: Of the bootstrap, 0 for no intervals.
        allow_singular: Accept fewer samples than features.
        cache: Where measurements of references are kept.
    """

    model: str
    references: str
    out: Path
    predictor: str | None = None
    priors: Sequence[str] = ()
    samples: int = 2048
    first_seed: int = 0
    consistency_scale: float = 40.0
    prior_scale: float = 40.0
    sweep_scales: Sequence[float] = ()
    sweep_samples: int = 512
    plan: SamplingPlan = field(default_factory=SamplingPlan)
    scheduler: str = "ddim"
    reference_limit: int = 0
    extractor: str = DEFAULT_EXTRACTOR
    estimator: str = DEFAULT_ESTIMATOR
    rendering: str = "disparity"
    probe_timestep: int = 50
    batch_size: int = 8
    device: str = "auto"
    resamples: int = 200
    allow_singular: bool = False
    cache: Path | None = None


@dataclass
class GeneratorStudy:
    """Everything that was found.

    Attributes:
        job: What was asked for.
        tables: `"guidance"`, `"scales"`, `"priors"` to their scores.
        settings: Table to its settings, in the order of the scores.
        facts: Columns that are the same in all rows.
        folders: Key of a setting to the folder of its images.
        instruments: What was measured with.
        intrinsics: Camera of the references, `fx, fy, cx, cy` in pixels of the images, if known.
    """

    job: GeneratorJob
    tables: dict[str, SettingScores]
    settings: dict[str, list[GuidanceSetting]]
    facts: dict[str, Any]
    folders: dict[str, Path]
    instruments: Instruments
    intrinsics: Any


def plan_settings(job: GeneratorJob, has_predictor: bool, priors: Sequence[str]) -> dict[str, list[GuidanceSetting]]:
    """The settings of each table.

    Args:
        job: What is asked for.
        has_predictor: Whether there is a depth predictor; without one nothing is guided.
        priors: Names of the priors.

    Returns:
        `"guidance"`: none, DCG, DPG, both, as far as there are parts for them; `"scales"` and `"priors"`: the sweeps.
    """
    prior = priors[0] if priors else ""
    dcg = GuidanceSetting("DCG", job.consistency_scale, 0.0, prior)
    tables = {"guidance": [GuidanceSetting("none")]}
    if not has_predictor:
        return tables
    tables["guidance"].append(dcg)
    if prior:
        both = replace(dcg, name="both", prior_scale=job.prior_scale)
        tables["guidance"] += [replace(both, name="DPG", consistency_scale=0.0), both]
    if job.sweep_scales:
        tables["scales"] = [
            GuidanceSetting(f"scale {scale:g}", scale, scale if prior else 0.0, prior) for scale in sorted(set(job.sweep_scales))
        ]
    if len(priors) > 1:
        tables["priors"] = [GuidanceSetting(f"prior {one}", job.consistency_scale, job.prior_scale, one) for one in priors]
    return tables


def run_study(job: GeneratorJob, say: Say = lambda text: None, progress: bool = True) -> GeneratorStudy:
    """Draw, measure and compare; run again, it goes on where it was interrupted.

    Args:
        job: What to do.
        say: Called with remarks for the user.
        progress: Show progress bars.

    Raises:
        OSError: If something is missing or cannot be written.
        ValueError: If a value cannot work or the parts do not belong together, before anything is drawn.
    """
    device = pick_device(job.device)
    check_writable(job.out)
    pipe = load_generator(job.model, job.predictor, sampler=job.scheduler, device=device)
    job = replace(job, plan=job.plan.of(pipe))
    priors = _load_priors(job, pipe)
    tables = plan_settings(job, pipe.depth_predictor is not None, list(priors))
    _remark(job, pipe, priors, say)
    instruments = _instruments(job, pipe, device)
    references = ReferencePictures(job.references, _side(pipe), job.reference_limit)
    _check_counts(job, tables, len(references), instruments.extractor.size, say)
    folders = _draw_all(job, pipe, priors, tables, progress)
    with tqdm(total=len(references), desc="references", unit="image", disable=None if progress else True) as bar:
        real = measure(
            references,
            references.ids,
            instruments,
            batch_size=job.batch_size,
            cache=job.cache or user_cache("measured"),
            on_pictures=bar.update,
        )
    measured = _measure_all(job, tables, folders, instruments, progress)
    scores = {}
    for table, settings in tables.items():
        count = _count(job, table)
        sets = {one.name: measured[one.key].first(count) for one in settings}
        seconds = {one.name: _seconds(folders[one.key], count, job) for one in settings}
        scores[table] = score_settings(sets, real, seconds, job.resamples, progress)
    facts = {
        "model": label_of(job.model),
        "references": label_of(job.references),
        "reference_images": len(references),
        "reference_hash": content_hash(stack_pictures(references, [index]) for index in range(len(references))),
        "extractor": instruments.extractor.name,
        "estimator": instruments.estimator.name,
        "rendering": job.rendering,
        "scheduler": sampler_of(pipe),
        "steps": job.plan.num_inference_steps,
        "convention": job.plan.convention,
        "reduction": job.plan.reduction,
        "drawn_in": "bfloat16" if job.plan.bf16 else "float32",
        **provenance(device, pipe.unet.dtype, job.first_seed),
    }
    roots = {key: folder.root for key, folder in folders.items()}
    camera = references.intrinsics
    if camera is None:
        values, source = camera_of(job.model, _side(pipe))
        camera = None if source == "assumed" else tuple(values)
    return GeneratorStudy(job, scores, tables, facts, roots, instruments, camera)


def draw_only(job: GeneratorJob, names: Sequence[str], say: Say = lambda text: None, progress: bool = True) -> list[Path]:
    """Draw the images of some settings and stop; `run_study` of the same job finds them.

    Processes that draw different settings of one job may run side by side: each setting has its own folder, and nothing else is
    written. Two that draw the same setting may not.

    Args:
        job: As of `run_study`.
        names: Of settings, such as `"none"`, `"DCG"`, `"scale 0.1"`; in any case.
        say: Called with remarks for the user.
        progress: Show progress bars.

    Returns:
        The folders.

    Raises:
        OSError: If something is missing or cannot be written.
        ValueError: If there is no setting of a name, or a value cannot work, before anything is drawn.
    """
    check_writable(job.out)
    pipe = load_generator(job.model, job.predictor, sampler=job.scheduler, device=pick_device(job.device))
    priors = _load_priors(job, pipe)
    tables = plan_settings(job, pipe.depth_predictor is not None, list(priors))
    _remark(job, pipe, priors, say)
    known = {one.name.lower(): one.name for settings in tables.values() for one in settings}
    unknown = [name for name in names if name.lower() not in known]
    if unknown:
        raise ValueError(f"there is no setting {unknown[0]!r} to draw; expected some of {', '.join(known.values())}")
    chosen = {known[name.lower()] for name in names}
    tables = {table: [one for one in settings if one.name in chosen] for table, settings in tables.items()}
    return [folder.root for folder in _draw_all(job, pipe, priors, tables, progress).values()]


def _side(pipe: DepthGuidedPipeline) -> int:
    size = pipe.unet.config.sample_size
    sides = {size} if isinstance(size, int) else set(size or ())
    if len(sides) != 1:
        raise ValueError(f"the generator draws images of {size} px; expected square ones")
    return int(sides.pop())


def _load_priors(job: GeneratorJob, pipe: DepthGuidedPipeline) -> dict[str, DepthPrior]:
    """Priors by name: resolution and weights. Each is tried in the pipeline, which refuses what does not fit."""
    loaded = [load_part("depth_prior", path) for path in job.priors]
    if not loaded:
        own = load_part("depth_prior", None, resolve_generator(job.model))
        loaded = [] if own is None else [own]
    if loaded and pipe.depth_predictor is None:
        raise ValueError("a depth prior is given, but no depth predictor; expected --predictor")
    found = {}
    for prior in loaded:
        prior = prior.to(pipe.device)
        pipe.register_modules(depth_prior=prior)
        pipe.check_components()
        found[prior_name(prior)] = prior
    return found


def _remark(job: GeneratorJob, pipe: DepthGuidedPipeline, priors: dict[str, DepthPrior], say: Say) -> None:
    if pipe.depth_predictor is None:
        say("no depth predictor: only the unguided generator is evaluated")
        if job.sweep_scales:
            raise ValueError("sweeping guidance scales needs a depth predictor (--predictor)")
    elif not priors:
        say("no depth prior: DPG and both are left out, and the scales sweep that of DCG alone")


def _instruments(job: GeneratorJob, pipe: DepthGuidedPipeline, device: torch.device) -> Instruments:
    probe, name = None, ""
    if pipe.depth_predictor is not None:
        probe, name = depth_probe(pipe, job.probe_timestep), probe_name(pipe, job.probe_timestep)
    extractor, estimator = make_extractor(job.extractor, device), make_estimator(job.estimator, device)
    instruments = Instruments(extractor, estimator, job.rendering, probe, name)
    instruments.depth_features()  # refuses a rendering that the estimator cannot have
    return instruments


def _count(job: GeneratorJob, table: str) -> int:
    return job.samples if table == "guidance" else job.sweep_samples


def _check_counts(job: GeneratorJob, tables: dict[str, list[GuidanceSetting]], references: int, size: int, say: Say) -> None:
    """Refuses before drawing what could not be scored after."""
    counts = {"reference": references, **{f"generated ({table})": _count(job, table) for table in tables}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for side, count in counts.items():
            check_samples("FID", side, count, size, allow_singular=job.allow_singular)
    few = [f"{count} {side}" for side, count in counts.items() if count < ENOUGH_SAMPLES]
    if few:
        say(f"warning: FID and dFID of fewer than {ENOUGH_SAMPLES} images mostly measure their number: {', '.join(few)}")


def _seeds(job: GeneratorJob, count: int) -> list[int]:
    return list(range(job.first_seed, job.first_seed + count))


def _wanted(job: GeneratorJob, tables: dict[str, list[GuidanceSetting]]) -> dict[str, tuple[GuidanceSetting, int]]:
    """Each different setting once, with the largest number of images that a table wants."""
    found: dict[str, tuple[GuidanceSetting, int]] = {}
    for table, settings in tables.items():
        for setting in settings:
            before = found.get(setting.key, (setting, 0))[1]
            found[setting.key] = (setting, max(before, _count(job, table)))
    return found


def _draw_all(
    job: GeneratorJob,
    pipe: DepthGuidedPipeline,
    priors: dict[str, DepthPrior],
    tables: dict[str, list[GuidanceSetting]],
    progress: bool,
) -> dict[str, Any]:
    wanted, folders = _wanted(job, tables), {}
    with tqdm(total=sum(count for _, count in wanted.values()), unit="image", disable=None if progress else True) as bar:
        for key, (setting, count) in wanted.items():
            bar.set_description(setting.name)
            if setting.prior in priors:
                pipe.register_modules(depth_prior=priors[setting.prior])
            folders[key] = draw_images(
                pipe,
                setting,
                _seeds(job, count),
                job.out / "samples",
                job.plan,
                batch_size=job.batch_size,
                generator_name=label_of(job.model),
                on_images=bar.update,
            )
    return folders


def _measure_all(
    job: GeneratorJob,
    tables: dict[str, list[GuidanceSetting]],
    folders: dict[str, Any],
    instruments: Instruments,
    progress: bool,
) -> dict[str, Measured]:
    wanted, found = _wanted(job, tables), {}
    with tqdm(total=sum(count for _, count in wanted.values()), unit="image", disable=None if progress else True) as bar:
        for key, (setting, count) in wanted.items():
            bar.set_description(f"measure {setting.name}")
            seeds = _seeds(job, count)
            files = PictureFiles([folders[key].root / folders[key].done[str(seed)]["files"]["image"] for seed in seeds])
            found[key] = measure(
                files,
                [str(seed) for seed in seeds],
                instruments,
                batch_size=job.batch_size,
                cache=job.out / "measured",
                on_pictures=bar.update,
            )
    return found


def _seconds(folder: Any, count: int, job: GeneratorJob) -> float:
    """Median time of an image."""
    values = [folder.done[str(seed)]["seconds"] for seed in _seeds(job, count)]
    return float(torch.tensor(values).median())
