"""Files of a drawn image: the image, its depth, normals and point cloud; and a sheet of pairs of equal seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from noise2map.generation.loading import Camera
from noise2map.geometry import known_depth, normals_from_depth, point_cloud, write_ply
from noise2map.guidance.depth_range import DepthRange
from noise2map.report.palettes import colorize, colorize_normals, depth_range
from noise2map.report.panels import PANEL_WIDTH, Cell, Panel, depth_cell, render
from noise2map.runs.files import encode_image
from noise2map.runs.output_folder import OutputFolder
from noise2map.tasks.depth import depth_png_scale

SHEET_FILE = "pairs.png"
SHEET_ROWS = 16
_LONE_ROWS, _WIDE = 4, 1680  # more rows make a sheet that no screen shows; pixels
_UNIT = 65535  # of relative depth in a 16-bit PNG


@dataclass(frozen=True)
class DrawnImage:
    """One image.

    Attributes:
        image: RGB.
        depth: `(H, W)` float32, metres or in [0, 1]; None if there is none.
        skipped: Number of steps that were left unguided.
    """

    image: Image.Image
    depth: np.ndarray | None
    skipped: int = 0


def seed_name(seed: int) -> str:
    """Name of a seed's files, without suffix."""
    return f"{seed:06d}"


def write_seed(
    folder: OutputFolder,
    seed: int,
    drawn: Mapping[str, DrawnImage],
    depth_range: DepthRange | None,
    camera: Camera,
    *,
    guided: bool,
) -> None:
    """All files of one seed, then its line in the record.

    Args:
        folder: Where to.
        seed: The seed.
        drawn: Folder below it (`""`, `"unguided/"`) to the image that goes there.
        depth_range: Of the predictor; None without depth.
        camera: Of the images.
        guided: Whether what goes to `""` is guided.

    Raises:
        OSError: If a file cannot be written.
    """
    folder.begin()  # the clouds are written before the other files
    name, files, paths = seed_name(seed), {}, {}
    skipped = max(one.skipped for one in drawn.values())
    numbers: dict[str, float] = {"skipped_steps": skipped} if skipped else {}
    for prefix, one in drawn.items():
        kind = "guided" if guided and not prefix else "unguided"
        paths[f"{kind}_image"] = f"{prefix}images/{name}.png"
        files[paths[f"{kind}_image"]] = encode_image(one.image)
        if one.depth is None or depth_range is None:
            continue
        codec = depth_range.codec
        scale = depth_png_scale(codec.max_depth) if codec else _UNIT
        units = np.rint(one.depth.astype(np.float64) * scale).clip(0, _UNIT).astype(np.uint16)
        arrays = BytesIO()
        np.savez_compressed(arrays, **{"depth_m" if codec else "depth": one.depth})
        paths |= {f"{kind}_depth": f"{prefix}depth/{name}.png", f"{kind}_arrays": f"{prefix}depth/{name}.npz"}
        files[paths[f"{kind}_depth"]], files[paths[f"{kind}_arrays"]] = encode_image(Image.fromarray(units)), arrays.getvalue()
        numbers[f"{kind}_depth_median"] = round(float(np.median(one.depth)), 4)
        numbers["depth_png_units"] = scale
        if codec:
            paths[f"{kind}_normals"], cloud = f"{prefix}normals/{name}.png", f"{prefix}clouds/{name}.ply"
            normals, points = _write_cloud(folder.root / cloud, one.image, one.depth, camera, codec.max_depth)
            paths |= {f"{kind}_cloud": cloud} if points else {}
            files[paths[f"{kind}_normals"]] = encode_image(Image.fromarray(colorize_normals(normals)))
    folder.write({"id": name, "source": {"seed": seed}, "files": paths, **numbers}, files)


def _write_cloud(path: Path, image: Image.Image, depth_m: np.ndarray, camera: Camera, far_m: float) -> tuple[np.ndarray, int]:
    """The point cloud of an image as PLY, without what is as far as depth goes (sky) -> normals `(H, W, 3)`, number of points.

    Without a point no file is written.
    """
    depth, intrinsics = torch.from_numpy(depth_m), torch.tensor(camera.intrinsics_px, dtype=torch.float32)
    normals = normals_from_depth(depth, intrinsics)
    keep = known_depth(depth) & (depth < 0.98 * far_m)
    colors = torch.from_numpy(np.asarray(image.convert("RGB")).copy())
    if keep.any():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_ply(path, point_cloud(depth, intrinsics)[keep], colors[keep], normals[keep])
    return normals.numpy(), int(keep.sum())


def pair_sheet(out: Path, seeds: Sequence[int], folders: Sequence[str], metric: bool, guided: bool, title: str = "") -> Image.Image:
    """Image and depth of each seed without guidance, and with it if there is any: a seed in a row, two where there are many.

    Args:
        out: Folder of the images.
        seeds: Which, in this order.
        folders: Below it, `""` and perhaps `"unguided/"`, as `write_seed` fills them.
        metric: Whether depth is in metres.
        guided: Whether what lies in `""` is guided.
        title: Heading.
    """
    folders = sorted(folders, reverse=True)  # unguided first
    key = "depth_m" if metric else "depth"
    depths = {
        (prefix, seed): np.load(out / f"{prefix}depth/{seed_name(seed)}.npz", allow_pickle=False)[key]
        for seed in seeds
        for prefix in folders
    }
    limits = depth_range(*depths.values()) if metric else (0.0, 1.0)
    cells = []
    for seed in seeds:
        for prefix in folders:
            word = "guided" if guided and not prefix else "unguided"
            image = Image.open(out / f"{prefix}images/{seed_name(seed)}.png").convert("RGB")
            cells.append(Cell(f"seed {seed}, {word}", np.asarray(image)))
            depth = depths[prefix, seed]
            cells.append(depth_cell(depth, "its depth", limits) if metric else Cell("its depth", colorize(depth, 0.0, 1.0)))
    abreast, width = (2, _WIDE) if len(seeds) > _LONE_ROWS else (1, PANEL_WIDTH)
    return render(Panel(cells, columns=2 * len(folders) * abreast, heading=title), width)
