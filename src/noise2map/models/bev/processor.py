"""Raw bird's-eye-view samples -> what the model takes, and the model's output -> masks."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from noise2map.models.image_processing import check_colors
from noise2map.zoo import ShippedNames

_CAMERA_KEYS = ("images", "intrinsics", "camera_to_lidar")

_OWN = ("image_size", "image_scale", "image_mean", "image_std", "sweeps", "layer_thresholds")

# Further fields that transformers reads from a processor's file.
_FOREIGN = ("image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "name_or_path")


class Noise2MapBevProcessor(ShippedNames, ImageProcessingMixin):
    """Resizes, crops, normalises and stacks the samples of a rig, and keeps the matrices that say so.

    Args:
        image_size: height and width of the network's images.
        image_scale: new size of an image over its old one; what is then too large is cut, centred across and at the bottom.
        image_mean: subtracted from colors in [0, 1].
        image_std: they are divided by it.
        sweeps: how many LiDAR readings before each key frame the model was trained with; datasets are opened with it.
        layer_thresholds: least probability of each layer from which a likely map shows it, fitted by `noise2map calibrate`; None
            for 0.5.

    Raises:
        ValueError: if a number cannot be one.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        image_size: Sequence[int] = (256, 704),
        image_scale: float = 0.48,
        image_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        image_std: Sequence[float] = IMAGENET_DEFAULT_STD,
        sweeps: int = 9,
        layer_thresholds: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        for name in kwargs:
            if name not in _FOREIGN and not name.startswith("_"):
                close = difflib.get_close_matches(name, _OWN, 1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"Noise2MapBevProcessor has no field {name!r}{hint}")
        super().__init__(**kwargs)
        if len(image_size) != 2 or not all(isinstance(side, int) and side > 0 for side in image_size):
            raise ValueError(f"image_size is {image_size!r}; expected a positive height and width")
        if not image_scale > 0:
            raise ValueError(f"image_scale is {image_scale!r}; expected a positive number")
        check_colors(image_mean, image_std)
        if sweeps < 0:
            raise ValueError(f"sweeps is {sweeps!r}; expected 0 or more")
        self.image_size, self.image_scale = list(image_size), float(image_scale)
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.sweeps = sweeps
        self.layer_thresholds = None if layer_thresholds is None else checked_thresholds(layer_thresholds)

    def __call__(self, samples: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> BatchFeature:
        """One raw sample or several -> a batch.

        Args:
            samples: each with ``images`` (N Pillow images), ``intrinsics`` ``(N, 3, 3)`` and ``camera_to_lidar`` ``(N, 4, 4)``,
                and/or ``points`` ``(P, F)``; optionally ``labels`` ``(K, X, Y)``, ``lidar_augmentation`` ``(4, 4)`` and, if the
                images have the network's size already, ``image_augmentation`` ``(N, 4, 4)``.

        Returns:
            ``pixel_values`` ``(B, N, 3, H, W)``, ``intrinsics``, ``camera_to_lidar``, ``image_augmentation``,
            ``lidar_augmentation``, ``points`` (a list), ``labels`` ``(B, K, X, Y)`` int64, as far as the samples have them.

        Raises:
            ValueError: if there is no sample, samples hold different things, or an image has an impossible size.
        """
        samples = [samples] if isinstance(samples, Mapping) else list(samples)
        if not samples:
            raise ValueError("got no samples; expected at least one")
        cameras, points, labels = ({key in sample for sample in samples} for key in ("images", "points", "labels"))
        if any(len(found) > 1 for found in (cameras, points, labels)):
            raise ValueError("some samples have images, points or labels that others lack; expected the same of all")
        if cameras == points == {False}:
            raise ValueError(f"samples hold {sorted(samples[0])}; expected images with camera matrices, points or both")
        batch: dict[str, Any] = {}
        if True in cameras:
            batch |= self._cameras(samples)
        if True in points:
            batch["points"] = [torch.as_tensor(np.asarray(sample["points"], np.float32)) for sample in samples]
        if True in labels:
            batch["labels"] = torch.stack(_labels(samples))
        identity = np.eye(4, dtype=np.float32)
        batch["lidar_augmentation"] = _stack([sample.get("lidar_augmentation", identity) for sample in samples])
        return BatchFeature(batch)

    def _cameras(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        pixels, matrices = [], []
        for sample in samples:
            missing = [key for key in _CAMERA_KEYS if key not in sample]
            if missing:
                raise ValueError(f"sample {sample.get('id', '?')!r} has images but no {' and no '.join(missing)}")
            counts = {key: len(sample[key]) for key in _CAMERA_KEYS}
            if len(set(counts.values())) > 1:
                raise ValueError(f"sample {sample.get('id', '?')!r} has {counts}; expected the same number of each")
            if "image_augmentation" in sample:
                views = [(image.convert("RGB"), np.asarray(m)) for image, m in zip(sample["images"], sample["image_augmentation"])]
            else:
                views = [self.view(image) for image in sample["images"]]
            if pixels and len(views) != len(pixels[0]):
                raise ValueError(f"samples have {len(pixels[0])} and {len(views)} images; expected as many of each")
            pixels.append(torch.stack([self._normalised(image) for image, _ in views]))
            matrices.append([matrix for _, matrix in views])
        return {
            "pixel_values": torch.stack(pixels),
            "intrinsics": _stack([sample["intrinsics"] for sample in samples]),
            "camera_to_lidar": _stack([sample["camera_to_lidar"] for sample in samples]),
            "image_augmentation": _stack(matrices),
        }

    def view(self, image: Image.Image) -> tuple[Image.Image, np.ndarray]:
        """An image at the network's size, and the matrix ``(4, 4)`` from its pixels to the result's."""
        height, width = self.image_size
        size = int(image.width * self.image_scale), int(image.height * self.image_scale)
        left, top = max(0, size[0] - width) // 2, size[1] - height
        image = image.convert("RGB").resize(size, Image.Resampling.BICUBIC).crop((left, top, left + width, top + height))
        matrix = np.diag([self.image_scale, self.image_scale, 1, 1]).astype(np.float32)
        matrix[:2, 3] = -left, -top
        return image, matrix

    def _normalised(self, image: Image.Image) -> Tensor:
        if image.size != (self.image_size[1], self.image_size[0]):
            raise ValueError(f"image is {image.width}x{image.height}; expected {self.image_size[1]}x{self.image_size[0]} pixels")
        values = torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1) / 255
        return (values - torch.tensor(self.image_mean).view(3, 1, 1)) / torch.tensor(self.image_std).view(3, 1, 1)

    def thresholds_of(self, layers: int, threshold: float | Sequence[float] | None = None) -> Tensor:
        """Least probability of each of K layers: what is given, or else the processor's `layer_thresholds`, or else 0.5.

        Args:
            layers: K.
            threshold: Of all layers or of each.

        Returns:
            `(K,)` float32.

        Raises:
            ValueError: If there is another number of thresholds than of layers, or one is not between 0 and 1.
        """
        name = "layer_thresholds" if threshold is None and self.layer_thresholds is not None else "threshold"
        given = threshold if name == "threshold" else self.layer_thresholds
        least = torch.as_tensor(0.5 if given is None else given, dtype=torch.float32)
        if least.shape not in ((), (layers,)):
            raise ValueError(f"{name} has shape {tuple(least.shape)}; expected one number, or one for each of {layers} layers")
        if not bool(((least >= 0) & (least <= 1)).all()):
            raise ValueError(f"{name} is {given}; expected probabilities, 0 to 1")
        return least.expand(layers)

    def post_process_bev_segmentation(self, outputs: Any, threshold: float | Sequence[float] | None = None) -> list[Tensor]:
        """Masks of each sample: the layers that are likely enough to be there.

        Args:
            outputs: What the model returns; ``probabilities`` ``(B, K, X, Y)``.
            threshold: Least probability, of all layers or of each; by default the processor's `layer_thresholds`, or 0.5 where it
                has none. Calibrated probabilities of what is a cell or two wide are seldom above 0.5.

        Returns:
            ``(K, X, Y)``, boolean, of each of the B samples.

        Raises:
            ValueError: If there is another number of thresholds than of layers, or one is not between 0 and 1.
        """
        probabilities = outputs.probabilities
        least = self.thresholds_of(probabilities.shape[1], threshold).to(probabilities.device, probabilities.dtype)
        return list(probabilities >= least.view(-1, 1, 1))


def _labels(samples: Sequence[Mapping[str, Any]]) -> list[Tensor]:
    """Layers of samples ``(K, X, Y)`` int64, all of one shape."""
    arrays = [np.asarray(sample["labels"]) for sample in samples]
    for array in arrays:
        if array.shape != arrays[0].shape:
            raise ValueError(f"labels have shapes {arrays[0].shape} and {array.shape}; expected one")
        if not np.issubdtype(array.dtype, np.integer) and array.dtype != bool:
            raise ValueError(f"labels have type {array.dtype}; expected integers: 0, 1, or 255 where nobody knows")
    return [torch.as_tensor(array.astype(np.int64)) for array in arrays]


def checked_thresholds(thresholds: Sequence[float]) -> list[float]:
    """Thresholds of layers as a list.

    Raises:
        ValueError: If they are no list of numbers between 0 and 1.
    """
    numbers = isinstance(thresholds, Sequence) and all(isinstance(one, int | float) for one in thresholds)
    if not numbers or not thresholds or not all(0 < one < 1 for one in thresholds):
        raise ValueError(f"layer_thresholds is {thresholds!r}; expected numbers between 0 and 1, one for each layer")
    return [float(one) for one in thresholds]


def _stack(matrices: Sequence[Any]) -> Tensor:
    return torch.as_tensor(np.stack([np.asarray(matrix, np.float32) for matrix in matrices]))
