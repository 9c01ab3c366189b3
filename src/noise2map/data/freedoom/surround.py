"""Surround samples as raw samples for bird's-eye-view maps, read through nuScenes' tables and maps."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noise2map.data.nuscenes.dataset import NuScenesDataset
from noise2map.data.nuscenes.rasterize import fill_polygon

UNKNOWN = 255

SEEN, OCCLUDED, OUT_OF_RANGE = range(3)
"""What the numbers of ``visibility`` mean."""

CELLS = ("visible", "all")

SIZE_M = (25.6, 25.6)

CANVAS = (64, 64)

_BEYOND_M = 0.4  # the surface that ends the sight counts as seen

# Walkable, door, step, ledge, liquid, wall.
SURROUND_PALETTE = np.array(
    [[150, 122, 92], [238, 150, 30], [214, 206, 120], [232, 88, 186], [44, 160, 120], [62, 66, 84]], np.uint8
)


class FreedoomSurroundDataset(NuScenesDataset):
    """Samples made by ``noise2map data freedoom-surround``.

    What no camera can see is not known: such cells have label 255. Or they are labelled, too, and ``visibility`` says which
    are seen.

    Args:
        root: Folder of the dataset.
        split: ``train``, ``val`` or ``test``.
        sensors: What a sample holds: ``"camera"``, ``"lidar"`` or both.
        sweeps: Most LiDAR readings before each key frame.
        with_labels: Draw the map layers.
        size_m: Extent of the map along the LiDAR's x and y, metres.
        canvas: Cells of the map along x and y.
        cells: ``"visible"`` gives cells that cannot be seen the label 255; ``"all"`` labels every cell, as nuScenes does, and adds
            ``visibility`` to the samples.
        limit: Use the first ``limit`` samples only.

    Attributes:
        id2label: Names of the layers.
        palette: Their colors, ``(6, 3)`` uint8.

    Raises:
        FileNotFoundError: If the folder is no finished surround set.
        ValueError: If an argument is out of range or the split has no sample.
        ImportError: If labels are wanted and shapely or OpenCV is not installed.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "test",
        sensors: tuple[str, ...] = ("camera", "lidar"),
        sweeps: int = 9,
        with_labels: bool = True,
        size_m: tuple[float, float] = SIZE_M,
        canvas: tuple[int, int] = CANVAS,
        cells: str = "visible",
        limit: int | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"limit is {limit}; expected at least 1, or None for all samples")
        if cells not in CELLS:
            raise ValueError(f"cells is {cells!r}; expected one of {', '.join(CELLS)}")
        made = sorted(path.stem.removeprefix("surround-") for path in Path(root).glob("surround-*.json"))
        if not made or (split in ("train", "val", "test") and split not in made):
            lacks = "is no Freedoom surround set"
            if made:
                lacks = f"holds no {split} samples of Freedoom surround, only {', '.join(made)}"
            raise FileNotFoundError(
                f"{root} {lacks} (make {'them' if made else 'one'} with: "
                f"noise2map data freedoom-surround --split {split} --out {root})"
            )
        super().__init__(root, split, None, sensors, sweeps, with_labels, size_m, canvas)
        self.records = self.records[:limit]
        self.id2label = dict(enumerate(SURROUND_LAYERS))
        self.palette = SURROUND_PALETTE
        self.cells = cells
        self._sight = self._read_sight() if with_labels else {}
        self._range_m = self._read_range(Path(root)) if with_labels else 0.0

    def _read_sight(self) -> dict[str, NDArray[np.float64]]:
        path = self.tables.folder / f"{VISIBLE_TABLE}.json"
        if not path.is_file():
            raise FileNotFoundError(f"there is no table {path}; run 'noise2map data freedoom-surround' again to write it")
        return {record["sample_token"]: np.array(record["distance_m"]) for record in json.loads(path.read_text())}

    def _read_range(self, root: Path) -> float:
        described = sorted(root.glob("surround-*.json"))[0]  # all splits of a set have one rig
        return float(json.loads(described.read_text())["lidar"]["range_m"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The raw sample, see `NuScenesDataset`.

        With ``cells="visible"`` cells that cannot be seen have label 255; with ``"all"`` every cell is labelled and ``visibility``
        ``(X, Y)`` uint8 says what of it can be known: 0 seen, 1 occluded, 2 farther than the LiDAR reaches.
        """
        sample = super().__getitem__(index)
        if self.with_labels and self.cells == "all":
            sample["visibility"] = self.visibility(index)
        return sample

    def draw_labels(self, index: int, lidar_augmentation: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
        """The map layers around a sample, see `NuScenesDataset`; 255 where nothing can be seen, unless all are wanted."""
        labels = super().draw_labels(index, lidar_augmentation)
        if self.cells == "visible":
            labels[:, ~self.visible(index, lidar_augmentation)] = UNKNOWN
        return labels

    def visible(self, index: int, lidar_augmentation: NDArray[np.float32] | None = None) -> NDArray[np.bool_]:
        """Cells before the last surface that shows in their direction, ``(X, Y)``; turned and shifted like the labels."""
        distance = self._sight[self.records[index]["token"]] + _BEYOND_M
        azimuth = np.arange(len(distance)) * (2 * np.pi / len(distance))  # clockwise from forward, y
        corners = np.stack([distance * np.sin(azimuth), distance * np.cos(azimuth)], axis=1)
        if lidar_augmentation is not None:
            corners = (corners @ lidar_augmentation[:2, :2].T + lidar_augmentation[:2, 3]) / _scale(lidar_augmentation)
        cells = (corners / self.size_m + 0.5) * self.canvas - 0.5  # the centre of the first cell at 0
        mask = np.zeros((self.canvas[1], self.canvas[0]), np.uint8)
        fill_polygon(mask, [np.rint(cells).astype(np.int64)], 1)
        return mask.T.astype(bool)

    def visibility(self, index: int, lidar_augmentation: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
        """What can be known of each cell, ``(X, Y)`` uint8, turned and shifted like the labels.

        0 where it is seen, 1 where something stands before it, 2 where it is farther than the LiDAR of the set reaches (40 m unless
        it was made otherwise).
        """
        result = np.where(self.visible(index, lidar_augmentation), SEEN, OCCLUDED).astype(np.uint8)
        x, y = ((np.arange(count) + 0.5) * (size / count) - size / 2 for size, count in zip(self.size_m, self.canvas))
        sensor = np.zeros(2) if lidar_augmentation is None else lidar_augmentation[:2, 3] / _scale(lidar_augmentation)
        result[np.hypot(x[:, None] - sensor[0], y - sensor[1]) > self._range_m] = OUT_OF_RANGE
        return result


def _scale(lidar_augmentation: NDArray[np.float32]) -> float:
    """The scale of an augmentation, which the map does not follow."""
    return float(np.sqrt(np.linalg.det(lidar_augmentation[:2, :2])))


VISIBLE_TABLE = "visible_region"  # not one of nuScenes': how far one sees from each sample

SURROUND_LAYERS = ("walkable", "door", "step", "ledge", "liquid", "wall")
