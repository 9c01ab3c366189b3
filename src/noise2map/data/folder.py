"""The user's own images: ``ROOT/images`` and ``ROOT/maps``, paired by file name without suffix."""

import colorsys
import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from noise2map.data.center_crop import ImageFolder
from noise2map.data.images import image_size, list_images, open_image
from noise2map.data.maps import map_kind
from noise2map.data.paired import IGNORE, count_classes, name_some, raise_together
from noise2map.data.subsets import UNREADABLE, hold_out

CLASSES_FILE = "classes.json"
ALL = "all"
HOLD_OUT_EVERY = 8
"""Of a folder without ``train/`` and ``val/``, pairs 0, 8, 16 ... are for validation."""

_GOLDEN_ANGLE = 0.618033988749895


class FolderDataset:
    """Images with class maps or depth maps from a folder, as raw samples.

    ``ROOT/images/kitchen.jpg`` belongs to ``ROOT/maps/kitchen.png``. Class maps are single-channel images of ids; 255 is
    "not known". Depth maps are 16-bit images; 0 is "not known". Normals are RGB images, see
    :func:`noise2map.data.maps.normals.open_normals_map`. Names of classes come from ``id2label`` or from
    ``ROOT/classes.json``: a list, or an object from id to name.

    Args:
        root: The folder.
        task: A key of `noise2map.data.maps.MAP_KINDS`.
        id2label: Names of the classes (segmentation), ids 0 to K - 1.
        depth_scale: Metres per unit of the depth maps; 0.001 for millimetres.
        intrinsics: ``fx, fy, cx, cy`` in pixels, the same for all images, if known.
        images: Name of the image folder.
        maps: Name of the map folder.
        missing: ``"raise"`` refuses a folder with files that have no partner or another size than it; ``"drop"`` leaves
            those without a partner out (``missing`` names them) and finds the others when they are read.

    Attributes:
        id2label: Names of the classes; empty for other maps.
        palette: A color for each class, ``(K, 3)`` uint8.
        ids: Names of the pairs, sorted.
        missing: Which partner each of the files without one lacks, and which files share a name.
        warnings: What looks wrong in the folder as a whole.

    Raises:
        FileNotFoundError: If a folder is missing.
        OSError: If a file is not an image.
        ValueError: If a folder is empty, an image has no map or a map no image, the sizes of a pair differ, two images
            share a name, the classes are not given, or the scale is not positive.
    """

    def __init__(
        self,
        root: str | Path,
        task: str = "segmentation",
        id2label: Mapping[int, str] | None = None,
        depth_scale: float = 0.001,
        intrinsics: Sequence[float] | None = None,
        images: str = "images",
        maps: str = "maps",
        missing: str = "raise",
    ) -> None:
        self.kind = map_kind(task)
        if not (np.isfinite(depth_scale) and depth_scale > 0):
            raise ValueError(f"depth_scale is {depth_scale!r}; expected metres per unit, a positive number")
        if intrinsics is not None and (len(intrinsics) != 4 or not np.isfinite(np.asarray(intrinsics, float)).all()):
            raise ValueError(f"intrinsics is {intrinsics!r}; expected fx, fy, cx, cy in pixels")
        if missing not in ("raise", "drop"):
            raise ValueError(f"missing is {missing!r}; expected 'raise' or 'drop'")
        self.root, self.task, self.depth_scale = Path(root), task, float(depth_scale)
        self.intrinsics = None if intrinsics is None else np.array(intrinsics, np.float32)
        (image_of, twice), (map_of, twice_too) = _by_stem(self.root / images), _by_stem(self.root / maps)
        if missing == "raise":
            raise_together([ValueError(text) for text in (*twice, *twice_too)])
            _check_pairs(image_of, map_of, images, maps, self.root)
        self.warnings: list[str] = []
        self.missing = [*twice, *twice_too]
        self.missing += [f"{self.root / maps} has no map of {image_of[name]}" for name in sorted(image_of.keys() - map_of.keys())]
        self.missing += [f"{self.root / images} has no image of {map_of[name]}" for name in sorted(map_of.keys() - image_of.keys())]
        self.ids = sorted(image_of.keys() & map_of.keys())
        if not self.ids:
            raise ValueError(f"no image in {self.root / images} has a map of the same name in {self.root / maps}")
        self._pairs = [(image_of[name], map_of[name]) for name in self.ids]
        if missing == "raise":
            raise_together(list(_wrong_sizes(self._pairs)))
        self.id2label: dict[int, str] = {}
        if self.kind.has_classes:
            self.id2label = _check_names(dict(id2label)) if id2label is not None else read_classes(self.root / CLASSES_FILE)
        self.palette = distinct_colors(len(self.id2label))

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The raw sample: ``image``, the map (depth with ``valid``), ``id``, and ``intrinsics`` if given.

        Raises:
            OSError: Naming the file, if it cannot be decoded.
            ValueError: Naming the file, if its values make no sense or the sizes of the pair differ.
        """
        image_path, map_path = self._pairs[index]
        sample: dict[str, Any] = {"image": open_image(image_path), "id": self.ids[index]}
        self.kind.read_into(sample, map_path, self.depth_scale)
        if self.kind.has_classes:
            sample[self.kind.key] = self._known_classes(sample[self.kind.key], map_path)
        height, width = sample[self.kind.key].shape[:2]
        _check_size(image_path, sample["image"].size, map_path, (width, height))
        if self.intrinsics is not None:
            sample["intrinsics"] = self.intrinsics.copy()
        return sample

    @property
    def image_files(self) -> dict[str, Path]:
        """The image file of each pair, by its name."""
        return {name: image_path for name, (image_path, _) in zip(self.ids, self._pairs)}

    def only(self, names: Sequence[str]) -> "FolderDataset":
        """The same dataset with some of its pairs."""
        part, kept = copy.copy(self), set(names)
        part._pairs = [pair for name, pair in zip(self.ids, self._pairs) if name in kept]
        part.ids = [name for name in self.ids if name in kept]
        return part

    def check(self) -> None:
        """Read every pair, so that broken files and unknown ids show before a long run and not in its middle.

        Raises:
            OSError: Naming all files at fault, if one of them cannot be decoded.
            ValueError: Naming them, if not.
        """
        for _ in read_whole([self]):
            pass

    def _known_classes(self, labels: np.ndarray, path: Path) -> np.ndarray:
        unknown = [int(value) for value in np.unique(labels) if value != IGNORE and int(value) not in self.id2label]
        if unknown:
            known = f"0 to {len(self.id2label) - 1}, and {IGNORE} for pixels to ignore"
            raise ValueError(f"{path} has unknown class ids {name_some(unknown)}; known are {known}")
        return labels.astype(np.uint8)


def read_whole(datasets: Sequence[FolderDataset]) -> Iterator[dict[str, Any]]:
    """Every sample of some folders, in order; then an error that names all files that are missing, broken or make no sense."""
    errors: list[Exception] = [ValueError(text) for dataset in datasets for text in dataset.missing]
    for dataset in datasets:
        for index in range(len(dataset)):
            try:
                sample = dataset[index]
            except UNREADABLE as error:
                errors.append(error)
            else:
                yield sample
    raise_together(errors)


def open_folder(
    root: str | Path,
    split: str | None = None,
    task: str = "segmentation",
    id2label: Mapping[int, str] | None = None,
    depth_scale: float = 0.001,
    missing: str = "raise",
    hold_out_every: int = HOLD_OUT_EVERY,
) -> Any:
    """Open a split of a folder, which is a sub-folder (``train/``, ``val/``, ``test/`` ...) or a part of what it holds.

    Args:
        root: The folder of all splits, or of one.
        split: A sub-folder; or, where ``root`` itself holds the images, ``"train"``, ``"val"`` (every eighth pair) or
            ``"all"``. By default ``test/`` or ``val/`` where there is one, else all.
        task: ``"segmentation"``, ``"depth"``, ``"normals"``, or ``"image"`` for images without maps.
        id2label: Names of the classes where no ``classes.json`` has them.
        depth_scale: Metres per unit of the depth maps.
        missing: ``"raise"`` or ``"drop"``, see :class:`FolderDataset`; with ``"drop"``, classes without names are counted.
        hold_out_every: How often a pair of an undivided folder is for validation.

    Raises:
        FileNotFoundError: If a folder is missing.
        OSError: If a file is not an image.
        ValueError: If there is no such split, or what is in it makes no sense, see :class:`FolderDataset`.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}; expected one with images/ and maps/, or with train/ and val/")
    folder, held_out = _folder_of_split(root, split or usual_split(root))
    warnings: list[str] = []
    if task == "image":
        dataset: Any = ImageFolder(folder / "images" if (folder / "images").is_dir() else folder)
    else:
        if map_kind(task).has_classes:
            named = next((place / CLASSES_FILE for place in (folder, root) if (place / CLASSES_FILE).is_file()), None)
            if named is not None:
                id2label = read_classes(named)
            elif id2label is None and missing == "drop":
                names, warnings = count_classes([folder / "maps"], strict=False)
                id2label = dict(enumerate(names))
        dataset = FolderDataset(folder, task, id2label if map_kind(task).has_classes else None, depth_scale, missing=missing)
        dataset.warnings = warnings
    return dataset if held_out is None else hold_out(dataset, hold_out_every)[held_out == "val"]


