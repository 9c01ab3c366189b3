"""nuScenes as raw samples for bird's-eye-view maps."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noise2map.data.images import open_image
from noise2map.data.nuscenes.map_expansion import MAP_LAYERS, MapExpansion, open_map
from noise2map.data.nuscenes.points import load_sweeps
from noise2map.data.nuscenes.tables import CAMERAS, LIDAR, NuScenesTables, version_of

_SENSORS = ("camera", "lidar")


class NuScenesDataset:
    """Samples of a split: six images, LiDAR points with sweeps, their geometry and the map around the car.

    Args:
        root: Folder with ``samples``, ``sweeps``, ``maps`` and the tables' folder.
        split: ``train``, ``val``, ``test``, ``mini_train``, ``mini_val``, or one of the version's own ``splits.json``.
        version: The tables' folder; by default that of the split.
        sensors: What a sample holds: ``"camera"``, ``"lidar"`` or both.
        sweeps: Most LiDAR sweeps before each key frame.
        with_labels: Draw the map layers; without them (the test split) no map is needed.
        size_m: Extent of the map along the LiDAR's x and y, metres.
        canvas: Cells of the map along x and y.

    Attributes:
        id2label: Names of the layers.
        records: The samples' records.

    Raises:
        FileNotFoundError: If tables or the map expansion are missing.
        ValueError: If an argument is out of range or the split has no sample.
        ImportError: If labels are wanted and shapely or OpenCV is not installed.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "val",
        version: str | None = None,
        sensors: tuple[str, ...] = _SENSORS,
        sweeps: int = 9,
        with_labels: bool = True,
        size_m: tuple[float, float] = (100.0, 100.0),
        canvas: tuple[int, int] = (200, 200),
    ) -> None:
        if not sensors or set(sensors) - set(_SENSORS):
            raise ValueError(f"sensors is {sensors!r}; expected 'camera', 'lidar' or both")
        if sweeps < 0:
            raise ValueError(f"sweeps is {sweeps}; expected 0 or more")
        self.tables = NuScenesTables(root, version_of(split) if version is None else version)
        self.split, self.sensors, self.sweeps = split, tuple(sensors), sweeps
        self.with_labels, self.size_m, self.canvas = with_labels, size_m, canvas
        self.records = self.tables.samples(split)
        self.id2label = dict(enumerate(MAP_LAYERS))
        self._index = {record["token"]: i for i, record in enumerate(self.records)}
        self._maps: dict[str, MapExpansion] = {}
        if with_labels:  # a missing map is noticed now, not in the middle of a run
            for location in sorted({self.tables.location(record) for record in self.records}):
                self._maps[location] = open_map(root, location)

    def __len__(self) -> int:
        return len(self.records)

    def index_of(self, token: str) -> int:
        """Place of a sample.

        Raises:
            ValueError: If the split has no such sample.
        """
        if token not in self._index:
            raise ValueError(f"sample {token!r} is not in split {self.split!r} of {self.tables.folder} ({len(self)} samples)")
        return self._index[token]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The raw sample.

        ``images``: list of N Pillow RGB images; ``intrinsics`` ``(N, 3, 3)`` and ``camera_to_lidar`` ``(N, 4, 4)`` float32;
        ``points`` ``(P, 5)`` float32: x, y, z in metres in the key frame's LiDAR frame, intensity, age in seconds;
        ``lidar_to_global`` ``(4, 4)`` float32; ``labels`` ``(6, X, Y)`` uint8; ``id``: the sample's token; ``location``.
        """
        record = self.records[index]
        lidar = self.tables.key_frame(record, LIDAR)
        sample: dict[str, Any] = {
            "id": record["token"],
            "location": self.tables.location(record),
            "lidar_to_global": self.lidar_to_global(index),
        }
        if "camera" in self.sensors:
            sample |= self._cameras(record, self.tables.sensor_to_global(lidar))
        if "lidar" in self.sensors:
            sample["points"] = load_sweeps(self.tables, record, lidar, self.sweeps)
        if self.with_labels:
            sample["labels"] = self.draw_labels(index)
        return sample

    def _cameras(self, record: dict[str, Any], lidar_to_global: NDArray[np.float64]) -> dict[str, Any]:
        into_lidar = np.linalg.inv(lidar_to_global)
        images, intrinsics, camera_to_lidar = [], [], []
        for channel in CAMERAS:
            reading = self.tables.key_frame(record, channel)
            calibration = self.tables.get("calibrated_sensor", reading["calibrated_sensor_token"])
            matrix = np.asarray(calibration["camera_intrinsic"], np.float32)
            if matrix.shape != (3, 3):
                raise ValueError(f"{channel} of sample {record['token']} has intrinsics {matrix.tolist()}; expected a 3x3 matrix")
            images.append(open_image(self.tables.path(reading)))
            intrinsics.append(matrix)
            # Through the map: the car moved between the two readings.
            camera_to_lidar.append(into_lidar @ self.tables.sensor_to_global(reading))
        return {
            "images": images,
            "intrinsics": np.stack(intrinsics),
            "camera_to_lidar": np.stack(camera_to_lidar).astype(np.float32),
        }

    def lidar_to_global(self, index: int) -> NDArray[np.float32]:
        """``(4, 4)``: key frame's LiDAR -> map; multiplied in float32, as in the published code, whose masks depend on it."""
        lidar = self.tables.key_frame(self.records[index], LIDAR)
        return self.tables.ego_to_global(lidar).astype(np.float32) @ self.tables.sensor_to_ego(lidar).astype(np.float32)

    def draw_labels(self, index: int, lidar_augmentation: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
        """The map layers around a sample.

        Args:
            index: Place of the sample.
            lidar_augmentation: ``(4, 4)``, LiDAR -> augmented LiDAR; the map is turned and shifted with it (not scaled).

        Returns:
            ``(6, X, Y)`` of 0 and 1, rows along the (augmented) LiDAR's x, columns along its y.

        Raises:
            ValueError: If the dataset was made without labels.
        """
        if not self.with_labels:
            raise ValueError("this dataset was made with with_labels=False; expected True to draw the map")
        matrix: np.ndarray = self.lidar_to_global(index)
        if lidar_augmentation is not None:
            matrix = matrix @ np.linalg.inv(lidar_augmentation.astype(np.float32))
        location = self.tables.location(self.records[index])
        return self._maps[location].labels(matrix, self.size_m, self.canvas)
