"""Data of a recipe of maps: datasets, class names, augmentation."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from noise2map.data.checking import warn_of_scale
from noise2map.data.folder import FolderDataset
from noise2map.data.freedoom.catalog import class_names as freedoom_classes
from noise2map.data.freedoom.dataset import split_folder
from noise2map.data.nuscenes import BevAugmentation, NuScenesDataset
from noise2map.data.opening import DATASETS, open_dataset
from noise2map.data.subsets import Cropped, Redrawn, SkipUnreadable, Subset, hold_out
from noise2map.data.transforms import Compose, Photometric, RatioResize, Transform, default_transform, published_transform
from noise2map.data.transforms.photometric import SurroundColors
from noise2map.models.bev import Noise2MapBevConfig, Noise2MapBevProcessor
from noise2map.runs.data_split import DataSplit
from noise2map.tasks import get_task
from noise2map.tasks.bev import bev_data_set
from noise2map.training.maps.recipe import FOLDERS, BevSection, Recipe


def bev_config(fields: Mapping[str, Any], size: tuple[int, int] | None) -> Noise2MapBevConfig:
    """The configuration of a bird's-eye-view model whose images are ``size`` (width, height)."""
    image = {} if size is None else {"image_size": [size[1], size[0]]}
    return Noise2MapBevConfig(**{**image, **fields})


def bev_processor(section: BevSection, size: tuple[int, int] | None) -> Noise2MapBevProcessor:
    """The processor for images of ``size`` (width, height)."""
    image = {} if size is None else {"image_size": (size[1], size[0])}
    return Noise2MapBevProcessor(image_scale=section.image_scale, sweeps=section.sweeps, **image)


def bev_transform(section: BevSection, dataset: NuScenesDataset, size: tuple[int, int] | None, photometric: float) -> Any:
    """The augmentation of training samples of a dataset."""
    augmentation = BevAugmentation(
        dataset,
        image_scale=tuple(section.augment_image_scale),
        image_flip=section.augment_image_flip,
        image_rotate_deg=section.augment_image_rotate_deg,
        scene_scale=tuple(section.augment_scene_scale),
        scene_rotate_rad=float(np.deg2rad(section.augment_scene_rotate_deg)),
        scene_shift_m=section.augment_scene_shift_m,
        scene_flip=section.augment_scene_flip,
    )
    if size is not None:
        augmentation = replace(augmentation, network_size=(size[1], size[0]))
    if not photometric:
        return augmentation
    return Compose([SurroundColors(Photometric(photometric)), augmentation])


def make_data(recipe: Recipe, config: Any = None) -> tuple[Any, Any]:
    """The training and validation sets of a recipe; public depth sets are validated on the pixels that their evaluation counts.

    Args:
        recipe: the recipe.
        config: the model's configuration, whose grids and sensors decide what bird's-eye-view samples hold.

    Raises:
        OSError: if a directory is missing.
        ValueError: if a directory holds no usable samples, or maps for the other task.
    """
    train, val = (
        _data_set(recipe, str(split_folder(part, split)) if recipe.data.name == "freedoom" else part, config, split == "train")
        for part, split in ((recipe.data.train, "train"), (recipe.data.val, "val"))
    )
    scale = warn_of_scale(train, recipe.data.name)
    if scale:
        warnings.warn(scale, stacklevel=2)
    every = recipe.data.hold_out_every
    if every:
        train, val = hold_out(train, every)
    if recipe.data.train_limit:
        train = Subset(train, range(min(recipe.data.train_limit, len(train))))
    if recipe.data.skip_broken:
        train = SkipUnreadable(train, recipe.data.skip_broken)
    view = DATASETS[recipe.data.name].evaluation_crop
    if view is not None:
        val = Cropped(val, view)
    hide = recipe.hiding(probability=1.0)
    return train, val if hide is None else Redrawn(val, hide, recipe.train.seed)


def recorded_split(train: Any, val: Any) -> DataSplit | None:
    """Which images of a folder are trained on and which are held out; ``None`` for datasets that have splits of their own.

    Args:
        train: the training set of :func:`make_data`.
        val: its validation set.
    """
    files = [_image_files(train), _image_files(val)]
    return None if None in files else DataSplit.of(*(part for part in files if part is not None))


def _image_files(dataset: Any) -> dict[str, Path] | None:
    if isinstance(dataset, FolderDataset):
        return dataset.image_files
    inner = getattr(dataset, "dataset", None)
    files = None if inner is None else _image_files(inner)
    if files is None or not isinstance(dataset, Subset):
        return files
    return {name: files[name] for name in (inner.ids[index] for index in dataset.indices)}


def _data_set(recipe: Recipe, part: str, config: Any, training: bool) -> Any:
    data, task = recipe.data, recipe.model.task
    if not DATASETS[data.name].images:
        return bev_data_set(data.name, data.root or "", part, recipe.bev.sweeps, config, recipe.bev.cells, training)
    if data.name not in FOLDERS:
        return open_dataset(data.name, data.root, part, task)
    names = dict(enumerate(data.class_names)) if data.class_names else None
    if data.name == "folder":
        return FolderDataset(part, task, names, data.depth_scale)
    return open_dataset(data.name, part, None, task, classes=data.classes)


def class_names(recipe: Recipe) -> dict[int, str]:
    """Names of the classes, without opening the dataset; empty for maps without classes.

    Raises:
        ValueError: if the classes of a folder are neither in the recipe nor in its ``classes.json``.
    """
    data = recipe.data
    facts = DATASETS[data.name]
    if not facts.images:
        return dict(facts.classes or {})
    if not get_task(recipe.model.task).has_classes:
        return {}
    if data.class_names:
        return dict(enumerate(data.class_names))
    if data.name == "freedoom":
        return freedoom_classes(data.classes)
    known = DATASETS[data.name].classes
    if known is not None:
        return dict(known)
    path = Path(data.train) / "classes.json"
    if data.name != "folder" or not path.is_file():
        raise ValueError(f"the classes of {data.name} are not known: set data.class_names, or write {path}")
    names = json.loads(path.read_text(encoding="utf-8"))
    return dict(enumerate(names)) if isinstance(names, list) else {int(index): str(name) for index, name in names.items()}


def make_transform(recipe: Recipe, train_set: Any = None) -> Transform:
    """The augmentation of the training samples; that of bird's-eye-view maps draws the map of ``train_set`` anew."""
    data, size = recipe.data, recipe.image_size()
    if not DATASETS[data.name].images:
        while not hasattr(train_set, "draw_labels"):  # a part of the samples, by data.train_limit or data.hold_out_every
            train_set = train_set.dataset
        return bev_transform(recipe.bev, train_set, size, data.photometric)
    transform, hide = _image_transform(recipe), recipe.hiding()
    return transform if hide is None else Compose([*transform.transforms, hide])


def _image_transform(recipe: Recipe) -> Compose:
    data, crop, size = recipe.data, recipe.crop_size(), recipe.image_size()
    if crop is not None:
        width, height = crop
        published = published_transform(data.transform, (height, width))
        if size is None:
            return published
        return Compose([replace(one, box=size) if isinstance(one, RatioResize) else one for one in published.transforms])
    scale = None if data.crop_scale is None else (data.crop_scale[0], data.crop_scale[1])
    return default_transform(recipe.model.task, data.flip, scale, data.photometric)
