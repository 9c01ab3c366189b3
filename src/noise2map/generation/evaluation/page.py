"""The page of a generator's evaluation: tables, sweeps, equal seeds with depth, normals and point clouds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noise2map.generation.evaluation.measurements import stack_images
from noise2map.generation.evaluation.memorization import short_memorization
from noise2map.generation.evaluation.references import ImageFiles, ReferenceImages
from noise2map.generation.evaluation.report import geometry_columns, short_differences, short_row, sweep_figures
from noise2map.generation.evaluation.settings import NONE, RowSetting
from noise2map.generation.evaluation.study import GeneratorStudy
from noise2map.generation.loading import camera_of, side_of
from noise2map.geometry import intrinsics_from_fov, normals_from_depth, point_cloud, write_glb, write_ply
from noise2map.inference.depth_models import DepthModel
from noise2map.report.html import Cloud, GalleryItem, Page
from noise2map.report.palettes import colorize_depth, colorize_normals, depth_range
from noise2map.report.panels import Cell, depth_cell

_FAR_TIMES_MEDIAN = 8.0


class DepthViews:
    """Images drawn in one way, with their depth, normals and points.

    Args:
        images: `(N, 3, H, W)` uint8.
        depth_model: What reads their depth.
        camera: `fx, fy, cx, cy` in px, `(4,)`.

    Attributes:
        images: `(N, H, W, 3)` uint8.
        depth: `(N, H, W)`, metres or without unit.
        normals: `(N, H, W, 3)`; None without metres.
        points: `(N, H, W, 3)` metres; None without metres.
    """

    def __init__(self, images: Tensor, depth_model: DepthModel, camera: Tensor) -> None:
        device = next((one.device for one in depth_model.parameters()), torch.device("cpu"))
        with torch.no_grad():
            self.depth = depth_model(images.to(device)).float().cpu()
        self.images = images.permute(0, 2, 3, 1).numpy()
        self.camera = camera
        self.normals = normals_from_depth(self.depth, camera) if depth_model.metric else None
        self.points = point_cloud(self.depth, camera) if depth_model.metric else None

    def near(self, place: int) -> Tensor:
        """Pixels of a image that are not as far as a sky: `(H, W)` bool."""
        depth = self.depth[place]
        return depth < _FAR_TIMES_MEDIAN * depth.median()


def seed_rows(views: Mapping[str, DepthViews], place: int, notes: Mapping[str, str] | None = None) -> list[list[Cell]]:
    """One seed: a column for each way to draw; image, depth and normals below each other.

    Args:
        views: By the name of the way.
        place: Which of the images.
        notes: By the same names, beside the titles of the images.
    """
    limits = depth_range(*(one.depth[place].numpy() for one in views.values()))
    notes = notes or {}
    rows = [[Cell(name, one.images[place], note=notes.get(name, "")) for name, one in views.items()]]
    rows.append([depth_cell(one.depth[place].numpy(), f"depth, {name}", limits) for name, one in views.items()])
    normals = {name: one.normals[place] for name, one in views.items() if one.normals is not None}
    if normals:
        rows.append([Cell(f"normals, {name}", colorize_normals(one.numpy())) for name, one in normals.items()])
    return rows


def seed_item(views: Mapping[str, DepthViews], place: int, seed: int, notes: Mapping[str, str] | None = None) -> GalleryItem:
    """`seed_rows` for a gallery, under the image of the first way."""
    first = next(iter(views.values()))
    return GalleryItem(first.images[place], f"seed {seed}", seed_rows(views, place, notes))


def add_clouds(page: Page, views: Mapping[str, DepthViews], seeds: Sequence[int], folder: Path) -> list[Path]:
    """Point clouds of the first images of each way, on the page and as files.

    Args:
        page: Gets a row of cards for each seed.
        views: By name; with depth in metres.
        seeds: Of the first images, one each.
        folder: Gets `SEED-NAME.ply` and `.glb`.

    Returns:
        The paths written.

    Raises:
        OSError: If a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for place, seed in enumerate(seeds):
        shown = []
        for name, one in views.items():
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
            lifted = torch.where(near[..., None], points, torch.nan).numpy()
            shown.append((Cloud.of_image(lifted, layers, float(one.camera[0])), f"Seed {seed}, {name}"))
        page.clouds(shown)
    return written


DEFAULT_FOV_DEG = 74.0

_SHOWN_CLOUDS = 2


def camera_for(study: GeneratorStudy, size: int, fov_deg: float | None) -> torch.Tensor:
    """`fx, fy, cx, cy` of the images: of the field of view if given, else of the references or the generator, else 74 degrees."""
    if fov_deg is None and study.references.intrinsics is not None:
        return torch.as_tensor(np.asarray(study.references.intrinsics), dtype=torch.float32)
    camera = camera_of(study.options.model, size, fov_deg)
    if fov_deg is None and camera.source != "assumed":
        return torch.tensor(camera.intrinsics_px, dtype=torch.float32)
    return intrinsics_from_fov(DEFAULT_FOV_DEG if fov_deg is None else fov_deg, size, size)


