"""NYU-Depth V2 as the depth toolboxes lay it out: scene folders of JPEG images and 16-bit depth in millimetres, list files."""

from pathlib import Path

import numpy as np

from noise2map.data.pairs import Intrinsics, Pair, PairedDataset, read_depth, require_folder
from noise2map.data.split_lists import ALL, ListLine, find_split_list, read_split_list

METRES_PER_UNIT = 1 / 1000
LISTS = {
    "train": ("nyu_train.txt", "nyudepthv2_train_files_with_gt.txt"),
    "test": ("nyu_test.txt", "nyudepthv2_test_files_with_gt.txt"),
}
# The colour camera of the Kinect that took all pictures, as published with the data's tools, whose pixel
# centres are at 1, 2, ...: half a pixel less here.
INTRINSICS = (518.85790, 519.46961, 325.58245 - 0.5, 253.73617 - 0.5)
SIZE = (640, 480)
_EXPECTED = "SCENE/rgb_NUMBER.jpg and SCENE/sync_depth_NUMBER.png, with nyu_train.txt and nyu_test.txt"


class NyuDataset(PairedDataset):
    """Rooms with depth from a Kinect, up to 10 m.

    Args:
        root: Folder that holds the scenes and the lists.
        split: ``train`` or ``test`` (by the list files), a list file of your own, or ``all``.
        missing: ``"raise"``, or ``"drop"`` for what is there.

    Raises:
        FileNotFoundError: If the list or a file is missing.
        ValueError: If the split is unknown or a list is broken.
    """

    def __init__(self, root: str | Path, split: str = "test", missing: str = "raise") -> None:
        self.root = require_folder(root, "NYU-Depth V2", _EXPECTED)
        pairs = []
        for line in self._lines(split):
            if line.depth is None:
                continue
            image, depth = self.root / line.image, self.root / line.depth
            number = image.stem.removeprefix("rgb_")
            pairs.append(Pair(f"{image.parent.name}-{number}", image, depth, focal_px=line.focal_px))
        super().__init__(pairs, f"NYU-Depth V2 {split} in {self.root}", _EXPECTED, missing)

    def _lines(self, split: str) -> list[ListLine]:
        if split != ALL:
            return read_split_list(find_split_list(self.root, split, LISTS.get(split, ()), "NYU-Depth V2"))
        found = []
        for image in sorted(self.root.glob("*/rgb_*.jpg")):
            depth = image.with_name(image.name.replace("rgb_", "sync_depth_")).with_suffix(".png")
            if depth.is_file():
                found.append(ListLine(str(image.relative_to(self.root)), str(depth.relative_to(self.root)), None))
        return found

    def read_map(self, pair: Pair) -> dict[str, np.ndarray]:
        """``depth_m`` ``(H, W)`` float32 and ``valid`` ``(H, W)`` bool."""
        return read_depth(pair.map, METRES_PER_UNIT)

    def read_camera(self, pair: Pair, width: int, height: int) -> Intrinsics | None:
        """The Kinect's intrinsics, unless the list gives another focal length or the picture is of another size."""
        same = pair.focal_px is None or abs(pair.focal_px - INTRINSICS[0]) < 0.01
        return INTRINSICS if same and (width, height) == SIZE else super().read_camera(pair, width, height)
