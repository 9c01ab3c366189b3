"""From raw samples to batches: a stateless data set, a sampler whose order is a function of the epoch, and the collator.

Randomness never lives in a worker process: the sampler hands out ``(epoch, index)`` and the augmentation's generator is made from
``(seed, epoch, index)``, so a resumed or differently parallel run sees the same pictures.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from noise2map.data.transforms import Transform, sample_generator


class AugmentedSamples(Dataset):
    """A raw data set addressed by ``(epoch, index)``, with the joint transform applied.

    Args:
        dataset: anything with ``__len__`` and ``__getitem__(int)`` that returns raw samples.
        transform: a joint transform of :mod:`noise2map.data.transforms`, or ``None``.
        seed: seed of the augmentation.
    """

    def __init__(self, dataset: Any, transform: Transform | None, seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        sample = self.dataset[index]
        return sample if self.transform is None else self.transform(sample, sample_generator(self.seed, epoch, index))


class EpochSampler(Sampler[tuple[int, int]]):
    """Every sample once an epoch, in an order that depends on ``(seed, epoch)`` alone. Set ``epoch`` before iterating."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.epoch = int(epoch)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # A fourth number keeps the order's stream apart from the streams of the augmentation (three numbers).
        order = np.random.default_rng([self.seed, self.epoch, 0, 1]).permutation(self.length)
        return iter([(self.epoch, int(index)) for index in order])


class MapCollator:
    """Raw samples to model inputs by the image processor.

    Args:
        processor: ``processor(images=..., segmentation_maps= or depth_maps=..., return_tensors="pt")``.
        task: ``"segmentation"`` (needs ``labels``), ``"depth"`` (needs ``depth_m``) or ``"bev"`` (the processor takes samples).
        resize: let the processor resize; ``False`` where the augmentation has cut all pictures to one size.
        keep_raw: also return the raw samples as ``"samples"`` and their ``"ids"``: evaluation needs maps at their own size.
    """

    _MAP = {"segmentation": ("labels", "segmentation_maps"), "depth": ("depth_m", "depth_maps")}

    def __init__(self, processor: Any, task: str, keep_raw: bool = False, resize: bool = True) -> None:
        if task not in (*self._MAP, "bev"):
            raise ValueError(f"task is {task!r}; expected one of {', '.join(self._MAP)}, bev")
        self.processor, self.task, self.keep_raw = processor, task, keep_raw
        self.options: dict[str, Any] = {"keep_aspect_ratio": False} if resize else {"do_resize": False}  # one size a batch

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """``pixel_values`` ``(B, 3, H, W)`` float and ``labels`` ``(B, H, W)``: class ids, or metres with 0 for invalid.

        For bird's-eye-view maps what their processor makes of the samples.
        """
        batch = self._bev_batch(samples) if self.task == "bev" else self._image_batch(samples)
        if self.keep_raw:
            batch["samples"] = list(samples)
            batch["ids"] = [str(sample["id"]) for sample in samples]
        return batch

    def _bev_batch(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        for sample in samples:
            if "labels" not in sample:
                raise ValueError(f"sample {sample.get('id', '?')!r} has no 'labels', which training for {self.task} needs")
        return dict(self.processor(samples))

    def _image_batch(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        key, argument = self._MAP[self.task]
        maps = []
        for sample in samples:
            if key not in sample:
                raise ValueError(f"sample {sample.get('id', '?')!r} has no {key!r}, which training for {self.task} needs")
            values = sample[key]
            if self.task == "depth" and "valid" in sample:
                values = np.where(sample["valid"], values, np.float32(0))
            maps.append(values)
        images = [sample["image"] for sample in samples]
        encoded = self.processor(images=images, return_tensors="pt", **{argument: maps}, **self.options)
        return {"pixel_values": encoded["pixel_values"], "labels": torch.as_tensor(encoded["labels"])}
