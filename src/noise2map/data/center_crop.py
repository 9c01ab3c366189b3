"""Center crops of one size for image generators, and folders of images or of depth maps alone."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from noise2map.data.images import list_images, open_depth_map, open_image
from noise2map.data.transforms.sample import crop_intrinsics, resize_intrinsics

_CACHE_BYTES = 2 * 2**30


class ImageFolder:
    """All images of a folder, without maps.

    Args:
        root: The folder; its sub-folders are not looked into.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no image.
    """

    def __init__(self, root: str | Path) -> None:
        self.paths = list_images(root)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The raw sample: ``image`` (RGB) and ``id`` (the file's name)."""
        path = self.paths[index]
        return {"image": open_image(path), "id": path.name}


class DepthFolder:
    """All 16-bit depth maps of a folder, without images.

    Args:
        root: The folder; its sub-folders are not looked into.
        depth_scale: Metres per unit of the files.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no image, or the scale is not positive.
    """

    def __init__(self, root: str | Path, depth_scale: float = 0.001) -> None:
        if not (np.isfinite(depth_scale) and depth_scale > 0):
            raise ValueError(f"depth_scale is {depth_scale!r}; expected metres per unit, a positive number")
        self.paths, self.depth_scale = list_images(root), float(depth_scale)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The raw sample: ``depth_m`` ``(H, W)`` with ``valid``, and ``id`` (the file's name)."""
        path = self.paths[index]
        depth_m = open_depth_map(path, self.depth_scale)
        return {"depth_m": depth_m, "valid": depth_m > 0, "id": path.name}


class CenterCrops:
    """The center crop of every sample, at one size; what has been read once is kept in memory if all of it fits in 2 GiB.

    Images are resampled bicubically with averaging, depth takes the nearest pixel: an average of two distances is a place
    where there is nothing.

    Args:
        dataset: Anything with ``__len__`` and ``__getitem__`` that returns raw samples.
        size: Side of the result in pixels.
        parts: What of a sample is wanted: ``"image"``, ``"depth"`` or both.

    Raises:
        ValueError: If the size is not positive or a part is unknown.
    """

    def __init__(self, dataset: Any, size: int, parts: tuple[str, ...] = ("image",)) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"size is {size!r}; expected a whole number of pixels, at least 1")
        if not parts or set(parts) - {"image", "depth"}:
            raise ValueError(f"parts are {parts!r}; expected 'image', 'depth' or both")
        self.dataset, self.size, self.parts = dataset, size, parts
        needed = len(dataset) * size * size * (3 * ("image" in parts) + 4 * ("depth" in parts))
        self._kept: dict[int, dict[str, Any]] | None = {} if needed <= _CACHE_BYTES else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The raw sample: ``id``, ``image`` and/or ``depth_m`` with ``valid``, ``intrinsics`` where they are known.

        Raises:
            ValueError: If the sample lacks a part.
        """
        arrays = self._kept.get(index) if self._kept is not None else None
        if arrays is None:
            arrays = self._read(index)
            if self._kept is not None:
                self._kept[index] = arrays
        sample = dict(arrays)
        if "image" in sample:
            sample["image"] = Image.fromarray(sample["image"])
        if "depth_m" in sample:
            sample["valid"] = sample["depth_m"] > 0
        return sample

    def _read(self, index: int) -> dict[str, Any]:
        sample = self.dataset[index]
        result: dict[str, Any] = {"id": str(sample["id"])}
        width, height = 0, 0
        if "image" in self.parts:
            width, height = sample["image"].size
            result["image"] = np.asarray(center_crop_image(sample["image"], self.size))
        if "depth" in self.parts:
            if "depth_m" not in sample:
                raise ValueError(f"sample {sample['id']!r} has no depth")
            depth_m = np.where(sample.get("valid", sample["depth_m"] > 0), sample["depth_m"], np.float32(0))
            height, width = depth_m.shape
            result["depth_m"] = center_crop_map(depth_m.astype(np.float32), self.size)
        if "intrinsics" in sample:
            result["intrinsics"] = center_crop_intrinsics(sample["intrinsics"], width, height, self.size)
        return result


def center_crop_box(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the center crop of an image, in pixels."""
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def center_crop_image(image: Image.Image, size: int) -> Image.Image:
    """The center crop of an image at ``size`` x ``size`` pixels."""
    # Cut first: resampling a box would let the pixels around it bleed in.
    return image.convert("RGB").crop(center_crop_box(*image.size)).resize((size, size), Image.Resampling.BICUBIC)


def center_crop_map(values: np.ndarray, size: int) -> np.ndarray:
    """The center crop of a map ``(H, W)`` -> ``(size, size)``, nearest pixel, same type."""
    left, top, right, bottom = center_crop_box(values.shape[1], values.shape[0])
    side = right - left
    chosen = ((np.arange(size) + 0.5) * side / size).astype(int)
    return np.ascontiguousarray(values[top:bottom, left:right][np.ix_(chosen, chosen)])


def center_crop_intrinsics(intrinsics: Any, width: int, height: int, size: int) -> np.ndarray:
    """``fx, fy, cx, cy`` of the center crop at ``size`` pixels, ``(4,)`` float32."""
    left, top, right, _ = center_crop_box(width, height)
    scale = size / (right - left)
    return resize_intrinsics(crop_intrinsics(intrinsics, left, top), scale, scale)


SquareCrops = CenterCrops
"""The name of earlier releases."""
