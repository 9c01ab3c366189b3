"""Real images to compare generated ones with: a folder, a rendered Freedoom split, an LSUN database, the shipped frames."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from noise2map.data import PUBLIC_DATASETS, FreedoomDataset, LsunDataset, load_samples, open_public_dataset
from noise2map.data.center_crop import PictureFolder, SquareCrops
from noise2map.data.subsets import Subset

SHIPPED = "samples"

_DESCRIPTION = "dataset.json"


def open_references(name: str, task: str = "image") -> Any:
    """A data set of raw samples by the name that the command line uses.

    Args:
        name: Folder of images, of a rendered Freedoom split, or of an LSUN database (`..._lmdb`); `samples`; or a public data set
            in its released layout as `NAME:ROOT` or `NAME/SPLIT:ROOT`, such as `nyu/train:data/nyu`.
        task: `"image"`, or `"depth"` where depth is needed too.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no image, or depth is needed and it has none.
    """
    if name == SHIPPED:
        return load_samples("test", "depth")
    public, colon, folder = name.partition(":")
    public, _, split = public.partition("/")
    if colon and public in PUBLIC_DATASETS:
        return open_public_dataset(public, folder, split or None, task if task == "depth" else None)
    root = Path(name).expanduser()
    if (root / _DESCRIPTION).is_file():
        return FreedoomDataset(root, "depth")
    if task == "depth":
        raise ValueError(
            f"{name!r} has no depth that could be read; expected a rendered Freedoom split (a folder with {_DESCRIPTION}), "
            "samples, or a public data set such as nyu:ROOT"
        )
    if root.name.endswith("_lmdb"):
        return LsunDataset(root, split=root.name.removesuffix("_lmdb").rpartition("_")[2])
    return PictureFolder(root)


class ReferenceImages:
    """Center crops of real images at the size of the generated ones.

    Args:
        name: As of :func:`open_references`.
        size: Side of the square, pixels.
        limit: At most this many, spread evenly; 0 for all.

    Attributes:
        ids: Their names.
        intrinsics: Of the first, `fx, fy, cx, cy` in pixels of the square; None if they are not known.
    """

    def __init__(self, name: str, size: int, limit: int = 0) -> None:
        dataset = open_references(name)
        count = len(dataset) if not limit else min(limit, len(dataset))
        self.squares = SquareCrops(Subset.evenly_spaced(dataset, count), size)
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
