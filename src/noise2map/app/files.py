"""The files of a result that can be downloaded, by name."""

import json
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from noise2map import __version__
from noise2map.app.maps import MapResult
from noise2map.geometry import intrinsics_from_fov, point_cloud, write_glb, write_ply
from noise2map.report.animation import animation_bytes
from noise2map.report.palettes import UNCERTAINTY_MAP, colorize
from noise2map.report.panels import uncertainty_limit
from noise2map.runs.files import encode_image, json_values

SETTINGS = "settings.json"
ALL = "all.zip"
FAR_M = 60.0  # what is farther would make the rest of a cloud a dot
_FRAME_MS, _HOLD_MS = 250, 2000

MEDIA_TYPES = {
    ".png": "image/png",
    ".npy": "application/octet-stream",
    ".ply": "application/octet-stream",
    ".glb": "model/gltf-binary",
    ".webp": "image/webp",
    ".json": "application/json",
    ".zip": "application/zip",
}

Files = dict[str, Callable[[], bytes]]


def painted_map(result: MapResult) -> np.ndarray:
    """The map in colors, ``(H, W, 3)`` uint8."""
    values = result.prediction.values
    return result.predictor.image_task.paint(values, values, result.predictor.palette)


def painted_uncertainty(result: MapResult) -> np.ndarray | None:
    """The uncertainty in colors, ``(H, W, 3)`` uint8; None where it is not defined."""
    unsure = result.prediction.uncertainty
    return None if unsure is None else colorize(unsure, 0.0, uncertainty_limit(unsure), UNCERTAINTY_MAP)


def cloud_points(result: MapResult) -> tuple[np.ndarray, float]:
    """Points ``(H, W, 3)`` of a depth map in camera axes, metres, NaN beyond `FAR_M`; and the focal length in pixels."""
    depth = torch.from_numpy(np.ascontiguousarray(result.prediction.map, np.float32))
    camera = intrinsics_from_fov(result.request.fov_deg, *depth.shape)
    points = point_cloud(depth, camera).numpy().copy()
    points[~((depth > 0) & (depth <= FAR_M)).numpy()] = np.nan
    return points, float(camera[0])


def map_files(result: MapResult) -> Files:
    """What can be downloaded of a map: name to what makes the content; `all.zip` holds the others."""
    prediction, image = result.prediction, result.prediction.image
    assert image is not None
    stored = result.predictor.image_task.files(prediction, "map", result.predictor.model.config)
    files: Files = {"image.png": lambda: _png(image), "map-colored.png": lambda: _png(painted_map(result))}
    for kind, (_, content) in stored.items():
        files[f"{kind.replace('_', '-')}.png"] = partial(bytes, content)
    files["map.npy"] = lambda: _npy(prediction.map)
    unsure = prediction.uncertainty
    if unsure is not None:
        files["uncertainty.npy"] = lambda: _npy(unsure)
        files["uncertainty.png"] = lambda: _png(painted_uncertainty(result))
    if result.predictor.in_metres and np.isfinite(cloud_points(result)[0]).any():
        files["cloud.ply"] = lambda: cloud_bytes(cloud_points(result)[0], image, ".ply")
        files["cloud.glb"] = lambda: cloud_bytes(cloud_points(result)[0], image, ".glb")
    if len(result.step_maps) > 1:
        files["steps.webp"] = lambda: _animation(result.painted_steps())
    files["panel.png"] = lambda: encode_image(prediction.plot(result.model))
    files[SETTINGS] = lambda: settings_bytes(_facts(result))
    return with_all(files)


def with_all(files: Files) -> Files:
    """The files, and a zip of them."""
    return files | {ALL: lambda: _zip(files)}


def _facts(result: MapResult) -> Mapping[str, Any]:
    dials = {name: value for name, value in vars(result.request).items() if value is not None}
    said = {"model": result.model, "task": result.predictor.task, **dials}
    said |= {"calls": result.prediction.num_steps, "processed_size": list(result.prediction.processed_size)}
    return said | {"uncertainty": result.prediction.uncertainty_kind, "id": result.prediction.id}


def _png(pixels: np.ndarray | None) -> bytes:
    assert pixels is not None
    return encode_image(Image.fromarray(pixels))


def _npy(values: np.ndarray) -> bytes:
    buffer = BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def settings_bytes(facts: Mapping[str, Any]) -> bytes:
    """What an answer was made with, and by which version, as JSON."""
    return (json.dumps(json_values({"noise2map": __version__, **facts}), indent=2) + "\n").encode()


def _animation(frames: list[np.ndarray]) -> bytes:
    return animation_bytes([Image.fromarray(one) for one in frames], ".webp", _FRAME_MS, _HOLD_MS)


def cloud_bytes(points: np.ndarray, colors: np.ndarray, suffix: str) -> bytes:
    """A point cloud as a file.

    Args:
        points: ``(..., 3)`` in camera axes, metres; those that are not finite are left out.
        colors: ``(..., 3)`` uint8.
        suffix: ``".ply"`` or ``".glb"``.
    """
    known = np.isfinite(points).all(-1)
    write = {".ply": write_ply, ".glb": write_glb}[suffix]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"cloud{suffix}"
        write(path, torch.from_numpy(points[known]), torch.from_numpy(colors[known]))
        return path.read_bytes()


def _zip(files: Files) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, make in files.items():
            archive.writestr(name, make())
    return buffer.getvalue()
