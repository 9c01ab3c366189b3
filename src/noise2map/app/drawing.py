"""A request for a generated image: the same noise without guidance and with it."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from noise2map.app.files import SETTINGS, Files, cloud_bytes, settings_bytes, with_all
from noise2map.app.limits import LIMITS, Limits, check_known, number, whole_number
from noise2map.app.maps import SEED_RANGE, watched
from noise2map.app.places import PlaceResult
from noise2map.demo.guidance import Drawn, draw, trajectory_frames
from noise2map.generation.loading import camera_of
from noise2map.geometry import point_cloud
from noise2map.guidance import DepthGuidedPipeline, GuidanceConfig
from noise2map.report.html import Cloud, Page
from noise2map.report.palettes import colorize_depth, depth_range
from noise2map.report.panels import Cell, depth_cell
from noise2map.runs.files import encode_arrays, encode_image

_FIELDS = ("model", "seed", "steps", "consistency_scale", "prior_scale")
_FRAMES = 25
MAX_SCALE = 500.0
_ENLARGED = 4


def run_drawing(
    pipe: DepthGuidedPipeline,
    name: str,
    fields: Mapping[str, Any],
    tick: Callable[[], object] = lambda: None,
    limits: Limits = LIMITS,
) -> PlaceResult:
    """Draws the image of a seed twice: without guidance, and with the scales that were asked for.

    Args:
        pipe: The generator, with depth predictor in metres and prior.
        name: What it is called.
        fields: Seed, steps, consistency_scale, prior_scale.
        tick: Called before each call of the U-Net; may raise to stop the run.
        limits: The most steps.

    Raises:
        ValueError: If a field cannot work.
    """
    check_known(fields, _FIELDS)
    seed = whole_number(fields, "seed", 0, *SEED_RANGE)
    steps = whole_number(fields, "steps", 50, 2, limits.drawing_steps)
    scales = [number(fields, f"{kind}_scale", 0.0, 0.0, MAX_SCALE) for kind in ("consistency", "prior")]
    settings = {"unguided": GuidanceConfig()}
    if any(scales):
        settings["guided"] = GuidanceConfig.from_scales(scales[0], scales[1], on_nonfinite="skip")
    with watched(cast(Any, pipe).unet.time_embedding, tick):
        drawn = {kind: draw(pipe, one, (seed,), steps) for kind, one in settings.items()}
    page = Page("")
    files: Files = {}
    courses = {kind: one.trajectory for kind, one in drawn.items() if one.trajectory is not None}
    finals = {kind: (_final(drawn[kind]), course.depth[-1]) for kind, course in courses.items()}
    limits_m = depth_range(*(depth for _, depth in finals.values()))
    row = []
    for kind, (image, depth) in finals.items():
        row += [Cell(kind, _enlarged(image), note=f"seed {seed}"), depth_cell(depth, f"its depth, {kind}", limits_m)]
    page.cells([row], f"{name}, {steps} steps, consistency {scales[0]:g}, prior {scales[1]:g}")
    frames = trajectory_frames(courses)
    kept = [frames[round(k)] for k in np.linspace(0, len(frames) - 1, min(_FRAMES, len(frames)))]
    # The noise looks the same in both; without one of the two the row fits on a screen.
    page.player([[*row[:3], *row[4:]] for row in kept], "From noise to image")
    page.clouds([(_cloud(name, *one, limits_m), f"In three dimensions, {kind}") for kind, one in finals.items()])
    for kind, (image, depth) in finals.items():
        files[f"{kind}.png"] = partial(encode_image, Image.fromarray(image))
        cloud = _cloud(name, image, depth, limits_m)
        files[f"{kind}-cloud.ply"] = partial(cloud_bytes, cloud.points_m, cloud.colors["image"], ".ply")
        files[f"{kind}-depth.npz"] = partial(encode_arrays, {"depth_m": depth})
    said = {
        "model": fields.get("model", name),
        "seed": seed,
        "steps": steps,
        "consistency_scale": scales[0],
        "prior_scale": scales[1],
    }
    files[SETTINGS] = lambda: settings_bytes(said)
    return PlaceResult(page.body(), with_all(files), sum(image.nbytes + depth.nbytes for image, depth in finals.values()))


def _final(drawn: Drawn) -> np.ndarray:
    return drawn.images[0].permute(1, 2, 0).numpy()


def _enlarged(image: np.ndarray) -> np.ndarray:
    """Whole pixels, so that the page need not smooth what is small."""
    return image.repeat(_ENLARGED, 0).repeat(_ENLARGED, 1)


def _cloud(name: str, image: np.ndarray, depth: np.ndarray, limits_m: tuple[float, float]) -> Cloud:
    camera = torch.tensor(camera_of(name, image.shape[0])[0])
    points = point_cloud(torch.from_numpy(np.ascontiguousarray(depth, np.float32)), camera).numpy()
    return Cloud.of_image(points, {"image": image, "depth": colorize_depth(depth, *limits_m)}, float(camera[0]))
