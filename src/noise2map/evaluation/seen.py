"""Splits of a folder to score models on, by what they were trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from noise2map.data.folder import ALL, FolderDataset, open_folder, split_names
from noise2map.runs.data_split import DataSplit, file_checksum


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
    root: str | Path | None,
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
        ValueError: If no root is given, there is no such split, or it holds no image.
    """
    if root is None:
        raise ValueError("dataset 'folder' needs the folder of the data (--root)")
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"data folder {root} does not exist")
    parts = [name for name in split_names(root) if name != ALL]
    if parts:
        chosen = split or next((name for name in ("test", "val") if name in parts), parts[0] if len(parts) == 1 else "")
        if chosen not in parts:
            raise ValueError(f"split of {root} must be one of {', '.join(parts)}, got {split!r}")
        dataset = open_folder(root, chosen, task, id2label, depth_scale)
    else:
        dataset = open_folder(root, ALL, task, id2label, depth_scale)
    if all(record is None for record in records):
        if not parts:
            chosen = _chosen(root, split, (ALL,))
        return FolderPart(dataset, chosen, None)
    trained = {checksum for record in records if record is not None for checksum in record.train.values()}
    checksums = {name: file_checksum(path) for name, path in dataset.image_files.items()}
    if not parts:
        held_out = {checksum for record in records if record is not None for checksum in record.val.values()} - trained
        seen = (trained | held_out) & set(checksums.values())
        chosen = _chosen(root, split or ("val" if seen else ALL), (ALL, "train", "val") if seen else (ALL,))
        if chosen != ALL:
            wanted = trained if chosen == "train" else held_out
            dataset = dataset.only([name for name, checksum in checksums.items() if checksum in wanted])
        if not len(dataset):
            raise ValueError(f"split {chosen} of {root} holds no image; choose --split all, which says how many were trained on")
    return FolderPart(dataset, chosen, sum(checksums[name] in trained for name in dataset.ids))


def _chosen(root: Path, split: str | None, splits: tuple[str, ...]) -> str:
    if split is not None and split not in splits:
        why = "" if len(splits) > 1 else "; the model has no record of being trained on it"
        raise ValueError(f"split of {root} must be one of {', '.join(splits)}, got {split!r}{why}")
    return split or ALL
