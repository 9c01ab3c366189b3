"""One run of ``noise2map evaluate generator``: draw with every guidance at equal seeds, measure, compare with real images."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from noise2map.diffusion import tables_from_betas
from noise2map.generation.depth_reading import depth_probe, probe_name, real_disagreement
from noise2map.generation.evaluation.drawing import RowRequest, draw_rows
from noise2map.generation.evaluation.feature_extractors import DEFAULT_EXTRACTOR, make_extractor
from noise2map.generation.evaluation.measurements import FeatureModels, ImageFeatures, extract
from noise2map.generation.evaluation.memorization import MemorizationScores, memorization
from noise2map.generation.evaluation.references import ReferenceImages
from noise2map.generation.evaluation.scores import SettingScores, score_settings
from noise2map.generation.evaluation.settings import Tables, setting_tables
from noise2map.generation.loading import CAMERA_FILE, Camera, camera_of, load_generator, load_priors, side_of
from noise2map.generation.sampling import SamplingOptions, option_settings
from noise2map.guidance import DepthGuidedPipeline, GuidanceConfig
from noise2map.inference.depth_models import DEFAULT_DEPTH_MODEL, load_depth_model
from noise2map.metrics import EYE_HEIGHT_M
from noise2map.runs.files import user_cache
from noise2map.runs.output_folder import OutputFolder

logger = logging.getLogger(__name__)

# Real images and noise levels at which it is read how far the two depths of real images disagree.
REAL_IMAGES, REAL_LEVELS = 128, 8


@dataclass(frozen=True, kw_only=True)
class GeneratorOptions:
    """Options of an evaluation of a generator; see ``noise2map evaluate generator --help``.

    Attributes:
        model: The generator, by folder or hub id.
        references: Real images, see :func:`~noise2map.data.opening.open_dataset`.
        out: Folder of samples, measurements and results.
        depth_predictor: Depth predictor, if the generator's folder has none.
        depth_priors: Depth priors; the first is the one of the main table, all of them are swept if there are several.
        images: Images of each row of the main table.
        first_seed: Of the images.
        consistency_scale: Of the main table.
        prior_scale: Of the main table; 0 leaves out its rows with a prior: the row at equal cost is that of consistency alone.
        sweep_scales: Scales of both guidances to sweep.
        sweep_images: Images of each row of the sweeps.
        unguided_steps: Other numbers of steps at which the unguided generator is shown.
        equal_cost: Also draw unguided images in as many steps as cost what the dearest guided row does.
        placebos: Kinds of placebos for the dearest guided row, see `noise2map.guidance.placebos`.
        pulls: Also guide by consistency only as far as real images agree, see `noise2map.guidance.ConsistencyLoss`.
        training: Images that the generator was trained on: how near the drawn ones are to them is told.
        sampling: How images are drawn.
        guidance: What all rows share beside their losses.
        sampler: `"ddim"`, `"ddpm"` or `"default"`, the generator's.
        timestep_spacing: `"trailing"`, `"leading"`, `"linspace"` or `"default"`, the generator's.
        limit: At most this many references, 0 for all.
        extractor: Of features, by name.
        estimator: Depth model, by name.
        rendering: Of depth as images.
        probe_timestep: Noise at which strong and weak depth are read.
        eye_height_m: Height of the camera above the floor.
        device: Or its name.
        resamples: Of the bootstrap, 0 for no intervals.
        allow_singular: Accept fewer samples than features.
        cache: Where measurements of references are kept.
    """

    model: str
    references: str
    out: Path
    depth_predictor: str | None = None
    depth_priors: Sequence[str] = ()
    images: int = 2048
    first_seed: int = 0
    consistency_scale: float = 40.0
    prior_scale: float = 40.0
    sweep_scales: Sequence[float] = ()
    sweep_images: int = 512
    unguided_steps: Sequence[int] = ()
    equal_cost: bool = False
    placebos: Sequence[str] = ()
    pulls: Sequence[str] = ()
    training: str | None = None
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    sampler: str = "ddim"
    timestep_spacing: str = "default"
    limit: int = 0
    extractor: str = DEFAULT_EXTRACTOR
    estimator: str = DEFAULT_DEPTH_MODEL
    rendering: str = "disparity"
    probe_timestep: int = 50
    eye_height_m: float = EYE_HEIGHT_M
    device: str | torch.device = "auto"
    resamples: int = 200
    allow_singular: bool = False
    cache: Path | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the results, as JSON values: what `OutputFolder` compares."""
        return option_settings("evaluate generator", self)

    def count(self, table: str) -> int:
        """Images of each row of a table."""
        return self.sweep_images if table in ("scales", "priors") else self.images

    def seeds(self, count: int) -> list[int]:
        """Of so many images."""
        return list(range(self.first_seed, self.first_seed + count))


