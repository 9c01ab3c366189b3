"""A data set in nuScenes' format: two scenes of two samples on the toy map, with LiDAR sweeps between them."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from noise2map.data.nuscenes import CAMERAS

GOLDEN = Path(__file__).parents[1] / "golden"
LIDAR_YAW = -math.pi / 2
LIDAR_SHIFT = [0.94, 0.0, 1.84]
INTRINSICS = [[70.0, 0.0, 40.0], [0.0, 70.0, 22.0], [0.0, 0.0, 1.0]]
IMAGE_SIZE = (80, 45)
CAMERA_YAWS_DEG = [0, -60, 60, 180, 120, -120]
SPEED = 4.0  # m/s along the map's x
START = (296.0, 400.0)
SAMPLE_US, SWEEP_US = 500_000, 50_000


def yaw_quaternion(yaw):
    return [math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)]


def multiply(a, b):
    aw, ax, ay, az = a
    bw, bx, by, bz = b
    return [
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    ]


CAMERA_TO_CAR = [0.5, -0.5, 0.5, -0.5]  # optical axis forward, x to the right, y down


def ego_position(time_us):
    return [START[0] + SPEED * time_us / 1e6, START[1], 0.0]


def world_points():
    """Points of the world that every LiDAR reading sees, whatever the pose of the car."""
    rng = np.random.default_rng(5)
    return np.concatenate([np.array(START)[None] + rng.uniform(-30, 30, (60, 2)), rng.uniform(0, 3, (60, 1))], axis=1)


def lidar_reading(time_us):
    """World points in the LiDAR's frame at a time, by hand: shift by the car, then by the sensor, then turn."""
    relative = world_points() - ego_position(time_us) - LIDAR_SHIFT
    cos, sin = math.cos(LIDAR_YAW), math.sin(LIDAR_YAW)
    turned = np.stack([cos * relative[:, 0] + sin * relative[:, 1], -sin * relative[:, 0] + cos * relative[:, 1]], axis=1)
    points = np.concatenate([turned, relative[:, 2:], np.full((len(relative), 1), 7.0), np.full((len(relative), 1), 3.0)], axis=1)
    car = np.array([[0.2, -0.3, 0.0, 1.0, 0.0]])  # a reflection from the car itself
    return np.concatenate([points, car]).astype(np.float32)


def make(root, location="toy-town", scenes=("toy-0001", "toy-0002"), with_map=True):
    """Writes the data set and returns its root."""
    root = Path(root)
    version = root / "v1.0-toy"
    version.mkdir(parents=True)
    if with_map:
        (root / "maps" / "expansion").mkdir(parents=True)
        shutil.copy(GOLDEN / "bev_toy_map.json", root / "maps" / "expansion" / f"{location}.json")
    tables = {name: [] for name in ("scene", "sample", "sample_data", "ego_pose")}
    channels = [*CAMERAS, "LIDAR_TOP"]
    tables["log"] = [{"token": "log-0", "logfile": "", "vehicle": "", "date_captured": "", "location": location}]
    tables["sensor"] = [{"token": f"sensor-{c}", "channel": c, "modality": "lidar" if "LIDAR" in c else "camera"} for c in channels]
    tables["calibrated_sensor"] = [calibration(c) for c in channels]
    for number, name in enumerate(scenes):
        write_scene(root, tables, number, name)
    for name, records in tables.items():
        (version / f"{name}.json").write_text(json.dumps(records))
    (version / "splits.json").write_text(json.dumps({"toy_train": [scenes[0]], "toy_val": [scenes[1]]}))
    return root


def calibration(channel):
    if channel == "LIDAR_TOP":
        rotation, translation, matrix = yaw_quaternion(LIDAR_YAW), LIDAR_SHIFT, []
    else:
        yaw = math.radians(CAMERA_YAWS_DEG[CAMERAS.index(channel)])
        rotation, translation, matrix = multiply(yaw_quaternion(yaw), CAMERA_TO_CAR), [1.5, 0.0, 1.5], INTRINSICS
    return {
        "token": f"calibration-{channel}",
        "sensor_token": f"sensor-{channel}",
        "translation": translation,
        "rotation": rotation,
        "camera_intrinsic": matrix,
    }


def write_scene(root, tables, number, name):
    base = number * 10_000_000
    tokens = [f"sample-{number}-{i}" for i in range(2)]
    tables["scene"].append({"token": f"scene-{number}", "name": name, "log_token": "log-0", "first_sample_token": tokens[0]})
    lidar = []
    for i, token in enumerate(tokens):
        time_us = base + i * SAMPLE_US
        neighbours = {"prev": tokens[i - 1] if i else "", "next": tokens[i + 1] if i + 1 < len(tokens) else ""}
        tables["sample"].append({"token": token, "timestamp": time_us, "scene_token": f"scene-{number}", **neighbours})
        for channel in CAMERAS:
            add_reading(root, tables, number, token, channel, time_us + 20_000, True, "", "")  # 20 ms after the LiDAR
        if i:
            lidar += [(token, time_us - k * SWEEP_US, False) for k in (3, 2, 1)]
        lidar.append((token, time_us, True))
    names = [f"lidar-{number}-{i}" for i in range(len(lidar))]
    for i, (token, time_us, key) in enumerate(lidar):
        previous, following = names[i - 1] if i else "", names[i + 1] if i + 1 < len(names) else ""
        add_reading(root, tables, number, token, "LIDAR_TOP", time_us, key, previous, following, names[i])


def add_reading(root, tables, scene, sample, channel, time_us, key, previous, following, token=None):
    token = token or f"data-{sample}-{channel}"
    folder = Path("samples" if key else "sweeps") / channel
    (root / folder).mkdir(parents=True, exist_ok=True)
    local_us = time_us - scene * 10_000_000
    tables["ego_pose"].append(
        {"token": f"pose-{token}", "translation": ego_position(local_us), "rotation": yaw_quaternion(0.0), "timestamp": time_us}
    )
    if channel == "LIDAR_TOP":
        path = folder / f"{token}.pcd.bin"
        lidar_reading(local_us).tofile(root / path)
    else:
        path = folder / f"{token}.png"
        shade = 20 + 30 * CAMERAS.index(channel)
        Image.new("RGB", IMAGE_SIZE, (shade, 255 - shade, 40)).save(root / path)
    tables["sample_data"].append(
        {
            "token": token,
            "sample_token": sample,
            "ego_pose_token": f"pose-{token}",
            "calibrated_sensor_token": f"calibration-{channel}",
            "filename": path.as_posix(),
            "timestamp": time_us,
            "is_key_frame": key,
            "prev": previous,
            "next": following,
        }
    )
