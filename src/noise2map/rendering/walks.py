"""Walks through Freedoom: consecutive frames of a camera that goes straight on or turns, with exact flow.

A walk is a run of frames of a split: index, files and records are those of `noise2map.data.freedoom.format`. Records also hold
``walk`` and ``step``; every frame but the first of a walk has ``flow/000012.npz`` with ``offset_px`` ``(H, W, 2)`` float32 and
``visible`` ``(H, W)`` bool, see `noise2map.data.freedoom.motion.Flow`. Objects are images that turn to the viewer: no flow is exact
there, so they, and what is unlabelled, are never visible.
"""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from noise2map.data.freedoom import catalog
from noise2map.data.freedoom import format as store
from noise2map.data.freedoom.motion import Flow, Motion, backward_flow
from noise2map.rendering.engine import Engine, import_vizdoom
from noise2map.rendering.frames import Frame, draw_frame, label_view, make_record, worth_keeping, write_frame
from noise2map.rendering.level import Level
from noise2map.rendering.raycast import Camera
from noise2map.rendering.render_run import SplitOptions, check_engine, open_level
from noise2map.runs.files import encode_arrays, write_bytes, write_text

_STEP = 6.0  # map units between two frames, 0.19 m
_MOST_TURN_DEG = 3.0
_FREE_M = 1.0  # nothing stands nearer before the camera: warping would go through walls
_STILL = (catalog.FLOOR, catalog.LIQUID, catalog.CEILING, catalog.SKY, catalog.WALL, catalog.DOOR, catalog.STEP)
_TRIES = 1000


@dataclass(frozen=True, kw_only=True)
class WalkOptions(SplitOptions):
    """A split of walks, see :class:`SplitOptions`; one engine at a time.

    Attributes:
        walks: Number of walks; they take the maps of the split in turn, and every other one turns.
        frames: Frames of each.
    """

    walks: int = 9
    frames: int = 24

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("walks", 1, 10**6)
        self.check_range("frames", 2, 10**4)


def render_walks(options: WalkOptions, progress: bool = True) -> int:
    """Render the walks that are missing.

    Returns:
        The number of walks rendered now.

    Raises:
        ImportError: If ViZDoom is missing.
        ValueError: If the image size is not one of the engine's, ``options.out`` holds something else, or a map has no way that
            long.
        OSError: If the folder cannot be written; finished walks are kept.
    """
    check_engine(options)
    records = _open_folder(options)
    scratch = Path(tempfile.mkdtemp(prefix="noise2map-walks-"))
    maps, made = catalog.SPLITS[options.split], 0
    try:
        for walk in tqdm(range(options.walks), unit="walk", desc=f"freedoom {options.split}", disable=not progress):
            indices = range(walk * options.frames, (walk + 1) * options.frames)
            if all(index in records for index in indices):
                continue
            map_name = maps[walk % len(maps)]
            rng = np.random.default_rng([options.seed, list(catalog.SPLITS).index(options.split), walk])
            with Engine(map_name, options.camera, scratch) as engine:
                engine.restart(int(rng.integers(1, 2**31)))
                frames = _walk(open_level(map_name), engine, rng, options, turning=walk % 2 == 1)
                for step, (index, frame) in enumerate(zip(indices, frames)):
                    write_frame(options.out, index, frame, engine.palette)
                    if step:
                        flow = flow_between(frames[step - 1], frame, options.camera)
                        data = encode_arrays({"offset_px": flow.offset_px, "visible": flow.visible})
                        write_bytes(options.out / "flow" / f"{index:06d}.npz", data)
                    records[index] = {
                        **make_record(frame, options.split, index, map_name, options.camera),
                        "walk": walk,
                        "step": step,
                    }
            store.write_records(options.out, records)
            made += 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        store.remove_partial_files(options.out)
    return made


def flow_between(before: Frame, now: Frame, camera: Camera) -> Flow:
    """The flow from a frame to the place of its surfaces in the frame before."""
    motion = Motion.between(_position_m(before), before.pose.yaw_deg, _position_m(now), now.pose.yaw_deg)
    offset = (camera.ray_offset[0], 0.5)  # planes are as deep as the middle of a row says
    flow = backward_flow(now.depth_m, before.depth_m, motion, np.array(camera.intrinsics), offset)
    return Flow(flow.offset_px, flow.visible & np.isin(now.labels, _STILL))


def _position_m(frame: Frame) -> np.ndarray:
    return np.array([frame.pose.x, frame.pose.y, frame.pose.z]) / catalog.UNITS_PER_METRE


def _walk(level: Level, engine: Engine, rng: np.random.Generator, options: WalkOptions, turning: bool) -> list[Frame]:
    for _ in range(_TRIES):
        frames = [draw_frame(level, engine, rng, options.keep_gore)]
        turn = rng.uniform(1, _MOST_TURN_DEG) * rng.choice([-1, 1]) if turning else 0.0
        x, y = frames[0].pose.x, frames[0].pose.y
        while len(frames) < options.frames and frames[-1].depth_m[options.height // 2, options.width // 2] > _FREE_M:
            yaw = np.deg2rad(frames[-1].pose.yaw_deg)
            x, y = x + _STEP * np.cos(yaw), y + _STEP * np.sin(yaw)
            view = engine.look_from(round(x), round(y), turn)
            if view is None:
                break
            frame = label_view(level, view, engine.camera)
            if (frame.gore and not options.keep_gore) or not worth_keeping(frame, engine.palette):
                break
            frames.append(frame)
        if len(frames) == options.frames:
            return frames
    raise ValueError(f"no way of {options.frames} frames was found in {_TRIES} tries; expected a smaller number of frames")


def _open_folder(options: WalkOptions) -> dict[int, dict[str, Any]]:
    kind = {
        "format": store.FORMAT,
        "split": options.split,
        "seed": options.seed,
        "size": [options.width, options.height],
        "gore": options.keep_gore,
        "supersample": options.supersample,
        "walk_frames": options.frames,
    }
    path = options.out / store.DESCRIPTION
    if options.out.is_dir() and not path.exists() and any(options.out.iterdir()):
        raise ValueError(f"{options.out} is not empty and holds no walks; choose another folder")
    described = 0
    if path.exists():
        there = store.read_description(options.out)
        for name, value in kind.items():
            if there.get(name) != value:
                raise ValueError(
                    f"{options.out} holds frames with {name} = {there.get(name)!r}, not {value!r}; choose another folder"
                )
        described = int(there.get("frames", 0))
    for part in (*store.PARTS, store.NORMALS, "flow"):
        (options.out / part).mkdir(parents=True, exist_ok=True)
    description = {
        **kind,
        "frames": max(options.walks * options.frames, described),
        "maps": list(catalog.SPLITS[options.split]),
        "depth": {"unit": "m", "scale": 1 / store.CENTIMETRES, "invalid": 0},
        "vizdoom": import_vizdoom().__version__,
        "command": options.command,
    }
    write_text(path, json.dumps(description, indent=1) + "\n")
    return store.finished_records(options.out)
