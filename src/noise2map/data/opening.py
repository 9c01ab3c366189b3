"""The opener of datasets by name, ``name[/split]:root``, and one table of what is known of each."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from noise2map.data.ade20k import Ade20kDataset
from noise2map.data.ade20k_classes import CLASSES as ADE20K_CLASSES
from noise2map.data.center_crop import DepthFolder, ImageFolder
from noise2map.data.cityscapes import CLASSES as CITYSCAPES_CLASSES
from noise2map.data.cityscapes import CityscapesDataset
from noise2map.data.evaluation_crops import EVALUATION_CROPS, EvaluationCrop
from noise2map.data.folder import ALL, open_folder, usual_split
from noise2map.data.freedoom.catalog import SPLITS as FREEDOOM_MAPS
from noise2map.data.freedoom.catalog import class_names
from noise2map.data.freedoom.dataset import is_rendered, open_rendered
from noise2map.data.freedoom.shipped import LARGE, load_samples
from noise2map.data.freedoom.surround import SURROUND_LAYERS, FreedoomSurroundDataset
from noise2map.data.kitti import KittiDataset
from noise2map.data.lsun import LsunDataset
from noise2map.data.maps import MAP_KINDS
from noise2map.data.nuscenes import MAP_LAYERS, NuScenesDataset
from noise2map.data.nyu import NyuDataset, NyuLabelledDataset
from noise2map.data.sun_rgbd import SunRgbdDataset

Opener = Callable[..., Any]

_WORDS = {"bev": "bird's-eye-view maps", "image": "images"}


def evaluation_split(name: str, root: str | Path | None = None) -> str:
    """The split that scores are reported for.

    Args:
        name: A key of ``DATASETS``.
        root: Its folder, which decides for a folder of one's own: ``test/`` or ``val/`` in it, else all of it.
    """
    known = DATASETS[name].evaluation_split if name in DATASETS else "test"
    return known or (ALL if root is None else usual_split(Path(root)))


@dataclass(frozen=True)
class DatasetFacts:
    """Facts about a dataset before it is opened.

    Attributes:
        title: Its full name.
        open: Opens it, given its folder, split, task and options.
        tasks: What its maps are for.
        evaluation_split: The split that scores are reported for; None where the folder decides.
        splits: Its splits, as far as they have fixed names.
        images: Whether it has single images.
        takes_root: Whether it lies in a folder that has to be named.
        classes: Names of the classes or layers, without opening it; None where the folder decides or there are none.
        augmentation: The published augmentation, a key of ``PUBLISHED`` of :mod:`noise2map.data.transforms.presets`.
        evaluation_crop: Which pixels the published evaluation counts, from raw sample to raw sample.
        released: Number of samples of the splits as released; for KITTI, those with depth.
        depth_median_m: Where the median depth of its images lies, metres; outside, the scale is likely wrong.
        units_per_metre: What its depth files hold.
        extra: The optional packages that it needs.
    """

    title: str
    open: Opener
    tasks: tuple[str, ...] = ()
    evaluation_split: str | None = "test"
    splits: tuple[str, ...] = ()
    images: bool = True
    takes_root: bool = True
    classes: Mapping[int, str] | None = None
    augmentation: str | None = None
    evaluation_crop: EvaluationCrop | None = None
    released: Mapping[str, int] = field(default_factory=dict)
    depth_median_m: tuple[float, float] | None = None
    units_per_metre: float | None = None
    extra: str | None = None

    @property
    def task(self) -> str | None:
        """The task of its maps where there is only one."""
        return self.tasks[0] if len(self.tasks) == 1 else None


def _of_folder(root: Path, split: str | None, task: str | None, **options: Any) -> Any:
    return open_folder(root, split, task or "segmentation", **options)


def _of_freedoom(root: Path, split: str | None, task: str | None, **options: Any) -> Any:
    return open_rendered(root, split, task or "segmentation", **_freedoom_options(options))


def _of_samples(root: Path, split: str | None, task: str | None, **options: Any) -> Any:
    return load_samples(split or "test", task or "segmentation", **_freedoom_options(options))


def _freedoom_options(options: dict[str, Any]) -> dict[str, Any]:
    """A model with eight classes gets the eight of Freedoom, any other all ten."""
    kept = _without(options, ("missing", "depth_scale", "id2label"))
    if options["id2label"] and "classes" not in kept:
        kept["classes"] = 8 if len(options["id2label"]) == 8 else 10
    return kept


def _released(kind: Callable[..., Any], split: str, droppable: bool = True) -> Opener:
    """Opens a dataset that has splits and, if ``droppable``, files that may be missing one by one."""
    ours = ("id2label", "depth_scale", *(() if droppable else ("missing",)))

    def opener(root: Path, chosen: str | None, task: str | None, **options: Any) -> Any:
        return kind(root, split=chosen or split, **_without(options, ours))

    return opener


def _of_lsun(root: Path, split: str | None, task: str | None, **options: Any) -> Any:
    """A root that is a database has its split in its name."""
    chosen = split or (None if (root / "data.mdb").is_file() else "val")
    return LsunDataset(root, split=chosen, **_without(options, ("id2label", "depth_scale", "missing")))


def _without(options: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}


def _named(table: Iterable[Any]) -> dict[int, str]:
    return {index: entry if isinstance(entry, str) else entry[0] for index, entry in enumerate(table)}


_FREEDOOM_TASKS = (*MAP_KINDS, "both")

_PARTS = ("train", "test", ALL)

DATASETS: dict[str, DatasetFacts] = {
    "freedoom": DatasetFacts("Freedoom", _of_freedoom, _FREEDOOM_TASKS, splits=tuple(FREEDOOM_MAPS), classes=class_names(10)),
    "samples": DatasetFacts(
        "Freedoom, shipped frames",
        _of_samples,
        _FREEDOOM_TASKS,
        splits=(*FREEDOOM_MAPS, LARGE),
        classes=class_names(10),
        takes_root=False,
    ),
    "folder": DatasetFacts("images/ and maps/", _of_folder, tuple(MAP_KINDS), None, ("train", "val", ALL)),
    "images": DatasetFacts("images alone", lambda root, *_, **options: ImageFolder(root), (), None),
    "depth-maps": DatasetFacts(
        "depth maps alone", lambda root, *_, **options: DepthFolder(root, options["depth_scale"]), (), None, images=False
    ),
    "ade20k": DatasetFacts(
        "ADE20K",
        _released(Ade20kDataset, "val"),
        ("segmentation",),
        "val",
        ("train", "val"),
        classes=_named(ADE20K_CLASSES),
        augmentation="ade20k",
        released={"train": 20210, "val": 2000},
    ),
    "cityscapes": DatasetFacts(
        "Cityscapes",
        _released(CityscapesDataset, "val"),
        ("segmentation",),
        "val",
        ("train", "val", "test"),
        classes=_named(CITYSCAPES_CLASSES),
        augmentation="cityscapes",
        released={"train": 2975, "val": 500, "test": 1525},
    ),
    "kitti": DatasetFacts(
        "KITTI",
        _released(KittiDataset, "test"),
        ("depth",),
        "test",
        _PARTS,
        augmentation="kitti",
        evaluation_crop=EVALUATION_CROPS["kitti"],
        released={"train": 23158, "test": 652},
        depth_median_m=(4.0, 40.0),
        units_per_metre=256,
    ),
    "nyu": DatasetFacts(
        "NYU-Depth V2",
        _released(NyuDataset, "test"),
        ("depth",),
        "test",
        _PARTS,
        augmentation="nyu",
        evaluation_crop=EVALUATION_CROPS["nyu"],
        released={"train": 24231, "test": 654},
        depth_median_m=(1.0, 8.0),
        units_per_metre=1000,
    ),
    "nyu-labelled": DatasetFacts(
        "NYU-Depth V2, labelled",
        _released(NyuLabelledDataset, "test", droppable=False),
        ("depth",),
        "test",
        _PARTS,
        augmentation="nyu",
        evaluation_crop=EVALUATION_CROPS["nyu-labelled"],
        released={"train": 795, "test": 654, "all": 1449},
        depth_median_m=(1.0, 8.0),
        extra="nyu",
    ),
    "sun-rgbd": DatasetFacts(
        "SUN RGB-D",
        _released(SunRgbdDataset, "test"),
        ("depth",),
        "test",
        ("test", ALL),
        evaluation_crop=EVALUATION_CROPS["sun-rgbd"],
        released={"test": 5050, "all": 10335},
        depth_median_m=(0.8, 8.0),
        units_per_metre=1000,
    ),
    "lsun": DatasetFacts("LSUN", _of_lsun, (), "val", ("train", "val", "test"), extra="lsun"),
    "nuscenes": DatasetFacts(
        "nuScenes",
        _released(NuScenesDataset, "val", droppable=False),
        ("bev",),
        "val",
        ("train", "val", "test", "mini_train", "mini_val"),
        classes=_named(MAP_LAYERS),
        images=False,
        extra="bev",
    ),
    "freedoom-surround": DatasetFacts(
        "Freedoom, surround views",
        _released(FreedoomSurroundDataset, "test", droppable=False),
        ("bev",),
        splits=tuple(FREEDOOM_MAPS),
        classes=_named(SURROUND_LAYERS),
        images=False,
        extra="bev",
    ),
}

"""Every dataset by its name."""

PUBLIC_DATASETS: dict[str, DatasetFacts] = {
    name: DATASETS[name] for name in ("ade20k", "cityscapes", "kitti", "nyu", "nyu-labelled", "sun-rgbd", "lsun")
}

"""Those with single images that were published by others, in their released layout."""


def dataset_names(task: str | None = None) -> tuple[str, ...]:
    """Names of the datasets that have maps for a task; of all for None."""
    return tuple(name for name, facts in DATASETS.items() if task is None or _serves(facts, task))


def dataset_facts(name: str, task: str | None = None) -> DatasetFacts:
    """Facts about a dataset.

    Raises:
        ValueError: If there is none of that name, naming those that have maps for ``task``.
    """
    if name not in DATASETS:
        raise ValueError(f"dataset must be one of {', '.join(dataset_names(task))}, got {name!r}")
    return DATASETS[name]


def open_dataset(
    spec: str | Path,
    root: str | Path | None = None,
    split: str | None = None,
    task: str | None = None,
    id2label: Mapping[int, str] | None = None,
    depth_scale: float = 0.001,
    *,
    missing: str = "raise",
    **options: Any,
) -> Any:
    """Open a dataset of raw samples.

    Args:
        spec: ``"name"``, ``"name:root"`` or ``"name/split:root"``, such as ``"nyu/test:/data/nyu"``; ``DATASETS`` lists the names.
            Or the path of a folder: a rendered Freedoom split, an LSUN database, ``images/`` with ``maps/``, or images alone.
        root: Folder of the data, where ``spec`` does not name it.
        split: Split of the data, where ``spec`` does not name it; by default the one that scores are reported for. A folder of
            one's own is split into ``train/``, ``val/`` ... where it has such sub-folders; else ``"train"`` and ``"val"`` (each
            eighth pair) part it, and ``"all"`` is all of it.
        task: What the maps are for: ``"segmentation"``, ``"depth"``, ``"normals"``, ``"bev"``, or ``"image"`` for images alone. By
            default what the dataset has; ``"segmentation"`` where it has several.
        id2label: The model's classes: they choose between the eight and the ten classes of Freedoom, and name those of
            a folder without ``classes.json``.
        depth_scale: Metres per unit of a folder's depth maps.
        missing: ``"raise"`` refuses an incomplete dataset, ``"drop"`` takes what is there.
        **options: Arguments of one kind of dataset, e.g. ``gain``, ``hold_out_every``, ``sweeps``.

    Returns:
        A dataset with ``__len__`` and ``__getitem__``; ``id2label`` and ``palette`` where it has classes.

    Raises:
        FileNotFoundError: If a folder, list or file is missing, saying what was expected.
        ImportError: If an optional package is needed.
        ValueError: If the name or the split is unknown, the root is missing or superfluous, the maps are not for the task, or
            there is nothing in it.
    """
    name, split, folder = _parse(spec, root, split, task)
    facts = DATASETS[name]
    if task is not None and not _serves(facts, task):
        others = f"expected one of {', '.join(dataset_names(task))}"
        raise ValueError(f"{facts.title} has {_holds(facts)}; it cannot be used for {_WORDS.get(task, task)}, {others}")
    if (folder is None) != (not facts.takes_root):
        needs = f"needs the folder of the data (--root, or {name}:FOLDER)" if facts.takes_root else "is shipped and takes no root"
        raise ValueError(f"dataset {name!r} {needs}")
    return facts.open(
        Path(folder or "").expanduser(), split, task, id2label=id2label, depth_scale=depth_scale, missing=missing, **options
    )


def open_public_dataset(
    name: str, root: str | Path, split: str | None = None, task: str | None = None, missing: str = "raise"
) -> Any:
    """Open a public dataset in its released layout, see :func:`open_dataset`.

    Raises:
        ValueError: Also if ``name`` is no key of ``PUBLIC_DATASETS``.
    """
    if name not in PUBLIC_DATASETS:
        raise ValueError(f"dataset must be one of {', '.join(PUBLIC_DATASETS)}, got {name!r}")
    return open_dataset(name, root, split, task, missing=missing)


def _parse(
    spec: str | Path, root: str | Path | None, split: str | None, task: str | None
) -> tuple[str, str | None, str | Path | None]:
    """Name, split and root of what is to be opened."""
    before, colon, after = str(spec).partition(":")
    name, slash, named_split = before.partition("/")
    if name not in DATASETS:
        folder = Path(spec).expanduser()
        if root is None and folder.is_dir():
            return _kind_of_folder(folder, task), split, folder
        if root is None:
            names = ", ".join(dataset_names(task))
            raise FileNotFoundError(f"dataset must be one of {names}, or a folder; there is no folder {spec}")
        dataset_facts(str(spec), task)  # refuses the name
    if (colon and root is not None) or (slash and split is not None):
        raise ValueError(f"{spec!r} names the {'root' if colon and root is not None else 'split'}, which is given a second time")
    return name, (named_split or None) if slash else split, after if colon else root


def _kind_of_folder(folder: Path, task: str | None) -> str:
    """Kind of a folder, by its contents."""
    if is_rendered(folder):
        return "freedoom"
    if folder.name.endswith("_lmdb"):
        return "lsun"
    if any((place / "maps").is_dir() for place in (folder, folder / "train", folder / "val", folder / "test")):
        return "folder"
    if task not in (None, "image"):
        names = ", ".join(name for name in dataset_names(task) if name not in ("folder", "samples"))
        raise ValueError(
            f"{folder} has no {task} that could be read; expected a rendered Freedoom split, images/ with maps/, or a folder with "
            f"its kind before a colon: {names}"
        )
    return "images"


def _serves(facts: DatasetFacts, task: str) -> bool:
    return task in facts.tasks or (task == "image" and facts.images)


def _holds(facts: DatasetFacts) -> str:
    if not facts.tasks:
        return "no maps" if facts.images else "no images"
    return _WORDS["bev"] if not facts.images else f"maps for {' and '.join(task for task in facts.tasks if task != 'both')}"
