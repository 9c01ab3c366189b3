"""Pictures of equal seeds beside each other: their depth, normals and point clouds, as an estimator sees them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from noise2map.geometry import normals_from_depth, point_cloud, write_glb, write_ply
from noise2map.inference.depth_estimators import DepthEstimator
from noise2map.report.html import Cloud, GalleryItem, Page
from noise2map.report.palettes import colorize_depth, colorize_normals, depth_range
from noise2map.report.panels import Cell, depth_cell

_FAR_TIMES_MEDIAN = 8.0


class DepthViews:
    """Pictures drawn in one way, with their depth, normals and points.

    Args:
        images: `(N, 3, H, W)` uint8.
        estimator: Of depth.
        camera: `fx, fy, cx, cy` in px, `(4,)`.

    Attributes:
        images: `(N, H, W, 3)` uint8.
        depth: `(N, H, W)`, metres or without unit.
        normals: `(N, H, W, 3)`; None without metres.
        points: `(N, H, W, 3)` metres; None without metres.
    """

    def __init__(self, images: Tensor, estimator: DepthEstimator, camera: Tensor) -> None:
        device = next((one.device for one in estimator.parameters()), torch.device("cpu"))
        with torch.no_grad():
            self.depth = estimator(images.to(device)).float().cpu()
        self.images = images.permute(0, 2, 3, 1).numpy()
        self.camera = camera
        self.normals = normals_from_depth(self.depth, camera) if estimator.metric else None
        self.points = point_cloud(self.depth, camera) if estimator.metric else None

    def near(self, place: int) -> Tensor:
        """Pixels of a picture that are not as far as a sky: `(H, W)` bool."""
        depth = self.depth[place]
        return depth < _FAR_TIMES_MEDIAN * depth.median()


def seed_rows(views: Mapping[str, DepthViews], place: int, notes: Mapping[str, str] | None = None) -> list[list[Cell]]:
    """One seed: a column for each way to draw; image, depth and normals below each other.

    Args:
        views: By the name of the way.
        place: Which of the pictures.
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
    """`seed_rows` for a gallery, under the picture of the first way."""
    first = next(iter(views.values()))
    return GalleryItem(first.images[place], f"seed {seed}", seed_rows(views, place, notes))


def add_clouds(page: Page, views: Mapping[str, DepthViews], seeds: Sequence[int], folder: Path) -> list[Path]:
    """Point clouds of the first pictures of each way, on the page and as files.

    Args:
        page: Gets a row of cards for each seed.
        views: By name; with depth in metres.
        seeds: Of the first pictures, one each.
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
            flat = {title: picture.reshape(-1, 3) for title, picture in layers.items()}
            lifted = torch.where(near[..., None], points, torch.nan).reshape(-1, 3).numpy()
            shown.append((Cloud(lifted, flat, float(one.camera[0])), f"Seed {seed}, {name}"))
        page.clouds(shown)
    return written
