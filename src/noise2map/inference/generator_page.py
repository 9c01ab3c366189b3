"""The page of a generator's evaluation: tables, sweeps, the same seed with and without guidance, and rooms to walk around."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from noise2map.geometry import intrinsics_from_fov, normals_from_depth, point_cloud, write_glb, write_ply
from noise2map.inference.generator_report import short_row, sweep_figures
from noise2map.inference.generator_scores import DISTANCES
from noise2map.inference.generator_study import GeneratorStudy
from noise2map.inference.measured_images import stack_pictures
from noise2map.inference.reference_pictures import PictureFiles
from noise2map.report.html import Cloud, GalleryItem, Page
from noise2map.report.palettes import colorize_depth, colorize_normals, depth_range
from noise2map.report.panels import Cell, depth_cell

DEFAULT_FOV_DEG = 74.0
_SHOWN_CLOUDS = 2
_FAR_TIMES_MEDIAN = 8.0


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
        f"{scores.samples} images of each setting, against {facts['reference_images']} real ones: {facts['references']}.",
    )
    _tables(page, study)
    seeds = range(study.job.first_seed, study.job.first_seed + min(pairs, scores.samples))
    written = []
    if len(seeds):
        page.section("Equal seeds", "Start noise and the noise of sampling are the same; guidance alone differs.")
        shown = {one.name: _Shown(study, one.key, seeds, fov_deg) for one in study.settings["guidance"]}
        page.gallery([_item(shown, place, seed) for place, seed in enumerate(seeds)])
        if study.instruments.estimator.metric:
            written = _clouds(page, shown, seeds, path.parent / "clouds")
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
        "this number of images; they say nothing of other training runs.",
    )
    headings = {"guidance": "With and without", "scales": "Guidance scale", "priors": "Resolution of the prior"}
    for table, scores in study.tables.items():
        page.table([short_row(row) for row in scores.rows()], heading=headings[table])
        if table == "guidance" and scores.draws:
            rows = [row for row in scores.differences() if row["score"] in DISTANCES]
            if rows:
                page.table(rows, heading="Paired differences, seed by seed")
    light, dark = sweep_figures(study), sweep_figures(study, "dark")
    if light:
        page.figures([(light[name], dark[name]) for name in light], "Sweeps")


class _Shown:
    """Pictures, depth and points of some seeds of one setting."""

    def __init__(self, study: GeneratorStudy, key: str, seeds: Sequence[int], fov_deg: float | None) -> None:
        files = PictureFiles([study.folders[key] / f"{seed:06d}.png" for seed in seeds])
        images = stack_pictures(files, range(len(files)))
        estimator = study.instruments.estimator
        device = next((one.device for one in estimator.parameters()), torch.device("cpu"))
        with torch.no_grad():
            self.depth = estimator(images.to(device)).float().cpu()
        self.metric = estimator.metric
        self.images = images.permute(0, 2, 3, 1).numpy()
        self.camera = camera_for(study, images.shape[-1], fov_deg)
        self.normals = normals_from_depth(self.depth, self.camera) if self.metric else None
        self.points = point_cloud(self.depth, self.camera) if self.metric else None

    def near(self, place: int) -> torch.Tensor:
        """Pixels that are not as far as a sky: `(H, W)` bool."""
        depth = self.depth[place]
        return depth < _FAR_TIMES_MEDIAN * depth.median()


def _item(shown: dict[str, _Shown], place: int, seed: int) -> GalleryItem:
    """One seed: a column for each setting; image, depth, normals below each other."""
    limits = depth_range(*(one.depth[place].numpy() for one in shown.values()))
    rows: list[list[Cell | None]] = [[Cell(name, one.images[place]) for name, one in shown.items()]]
    rows.append([depth_cell(one.depth[place].numpy(), "depth", limits) for one in shown.values()])
    normals = [one.normals for one in shown.values()]
    if all(one is not None for one in normals):
        rows.append([Cell("normals", colorize_normals(one[place].numpy())) for one in normals if one is not None])
    first: Any = next(iter(shown.values()))
    return GalleryItem(first.images[place], f"seed {seed}", rows)


def _clouds(page: Page, shown: dict[str, _Shown], seeds: Sequence[int], folder: Path) -> list[Path]:
    """Point clouds of the first seeds, unguided and with all the guidance there is, on the page and as files."""
    page.section("Point clouds", "Drag to turn, scroll to come nearer. The same clouds lie in `clouds/` as PLY and GLB.")
    folder.mkdir(parents=True, exist_ok=True)
    names, written = list(shown), []
    for place, seed in enumerate(seeds[:_SHOWN_CLOUDS]):
        for name in dict.fromkeys([names[0], names[-1]]):
            one = shown[name]
            assert one.points is not None and one.normals is not None
            near = one.near(place)
            points, normals, colors = one.points[place], one.normals[place], torch.from_numpy(one.images[place].copy())
            for suffix, write in ((".ply", write_ply), (".glb", write_glb)):
                written.append(folder / f"{seed:06d}-{name}{suffix}")
                write(written[-1], points[near], colors[near], normals[near])
            depth = one.depth[place].numpy()
            layers = {
                "image": one.images[place],
                "depth": colorize_depth(depth, *depth_range(depth)),
                "normals": colorize_normals(normals.numpy()),
            }
            flat = {title: picture.reshape(-1, 3) for title, picture in layers.items()}
            lifted = torch.where(near[..., None], points, torch.nan).reshape(-1, 3).numpy()
            page.cloud(Cloud(lifted, flat, float(one.camera[0])), f"Seed {seed}, {name}")
    return written
