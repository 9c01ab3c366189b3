"""The user's own pictures: ``ROOT/images`` and ``ROOT/maps``, paired by file name without suffix."""

import colorsys
import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from noise2map.data.images import image_size, list_images, open_class_map, open_depth_map, open_image, open_normals_map
from noise2map.data.paired import IGNORE, name_some
from noise2map.runs.data_split import DataSplit, file_checksum

_TASKS = ("segmentation", "depth", "normals")
_GOLDEN_ANGLE = 0.618033988749895


class FolderDataset:
    """Images with class maps or depth maps from a folder, as raw samples.

    ``ROOT/images/kitchen.jpg`` belongs to ``ROOT/maps/kitchen.png``. Class maps are single-channel images of ids; 255 is
    "not known". Depth maps are 16-bit images; 0 is "not known". Normals are RGB images, see
    :func:`noise2map.data.images.open_normals_map`. Names of classes come from ``id2label`` or from
    ``ROOT/classes.json``: a list, or an object from id to name.

    Args:
        root: The folder.
        task: ``"segmentation"``, ``"depth"`` or ``"normals"``.
        id2label: Names of the classes (segmentation), ids 0 to K - 1.
        depth_scale: Metres per unit of the depth maps; 0.001 for millimetres.
        intrinsics: ``fx, fy, cx, cy`` in pixels, the same for all images, if known.
        images: Name of the image folder.
        maps: Name of the map folder.

    Attributes:
        id2label: Names of the classes; empty for other maps.
        palette: A colour for each class, ``(K, 3)`` uint8.
        ids: Names of the pairs, sorted.

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
    ) -> None:
        if task not in _TASKS:
            raise ValueError(f"task is {task!r}; expected one of {', '.join(map(repr, _TASKS))}")
        if not (np.isfinite(depth_scale) and depth_scale > 0):
            raise ValueError(f"depth_scale is {depth_scale!r}; expected metres per unit, a positive number")
        if intrinsics is not None and (len(intrinsics) != 4 or not np.isfinite(np.asarray(intrinsics, float)).all()):
            raise ValueError(f"intrinsics is {intrinsics!r}; expected fx, fy, cx, cy in pixels")
        self.root, self.task, self.depth_scale = Path(root), task, float(depth_scale)
        self.intrinsics = None if intrinsics is None else np.array(intrinsics, np.float32)
        image_of, map_of = _by_stem(self.root / images), _by_stem(self.root / maps)
        _check_pairs(image_of, map_of, images, maps, self.root)
        self.ids = sorted(image_of)
        self._pairs = [(image_of[name], map_of[name]) for name in self.ids]
        for image_path, map_path in self._pairs:
            if image_size(image_path) != image_size(map_path):
                sizes = ["x".join(map(str, image_size(path))) for path in (image_path, map_path)]
                raise ValueError(f"{image_path} is {sizes[0]} and its map {map_path} is {sizes[1]}; they must be equal")
        self.id2label: dict[int, str] = {}
        if task == "segmentation":
            self.id2label = _check_names(dict(id2label)) if id2label is not None else read_classes(self.root / "classes.json")
        self.palette = distinct_colours(len(self.id2label))

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The raw sample: ``image``, ``labels``, ``depth_m`` with ``valid`` or ``normals``, ``id``, and ``intrinsics`` if given."""
        image_path, map_path = self._pairs[index]
        sample: dict[str, Any] = {"image": open_image(image_path), "id": self.ids[index]}
        if self.task == "segmentation":
            sample["labels"] = self._read_labels(map_path)
        elif self.task == "normals":
            sample["normals"] = open_normals_map(map_path)
        else:
            sample["depth_m"] = open_depth_map(map_path, self.depth_scale)
            sample["valid"] = sample["depth_m"] > 0
        if self.intrinsics is not None:
            sample["intrinsics"] = self.intrinsics.copy()
        return sample

    @property
    def image_files(self) -> dict[str, Path]:
        """The image file of each pair, by its name."""
        return {name: image_path for name, (image_path, _) in zip(self.ids, self._pairs)}

    def only(self, names: Sequence[str]) -> "FolderDataset":
        """The same data set with some of its pairs."""
        part, kept = copy.copy(self), set(names)
        part._pairs = [pair for name, pair in zip(self.ids, self._pairs) if name in kept]
        part.ids = [name for name in self.ids if name in kept]
        return part

    def check(self) -> None:
        """Read every pair, so that a broken file or an unknown id shows before a long run and not in its middle."""
        for index in range(len(self)):
            self[index]

    def _read_labels(self, path: Path) -> np.ndarray:
        labels = open_class_map(path)
        unknown = [int(value) for value in np.unique(labels) if value != IGNORE and int(value) not in self.id2label]
        if unknown:
            known = f"0 to {len(self.id2label) - 1}, and {IGNORE} for pixels to ignore"
            raise ValueError(f"{path} has unknown class ids {name_some(unknown)}; known are {known}")
        return labels.astype(np.uint8)