def usual_split(root: Path) -> str:
    """The split that scores are reported for: ``"test"`` or ``"val"`` where the folder has it, else ``"all"``."""
    return next((name for name in ("test", "val") if (root / name / "images").is_dir()), ALL)


def split_names(root: str | Path) -> list[str]:
    """The sub-folders that are splits; ``["all"]`` of an undivided folder."""
    root = Path(root)
    if not root.is_dir() or (root / "images").is_dir():
        return [ALL]
    return sorted(path.name for path in root.iterdir() if (path / "images").is_dir()) or [ALL]


def _folder_of_split(root: Path, split: str) -> tuple[Path, str | None]:
    """Where a split lies, and ``"train"`` or ``"val"`` if it is the part of an undivided folder."""
    if split != ALL and (root / split).is_dir():
        return root / split, None
    inside = [name for name in split_names(root) if name != ALL]
    own = root.resolve().name
    if own == split or (split == ALL and not inside):
        return root, None
    if split in ("train", "val") and not inside:
        if own in ("train", "val", "test"):
            raise ValueError(
                f"{root} is a folder of the split {own!r} and is not parted; expected {own!r} or {ALL!r}, got {split!r}"
            )
        return root, split
    known = name_some(inside) if inside else f"train, val (every eighth pair) and {ALL}"
    raise ValueError(f"{root} has no split {split!r}; it has {known}")


