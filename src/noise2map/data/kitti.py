"""KITTI depth: raw drives, depth maps of the depth benchmark (16 bits, 1/256 m), lists of the Eigen split."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from noise2map.data.paired import ALL, Intrinsics, Pair, PairedDataset, find_split_list, read_depth, read_split_list, require_folder

METRES_PER_UNIT = 1 / 256
LISTS = {
    "train": ("kitti_eigen_train.txt", "eigen_train_files_with_gt.txt"),
    "test": ("kitti_eigen_test.txt", "eigen_test_files_with_gt.txt"),
}
_IMAGE_FOLDERS = ("input", "raw", "raw_data", "kitti_raw_data", ".")
_DEPTH_FOLDERS = ("gt_depth", "data_depth_annotated/train", "data_depth_annotated/val", "train", "val", ".")
_EXPECTED = (
    "input/DATE/DRIVE/image_02/data/NUMBER.png and gt_depth/DRIVE/proj_depth/groundtruth/image_02/NUMBER.png "
    "(the raw drives and data_depth_annotated, at these names or their own)"
)


class KittiDataset(PairedDataset):
    """Drives through and around Karlsruhe with depth from laser scans: about one pixel in six is known.

    Lines of a list whose depth is ``None`` are skipped. The intrinsics are those of the day (``calib_cam_to_cam.txt`` in
    the folder of the date) where that file is there, else the focal length of the line with the principal point in
    the middle.

    Args:
        root: Folder that holds the drives, the depth maps and the lists.
        split: ``train`` or ``test`` (Eigen split, by the list files), a list file of your own, or ``all``.
        missing: ``"raise"``, or ``"drop"`` for what is there.

    Attributes:
        without_depth: How many lines of the list have no depth.

    Raises:
        FileNotFoundError: If the list or a file is missing.
        ValueError: If the split is unknown, or a list or a calibration file is broken.
    """

    def __init__(self, root: str | Path, split: str = "test", missing: str = "raise") -> None:
        self.root = require_folder(root, "KITTI", _EXPECTED)
        images = [self.root / name for name in _IMAGE_FOLDERS if (self.root / name).is_dir()]
        depths = [self.root / name for name in _DEPTH_FOLDERS if (self.root / name).is_dir()]
        self.without_depth = 0
        pairs = []
        for line_image, line_depth, focal_px in self._lines(split, images, depths):
            if line_depth is None:
                self.without_depth += 1
                continue
            image, depth = _first(images, line_image), _first(depths, line_depth)
            drive, camera = _parts(line_image)
            calibration = image.parents[3] / "calib_cam_to_cam.txt"
            pairs.append(Pair(f"{drive}-{camera}-{image.stem}", image, depth, calibration, focal_px))
        super().__init__(pairs, f"KITTI {split} in {self.root}", _EXPECTED, missing)

    def _lines(self, split: str, images: list[Path], depths: list[Path]) -> list[tuple[str, str | None, float | None]]:
        if split != ALL:
            path = find_split_list(self.root, split, LISTS.get(split, ()), "KITTI")
            return [(line.image, line.depth, line.focal_px) for line in read_split_list(path)]
        found: dict[str, tuple[str, str | None, float | None]] = {}
        for folder in depths:
            for path in folder.glob("*_drive_*_sync/proj_depth/groundtruth/image_0[23]/*.png"):
                drive, camera = path.parents[3].name, path.parent.name
                image = f"{drive[:10]}/{drive}/{camera}/data/{path.name}"
                if not path.name.startswith(".") and any((base / image).is_file() for base in images):
                    found[image] = (image, str(path.relative_to(folder)), None)
        return [found[image] for image in sorted(found)]

    def read_map(self, pair: Pair) -> dict[str, np.ndarray]:
        """``depth_m`` ``(H, W)`` float32 and ``valid`` ``(H, W)`` bool."""
        return read_depth(pair.map, METRES_PER_UNIT)

    def read_camera(self, pair: Pair, width: int, height: int) -> Intrinsics | None:
        """The intrinsics of the day, else those of the line's focal length."""
        if pair.camera is not None and pair.camera.is_file():
            return read_calibration(pair.camera, pair.image.parents[1].name.removeprefix("image_"))
        return super().read_camera(pair, width, height)


def _first(folders: list[Path], relative: str) -> Path:
    """The file in the first folder that has it; in the first folder of all if none has."""
    return next((folder / relative for folder in folders if (folder / relative).is_file()), folders[0] / relative)


def _parts(image: str) -> tuple[str, str]:
    """Drive and camera (``02`` or ``03``) of an image's relative path."""
    words = image.split("/")
    if len(words) != 5 or not words[2].startswith("image_"):
        raise ValueError(f"a KITTI list names the image {image!r}; expected DATE/DRIVE/image_02/data/NUMBER.png")
    return words[1], words[2].removeprefix("image_")


@lru_cache(maxsize=64)
def read_calibration(path: Path, camera: str) -> Intrinsics:
    """``fx, fy, cx, cy`` in pixels of a rectified camera; half a pixel is added, as pixel centres here are at 0.5.

    Args:
        path: ``calib_cam_to_cam.txt`` of a day.
        camera: ``02`` or ``03``.

    Raises:
        ValueError: Naming the file, if it does not hold the camera's projection (``P_rect_02``).
    """
    key = f"P_rect_{camera}"
    for line in path.read_text().splitlines():
        name, _, values = line.partition(":")
        if name == key:
            try:
                matrix = np.array([float(word) for word in values.split()]).reshape(3, 4)
            except ValueError as error:
                raise ValueError(f"{path}: {key} must be 12 numbers, got {values.strip()!r}") from error
            return float(matrix[0, 0]), float(matrix[1, 1]), float(matrix[0, 2]) + 0.5, float(matrix[1, 2]) + 0.5
    raise ValueError(f"{path} has no line {key}: ...")
