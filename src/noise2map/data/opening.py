"""Every data set by its name: what it is called, what it holds, how it is opened."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from noise2map.data.ade20k import Ade20kDataset
from noise2map.data.cityscapes import CityscapesDataset
from noise2map.data.folder import FolderDataset
from noise2map.data.freedoom.dataset import FreedoomDataset
from noise2map.data.freedoom.shipped import load_samples
from noise2map.data.kitti import KittiDataset
from noise2map.data.lsun import LsunDataset
from noise2map.data.nyu import NyuDataset, NyuLabelledDataset
from noise2map.data.sun_rgbd import SunRgbdDataset


def evaluation_split(name: str) -> str:
    """The split that scores are reported for: that of the published scores for a public data set, else ``"test"``."""
    return PUBLIC_DATASETS[name].evaluation_split if name in PUBLIC_DATASETS else _EVALUATED.get(name, "test")


@dataclass(frozen=True)
class PublicDataset:
    """A public data set in its released layout.

    Attributes:
        title: Its full name.
        task: What its maps are for: ``"segmentation"`` or ``"depth"``; None if it has none.
        evaluation_split: The split that scores are published for.
        open: ``open(root, split, missing)``, ``missing`` being ``"raise"`` or ``"drop"``.
        released: Number of samples of the splits as released; for KITTI, those with depth.
        depth_median_m: Where the median depth of its pictures lies, metres; outside, the scale is likely wrong.
        units_per_metre: What its depth files hold.
    """

    title: str
    task: str | None
    evaluation_split: str
    open: Callable[[Path, str, str], Any]
    released: Mapping[str, int] = field(default_factory=dict)
    depth_median_m: tuple[float, float] | None = None
    units_per_metre: float | None = None


PUBLIC_DATASETS: dict[str, PublicDataset] = {
    "ade20k": PublicDataset("ADE20K", "segmentation", "val", Ade20kDataset, {"train": 20210, "val": 2000}),
    "cityscapes": PublicDataset("Cityscapes", "segmentation", "val", CityscapesDataset, {"train": 2975, "val": 500, "test": 1525}),
    "kitti": PublicDataset("KITTI", "depth", "test", KittiDataset, {"train": 23158, "test": 652}, (4.0, 40.0), 256),
    "nyu": PublicDataset("NYU-Depth V2", "depth", "test", NyuDataset, {"train": 24231, "test": 654}, (1.0, 8.0), 1000),
    "nyu-labelled": PublicDataset(
        "NYU-Depth V2, labelled",
        "depth",
        "test",
        lambda root, split, missing: NyuLabelledDataset(root, split),
        {"train": 795, "test": 654, "all": 1449},
        (1.0, 8.0),
    ),
    "sun-rgbd": PublicDataset(
        "SUN RGB-D",
        "depth",
        "test",
        lambda root, split, missing: SunRgbdDataset(root, split, missing=missing),
        {"test": 5050, "all": 10335},
        (0.8, 8.0),
        1000,
    ),
    "lsun": PublicDataset("LSUN", None, "val", lambda root, split, missing: LsunDataset(root, split=split)),
}


def open_public_dataset(
    name: str, root: str | Path, split: str | None = None, task: str | None = None, missing: str = "raise"
) -> Any:
    """Open a public data set.

    Args:
        name: A key of ``PUBLIC_DATASETS``.
        root: Its folder.
        split: Split, by default the one that scores are published for.
        task: Refuse the data set if its maps are for another task than this.
        missing: ``"raise"`` refuses an incomplete data set, ``"drop"`` takes what is there.

    Raises:
        FileNotFoundError: If a folder, list or file is missing, saying what was expected.
        ImportError: If an optional package is needed.
        ValueError: If the name or the split is unknown, or the maps are not for the task.
    """
    if name not in PUBLIC_DATASETS:
        raise ValueError(f"dataset must be one of {', '.join(PUBLIC_DATASETS)}, got {name!r}")
    kind = PUBLIC_DATASETS[name]
    if task is not None and task != kind.task:
        holds = f"maps for {kind.task}" if kind.task else "no maps"
        raise ValueError(f"{kind.title} has {holds}; it cannot be used for {task}")
    return kind.open(Path(root), kind.evaluation_split if split is None else split, missing)


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


BEV_DATA_SETS = ("nuscenes", "freedoom-surround")
