"""nuScenes read from its own files: tables, sensors, vector maps. Maps need shapely and OpenCV, the rest no other package."""

from noise2map.data.nuscenes.augmentation import BevAugmentation
from noise2map.data.nuscenes.dataset import NuScenesDataset
from noise2map.data.nuscenes.map_expansion import MAP_LAYERS, MapExpansion, open_map
from noise2map.data.nuscenes.tables import CAMERAS, NuScenesTables, published_splits

__all__ = [
    "CAMERAS",
    "MAP_LAYERS",
    "BevAugmentation",
    "MapExpansion",
    "NuScenesDataset",
    "NuScenesTables",
    "open_map",
    "published_splits",
]
