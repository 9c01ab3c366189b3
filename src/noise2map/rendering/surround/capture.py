"""Six views and a LiDAR sweep from one place, and the rig that takes them."""

import math
from dataclasses import dataclass, replace

import numpy as np

from noise2map.data.freedoom import catalog
from noise2map.data.freedoom.catalog import UNITS_PER_METRE
from noise2map.data.nuscenes.tables import CAMERAS, LIDAR
from noise2map.rendering.engine import Engine
from noise2map.rendering.frames import Frame, label_view, mean_value
from noise2map.rendering.level import Level
from noise2map.rendering.lidar import LidarSpec, scan, sight
from noise2map.rendering.raycast import Camera, Pose

SIGHT_AZIMUTHS = 360

_MIN_VISIBLE_M2 = 60.0

_COUNTED_WITHIN_M = 12.8

_MAX_IGNORED = 0.06

_MIN_MEAN_VALUE = 16.0

SWEEP_STEP_M = 0.1  # between readings of the LiDAR: 2 m/s at 20 a second


@dataclass(frozen=True)
class Surround:
    """Views from one place.

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
    """True if the views are neither dark nor badly labelled."""
    ignored = np.mean([(frame.labels == catalog.IGNORE).mean() for frame in frames])
    value = np.mean([mean_value(frame, palette) for frame in frames])
    return bool(ignored <= _MAX_IGNORED and value >= _MIN_MEAN_VALUE)


VIEWS = len(CAMERAS)

# The engine turns clockwise on the spot; these channels look where it then looks.
CHANNELS_CLOCKWISE = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")

EYE_HEIGHT = 41.0  # map units above the floor

LIDAR_ABOVE_EYE = 10.0  # still below the lowest ceiling that a viewpoint may have

LIDAR_YAW_DEG = -90.0

TIC_US = 28_571  # the engine's clock: 35 views a second

_CAMERA_TO_CAR = (0.5, -0.5, 0.5, -0.5)  # optical axis forward, x to the right, y down

Quaternion = tuple[float, float, float, float]


@dataclass(frozen=True)
class Reading:
    """Where the car was when a sensor took a reading.

    Attributes:
        position_m: Of the car's origin in the map, metres.
        yaw_deg: Of the car, anticlockwise from the map's x.
    """

    position_m: tuple[float, float, float]
    yaw_deg: float


def mount_yaw_deg(channel: str) -> float:
    """Direction of a camera in the car, degrees to the left."""
    return -360.0 / VIEWS * CHANNELS_CLOCKWISE.index(channel)


def reading_of(pose: Pose, channel: str, origin: tuple[float, float]) -> Reading:
    """The car that holds a camera of this channel at a pose of the engine; ``origin`` is the map's corner in map units."""
    x, y = (pose.x - origin[0]) / UNITS_PER_METRE, (pose.y - origin[1]) / UNITS_PER_METRE
    yaw_deg = (pose.yaw_deg - mount_yaw_deg(channel) + 180.0) % 360.0 - 180.0
    return Reading((x, y, (pose.z - EYE_HEIGHT) / UNITS_PER_METRE), yaw_deg)


def turn(yaw_deg: float) -> Quaternion:
    """Rotation about the vertical, w, x, y, z."""
    half = math.radians(yaw_deg) / 2
    return math.cos(half), 0.0, 0.0, math.sin(half)


def calibration(channel: str, camera: Camera) -> dict[str, object]:
    """Rotation, translation and intrinsics of a sensor, as nuScenes' ``calibrated_sensor`` has them."""
    if channel == LIDAR:
        height = (EYE_HEIGHT + LIDAR_ABOVE_EYE) / UNITS_PER_METRE
        return {"translation": [0.0, 0.0, height], "rotation": list(turn(LIDAR_YAW_DEG)), "camera_intrinsic": []}
    fx, fy, cx, cy = camera.intrinsics
    return {
        "translation": [0.0, 0.0, EYE_HEIGHT / UNITS_PER_METRE],
        "rotation": list(_product(turn(mount_yaw_deg(channel)), _CAMERA_TO_CAR)),
        "camera_intrinsic": [[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]],
    }


def _product(a: Quaternion, b: Quaternion) -> Quaternion:
    aw, ax, ay, az = a
    bw, bx, by, bz = b
    return (
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    )
