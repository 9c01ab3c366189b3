"""Raw samples in physical units: image, map, valid mask, intrinsics, id. Nothing here knows a model or torch.

A dataset has ``__len__`` and ``__getitem__(index)``, which returns a dictionary with ``image`` (a Pillow RGB image), ``labels``
``(H, W)`` uint8 class ids (255 = not known) and/or ``depth_m`` ``(H, W)`` float32 metres with ``valid`` ``(H, W)`` bool,
``intrinsics`` ``(4,)`` fx, fy, cx, cy in pixels where they are known, and ``id``.
"""

from noise2map.data.ade20k import Ade20kDataset
from noise2map.data.cityscapes import CityscapesDataset
from noise2map.data.folder import FolderDataset
from noise2map.data.freedoom import FreedoomDataset, load_samples
from noise2map.data.images import list_images, open_image
from noise2map.data.kitti import KittiDataset
from noise2map.data.lsun import LsunDataset
from noise2map.data.nyu import NyuDataset, NyuLabelledDataset
from noise2map.data.opening import PUBLIC_DATASETS, open_dataset, open_public_dataset
from noise2map.data.sun_rgbd import SunRgbdDataset

__all__ = [
    "PUBLIC_DATASETS",
    "Ade20kDataset",
    "CityscapesDataset",
    "FolderDataset",
    "FreedoomDataset",
    "KittiDataset",
    "LsunDataset",
    "NyuDataset",
    "NyuLabelledDataset",
    "SunRgbdDataset",
    "list_images",
    "load_samples",
    "open_dataset",
    "open_image",
    "open_public_dataset",
]
