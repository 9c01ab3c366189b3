"""SUN RGB-D in its released folders: four sensors, 16-bit depth whose bits are rotated, intrinsics beside every image."""

import os
from collections.abc import Container
from pathlib import Path

import numpy as np

from noise2map.data.images import IMAGE_SUFFIXES, open_depth_map
from noise2map.data.paired import ALL, Intrinsics, Pair, PairedDataset, find_split_list, read_split_list, require_folder

LISTS = {"test": ("SUNRGBD_val_splits.txt", "sun_rgbd_test.txt"), "train": ("sun_rgbd_train.txt",)}
SENSORS = ("kv1", "kv2", "realsense", "xtion")
_EXPECTED = "SUNRGBD/{kv1,kv2,realsense,xtion}/.../SCENE/{image/*.jpg, depth/*.png, intrinsics.txt}"


def decode(stored: np.ndarray) -> np.ndarray:
    """Millimetres ``(H, W)`` uint16 of stored values ``(H, W)`` uint16: the bits rotated right by three."""
    stored = stored.astype(np.uint16)
    return (stored >> 3) | (stored << 13)


def encode(millimetres: np.ndarray) -> np.ndarray:
    """Stored values of millimetres, the inverse of :func:`decode`."""
    millimetres = millimetres.astype(np.uint16)
    return (millimetres << 3) | (millimetres >> 13)


class SunRgbdDataset(PairedDataset):
    """Rooms from four depth cameras, in several sizes.

    Depth is given as it is stored. Beyond 8 m the makers' own tools cut it off, which is left to the test protocol.

    Args:
        root: Folder that holds ``SUNRGBD`` (or is it).
        split: ``test`` (by a list file of lines ``image depth``), a list file of your own, or ``all``.
        filled: Take the depth whose holes the makers filled (``depth_bfx``) for split ``all``; lists name their files.
        missing: ``"raise"``, or ``"drop"`` for what is there.

    Raises:
        FileNotFoundError: If the list or a file is missing.
        ValueError: If the split is unknown, or a list is broken.
    """

    def __init__(self, root: str | Path, split: str = ALL, filled: bool = False, missing: str = "raise") -> None:
        self.root = require_folder(root, "SUN RGB-D", _EXPECTED)
        pairs = self._all(filled) if split == ALL else self._listed(split)
        super().__init__(pairs, f"SUN RGB-D {split} in {self.root}", _EXPECTED, missing)

    def _listed(self, split: str) -> list[Pair]:
        path = find_split_list(self.root, split, LISTS.get(split, ()), "SUN RGB-D")
        # The lists start their paths with SUNRGBD/, and some users have one more folder of that name than others.
        base = self._base()
        lines = [(line.image, line.depth) for line in read_split_list(path) if line.depth is not None]
        return [self._pair(*(base / one.removeprefix("SUNRGBD/") for one in line)) for line in lines]

    def _base(self) -> Path:
        return self.root / "SUNRGBD" if (self.root / "SUNRGBD").is_dir() else self.root

    def _all(self, filled: bool) -> list[Pair]:
        pairs = []
        for sensor in SENSORS:
            scenes = (Path(folder) for folder, inside, _ in os.walk(self._base() / sensor, followlinks=True) if "image" in inside)
            for scene in sorted(scenes):
                folder = scene / ("depth_bfx" if filled else "depth")
                image, depth = _only(scene / "image", IMAGE_SUFFIXES), _only(folder, (".png",))
                if image is not None:
                    pairs.append(self._pair(image, depth or folder / f"{image.stem}.png"))  # reported, if it is not there
        return pairs

    def _pair(self, image: Path, depth: Path) -> Pair:
        scene = image.parent.parent
        parts = scene.parts
        sensor = next((index for index, part in enumerate(parts) if part in SENSORS), len(parts) - 1)
        return Pair("-".join(parts[sensor:]), image, depth, scene / "intrinsics.txt")

    def read_map(self, pair: Pair) -> dict[str, np.ndarray]:
        """``depth_m`` ``(H, W)`` float32 and ``valid`` ``(H, W)`` bool."""
        millimetres = decode(open_depth_map(pair.map, 1.0))
        depth_m = millimetres.astype(np.float32) / 1000
        return {"depth_m": depth_m, "valid": millimetres > 0}

    def read_camera(self, pair: Pair, width: int, height: int) -> Intrinsics | None:
        """The intrinsics of the scene, if their file is there."""
        return read_intrinsics(pair.camera) if pair.camera is not None and pair.camera.is_file() else None


def _only(folder: Path, suffixes: Container[str]) -> Path | None:
    """The file of a folder that holds one of a kind, hidden ones aside."""
    found = [path for path in folder.glob("*") if path.suffix.lower() in suffixes and not path.name.startswith(".")]
    return found[0] if len(found) == 1 else None


def read_intrinsics(path: Path) -> Intrinsics:
    """``fx, fy, cx, cy`` in pixels from the nine numbers of an ``intrinsics.txt``.

    The makers count pixels from 1, so half a pixel is taken off: pixel centres here are at 0.5.

    Raises:
        ValueError: Naming the file, if it does not hold a camera matrix.
    """
    try:
        matrix = np.array([float(word) for word in path.read_text().split()]).reshape(3, 3)
    except ValueError as error:
        raise ValueError(f"{path} must hold the nine numbers of a camera matrix: {error}") from error
    return float(matrix[0, 0]), float(matrix[1, 1]), float(matrix[0, 2]) - 0.5, float(matrix[1, 2]) - 0.5
