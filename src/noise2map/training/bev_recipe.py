"""What recipes for bird's-eye-view maps have of their own: data sets in nuScenes' format, processor, augmentation."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from noise2map.data.freedoom.surround.dataset import FreedoomSurroundDataset
from noise2map.data.nuscenes import BevAugmentation, NuScenesDataset
from noise2map.data.transforms import Compose, Photometric
from noise2map.models.bev import Noise2MapBevConfig, Noise2MapBevProcessor
from noise2map.training.bev_section import BevSection


@dataclass(frozen=True)
class SurroundColours:
    """The same colour change for all views of a sample.

    Attributes:
        change: a transform of ``image``.
    """

    change: Any

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The sample with other colours."""
        result = dict(sample)
        if "images" in result:
            seed = int(rng.integers(2**62))
            result["images"] = [self.change({"image": view}, np.random.default_rng(seed))["image"] for view in result["images"]]
        return result


def bev_config(fields: Mapping[str, Any], size: tuple[int, int] | None) -> Noise2MapBevConfig:
    """The configuration of a bird's-eye-view model whose images are ``size`` (width, height)."""
    image = {} if size is None else {"image_size": [size[1], size[0]]}
    return Noise2MapBevConfig(**{**image, **fields})


def bev_processor(section: BevSection, size: tuple[int, int] | None) -> Noise2MapBevProcessor:
    """The processor for images of ``size`` (width, height)."""
    image = {} if size is None else {"image_size": (size[1], size[0])}
    return Noise2MapBevProcessor(image_scale=section.image_scale, sweeps=section.sweeps, **image)


def bev_data_set(name: str, root: str, split: str, sweeps: int, config: Noise2MapBevConfig) -> NuScenesDataset:
    """A split of a data set, its map on the grid of the model.

    Raises:
        OSError: if files are missing.
        ValueError: if the split has no sample, or the map's grid is not centred on the car.
    """
    options = {"sensors": tuple(config.sensors), "sweeps": sweeps, **map_extent(config)}
    if name == "freedoom-surround":
        return FreedoomSurroundDataset(root, split, **options)
    return NuScenesDataset(root, split, **options)


def map_extent(config: Noise2MapBevConfig) -> dict[str, Any]:
    """Size in metres and in cells of a model's map.

    Raises:
        ValueError: if the map is not centred on the car, where data sets draw it.
    """
    grid = config.map_grid
    for name, axis in zip(("map_x_bounds", "map_y_bounds"), grid):
        if abs(axis.lower + axis.upper) > 1e-6:
            raise ValueError(f"{name} is {list(axis)!r}; expected a range around 0, where the map is drawn")
    return {"size_m": tuple(axis.upper - axis.lower for axis in grid), "canvas": tuple(axis.count for axis in grid)}


def bev_transform(section: BevSection, dataset: NuScenesDataset, size: tuple[int, int] | None, photometric: float) -> Any:
    """The augmentation of training samples of a data set."""
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
    return Compose([SurroundColours(Photometric(photometric)), augmentation])
