"""The tables of nuScenes: JSON lists of records, joined by tokens."""

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
LIDAR = "LIDAR_TOP"
# The tables that are read, and what is read of their records.
_NEEDED = {
    "scene": ("name", "log_token"),
    "log": ("location",),
    "sample": ("timestamp", "scene_token"),
    "sample_data": (
        *("sample_token", "ego_pose_token", "calibrated_sensor_token", "filename", "timestamp", "is_key_frame", "prev"),
    ),
    "calibrated_sensor": ("sensor_token", "translation", "rotation", "camera_intrinsic"),
    "ego_pose": ("translation", "rotation"),
    "sensor": ("channel",),
}
_VERSIONS = {
    "train": "v1.0-trainval",
    "val": "v1.0-trainval",
    "test": "v1.0-test",
    "mini_train": "v1.0-mini",
    "mini_val": "v1.0-mini",
}

Record = dict[str, Any]
Matrix = NDArray[np.float64]


@cache
def published_splits() -> dict[str, list[str]]:
    """Names of the scenes of each split: train, val, test, mini_train, mini_val."""
    return json.loads((resources.files(__package__) / "splits.json").read_text())


def version_of(split: str) -> str:
    """The tables that a published split lives in.

    Raises:
        ValueError: If there is no such split.
    """
    if split not in _VERSIONS:
        raise ValueError(
            f"split is {split!r}; expected one of {', '.join(_VERSIONS)}, or also the version whose splits.json has it"
        )
    return _VERSIONS[split]


