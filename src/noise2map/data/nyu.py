"""NYU-Depth V2 as the depth toolboxes lay it out: scene folders of JPEG images and 16-bit depth in millimetres, list files."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from noise2map.data.paired import (
    ALL,
    Intrinsics,
    ListLine,
    Pair,
    PairedDataset,
    find_split_list,
    read_depth,
    read_split_list,
    require_folder,
)

METRES_PER_UNIT = 1 / 1000

LISTS = {
    "train": ("nyu_train.txt", "nyudepthv2_train_files_with_gt.txt"),
    "test": ("nyu_test.txt", "nyudepthv2_test_files_with_gt.txt"),
}

# The color camera of the Kinect that took all images, as published with the data's tools, whose pixel
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
        """The Kinect's intrinsics, unless the list gives another focal length or the image is of another size."""
        same = pair.focal_px is None or abs(pair.focal_px - INTRINSICS[0]) < 0.01
        return INTRINSICS if same and (width, height) == SIZE else super().read_camera(pair, width, height)


FILE_NAME, SPLITS_NAME = "nyu_depth_v2_labeled.mat", "splits.mat"

_SPLIT_KEYS = {"train": "trainNdxs", "test": "testNdxs"}

_DEPTHS = {"filled": "depths", "raw": "rawDepths"}

_INSTALL = 'pip install "noise2map[nyu]"'