def write_page(
    study: GeneratorStudy, facts: Mapping[str, Any], path: Path, pairs: int = 8, fov_deg: float | None = None
) -> list[Path]:
    """Write the page, and the point clouds that it shows as PLY and GLB.

    Args:
        study: What was found.
        facts: What all its rows share.
        path: The page.
        pairs: Number of seeds to show.
        fov_deg: Horizontal field of view of the images, degrees; that of the references by default.

    Returns:
        The paths written.

    Raises:
        OSError: If a file cannot be written.
        ValueError: If the field of view is impossible.
    """
    scores = study.tables["guidance"]
    page = Page(
        f"Guidance of {facts['model']}",
        f"{scores.samples} images of each row, against {facts['reference_images']} real ones ({facts['references']}).",
    )
    _tables(page, study, facts)
    seeds = range(study.options.first_seed, study.options.first_seed + min(pairs, scores.samples))
    written = []
    if len(seeds):
        page.section(
            "Equal seeds",
            "Start noise and the noise of sampling are the same; guidance alone differs: "
            f"{_scales(study.settings['guidance'])}, {facts['steps']} {facts['scheduler']} steps, convention "
            f"{facts['convention']}, {facts['reduction']} of pixels.",
        )
        shown = {name: _views(study, name, seeds, fov_deg) for name in study.settings["guidance"]}
        page.gallery([seed_item(shown, place, seed) for place, seed in enumerate(seeds)])
        if study.feature_models.depth_model.metric:
            page.section("Point clouds", "Drag to turn, scroll to come nearer. The same clouds lie in `clouds/` as PLY and GLB.")
            guided = [name for name, row in study.settings["guidance"].items() if row.guidance.active]
            ends = {name: shown[name] for name in (next(iter(shown)), *guided[-1:])}
            written = add_clouds(page, ends, seeds[:_SHOWN_CLOUDS], path.parent / "clouds")
        else:
            page.text("The depth model gives depth without a unit: no normals and no point clouds can be made of it.")
    _add_nearest(page, study, pairs)
    page.footer(f"{facts['command']} — {facts['date']}, commit {facts['commit']}, {facts['device']}")
    page.write(path)
    return [path, *written]


def _tables(page: Page, study: GeneratorStudy, facts: Mapping[str, Any]) -> None:
    page.section(
        "Scores",
        f"Distances are those of the features of `{facts['extractor']}`; they cannot be compared with those of other features. "
        f"Depth is estimated by `{facts['estimator']}` and painted as {facts['rendering']}. Intervals hold 95 % of the spread at "
        "this number of images; they say nothing of other training runs. `strong-weak`: how far two readings of the depth differ; "
        "`off plane`, `planar`: how far patches are from planes; `edges`: whether depth has its edges where the image has them. "
        "`floor fits`: share of images whose floor is as far below the camera as it stands, within 10 %; `horizon °`: how far the "
        "row where the floor vanishes is off the camera's; `upright`: share of surfaces that are upright or level; `order`: "
        "share of neighbours that come nearer away from the horizon.",
    )
    headings = {
        "steps": "Unguided, by steps",
        "guidance": "With and without",
        "placebos": "Placebos",
        "pulls": "As far as real images agree",
        "scales": "Guidance scale",
        "priors": "Resolution of the prior",
    }
    for table, scores in study.tables.items():
        rows = [short_row(row) for row in scores.rows()]
        geometry = geometry_columns(rows)
        distances = [name for name in rows[0] if name not in geometry[2:]]
        page.table(rows[:-1], distances, heading=f"{headings[table]}: distance to the references")
        page.table(rows, geometry, heading=f"{headings[table]}: geometry, the references beside it")
        differences = short_differences(scores) if table == "guidance" and scores.draws else []
        if differences:
            page.table(differences, heading="Paired differences, seed by seed")
    light, dark = sweep_figures(study), sweep_figures(study, "dark")
    if light:
        page.figures([(light[name], dark[name]) for name in light], "Sweeps")


def _add_nearest(page: Page, study: GeneratorStudy, pairs: int) -> None:
    """Table of nearest training images, and the images that are nearest to one, beside it."""
    scores = study.memorization
    if scores is None:
        return
    page.section(
        "Nearest training images",
        "How far each image is from the nearest image that the generator was trained on, or from its mirror image, by the same "
        "features; 1 is the median of the references, which it has not seen. `copies`: share nearer than all but 1 % of the "
        "references are. Training images of one place are near each other: the last row is below 1 without any copying.",
    )
    page.table(short_memorization(scores), heading="Distance to the nearest training image")
    if not pairs:
        return
    training = ReferenceImages(scores.training, side_of(study.pipe))
    unit, nearest = float(scores.unseen.distance.median()), scores.rows[NONE]
    above, below = [], []
    for place in scores.most_alike(NONE, pairs):
        seed, index = study.options.first_seed + place, int(nearest.index[place])
        theirs = training[index][:, ::-1] if nearest.mirrored[place] else training[index]
        drawn = ImageFiles([_image_path(study, NONE, seed)])[0]
        above.append(Cell(f"seed {seed}", drawn, note=f"{float(nearest.distance[place]) / unit:.2f}"))
        below.append(Cell(f"training image {training.ids[index]}", np.ascontiguousarray(theirs)))
    page.cells([above, below], heading="The unguided images that are nearest to a training image, which is below each")


def _image_path(study: GeneratorStudy, name: str, seed: int) -> Path:
    return study.folders[name] / f"{seed:06d}.png"


def _scales(rows: Mapping[str, RowSetting]) -> str:
    """``DCG 40, DPG 40, both 40 and 40``."""
    guided = {name: one.guidance.active for name, one in rows.items() if one.guidance.active}
    words = [f"{name} {' and '.join(f'{loss.scale:g}' for loss in losses)}" for name, losses in guided.items()]
    return "scales " + ", ".join(words) if words else "there is none here"


def _views(study: GeneratorStudy, name: str, seeds: Sequence[int], fov_deg: float | None) -> DepthViews:
    files = ImageFiles([_image_path(study, name, seed) for seed in seeds])
    images = stack_images(files)
    return DepthViews(images, study.feature_models.depth_model, camera_for(study, images.shape[-1], fov_deg))
