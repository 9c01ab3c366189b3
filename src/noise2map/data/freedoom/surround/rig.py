"""The rig that looks around: six cameras 60 degrees apart and a LiDAR above them, in nuScenes' frames.

Car frame: x forward, y left, z up, origin on the floor under the eye. The cameras share one centre, the player's eye, and each is
90 degrees wide, so neighbours overlap by 30. The LiDAR stands a little above, x to its right, y forward.
"""

import math
from dataclasses import dataclass

from noise2map.data.freedoom.catalog import UNITS_PER_METRE
from noise2map.data.freedoom.raycast import Camera, Pose
from noise2map.data.nuscenes.tables import CAMERAS, LIDAR

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
