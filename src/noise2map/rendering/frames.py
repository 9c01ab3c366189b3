"""Labelled frames: what the engine shows joined with what the geometry knows, the views worth keeping, a split of them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from noise2map.data.freedoom import catalog
from noise2map.data.freedoom import format as store
from noise2map.data.freedoom.format import CENTIMETRES, file_of, frame_id
from noise2map.data.maps.normals import encode_normals
from noise2map.rendering.engine import Engine, Observation, import_vizdoom
from noise2map.rendering.level import STEP_HEIGHT, Level
from noise2map.rendering.raycast import CEILING, FLOOR, LOWER, NOTHING, SKY, UPPER, WALL, Camera, Pose, Surfaces, cast, horizon_row
from noise2map.rendering.render_run import Records, SplitOptions, check_engine, open_level, run_split
from noise2map.rendering.workers import CHUNK, Task, check_space, chunk_generator, missing, plan
from noise2map.runs.files import check_writable, write_file, write_text

# The engine's depth buffer counts steps of 7.16 map units, from 1.2 steps for walls and 1.93 for planes.
_DEPTH_STEP = 7.16

_WALL_BIAS, _PLANE_BIAS = 1.2, 1.9

_DEPTH_TOLERANCE, _DEPTH_TOLERANCE_SHARE = 16.0, 0.03

_MIN_MEDIAN_DEPTH_M = 3.0

_MAX_IGNORED = 0.1

_MAX_ONE_CLASS = 0.9

_MIN_MEAN_VALUE = 14.0

_BYTES_PER_PIXEL, _BYTES_PER_AVERAGED_PIXEL = 0.85, 2.0  # measured: 0.65 and 1.6 on average, all files

_FREEDOOM_VERSION = "0.13.0"


@dataclass(frozen=True)
class Frame:
    """One labelled view.

    ``labels`` is ``(H, W)`` uint8, ``depth_m`` ``(H, W)`` and ``normals`` ``(H, W, 3)`` float32.

    Attributes:
        pose: Camera pose, map units.
        color: Index into the game's palette, ``(H, W)`` uint8, or colors ``(H, W, 3)`` uint8 of a supersampled view.
        labels: Ten-class ids, 255 where geometry and engine disagree.
        depth_m: Depth along the horizontal optical axis in metres; infinite for sky.
        normals: Unit normals of the surfaces: x right, y up, z towards the viewer; zero for sky and where ``labels`` are 255.
        gore: Whether corpses or gibs are in view.
    """

    pose: Pose
    color: np.ndarray
    labels: np.ndarray
    depth_m: np.ndarray
    normals: np.ndarray
    gore: bool


def surface_labels(level: Level, surfaces: Surfaces) -> np.ndarray:
    """Ten-class ids ``(H, W)`` uint8 of floors, walls and sky; 255 where a ray met nothing."""
    kind, sector, line = surfaces.kind, np.maximum(surfaces.sector, 0), np.maximum(surfaces.line, 0)
    front, back = level.front[line], np.maximum(level.back[line], 0)
    behind = np.where(front == sector, back, front)
    labels = np.full(kind.shape, catalog.IGNORE, np.uint8)
    labels[kind == FLOOR] = catalog.FLOOR
    labels[(kind == FLOOR) & level.liquid[sector]] = catalog.LIQUID
    labels[kind == CEILING] = catalog.CEILING
    labels[kind == SKY] = catalog.SKY
    labels[(kind == WALL) | (kind == UPPER) | (kind == LOWER)] = catalog.WALL
    labels[(kind == UPPER) & level.door[behind]] = catalog.DOOR
    labels[(kind == LOWER) & (np.abs(level.floor[behind] - level.floor[sector]) <= STEP_HEIGHT)] = catalog.STEP
    return labels


def surface_normals(level: Level, surfaces: Surfaces, pose: Pose) -> np.ndarray:
    """Unit normals ``(H, W, 3)`` float32 in the camera's axes (x right, y up, z towards the viewer); zero for sky and nothing.

    Floors and ceilings lie level and walls stand upright, so a normal is that of a plane or of a line of the map, on the side that
    the camera is on.
    """
    line = np.maximum(surfaces.line, 0)
    along_x, along_y = (level.x2 - level.x1)[line], (level.y2 - level.y1)[line]
    side = np.sign(along_y * (pose.x - level.x1[line]) - along_x * (pose.y - level.y1[line]))
    scale = side / np.maximum(np.hypot(along_x, along_y), 1e-9)
    east, north = along_y * scale, -along_x * scale
    cos, sin = np.cos(np.deg2rad(pose.yaw_deg)), np.sin(np.deg2rad(pose.yaw_deg))
    upright = np.stack([east * sin - north * cos, np.zeros_like(east), -(east * cos + north * sin)], -1)
    normals = np.zeros((*surfaces.kind.shape, 3), np.float32)
    normals[surfaces.kind == FLOOR] = (0, 1, 0)
    normals[surfaces.kind == CEILING] = (0, -1, 0)
    wall = (surfaces.kind == WALL) | (surfaces.kind == UPPER) | (surfaces.kind == LOWER)
    normals[wall] = upright[wall]
    return normals


def disagreement(surfaces: Surfaces, view: Observation, camera: Camera) -> np.ndarray:
    """Pixels, ``(H, W)`` bool, where the engine's buffers contradict the geometry: see-through textures, edges that it
    rounds the other way, tricks of the map's author. Objects are not counted.

    The engine clips the depth of walls (not of planes) at ``255 * H / 480`` steps, H rows that it draws, so far walls are not
    compared. A supersampled view has the engine's depth of a drawn row, whose centre is not that of the pixel: it is brought there.
    """
    plane = surfaces.kind <= CEILING
    steps = view.depth.astype(np.float32)
    clip = int(255 * min(1.0, camera.drawn_size[1] / 480)) - 1
    comparable = (view.labels <= 1) & (surfaces.kind != SKY) & (steps < clip)
    below_horizon = np.arange(camera.height) + 0.5 - horizon_row(view.pose, camera)
    drawn_below = below_horizon + (camera.middle[1] + 0.5) / camera.supersample - 0.5
    to_centre = np.divide(drawn_below, below_horizon, out=np.ones(camera.height), where=below_horizon != 0).astype(np.float32)[
        :, None
    ]
    engine_depth = (steps + np.where(plane, _PLANE_BIAS, _WALL_BIAS)) * _DEPTH_STEP * np.where(plane, to_centre, 1)
    wrong_depth = np.abs(engine_depth - surfaces.depth) > _DEPTH_TOLERANCE + _DEPTH_TOLERANCE_SHARE * surfaces.depth
    wrong_kind = (view.labels <= 1) & ((view.labels == 1) != plane)
    return (comparable & wrong_depth) | wrong_kind | (surfaces.kind == NOTHING)


def label_view(level: Level, view: Observation, camera: Camera) -> Frame:
    """Depth and classes of a view: surfaces from the geometry, objects from the engine."""
    surfaces = cast(level, view.pose, camera)
    labels = surface_labels(level, surfaces)
    unknown = disagreement(surfaces, view, camera)
    labels[unknown] = catalog.IGNORE
    depth, normals = surfaces.depth, surface_normals(level, surfaces, view.pose)
    normals[unknown] = 0
    cos, sin = np.cos(np.deg2rad(view.pose.yaw_deg)), np.sin(np.deg2rad(view.pose.yaw_deg))
    for seen in view.objects:
        mask = view.labels == seen.mark
        labels[mask] = catalog.OBJECT_CLASS.get(seen.category, catalog.DECOR)
        depth[mask] = max((seen.x - view.pose.x) * cos + (seen.y - view.pose.y) * sin, 1.0)
        normals[mask] = (0, 0, 1)  # objects are images that face the viewer
    gore = any(seen.category in catalog.GORE_CATEGORIES for seen in view.objects)
    return Frame(view.pose, view.color, labels, depth / catalog.UNITS_PER_METRE, normals, gore)


def worth_keeping(frame: Frame, palette: np.ndarray) -> bool:
    """True if a view is neither dull (a wall before the nose, one class all over), nor dark, nor badly labelled."""
    counts = np.bincount(frame.labels.reshape(-1), minlength=256) / frame.labels.size
    if counts[catalog.IGNORE] > _MAX_IGNORED or counts[:10].max() > _MAX_ONE_CLASS:
        return False
    if np.median(frame.depth_m) < _MIN_MEDIAN_DEPTH_M:
        return False
    return mean_value(frame, palette) >= _MIN_MEAN_VALUE


def mean_value(frame: Frame, palette: np.ndarray) -> float:
    """Mean of a view's color values, in [0, 255]."""
    return float((palette.mean(-1)[frame.color] if frame.color.ndim == 2 else frame.color).mean())


