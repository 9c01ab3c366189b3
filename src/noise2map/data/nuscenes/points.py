"""LiDAR point clouds of nuScenes: the key frame and the sweeps before it, in the key frame's coordinates."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noise2map.data.nuscenes.tables import NuScenesTables, Record

Points = NDArray[np.float32]
_COLUMNS = 5  # x, y, z in metres, intensity 0..255, ring


def read_points(path: str | Path) -> Points:
    """Points ``(P, 5)`` of a ``.pcd.bin`` file: x, y, z in metres, intensity, ring.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If its length is not that of whole points, it holds none, or a number is NaN or infinite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no point cloud {path}")
    values = np.fromfile(path, np.float32)
    if not values.size or values.size % _COLUMNS:
        raise ValueError(f"{path} holds {values.size} numbers; expected {_COLUMNS} float32 for each of at least one point")
    if not np.isfinite(values).all():
        place = int(np.flatnonzero(~np.isfinite(values))[0]) // _COLUMNS
        raise ValueError(f"{path}: point {place} holds NaN or infinite values; expected metres")
    return values.reshape(-1, _COLUMNS)


def load_sweeps(tables: NuScenesTables, sample: Record, key_frame: Record, count: int) -> Points:
    """The key frame's points with those of the sweeps before it.

    A sweep's points that hit the car itself (within 1 m in x and y of the sensor) are left out, and it is moved by its own pose
    into the key frame. The last column is the age of a point in seconds. At the start of a scene, where there is no sweep, the
    key frame stands in, as in the published code.

    Args:
        tables: Of the dataset.
        sample: The sample.
        key_frame: Its LiDAR reading.
        count: Most sweeps; the nearest are taken (the published code picks at random where it has more).

    Returns:
        ``(P, 5)``: x, y, z in metres, intensity, age in seconds.
    """
    points = read_points(tables.path(key_frame))
    points[:, 4] = 0
    clouds = [points]
    sweeps = tables.sweeps(key_frame, count)
    if not sweeps:
        clouds += [without_car(points)] * count
    into_key_frame = np.linalg.inv(tables.sensor_to_global(key_frame))
    for sweep in sweeps:
        cloud = without_car(read_points(tables.path(sweep)))
        matrix = into_key_frame @ tables.sensor_to_global(sweep)
        cloud[:, :3] = cloud[:, :3] @ matrix[:3, :3].T + matrix[:3, 3]
        cloud[:, 4] = (sample["timestamp"] - sweep["timestamp"]) / 1e6
        clouds.append(cloud)
    return np.concatenate(clouds)


def without_car(points: Points, radius_m: float = 1.0) -> Points:
    """Points outside the square around the sensor that the car itself fills."""
    return points[(np.abs(points[:, :2]) >= radius_m).any(1)]
