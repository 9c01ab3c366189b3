"""Labelled images for depth predictors: true depth of a dataset, or what a depth model says about any images."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from noise2map.data.center_crop import center_crop_image, center_crop_map
from noise2map.data.subsets import evenly_spaced

TRUTH = "truth"


@dataclass
class LabelledImages:
    """Images and their depth, as `fit_depth_predictor` takes them.

    Attributes:
        images: ``(N, 3, H, W)`` uint8.
        depths: ``(N, H, W)`` float32: metres with 0 where there is none, or relative in [0, 1] with NaN where there is none.
        metric: whether depth is in metres.
        source: where depth comes from: ``"truth"`` or the name of a model.
    """

    images: Tensor
    depths: Tensor
    metric: bool
    source: str

    def __len__(self) -> int:
        return len(self.images)

    def part(self, indices: list[int]) -> "LabelledImages":
        """Some of them."""
        return LabelledImages(self.images[indices], self.depths[indices], self.metric, self.source)

    def with_far(self, far_m: float) -> "LabelledImages":
        """The same with missing depth as far as ``far_m`` metres: sky."""
        filled = torch.where(self.depths > 0, self.depths, torch.full_like(self.depths, far_m))
        return LabelledImages(self.images, filled, self.metric, self.source)


class DepthLabeller(Protocol):
    """Source of labels: a depth model of any kind, see ``noise2map.inference.depth_models``.

    Attributes:
        metric: whether it gives metres; else relative depth in [0, 1].
    """

    metric: bool

    def label_image(self, image: Image.Image) -> np.ndarray:
        """An RGB image -> depth ``(H, W)`` float32."""
        ...


def choose(length: int, count: int, seed: int | None) -> list[int]:
    """Indices of so many samples: the first of a shuffled order (of which fewer are a part), or spread evenly without a seed.

    Raises:
        ValueError: if there are fewer samples.
    """
    if count > length:
        raise ValueError(f"{count} labelled images are asked for, but there are {length}")
    if seed is None:
        return evenly_spaced(length, count, ends=True)
    return np.random.default_rng([seed, 7]).permutation(length)[:count].tolist()


def read_images(dataset: Any, indices: list[int], size: int, labels: str, labeller: DepthLabeller | None = None) -> LabelledImages:
    """Center crops of some samples with their labels.

    Args:
        dataset: raw samples.
        indices: which.
        size: side in px.
        labels: name of the labels, for the record.
        labeller: the depth model that makes the labels; None for the samples' own depth.
    """
    images, depths = [], []
    for index in tqdm(indices, desc=f"images with depth by {labels}", unit="image"):
        sample = dataset[index]
        if labeller is not None:  # it sees the whole image, at the size that it knows
            sample["depth_m"] = labeller.label_image(sample["image"])
        elif "valid" in sample:
            sample["depth_m"] = np.where(sample["valid"], sample["depth_m"], np.float32(0))
        images.append(np.asarray(center_crop_image(sample["image"], size)).transpose(2, 0, 1))
        depths.append(center_crop_map(sample["depth_m"], size))
    metric = labeller is None or labeller.metric
    return LabelledImages(torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(depths)).float(), metric, labels)