@dataclass
class GeneratorStudy:
    """Everything that was found.

    Attributes:
        options: What was asked for.
        tables: Table to its scores.
        settings: Table to how the images of its rows are drawn, in the order of the scores.
        folders: Row of the main table to the folder of its images.
        feature_models: What was measured with.
        references: What was compared with.
        pipe: What was drawn with.
        memorization: How near the images of the main table are to training images, if those were named.
    """

    options: GeneratorOptions
    tables: dict[str, SettingScores]
    settings: Tables
    folders: dict[str, Path]
    feature_models: FeatureModels
    references: ReferenceImages
    pipe: DepthGuidedPipeline
    memorization: MemorizationScores | None = None


def run_study(options: GeneratorOptions) -> GeneratorStudy:
    """Draw, measure and compare; run again, it goes on where it was interrupted.

    Raises:
        OSError: If something is missing or cannot be written.
        ValueError: If a value cannot work or the parts do not belong together, before anything is drawn.
    """
    pipe, side, camera, tables = _open(options)
    requests = _requests(options, tables)
    models = _feature_models(options, pipe, camera)
    references = ReferenceImages(options.references, side, options.limit)
    training = None if options.training is None else ReferenceImages(options.training, side)
    counts = {"reference": len(references), **{f"generated ({table})": options.count(table) for table in tables}}
    models.check_counts(counts, allow_singular=options.allow_singular)
    drawn = draw_rows(pipe, requests, options.out / "samples", options.sampling)
    size, kept = options.sampling.batch_size, options.cache or user_cache("measured")
    real = extract(references, references.ids, models, batch_size=size, cache=kept, title="references")
    scores = {}
    found: dict[Path, ImageFeatures] = {}
    for table, rows in tables.items():
        count = options.count(table)
        seconds = {name: drawn[table, name].median_seconds(count) for name in rows}
        for row in (drawn[table, name] for name in rows):
            if row.root not in found:
                found[row.root] = row.measure(models, batch_size=size, cache=options.out / "measured")
        sets = {name: found[drawn[table, name].root].first(count) for name in rows}
        scores[table] = score_settings(sets, real, seconds, options.resamples)
    roots = {name: drawn["guidance", name].root for name in tables["guidance"]}
    alike = None
    if training is not None:
        features = {name: found[root].first(options.images).image_features for name, root in roots.items()}
        alike = memorization(features, real.image_features, training, models.extractor, name=str(options.training), batch_size=size)
    return GeneratorStudy(options, scores, tables, roots, models, references, pipe, alike)


def draw_only(options: GeneratorOptions, names: Sequence[str], overwrite: bool = False) -> list[Path]:
    """Draw the images of some rows and stop; `run_study` with the same options finds them.

    Processes that draw different rows may run side by side: what guides differently has a folder of its own, and nothing else
    is written. One that draws what another is drawing is refused.

    Args:
        options: As of `run_study`.
        names: Of rows, such as `"none"`, `"DCG"`, `"scale 0.1"`; in any case. A name with a comma may come in its parts, as it
            does from a list that was split at commas.
        overwrite: Go on in a folder of other settings; images of theirs stay.

    Returns:
        The folders.

    Raises:
        OSError: If something is missing or cannot be written.
        ValueError: If there is no row of a name, or a value cannot work, before anything is drawn.
    """
    pipe, _, _, tables = _open(options)
    chosen = _chosen_rows(names, [name for rows in tables.values() for name in rows])
    with OutputFolder(options.out, options.settings, overwrite=overwrite) as folder:
        folder.begin()  # ours from now on, and free for others: each row's folder is locked by itself
    tables = {table: {name: one for name, one in rows.items() if name in chosen} for table, rows in tables.items()}
    drawn = draw_rows(pipe, _requests(options, tables), options.out / "samples", options.sampling)
    return list(dict.fromkeys(one.root for one in drawn.values()))


