"""Reads a rendered split, or the shipped samples, as raw samples in physical units."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from noise2map.data.freedoom import format as store
from noise2map.data.freedoom.catalog import DEFAULT_GAIN, SPLITS, brighten, check_classes, class_names, class_palette, merge_classes
from noise2map.data.images import open_image
from noise2map.data.maps import MAP_KINDS, MapKind

# Task -> what kinds of maps its samples hold beside the image.
_TASKS: dict[str, tuple[MapKind, ...]] = {
    **{task: (kind,) for task, kind in MAP_KINDS.items()},
    "both": (MAP_KINDS["segmentation"], MAP_KINDS["depth"]),
    "all": tuple(MAP_KINDS.values()),
    "image": (),
}


class FreedoomDataset:
    """Frames of a split rendered by ``noise2map data freedoom``.

    Args:
        root: Folder of the split.
        task: What a sample holds beside the image: ``"segmentation"``, ``"depth"``, ``"normals"``, ``"both"`` of the
            first two, ``"all"`` of them, or ``"image"`` for nothing.
        classes: 10, or 8 with step merged into wall and item into decor.
        gain: How much to brighten the images, see :func:`noise2map.data.freedoom.brighten`; 1 leaves them as drawn.
        limit: Use the first ``limit`` frames only. The frames of a map stand together in runs of 20.

    Attributes:
        id2label: Names of the classes.
        palette: Colors of the classes, ``(K, 3)`` uint8.
        split: ``train``, ``val`` or ``test``.
        records: The metadata of each frame: map, position in metres, yaw, intrinsics, classes in view.

    Raises:
        FileNotFoundError: If ``root`` is not a rendered split, or was rendered before normals were and they are asked for.
        ValueError: If an argument is out of range, or the split holds no finished frame.
    """

    def __init__(
        self,
        root: str | Path,
        task: str = "segmentation",
        classes: int = 10,
        gain: float = DEFAULT_GAIN,
        limit: int | None = None,
    ) -> None:
        if task not in _TASKS:
            raise ValueError(f"task is {task!r}; expected one of {', '.join(_TASKS)}")
        if limit is not None and limit < 1:
            raise ValueError(f"limit is {limit}; expected at least 1, or None for all frames")
        brighten(Image.new("RGB", (1, 1)), gain)  # refuses an impossible gain now, not at the first frame
        self.root, self.task, self.classes, self.gain = Path(root), task, check_classes(classes), gain
        self.kinds = _TASKS[task]
        self.id2label, self.palette = class_names(classes), class_palette(classes)
        self.split: str = store.read_description(self.root)["split"]
        records = store.finished_records(self.root)
        self.records = [records[index] for index in sorted(records)][:limit]
        if not self.records:
            raise ValueError(f"{self.root} holds no finished frame")
        for kind in self.kinds:
            if kind.folder not in store.PARTS:
                self._require(kind.folder)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The raw sample: ``image`` (RGB, brightened), what the task asks for, ``intrinsics``, ``id``, ``location`` (the map).

        ``depth_m`` ``(H, W)`` float32 is in metres along the horizontal optical axis; 0 and not ``valid`` where there is sky
        or where geometry and engine disagree. ``labels`` ``(H, W)`` uint8 is 255 there, but knows the sky. ``normals``
        ``(H, W, 3)`` float32 are unit vectors (x right, y up, z towards the viewer), zero where depth is.
        """
        record = self.records[index]
        number = record["index"]
        sample: dict[str, Any] = {
            "image": brighten(open_image(store.file_of(self.root, "image", number)), self.gain),
            "intrinsics": np.array(record["intrinsics"], np.float32),
            "id": record["id"],
            "location": record["map"],
        }
        for kind in self.kinds:
            kind.read_into(sample, self._file(kind.folder, number), 1 / store.CENTIMETRES)
        if "labels" in sample:
            labels = sample["labels"].astype(np.uint8)
            sample["labels"] = labels if self.classes == 10 else merge_classes(labels)
        return sample

    def _require(self, part: str) -> None:
        """Refuse a split that was rendered before there were files of some part."""
        missing = [record["index"] for record in self.records if not self._file(part, record["index"]).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{self.root} has no {part} for {len(missing)} of its {len(self.records)} frames, such as number {missing[0]}: "
                "they were rendered by an older version; render them again into another folder"
            )

    def _file(self, part: str, number: int) -> Path:
        return store.file_of(self.root, part, number)


def is_rendered(folder: Path) -> bool:
    """True if a folder is a rendered split."""
    return (folder / store.DESCRIPTION).is_file()


def split_folder(root: str | Path, split: str) -> Path:
    """The folder of a split within one of several splits; any other folder is what was meant, and stays."""
    root = Path(root)
    several = not is_rendered(root) and any(is_rendered(root / name) for name in SPLITS)
    return root / split if several else root


def open_rendered(root: str | Path, split: str | None = None, task: str = "segmentation", **options: Any) -> FreedoomDataset:
    """Open a split from its folder or from the folder of several splits.

    Args:
        root: The folder of the split, or one with ``train/``, ``val/`` or ``test/``.
        split: The split; by default the one that ``root`` holds, or ``test/`` in it.
        task: See :class:`FreedoomDataset`.
        **options: Likewise.

    Raises:
        FileNotFoundError: If the split is not there, naming those that are, and the command that makes it.
        ValueError: If ``root`` holds another split.
    """
    root = Path(root)
    wanted = split or (root.name if root.name in SPLITS else "test")
    folder = next((place for place in (root / wanted, root) if is_rendered(place)), None)
    if folder is None:
        there = [name for name in SPLITS if is_rendered(root / name)]
        found = f"; it holds {' and '.join(there)}" if there else ""
        target = root if root.name == wanted else root / wanted
        command = f"noise2map data freedoom --split {wanted} --out {target}"
        fault = f"holds no rendered split {wanted!r}{found}" if root.is_dir() else "does not exist"
        raise FileNotFoundError(f"{root} {fault} (make it with: {command})")
    dataset = FreedoomDataset(folder, task, **options)
    if split is not None and dataset.split != split:
        raise ValueError(f"{folder} holds the split {dataset.split!r}, not {split!r}")
    return dataset
