"""Cityscapes in its released folders: ``leftImg8bit`` and ``gtFine`` by split and city, ids of 34 labels, 19 classes scored."""

import json
from pathlib import Path

import numpy as np

from noise2map.data.paired import IGNORE, Intrinsics, Pair, PairedDataset, pick_split, read_labels, require_folder

# name, label id in the files, color; in the order of the train ids 0 to 18. All other label ids are ignored.
CLASSES: tuple[tuple[str, int, tuple[int, int, int]], ...] = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
LABEL_IDS = 34
"""Label ids in the files are 0 to 33; the licence plate's -1 is never drawn."""

SPLITS = {"train": "train", "val": "val", "test": "test"}
IMAGE_END, LABEL_END, CAMERA_END = "_leftImg8bit.png", "_gtFine_labelIds.png", "_camera.json"
_EXPECTED = "leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png and gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png"


def file_table() -> np.ndarray:
    """Train id of each label id of a file, ``(256,)``: train ids 0 to 18, 255 for the fifteen that are not scored."""
    table = np.full(256, -1)
    table[:LABEL_IDS] = IGNORE
    table[IGNORE] = IGNORE
    for train_id, (_, label_id, _) in enumerate(CLASSES):
        table[label_id] = train_id
    return table


class CityscapesDataset(PairedDataset):
    """Streets of 50 cities, 2048x1024, with 19 classes.

    Label ids are turned into train ids here; files of train ids are not needed. With the ``camera`` folder in place,
    samples have ``intrinsics``.

    Args:
        root: Folder that holds ``leftImg8bit`` and ``gtFine``.
        split: ``train`` (2,975 images as released), ``val`` (500) or ``test`` (1,525; its released labels are empty).
        missing: ``"raise"``, or ``"drop"`` for what is there.

    Raises:
        FileNotFoundError: If a folder or a file is missing.
        ValueError: If the split is unknown or empty.
    """

    def __init__(self, root: str | Path, split: str = "val", missing: str = "raise") -> None:
        folder = pick_split(split, SPLITS, "Cityscapes")
        self.root = require_folder(root, "Cityscapes", _EXPECTED)
        images = require_folder(self.root / "leftImg8bit" / folder, "Cityscapes", _EXPECTED)
        pairs = []
        for path in sorted(images.glob(f"*/*{IMAGE_END}")):
            if path.name.startswith("."):  # left beside it by a copy from another system
                continue
            city, name = path.parent.name, path.name[: -len(IMAGE_END)]
            camera = self.root / "camera" / folder / city / f"{name}{CAMERA_END}"
            label_file = self.root / "gtFine" / folder / city / f"{name}{LABEL_END}"
            pairs.append(Pair(name, path, label_file, camera))
        super().__init__(pairs, f"Cityscapes {folder} in {self.root}", _EXPECTED, missing)
        self.id2label = {index: name for index, (name, _, _) in enumerate(CLASSES)}
        self.palette = np.array([color for _, _, color in CLASSES], np.uint8)
        self._table = file_table()

    def read_map(self, pair: Pair) -> dict[str, np.ndarray]:
        """``labels`` ``(H, W)`` uint8, train ids 0 to 18 and 255."""
        return {"labels": read_labels(pair.map, self._table)}

    def read_camera(self, pair: Pair, width: int, height: int) -> Intrinsics | None:
        """The intrinsics of the image's camera file, if that is there."""
        return read_camera_file(pair.camera) if pair.camera is not None and pair.camera.is_file() else None


def read_camera_file(path: Path) -> Intrinsics:
    """``fx, fy, cx, cy`` in pixels from a camera file; half a pixel is added, as pixel centres here are at 0.5.

    Raises:
        ValueError: Naming the file, if it does not hold them.
    """
    try:
        found = json.loads(path.read_text())["intrinsic"]
        return float(found["fx"]), float(found["fy"]), float(found["u0"]) + 0.5, float(found["v0"]) + 0.5
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must hold intrinsic fx, fy, u0 and v0: {error!r}") from error