class NyuLabelledDataset:
    """Images, depth and objects of ``nyu_depth_v2_labeled.mat`` (HDF5 inside); the official split is in ``splits.mat`` beside it.

    MATLAB stores columns first: what it calls 480x640x3x1449 comes out of HDF5 as 1449x3x640x480 and is turned back here.
    Nothing is held in memory; every process opens the file for itself.

    Args:
        path: The file, or the folder that holds it.
        split: ``train`` (795 images) or ``test`` (654), which need ``splits.mat``, or ``all``.
        depth: ``"filled"`` (the makers filled the holes, every pixel is valid) or ``"raw"`` (holes are not valid).
        objects: Also give ``object_labels``, ``(H, W)`` int32: 0 is unlabelled, k the k-th of ``object_names``. These are the
            file's own 894 kinds; the tables that merge them into 40 or 13 classes are not in the file.

    Attributes:
        numbers: The official number, from 1, of each image of the split.
        object_names: Number from 1 to name, of all kinds of objects; empty unless asked for.

    Raises:
        FileNotFoundError: If a file is missing.
        ImportError: If h5py (or SciPy, for ``splits.mat``) is not installed.
        ValueError: If the split is unknown or a file is not what it should be.
    """

    id2label: dict[int, str] = {}
    palette = np.zeros((0, 3), np.uint8)

    def __init__(self, path: str | Path, split: str = "test", depth: str = "filled", objects: bool = False) -> None:
        path = Path(path)
        self.path = path / FILE_NAME if path.is_dir() else path
        if depth not in _DEPTHS:
            raise ValueError(f"depth is {depth!r}; expected one of {', '.join(_DEPTHS)}")
        if split not in (*_SPLIT_KEYS, ALL):
            raise ValueError(f"NYU-Depth V2 has no split {split!r}; expected one of {', '.join((*_SPLIT_KEYS, ALL))}")
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no {self.path}; expected {FILE_NAME} of NYU-Depth V2, with {SPLITS_NAME} beside it")
        self._depths, self._objects = _DEPTHS[depth], objects
        self._file: Any = None
        self._owner = -1
        total = self._check()
        self.object_names = self._read_names() if objects else {}
        self.numbers = np.arange(1, total + 1) if split == ALL else read_splits(self.path.with_name(SPLITS_NAME), split, total)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The raw sample: ``image``, ``depth_m`` ``(H, W)`` float32, ``valid``, ``intrinsics``, ``id``, ``object_labels``."""
        number = int(self.numbers[index])
        file = self._open()
        try:
            image = np.ascontiguousarray(file["images"][number - 1].transpose(2, 1, 0))  # (3, W, H) -> (H, W, 3)
            depth_m = np.ascontiguousarray(file[self._depths][number - 1].T.astype(np.float32))  # (W, H) -> (H, W)
            objects = file["labels"][number - 1].T.astype(np.int32) if self._objects else None
        except OSError as error:
            raise OSError(f"cannot read image {number} of {self.path}: {error}") from error
        known = np.isfinite(depth_m) & (depth_m > 0)
        sample = {
            "image": Image.fromarray(image),
            "depth_m": np.where(known, depth_m, np.float32(0)),
            "valid": known,
            "id": f"nyu-{number:04d}",
        }
        if objects is not None:
            if objects.size and objects.max() > len(self.object_names):
                raise ValueError(
                    f"image {number} of {self.path} has label {objects.max()}; the file names {len(self.object_names)} objects"
                )
            sample["object_labels"] = np.ascontiguousarray(objects)
        if sample["image"].size == SIZE:
            sample["intrinsics"] = np.array(INTRINSICS, np.float32)
        return sample

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_owner": -1}

    def _open(self) -> Any:
        """The open file of this process: a handle must not be shared with a forked worker."""
        if self._owner != os.getpid():
            try:
                import h5py
            except ImportError as error:
                raise ImportError(f"reading {self.path.name} needs h5py: {_INSTALL}") from error
            try:
                self._file = h5py.File(self.path, "r")
            except OSError as error:
                raise ValueError(f"{self.path} is not a MATLAB 7.3 (HDF5) file: {error}") from error
            self._owner = os.getpid()
        return self._file

    def _check(self) -> int:
        file = self._open()
        wanted = [("images", 4), (self._depths, 3)] + [("labels", 3), ("names", 2)] * self._objects
        for name, dimensions in wanted:
            if name not in file or file[name].ndim != dimensions:
                found = file[name].shape if name in file else f"only {', '.join(sorted(file))}"
                raise ValueError(f"{self.path} must hold {name!r} with {dimensions} dimensions, found {found}")
        images, depths = file["images"].shape, file[self._depths].shape
        if images[1] != 3 or (images[0], *images[2:]) != depths:
            raise ValueError(
                f"{self.path}: images {images} and {self._depths} {depths} do not fit; expected (N, 3, W, H), (N, W, H)"
            )
        if self._objects and file["labels"].shape != depths:
            raise ValueError(
                f"{self.path}: labels {file['labels'].shape} and {self._depths} {depths} do not fit; expected (N, W, H)"
            )
        return int(images[0])

    def _read_names(self) -> dict[int, str]:
        """MATLAB's cell array of texts: references to arrays of character codes."""
        file = self._open()
        try:
            texts = [
                "".join(map(chr, np.asarray(file[reference]).reshape(-1).tolist())) for reference in file["names"][:].reshape(-1)
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path}: 'names' is not a cell array of texts: {error}") from error
        return dict(enumerate(texts, 1))


def read_splits(path: Path, split: str, total: int) -> np.ndarray:
    """Official numbers ``(N,)``, from 1, of a split, sorted.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If SciPy is not installed.
        ValueError: If the file does not hold the split, or numbers outside 1 .. ``total``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: the official train and test numbers (split {ALL!r} needs none)")
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(f"reading {path.name} needs SciPy: {_INSTALL}") from error
    key = _SPLIT_KEYS[split]
    try:
        found = loadmat(str(path))
    except Exception as error:  # SciPy raises many kinds on files that are not MATLAB's
        raise ValueError(f"{path} is not a MATLAB file: {error}") from error
    numbers = np.sort(np.asarray(found.get(key, [])).reshape(-1).astype(np.int64))
    if not len(numbers) or numbers[0] < 1 or numbers[-1] > total:
        raise ValueError(f"{path} must hold {key}, numbers from 1 to {total}; found {numbers[:5].tolist()}...")
    return numbers