def _chosen_rows(words: Sequence[str], rows: Sequence[str]) -> set[str]:
    """Rows by name, in any case; the longest name that the next words make, joined by commas, is taken."""
    known, chosen, rest = {name.lower(): name for name in rows}, set(), [word.strip().lower() for word in words]
    while rest:
        fits = [count for count in range(len(rest), 0, -1) if ", ".join(rest[:count]) in known]
        if not fits:
            raise ValueError(f"there is no row {rest[0]!r} to draw; expected some of {'; '.join(known.values())}")
        chosen.add(known[", ".join(rest[: fits[0]])])
        rest = rest[fits[0] :]
    return chosen


def _open(options: GeneratorOptions) -> tuple[DepthGuidedPipeline, int, Camera, Tables]:
    """The generator with its parts, the side of its images in px, their camera, and how the images of each row are drawn."""
    pipe = load_generator(
        options.model,
        options.depth_predictor,
        next(iter(options.depth_priors), None),  # instead of one in its folder, which may not fit the predictor
        sampler=options.sampler,
        timestep_spacing=options.timestep_spacing,
        device=options.device,
    )
    side, priors = side_of(pipe), load_priors(pipe, options.depth_priors)
    camera = camera_of(options.model, side)
    if pipe.depth_predictor is None:
        if options.sweep_scales:
            raise ValueError("sweeping guidance scales needs a depth predictor (--depth-predictor)")
        logger.warning("no depth predictor: only the unguided generator is evaluated")
    elif not priors:
        logger.warning("no depth prior: DPG and both are left out, and the scales sweep that of DCG alone")
    real = _real_disagreement(options, pipe, side) if options.pulls and pipe.depth_predictor is not None else None
    return pipe, side, camera, setting_tables(options, pipe, priors, real)


def _real_disagreement(options: GeneratorOptions, pipe: DepthGuidedPipeline, side: int) -> tuple[tuple[float, float], ...]:
    """What the two branches disagree by on some of the references, over the noise levels that are guided."""
    references = ReferenceImages(options.references, side, REAL_IMAGES)
    last = tables_from_betas(pipe.scheduler.betas).last_step(pipe.depth_predictor.config.min_log_snr)
    steps = sorted({round(last * index / (REAL_LEVELS - 1)) for index in range(REAL_LEVELS)})
    logger.info("reading how far depth disagrees on %d real images", len(references))
    return real_disagreement(pipe, references, steps)


def _requests(options: GeneratorOptions, tables: Tables) -> dict[tuple[str, str], RowRequest]:
    """What each row of each table asks for."""
    return {
        (table, name): RowRequest(name, row.guidance, options.seeds(options.count(table)), row.steps)
        for table, rows in tables.items()
        for name, row in rows.items()
    }


def _feature_models(options: GeneratorOptions, pipe: DepthGuidedPipeline, seen: Camera) -> FeatureModels:
    extractor, depth_model = make_extractor(options.extractor, pipe.device), load_depth_model(options.estimator, pipe.device)
    probe, name = None, ""
    if pipe.depth_predictor is not None:
        probe, name = depth_probe(pipe, options.probe_timestep), probe_name(pipe, options.probe_timestep)
    camera = tuple(seen.intrinsics_px) if seen.source == CAMERA_FILE else None
    if camera is None or not depth_model.metric:
        lacking = f"a {CAMERA_FILE} of the generator" if camera is None else "an estimator of metres"
        logger.warning("floors, horizons and walls are not measured: that needs %s", lacking)
    models = FeatureModels(extractor, depth_model, options.rendering, probe, name, camera, options.eye_height_m)
    models.depth_features()  # refuses a rendering that the depth model cannot have
    return models
