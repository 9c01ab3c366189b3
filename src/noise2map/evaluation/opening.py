"""The labelled samples that models are scored on, the same for ``noise2map evaluate`` and the experiments."""

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from noise2map.data.checking import check_classes, warn_of_scale
from noise2map.data.opening import evaluation_split, open_dataset
from noise2map.data.subsets import Redrawn
from noise2map.data.transforms import Hide
from noise2map.evaluation.official import apply_crop
from noise2map.evaluation.seen import FolderPart, open_folder_part
from noise2map.runs.data_split import DataSplit
from noise2map.tasks import task_of
from noise2map.tasks.base import Task
from noise2map.tasks.bev import map_extent, open_bev_dataset

logger = logging.getLogger(__name__)

# Does not decide a score: neither is part of what an output folder remembers.
_HOW_IT_RUNS = ("batch_size", "device")


@dataclass(frozen=True, kw_only=True)
class ScoredData:
    """Options of every command that scores models on labelled samples.

    Attributes:
        dataset: Name of the dataset.
        root: Its folder.
        split: Its split; None for the one that scores are reported for.
        hide: What of each image is covered, a kind of :class:`noise2map.data.transforms.Hide`; None for nothing.
        cells: ``"all"`` also scores cells that cannot be seen, apart (freedoom-surround).
        depth_scale: Metres per unit of a folder's depth maps.
        limit: Samples to score, 0 for all.
        batch_size: Samples at a time.
        device: Device by name.
        dtype: Floating-point type by name.
        seed: Seed of the noise.
        resamples: Bootstrap resamples.
        cluster: What intervals resample: `"image"`, or `"map"` with all its images.
    """

    dataset: str = "samples"
    root: Path | None = None
    split: str | None = None
    hide: str | None = None
    cells: str = "visible"
    depth_scale: float = 0.001
    limit: int = 0
    batch_size: int = 8
    device: str = "auto"
    dtype: str = "float32"
    seed: int = 0
    resamples: int = 1000
    cluster: str = "image"

    def chosen(self) -> dict[str, Any]:
        """All options that decide a score; the folder of the data is made absolute."""
        fields = {name: value for name, value in asdict(self).items() if name not in _HOW_IT_RUNS}
        return {**fields, "root": self.root and os.path.abspath(self.root)}


def same_place(model: str) -> str:
    """The name of a model, absolute where it is a folder: what an output folder remembers of it."""
    return os.path.abspath(model) if Path(model).is_dir() else model


@dataclass(frozen=True)
class LoadedModel:
    """A model to be scored.

    Attributes:
        name: What the user calls it.
        model: The network.
        processor: Its image processor.
    """

    name: str
    model: Any
    processor: Any


@dataclass(frozen=True)
class LabelledData:
    """Labelled samples.

    Attributes:
        split: Name of their split.
        datasets: The samples as each model reads them, in the order of the models.
        trained_on: Images of the own folder that the models were trained on, where that is known.
    """

    split: str
    datasets: list[Any]
    trained_on: int | None = None


def open_labelled(chosen: ScoredData, models: Sequence[LoadedModel], test_protocol: str = "plain") -> LabelledData:
    """Open the samples, warn of classes and scales that do not fit, and cover what is to be hidden.

    Args:
        chosen: Which samples.
        models: Models of one task.
        test_protocol: Test protocol whose crop the images get, see `noise2map.evaluation.official.find_protocol`.

    Raises:
        OSError: If a folder or a file is missing or cannot be read.
        ValueError: If models and data do not fit, or an option is not for this task or dataset.
    """
    task = task_of(models[0].model)
    if chosen.cells != "visible" and chosen.dataset != "freedoom-surround":
        raise ValueError(f"cells is {chosen.cells!r}, which freedoom-surround can tell; {chosen.dataset} needs 'visible'")
    if chosen.hide is not None and not task.of_images:
        raise ValueError(f"hide is {chosen.hide!r}, but bird's-eye-view samples are evaluated as they are; expected no hide")
    own = _own_folder(chosen, task, models) if chosen.dataset == "folder" and task.of_images else None
    if own is None:
        split = evaluation_split(chosen.dataset) if chosen.split is None else chosen.split
        datasets = _open(chosen, task, split, models, test_protocol)
    else:
        logger.info(own.text())
        split, datasets = own.split, [own.dataset] * len(models)
    if chosen.cluster == "map" and len(datasets[0]) and datasets[0][0].get("location") is None:
        raise ValueError(f"the {task.things} do not say of which map they are; intervals can resample images alone")
    _warn(chosen, task, split, models, datasets, own)
    if chosen.hide is not None:
        datasets = [Redrawn(one, Hide(chosen.hide), chosen.seed) for one in datasets]
    return LabelledData(split, datasets, own.trained_on if own is not None else None)


def _own_folder(chosen: ScoredData, task: Task, models: Sequence[LoadedModel]) -> FolderPart:
    """The split of the user's own folder, by default what the models were not trained on."""
    if chosen.root is None:
        raise ValueError("dataset 'folder' needs the folder of the data (--root)")
    names = models[0].model.config.id2label if task.has_classes else None
    splits = [DataSplit.read(one.name) for one in models]
    return open_folder_part(chosen.root, chosen.split, task.name, splits, names, chosen.depth_scale)


def _open(chosen: ScoredData, task: Task, split: str, models: Sequence[LoadedModel], test_protocol: str) -> list[Any]:
    """The dataset for each model; models for bird's-eye-view maps may need other sensors, but the same map."""
    where = (chosen.dataset, chosen.root, split)
    if not task.of_images:
        extents = [map_extent(one.model.config) for one in models]
        if any(extent != extents[0] for extent in extents):
            raise ValueError(f"the models map areas of {extents}; expected the same area and cells to compare them")
        return [open_bev_dataset(*where, one.model, one.processor, chosen.cells) for one in models]
    data = task.open_dataset(*where, models[0].model, models[0].processor, chosen.depth_scale)
    return [apply_crop(data, chosen.dataset, test_protocol)] * len(models)


def _warn(
    chosen: ScoredData, task: Task, split: str, models: Sequence[LoadedModel], datasets: Sequence[Any], own: FolderPart | None
) -> None:
    for one, data in zip(models, datasets):
        warning = check_classes(data, one.model.config.id2label, one.name) if task.has_classes else None
        if warning:
            logger.warning("warning: %s: %s", one.name, warning)
    if task.in_metres:  # of whole images: what a protocol counts may lie nearer
        whole = own.dataset if own else open_dataset(chosen.dataset, chosen.root, split, task.name, None, chosen.depth_scale)
        warning = warn_of_scale(whole, chosen.dataset)
        if warning:
            logger.warning("warning: %s", warning)
