"""ADE20K as released for the scene parsing challenge (``ADEChallengeData2016``): 150 classes, "other" is not scored."""

from pathlib import Path

import numpy as np

from noise2map.data.ade20k_classes import CLASSES
from noise2map.data.images import list_images
from noise2map.data.paired import IGNORE, Pair, PairedDataset, pick_split, read_labels, require_folder

SPLITS = {"train": "training", "training": "training", "val": "validation", "validation": "validation"}
_EXPECTED = "images/{training,validation}/NAME.jpg and annotations/{training,validation}/NAME.png, as in ADEChallengeData2016.zip"


def file_table() -> np.ndarray:
    """Class of each id of an annotation file, ``(256,)``: 0 is "other" and ignored, 1 to 150 are the classes 0 to 149."""
    table = np.full(256, -1)
    table[1 : len(CLASSES) + 1] = np.arange(len(CLASSES))
    table[[0, IGNORE]] = IGNORE
    return table


class Ade20kDataset(PairedDataset):
    """Photographs with 150 classes of things and surfaces.

    The label of "other" (0 in the files) becomes 255, the others move down by one.

    Args:
        root: ``ADEChallengeData2016``, or the folder that holds it.
        split: ``train`` (20,210 images as released) or ``val`` (2,000); the names of the folders are taken too.
        missing: ``"raise"``, or ``"drop"`` for what is there.

    Raises:
        FileNotFoundError: If a folder or a file is missing.
        ValueError: If the split is unknown or empty.
    """

    def __init__(self, root: str | Path, split: str = "val", missing: str = "raise") -> None:
        folder = pick_split(split, SPLITS, "ADE20K")
        root = Path(root)
        inner = root / "ADEChallengeData2016"
        self.root = require_folder(inner if inner.is_dir() else root, "ADE20K", _EXPECTED)
        images = require_folder(self.root / "images" / folder, "ADE20K", _EXPECTED)
        annotations = self.root / "annotations" / folder
        pairs = [Pair(path.stem, path, annotations / f"{path.stem}.png") for path in list_images(images)]
        super().__init__(pairs, f"ADE20K {folder} in {self.root}", _EXPECTED, missing)
        self.id2label = {index: name for index, (name, _) in enumerate(CLASSES)}
        self.palette = np.array([color for _, color in CLASSES], np.uint8)
        self._table = file_table()

    def read_map(self, pair: Pair) -> dict[str, np.ndarray]:
        """``labels`` ``(H, W)`` uint8, 0 to 149 and 255."""
        return {"labels": read_labels(pair.map, self._table)}