def draw_frame(level: Level, engine: Engine, rng: np.random.Generator, keep_gore: bool) -> Frame:
    """The next view worth keeping, from random viewpoints of the level."""
    while True:
        x, y = level.draw_viewpoint(rng)
        view = engine.look_from(x, y, rng.uniform(-180, 180))
        if view is None:
            continue
        frame = label_view(level, view, engine.camera)
        if (keep_gore or not frame.gore) and worth_keeping(frame, engine.palette):
            return frame


_MAX_CENTIMETRES = 65535


def make_record(frame: Frame, split: str, index: int, map_name: str, camera: Camera) -> dict[str, Any]:
    """The JSON line of a frame."""
    position = (frame.pose.x, frame.pose.y, frame.pose.z)
    return {
        "index": index,
        "id": frame_id(split, index),
        "map": map_name,
        "position_m": [round(value / catalog.UNITS_PER_METRE, 6) for value in position],
        "yaw_deg": round(frame.pose.yaw_deg, 4),
        "pitch_deg": round(frame.pose.pitch_deg, 4),
        "intrinsics": [round(value, 6) for value in camera.intrinsics],
        "classes": [int(value) for value in np.unique(frame.labels) if value != catalog.IGNORE],
        "gore": frame.gore,
    }


def depth_to_centimetres(depth_m: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Depth in metres to what the file holds, uint16 centimetres; 0 where it is infinite or not ``known``."""
    finite = np.where(np.isfinite(depth_m) & known, depth_m, 0.0)
    return np.clip(np.rint(finite * CENTIMETRES), 0, _MAX_CENTIMETRES).astype(np.uint16)


def color_image(frame: Frame, palette: np.ndarray) -> Image.Image:
    """The image of a view: palette indices as the engine drew it, or RGB if it was supersampled."""
    image = Image.fromarray(frame.color)
    if frame.color.ndim == 2:
        image.putpalette(palette.tobytes())
    return image


def write_frame(root: Path, index: int, frame: Frame, palette: np.ndarray) -> None:
    """Write the files of a frame, each all or nothing; normals first, as the others say that the frame is finished."""
    image = color_image(frame, palette)
    labels = Image.fromarray(frame.labels)
    colors = np.zeros((256, 3), np.uint8)
    colors[:10] = catalog.class_palette(10)
    labels.putpalette(colors.tobytes())
    depth = Image.fromarray(depth_to_centimetres(frame.depth_m, frame.labels != catalog.IGNORE))
    normals = Image.fromarray(encode_normals(frame.normals))
    (root / "normals").mkdir(exist_ok=True)
    for part, content in (("normals", normals), ("image", image), ("depth", depth), ("labels", labels)):
        write_file(file_of(root, part, index), lambda file, content=content: content.save(file, "PNG"))


@dataclass(frozen=True, kw_only=True)
class RenderOptions(SplitOptions):
    """A split of frames, see :class:`SplitOptions`.

    Attributes:
        frames: Number of frames.
    """

    frames: int = 20000

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("frames", 1, 10**7)


def render(options: RenderOptions, progress: bool = True) -> int:
    """Render what is missing of a split.

    Returns:
        The number of frames rendered now.

    Raises:
        ImportError: If ViZDoom is missing.
        ValueError: If the image size is not one of the engine's, or ``options.out`` holds something else.
        OSError: If the folder cannot be written or the disk is (or would be) full; finished frames are kept.
        KeyboardInterrupt: After engines are closed and finished frames recorded.
    """
    check_engine(options)
    records = _open_folder(options)
    tasks = plan(options.split, options.frames, records)
    left = missing(tasks)
    if left == 0:
        return 0
    per_pixel = _BYTES_PER_PIXEL if options.supersample == 1 else _BYTES_PER_AVERAGED_PIXEL
    check_space(options.out, int(left * options.width * options.height * per_pixel), f"{left} frames")
    title = f"freedoom {options.split}"
    bar = tqdm(total=options.frames, initial=options.frames - left, unit="frame", desc=title, disable=not progress)
    try:
        run_split(_render_map, options, tasks, records, lambda records: store.write_records(options.out, records), bar)
    finally:
        store.remove_partial_files(options.out)
    return left


def _open_folder(options: RenderOptions) -> Records:
    """Make or check the folder; returns the records of the frames that are done."""
    kind = {
        "format": store.FORMAT,
        "split": options.split,
        "seed": options.seed,
        "size": [options.width, options.height],
        "gore": options.keep_gore,
        "supersample": options.supersample,
    }
    path = options.out / store.DESCRIPTION
    if options.out.is_dir() and not path.exists() and any(options.out.iterdir()):
        raise ValueError(f"{options.out} is not empty and not a Freedoom split; choose another folder")
    described = 0
    if path.exists():
        there = store.read_description(options.out)
        for name, value in {**kind, "walk_frames": None}.items():  # walks are gone on with by `render_walks`
            found = there.get(name, 1) if name == "supersample" else there.get(name)  # older versions do not name it
            if found != value:
                raise ValueError(f"{options.out} holds frames with {name} = {found!r}, not {value!r}; choose another folder")
        described = int(there.get("frames", 0))
    for part in store.PARTS:
        (options.out / part).mkdir(parents=True, exist_ok=True)
    store.remove_partial_files(options.out)
    description = {
        **kind,
        "frames": max(options.frames, described),
        "maps": list(catalog.SPLITS[options.split]),
        "depth": {"unit": "m", "scale": 1 / store.CENTIMETRES, "invalid": 0},
        "freedoom": _FREEDOOM_VERSION,
        "vizdoom": import_vizdoom().__version__,
        "command": options.command,
    }
    if described < options.frames:
        write_text(path, json.dumps(description, indent=1) + "\n")
    else:
        check_writable(options.out)
    return store.finished_records(options.out)


def _render_map(options: RenderOptions, task: Task, results: Any, stopped: Any, scratch: Path) -> None:
    level = open_level(task.map_name)
    with Engine(task.map_name, options.camera, scratch) as engine:
        for chunk, wanted in task.chunks:
            rng = chunk_generator(options.seed, options.split, chunk)
            engine.restart(int(rng.integers(1, 2**31)))
            for index in range(chunk * CHUNK, max(wanted) + 1):
                if stopped():
                    return
                frame = draw_frame(level, engine, rng, options.keep_gore)
                if index in wanted:
                    write_frame(options.out, index, frame, engine.palette)
                    results.put(make_record(frame, options.split, index, task.map_name, options.camera))
