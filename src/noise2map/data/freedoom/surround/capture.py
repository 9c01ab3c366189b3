"""Looks around in a running engine and keeps the viewpoints that are worth it."""

from dataclasses import dataclass, replace

import numpy as np

from noise2map.data.freedoom import catalog
from noise2map.data.freedoom.engine import Engine
from noise2map.data.freedoom.frames import Frame, label_view
from noise2map.data.freedoom.level import Level
from noise2map.data.freedoom.lidar import LidarSpec, scan, sight
from noise2map.data.freedoom.raycast import Pose
from noise2map.data.freedoom.surround.rig import LIDAR_ABOVE_EYE, VIEWS

SIGHT_AZIMUTHS = 360
_MIN_VISIBLE_M2 = 60.0
_COUNTED_WITHIN_M = 12.8
_MAX_IGNORED = 0.06
_MIN_MEAN_VALUE = 16.0
SWEEP_STEP_M = 0.1  # between readings of the LiDAR: 2 m/s at 20 a second


@dataclass(frozen=True)
class Surround:
    """What is seen from one place.

    Attributes:
        frames: Six views, clockwise, the first one forward.
        clouds: LiDAR points of the key frame and of the readings before it, nearest first, each ``(P, 5)`` in its own frame.
        sight_m: How far one sees in each direction, ``(360,)`` metres, clockwise from the first view.
    """

    frames: list[Frame]
    clouds: list[np.ndarray]
    sight_m: np.ndarray


def sweep_pose(eye: Pose, sweep: int) -> Pose:
    """Pose of the LiDAR at a reading: straight behind the key frame (0) by a tenth of a metre each."""
    back = sweep * SWEEP_STEP_M * catalog.UNITS_PER_METRE
    yaw = np.deg2rad(eye.yaw_deg)
    return replace(eye, x=eye.x - back * np.cos(yaw), y=eye.y - back * np.sin(yaw), z=eye.z + LIDAR_ABOVE_EYE, pitch_deg=0.0)


def draw_surround(
    level: Level, engine: Engine, rng: np.random.Generator, spec: LidarSpec, sweeps: int, keep_gore: bool
) -> Surround:
    """The next place worth keeping, from random viewpoints of the level."""
    steepest = engine.camera.height / 2 / engine.camera.focal_y_px
    while True:
        x, y = level.draw_viewpoint(rng)
        views = engine.look_around(x, y, rng.uniform(-180, 180), VIEWS)
        if views is None:
            continue
        eye = views[0].pose
        sight_m = sight(level, eye, SIGHT_AZIMUTHS, steepest)
        if visible_area_m2(sight_m) < _MIN_VISIBLE_M2:
            continue
        frames = [label_view(level, view, engine.camera) for view in views]
        if (keep_gore or not any(frame.gore for frame in frames)) and worth_keeping(frames, engine.palette):
            clouds = [scan(level, sweep_pose(eye, sweep), spec) for sweep in range(sweeps + 1)]
            if all(len(cloud) for cloud in clouds):  # under the open sky a LiDAR may meet nothing
                return Surround(frames, clouds, sight_m)


def visible_area_m2(sight_m: np.ndarray) -> float:
    """Area seen, square metres, as far as the usual map reaches."""
    return float((sight_m.clip(max=_COUNTED_WITHIN_M) ** 2).sum() * np.pi / len(sight_m))


def worth_keeping(frames: list[Frame], palette: np.ndarray) -> bool:
    """Whether the views are neither dark nor badly labelled."""
    ignored = np.mean([(frame.labels == catalog.IGNORE).mean() for frame in frames])
    value = np.mean([palette.mean(-1)[frame.colour].mean() for frame in frames])
    return bool(ignored <= _MAX_IGNORED and value >= _MIN_MEAN_VALUE)
