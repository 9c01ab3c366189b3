"""Opens a data set by the name that the command line uses."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noise2map.data import PUBLIC_DATASETS, FolderDataset, FreedoomDataset, load_samples, open_public_dataset
from noise2map.training.bev_section import BEV_DATA_SETS

DATASETS = ("freedoom", "samples", "folder", *(name for name, kind in PUBLIC_DATASETS.items() if kind.task is not None))
_FREEDOOM_CLASSES = (8, 10)
_EVALUATED = {"nuscenes": "val"}  # the others: "test"


def open_dataset(
    name: str,
    root: str | Path | None = None,
    split: str = "test",
    task: str = "segmentation",
    id2label: Mapping[int, str] | None = None,
    depth_scale: float = 0.001,
    **options: Any,
) -> Any:
    """Open a data set of raw samples.

    Args:
        name: `"freedoom"` (a split rendered by `noise2map data freedoom`), `"samples"` (the frames that ship with the
            package), `"folder"` (the user's own `images/` and `maps/`) or a public data set in its released layout:
            `"ade20k"`, `"cityscapes"`, `"kitti"`, `"nyu"`, `"nyu-labelled"`, `"sun-rgbd"`.
        root: Folder of the data; `root/split` is taken where it exists (not of a public data set).
        split: Split of the data.
        task: `"segmentation"` or `"depth"`.
        id2label: The model's classes: they choose between the eight and the ten classes of Freedoom, and name those of
            a folder without `classes.json`.
        depth_scale: Metres per unit of a folder's depth maps.
        **options: Passed on to the Freedoom data sets, e.g. `gain`.

    Returns:
        A data set with `__len__`, `__getitem__`, `id2label` and `palette`.

    Raises:
        FileNotFoundError: If the folder is missing.
        ValueError: If the name is unknown, the root is missing or superfluous, or the data is of another split or
            holds nothing.
    """
    if name in BEV_DATA_SETS:
        raise ValueError(f"dataset {name!r} holds bird's-eye-view maps; the model is one for {task}")
    if name not in DATASETS:
        raise ValueError(f"dataset must be one of {', '.join(DATASETS)}, got {name!r}")
    if (root is None) != (name == "samples"):
        asked = "ships with the package and takes no root" if name == "samples" else "needs the folder of the data (--root)"
        raise ValueError(f"dataset {name!r} {asked}")
    if name in PUBLIC_DATASETS:
        return open_public_dataset(name, root or "", split, task)
    if task == "segmentation" and name != "folder":
        options["classes"] = len(id2label) if id2label and len(id2label) in _FREEDOOM_CLASSES else max(_FREEDOOM_CLASSES)
    if name == "samples":
        return load_samples(split, task, **options)
    folder = Path(root or "")
    folder = folder / split if (folder / split).is_dir() else folder
    if not folder.is_dir():
        raise FileNotFoundError(f"data folder {folder} does not exist")
    if name == "folder":
        named = (folder / "classes.json").is_file()
        return FolderDataset(folder, task, None if named else id2label, depth_scale)
    dataset = FreedoomDataset(folder, task, **options)
    if dataset.split != split:
        raise ValueError(f"{folder} holds the split {dataset.split!r}, not {split!r}")
    return dataset


def evaluation_split(name: str) -> str:
    """The split that scores are reported for: that of the published scores for a public data set, else ``"test"``."""
    return PUBLIC_DATASETS[name].evaluation_split if name in PUBLIC_DATASETS else _EVALUATED.get(name, "test")


def check_classes(dataset: Any, id2label: Mapping[int, str], model_name: str) -> str | None:
    """Compare the classes of a data set with a model's.

    Returns:
        A warning where the numbers agree but names differ, else None.

    Raises:
        ValueError: If the numbers of classes differ.
    """
    known = {int(index): str(label) for index, label in id2label.items()}
    found = {int(index): str(label) for index, label in dataset.id2label.items()}
    if len(known) != len(found):
        raise ValueError(
            f"model {model_name!r} knows {len(known)} classes ({_some(known)}), the data has {len(found)} ({_some(found)})"
        )
    different = [index for index in found if found[index] != known.get(index)]
    if different:
        first = different[0]
        return f"class {first} is {known.get(first)!r} in the model and {found[first]!r} in the data ({len(different)} differ)"
    return None


def _some(names: Mapping[int, str]) -> str:
    listed = [names[index] for index in sorted(names)]
    return ", ".join(listed[:4]) + (", ..." if len(listed) > 4 else "")
