"""Every data set by its name: what it is called, what it holds, how it is opened."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from noise2map.data.ade20k import Ade20kDataset
from noise2map.data.cityscapes import CityscapesDataset
from noise2map.data.kitti import KittiDataset
from noise2map.data.lsun import LsunDataset
from noise2map.data.nyu import NyuDataset
from noise2map.data.nyu_labelled import NyuLabelledDataset
from noise2map.data.sun_rgbd import SunRgbdDataset


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
