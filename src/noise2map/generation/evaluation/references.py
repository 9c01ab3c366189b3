"""Real images to compare generated ones with: a folder, a rendered Freedoom split, an LSUN database, the shipped frames."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from noise2map.data.center_crop import CenterCrops
from noise2map.data.opening import open_dataset
from noise2map.data.subsets import Subset


class ReferenceImages:
    """Center crops of real images at the size of the generated ones.

    Args:
        name: As of :func:`noise2map.data.opening.open_dataset`, e.g. a folder of images, `samples`, `nyu/train:data/nyu`.
        size: Side of the square, pixels.
        limit: At most this many, spread evenly; 0 for all.

    Attributes:
        ids: Their names.
        intrinsics: Of the first, `fx, fy, cx, cy` in pixels of the square; None if they are not known.
    """

    def __init__(self, name: str, size: int, limit: int = 0) -> None:
        dataset = open_dataset(name, task="image")
        count = len(dataset) if not limit else min(limit, len(dataset))
        self.squares = CenterCrops(Subset.evenly_spaced(dataset, count), size)
        self.ids = [str(index) for index in range(count)]
        self.intrinsics = self.squares[0].get("intrinsics")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> np.ndarray:
        """`(size, size, 3)` uint8."""
        return np.asarray(self.squares[index]["image"])


class ImageFiles:
    """Images from files.

    Args:
        paths: The files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        """`(H, W, 3)` uint8."""
        with Image.open(self.paths[index]) as image:
            return np.asarray(image.convert("RGB"))
