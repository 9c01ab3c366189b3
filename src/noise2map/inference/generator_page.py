"""The page of a generator's evaluation: tables, sweeps, the same seed with and without guidance, and rooms to walk around."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from noise2map.geometry import intrinsics_from_fov
from noise2map.inference.depth_views import DepthViews, add_clouds, seed_item
from noise2map.inference.generated_images import GuidanceSetting
from noise2map.inference.generator_report import geometry_columns, short_differences, short_row, sweep_figures
from noise2map.inference.generator_study import GeneratorStudy
from noise2map.inference.measured_images import stack_pictures
from noise2map.inference.reference_pictures import PictureFiles
from noise2map.report.html import Page

DEFAULT_FOV_DEG = 74.0
_SHOWN_CLOUDS = 2


def camera_for(study: GeneratorStudy, size: int, fov_deg: float | None) -> torch.Tensor:
    """`fx, fy, cx, cy` of the images: of the field of view if one is given, else of the references, else of 74 degrees."""
    if fov_deg is None and study.intrinsics is not None:
        return torch.as_tensor(np.asarray(study.intrinsics), dtype=torch.float32)
    return intrinsics_from_fov(DEFAULT_FOV_DEG if fov_deg is None else fov_deg, size, size)


def write_page(study: GeneratorStudy, path: Path, pairs: int = 8, fov_deg: float | None = None) -> list[Path]:
    """Write the page, and the point clouds that it shows as PLY and GLB.

    Args:
        study: What was found.
        path: The page.
        pairs: Number of seeds to show.
        fov_deg: Horizontal field of view of the images, degrees; that of the references by default.

    Returns:
        The paths written.

    Raises:
        OSError: If a file cannot be written.
        ValueError: If the field of view is impossible.
    """
    scores, facts = study.tables["guidance"], study.facts
    page = Page(
        f"Guidance of {facts['model']}",
        f"{scores.samples} images of each setting, against {facts['reference_images']} real ones ({facts['references']}).",
    )
    _tables(page, study)
    seeds = range(study.job.first_seed, study.job.first_seed + min(pairs, scores.samples))
    written = []
    if len(seeds):
        page.section(
            "Equal seeds",
            "Start noise and the noise of sampling are the same; guidance alone differs: "
            f"{_scales(study.settings['guidance'])}, {facts['steps']} {facts['scheduler']} steps, convention "
            f"{facts['convention']}, {facts['reduction']} of pixels.",
        )
        shown = {one.name: _views(study, one.key, seeds, fov_deg) for one in study.settings["guidance"]}
        page.gallery([seed_item(shown, place, seed) for place, seed in enumerate(seeds)])
        if study.instruments.estimator.metric:
            page.section("Point clouds", "Drag to turn, scroll to come nearer. The same clouds lie in `clouds/` as PLY and GLB.")
            names = list(shown)
            ends = {name: shown[name] for name in (names[0], names[-1])}
            written = add_clouds(page, ends, seeds[:_SHOWN_CLOUDS], path.parent / "clouds")
        else:
            page.text("The depth estimator gives depth without a unit: no normals and no point clouds can be made of it.")
    page.footer(f"{facts['command']} — {facts['date']}, commit {facts['commit']}, {facts['device']}")
    page.write(path)
    return [path, *written]


def _tables(page: Page, study: GeneratorStudy) -> None:
    facts = study.facts
    page.section(
        "Scores",
        f"Distances are those of the features of `{facts['extractor']}`; they cannot be compared with those of other features. "
        f"Depth is estimated by `{facts['estimator']}` and painted as {facts['rendering']}. Intervals hold 95 % of the spread at "
        "this number of images; they say nothing of other training runs. `strong-weak`: how far two readings of the depth differ; "
        "`off plane`, `planar`: how far patches are from planes; `edges`: whether depth has its edges where the image has them.",
    )
    headings = {"guidance": "With and without", "scales": "Guidance scale", "priors": "Resolution of the prior"}
    geometry = geometry_columns()
    for table, scores in study.tables.items():
        rows = [short_row(row) for row in scores.rows()]
        distances = [name for name in rows[0] if name not in geometry[2:]]
        page.table(rows[:-1], distances, heading=f"{headings[table]}: distance to the references")
        page.table(rows, geometry, heading=f"{headings[table]}: geometry, the references beside it")
        differences = short_differences(scores) if table == "guidance" and scores.draws else []
        if differences:
            page.table(differences, heading="Paired differences, seed by seed")
    light, dark = sweep_figures(study), sweep_figures(study, "dark")
    if light:
        page.figures([(light[name], dark[name]) for name in light], "Sweeps")


def _scales(settings: Sequence[GuidanceSetting]) -> str:
    """``DCG 40, DPG 40, both 40 and 40``."""
    words = []
    for one in settings:
        scales = [f"{scale:g}" for scale in (one.consistency_scale, one.prior_scale) if scale]
        words += [f"{one.name} {' and '.join(scales)}"] if scales else []
    return "scales " + ", ".join(words) if words else "there is none here"


def _views(study: GeneratorStudy, key: str, seeds: Sequence[int], fov_deg: float | None) -> DepthViews:
    files = PictureFiles([study.folders[key] / f"{seed:06d}.png" for seed in seeds])
    images = stack_pictures(files, range(len(files)))
    return DepthViews(images, study.instruments.estimator, camera_for(study, images.shape[-1], fov_deg))