class NuScenesTables:
    """The tables of one version of the dataset.

    Args:
        root: Folder with ``samples``, ``sweeps``, ``maps`` and the version's folder.
        version: ``v1.0-trainval``, ``v1.0-mini``, ``v1.0-test``, or the folder of a set of your own.

    Raises:
        FileNotFoundError: If the folder or a table is missing.
        ValueError: If a table is not a JSON list of records.
    """

    def __init__(self, root: str | Path, version: str) -> None:
        self.root, self.version = Path(root), version
        folder = self.root / version
        if not folder.is_dir():
            found = sorted(path.name for path in self.root.glob("v*") if path.is_dir()) if self.root.is_dir() else []
            hint = f"it holds {', '.join(found)}" if found else "expected the folder that holds v1.0-trainval or v1.0-mini"
            raise FileNotFoundError(f"there is no nuScenes version {version} in {self.root} ({hint})")
        self.folder = folder
        tables = {name: self._read(name) for name in _NEEDED}
        self.scenes = tables["scene"]
        self._by_token = {name: {record["token"]: record for record in tables[name]} for name in _NEEDED}
        self._key_frames: dict[str, dict[str, Record]] = {}
        for record in tables["sample_data"]:
            if record["is_key_frame"]:
                self._key_frames.setdefault(record["sample_token"], {})[self.channel(record)] = record

    def _read(self, name: str) -> list[Record]:
        path = self.folder / f"{name}.json"
        if not path.is_file():
            raise FileNotFoundError(f"there is no table {path}; expected all of {', '.join(_NEEDED)}")
        try:
            records = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is not a JSON file: {error}") from error
        if not isinstance(records, list) or not all(isinstance(record, dict) and "token" in record for record in records):
            raise ValueError(f"{path} is no nuScenes table; expected a list of records with tokens")
        for record in records:
            missing = [field for field in _NEEDED[name] if field not in record]
            if missing:
                raise ValueError(f"{path}: record {record['token']!r} has no {', '.join(missing)}")
        return records

    def get(self, table: str, token: str) -> Record:
        """A record by its token.

        Raises:
            ValueError: If there is none.
        """
        record = self._by_token[table].get(token)
        if record is None:
            raise ValueError(f"{self.folder / table}.json has no token {token!r}")
        return record

    def channel(self, sample_data: Record) -> str:
        """Name of the sensor that took a reading."""
        calibration = self.get("calibrated_sensor", sample_data["calibrated_sensor_token"])
        return self.get("sensor", calibration["sensor_token"])["channel"]

    def key_frame(self, sample: Record, channel: str) -> Record:
        """A sample's reading of a sensor.

        Raises:
            ValueError: If the sample has none.
        """
        readings = self._key_frames.get(sample["token"], {})
        if channel not in readings:
            raise ValueError(f"sample {sample['token']} has no {channel}; it has {', '.join(sorted(readings)) or 'nothing'}")
        return readings[channel]

    def scene_names(self, split: str) -> list[str]:
        """Scenes of a split: from the version's own ``splits.json`` if it has one, else the published lists.

        Raises:
            ValueError: If neither knows the split.
        """
        path = self.folder / "splits.json"
        try:
            own = json.loads(path.read_text()) if path.is_file() else {}
        except ValueError as error:
            raise ValueError(f"{path} is not a JSON file: {error}") from error
        if not isinstance(own, dict) or not all(isinstance(names, list) for names in own.values()):
            raise ValueError(f"{path} is no list of splits; expected {{split: [scene names]}}")
        splits = {**published_splits(), **own}
        if split not in splits:
            raise ValueError(f"split is {split!r}; expected one of {', '.join(splits)}")
        return splits[split]

    def samples(self, split: str) -> list[Record]:
        """Samples of a split's scenes, by time.

        Raises:
            ValueError: If the tables hold no sample of the split.
        """
        names = set(self.scene_names(split))
        scenes = {scene["token"] for scene in self.scenes if scene["name"] in names}
        found = [sample for sample in self._by_token["sample"].values() if sample["scene_token"] in scenes]
        if not found:
            raise ValueError(f"{self.folder} holds no sample of split {split!r} ({len(self.scenes)} scenes, none of them in it)")
        return sorted(found, key=lambda sample: sample["timestamp"])

    def location(self, sample: Record) -> str:
        """Name of the map that a sample lies on."""
        scene = self.get("scene", sample["scene_token"])
        return self.get("log", scene["log_token"])["location"]

    def sensor_to_ego(self, sample_data: Record) -> Matrix:
        """``(4, 4)``: sensor -> car, at the time of the reading."""
        return rigid(**_pose(self.get("calibrated_sensor", sample_data["calibrated_sensor_token"])))

    def ego_to_global(self, sample_data: Record) -> Matrix:
        """``(4, 4)``: car -> map, at the time of the reading."""
        return rigid(**_pose(self.get("ego_pose", sample_data["ego_pose_token"])))

    def sensor_to_global(self, sample_data: Record) -> Matrix:
        """``(4, 4)``: sensor -> map, at the time of the reading."""
        return self.ego_to_global(sample_data) @ self.sensor_to_ego(sample_data)

    def sweeps(self, sample_data: Record, count: int) -> list[Record]:
        """Up to ``count`` readings of the same sensor before one, nearest first; ends where the scene begins."""
        found: list[Record] = []
        while len(found) < count and sample_data["prev"]:
            sample_data = self.get("sample_data", sample_data["prev"])
            found.append(sample_data)
        return found

    def path(self, sample_data: Record) -> Path:
        """The file of a reading."""
        return self.root / sample_data["filename"]


def _pose(record: Record) -> dict[str, Any]:
    return {"rotation": record["rotation"], "translation": record["translation"]}


def rigid(rotation: list[float], translation: list[float]) -> Matrix:
    """``(4, 4)`` from a quaternion w, x, y, z and a shift in metres.

    Raises:
        ValueError: If the quaternion is no rotation, or the shift is not three finite numbers.
    """
    quaternion = np.asarray(rotation, np.float64)
    norm = np.linalg.norm(quaternion)
    if quaternion.shape != (4,) or not np.isfinite(norm) or norm < 1e-9:
        raise ValueError(f"rotation is {rotation!r}; expected a quaternion w, x, y, z")
    shift = np.asarray(translation, np.float64)
    if shift.shape != (3,) or not np.isfinite(shift).all():
        raise ValueError(f"translation is {translation!r}; expected three finite numbers, metres")
    w, x, y, z = quaternion / norm
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, 3] = shift
    return matrix