@dataclass(frozen=True)
class FolderPart:
    """A split of a folder, and what the models that are to be scored on it have seen of it.

    Attributes:
        dataset: Its pairs.
        split: Its name.
        trained_on: How many of its images one of the models was trained on; None if no model has a record of that.
    """

    dataset: FolderDataset
    split: str
    trained_on: int | None

    def text(self) -> str:
        """One line for the user."""
        said = f"split {self.split} of {self.dataset.root}: {len(self.dataset)} images"
        if self.trained_on is None:
            return f"{said}; the model has no record of what it was trained on"
        return f"{said}, {self.trained_on} of these were trained on" if self.trained_on else f"{said}, none of them trained on"


def open_folder_part(
    root: str | Path,
    split: str | None,
    task: str,
    records: Sequence[DataSplit | None],
    id2label: Mapping[int, str] | None = None,
    depth_scale: float = 0.001,
) -> FolderPart:
    """Open a split of a folder to score models on.

    ``ROOT/images`` has the splits ``train`` and ``val`` of the model that was trained on it, and ``all``; a folder of folders
    (``ROOT/val/images``) has those.

    Args:
        root: The folder.
        split: Name of the split; by default the images that were held out in training, all if none of them was seen; of a folder
            of folders ``test`` or ``val``.
        task: ``"segmentation"`` or ``"depth"``.
        records: What each model was trained on, as far as it is known.
        id2label: The model's classes, for a folder without ``classes.json``.
        depth_scale: Metres per unit of the depth maps.

    Raises:
        OSError: If a folder is missing.
        ValueError: If there is no such split, or it holds no image.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"data folder {root} does not exist")
    parts = sorted(path.name for path in root.iterdir() if (path / "images").is_dir())
    trained = {checksum for record in records if record is not None for checksum in record.train.values()}
    held_out = {checksum for record in records if record is not None for checksum in record.val.values()} - trained
    known = any(record is not None for record in records)

    def opened(folder: Path) -> tuple[FolderDataset, dict[str, str]]:
        classes = next((name for name in (folder, root) if (name / "classes.json").is_file()), None)
        names = None if task == "depth" else id2label if classes is None else read_classes(classes / "classes.json")
        dataset = FolderDataset(folder, task, names, depth_scale)
        return dataset, {name: file_checksum(path) for name, path in dataset.image_files.items()} if known else {}

    if parts and not (root / "images").is_dir():
        chosen = split or next((name for name in ("test", "val") if name in parts), parts[0] if len(parts) == 1 else "")
        if chosen not in parts:
            raise ValueError(f"split of {root} must be one of {', '.join(parts)}, got {split!r}")
        dataset, checksums = opened(root / chosen)
    else:
        dataset, checksums = opened(root)
        seen = {checksum for checksum in checksums.values() if checksum in trained or checksum in held_out}
        splits = ("all", "train", "val") if seen else ("all",)
        chosen = split or ("val" if seen else "all")
        if chosen not in splits:
            why = "" if seen else "; the model has no record of being trained on it"
            raise ValueError(f"split of {root} must be one of {', '.join(splits)}, got {split!r}{why}")
        wanted = {"train": trained, "val": held_out, "all": set(checksums.values())}[chosen]
        if chosen != "all":
            dataset = dataset.only([name for name, checksum in checksums.items() if checksum in wanted])
        if not len(dataset):
            raise ValueError(f"split {chosen} of {root} holds no image; choose --split all, which says how many were trained on")
    return FolderPart(dataset, chosen, sum(checksums[name] in trained for name in dataset.ids) if known else None)


def distinct_colours(count: int) -> np.ndarray:
    """``count`` colours ``(count, 3)`` uint8: hues by the golden angle, in three lightnesses."""
    colours = [colorsys.hls_to_rgb(index * _GOLDEN_ANGLE % 1, (0.5, 0.65, 0.35)[index % 3], 0.65) for index in range(count)]
    return np.rint(np.array(colours, float).reshape(count, 3) * 255).astype(np.uint8)


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in list_images(folder):
        if path.stem in found:
            raise ValueError(f"{found[path.stem]} and {path} have the same name; which one is meant?")
        found[path.stem] = path
    return found


def _check_pairs(image_of: dict[str, Path], map_of: dict[str, Path], images: str, maps: str, root: Path) -> None:
    for here, there, one, other in ((image_of, map_of, images, maps), (map_of, image_of, maps, images)):
        alone = sorted(here[name].name for name in here.keys() - there.keys())
        if alone:
            raise ValueError(f"{len(alone)} files in {root / one} have no partner in {root / other}: {name_some(alone)}")


def read_classes(path: Path) -> dict[int, str]:
    """Names of the classes by id from a ``classes.json``.

    Raises:
        ValueError: If there is no such file, or it is neither a list of names nor an object from id to name.
    """
    if not path.is_file():
        raise ValueError(f'the classes are not known: give id2label, or write {path}, such as {{"0": "floor", "1": "wall"}}')
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
