"""Every data set by its name: what it is called, what it holds, how it is opened."""

from collections.abc import Callable
from dataclasses import dataclass
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
        depth_median_m: Where the median depth of its pictures lies, metres; outside, the scale is likely wrong.
    """

    title: str
    task: str | None
    evaluation_split: str
    open: Callable[[Path, str, str], Any]
    depth_median_m: tuple[float, float] | None = None


PUBLIC_DATASETS: dict[str, PublicDataset] = {
    "ade20k": PublicDataset("ADE20K", "segmentation", "val", Ade20kDataset),
    "cityscapes": PublicDataset("Cityscapes", "segmentation", "val", CityscapesDataset),
    "kitti": PublicDataset("KITTI", "depth", "test", KittiDataset, (4.0, 40.0)),
    "nyu": PublicDataset("NYU-Depth V2", "depth", "test", NyuDataset, (1.0, 8.0)),
    "nyu-labelled": PublicDataset(
        "NYU-Depth V2, labelled", "depth", "test", lambda root, split, missing: NyuLabelledDataset(root, split), (1.0, 8.0)
    ),
    "sun-rgbd": PublicDataset(
        "SUN RGB-D", "depth", "test", lambda root, split, missing: SunRgbdDataset(root, split, missing=missing), (0.8, 8.0)
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