def distinct_colors(count: int) -> np.ndarray:
    """``count`` colors ``(count, 3)`` uint8: hues by the golden angle, in three lightnesses."""
    colors = [colorsys.hls_to_rgb(index * _GOLDEN_ANGLE % 1, (0.5, 0.65, 0.35)[index % 3], 0.65) for index in range(count)]
    return np.rint(np.array(colors, float).reshape(count, 3) * 255).astype(np.uint8)


def _check_size(image: Path, image_size_px: tuple[int, int], map_: Path, map_size_px: tuple[int, int]) -> None:
    if image_size_px != map_size_px:
        sizes = ["x".join(map(str, size)) for size in (image_size_px, map_size_px)]
        raise ValueError(f"{image} is {sizes[0]} and its map {map_} is {sizes[1]}; they must be equal")


def _wrong_sizes(pairs: Sequence[tuple[Path, Path]]) -> Iterator[Exception]:
    """Errors in the sizes of pairs, from the headers of the files."""
    for image, map_ in pairs:
        try:
            _check_size(image, image_size(image), map_, image_size(map_))
        except UNREADABLE as error:
            yield error


def _by_stem(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Files by their name without suffix, and what is wrong where two share it."""
    found: dict[str, Path] = {}
    twice = []
    for path in list_images(folder):
        other = found.setdefault(path.stem, path)
        if other != path:
            twice.append(f"{other} and {path} have the same name; which one is meant?")
    return found, twice


def _check_pairs(image_of: dict[str, Path], map_of: dict[str, Path], images: str, maps: str, root: Path) -> None:
    for here, there, one, other in ((image_of, map_of, images, maps), (map_of, image_of, maps, images)):
        alone = sorted(here[name].name for name in here.keys() - there.keys())
        if alone:
            files = f"{len(alone)} files in {root / one} have" if len(alone) > 1 else f"one file in {root / one} has"
            raise ValueError(f"{files} no partner in {root / other}: {name_some(alone)}")


def read_classes(path: Path) -> dict[int, str]:
    """Names of the classes from a ``classes.json``.

    Raises:
        ValueError: If it is missing or makes no sense.
    """
    if not path.is_file():
        raise ValueError(f'the classes are not known: write {path}, such as {{"0": "floor", "1": "wall"}} (or pass id2label)')
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(names, list):
            names = dict(enumerate(names))
        names = {int(index): str(name) for index, name in names.items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} must hold a list of names or an object from id to name: {error}") from error
    return _check_names(names)


def _check_names(names: dict[int, str]) -> dict[int, str]:
    if not names or sorted(names) != list(range(len(names))) or len(names) > IGNORE:
        raise ValueError(f"class ids must be 0 to K - 1, K at most {IGNORE}; got {name_some(sorted(names)) or 'none'}")
    return {index: names[index] for index in sorted(names)}
