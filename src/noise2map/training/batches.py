"""From raw samples to batches: a stateless dataset, a sampler whose order is a function of the epoch, and the collator.

Randomness never lives in a worker process: the sampler hands out ``(epoch, index)`` and the augmentation's generator is made from
``(seed, epoch, index)``, so a resumed or differently parallel run sees the same images.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from noise2map.data.transforms import Transform, sample_generator
from noise2map.tasks import get_task
from noise2map.tasks.base import Task

NOT_INPUTS = ("hidden", "visibility")
"""What batches tell of their samples beside inputs and labels; models do not see it."""


class AugmentedSamples(Dataset):
    """A raw dataset addressed by ``(epoch, index)``, with the joint transform applied.

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
    """Every sample once an epoch, in an order that depends on ``(seed, epoch)`` alone. Set ``epoch`` before iterating.

    Args:
        length: number of samples.
        seed: seed of the order.
        step: samples of an optimizer step; those at an epoch's end that do not fill one are left out, others each time.
    """

    def __init__(self, length: int, seed: int, step: int = 1) -> None:
        self.length, self.seed, self.step, self.epoch = length, seed, step, 0

    def __len__(self) -> int:
        return self.length - self.length % self.step

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.epoch = int(epoch)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # A fourth number keeps the order's stream apart from the streams of the augmentation (three numbers).
        order = np.random.default_rng([self.seed, self.epoch, 0, 1]).permutation(self.length)[: len(self)]
        return iter([(self.epoch, int(index)) for index in order])


def hidden_masks(samples: Sequence[dict[str, Any]], size: Sequence[int]) -> torch.Tensor:
    """What is covered of each image, ``(B, H, W)`` bool of a size, by the nearest pixel; nothing where a sample does not say."""
    masks = torch.zeros(len(samples), *size, dtype=torch.bool)
    for mask, sample in zip(masks, samples):
        if "hidden" in sample:
            given = torch.from_numpy(np.ascontiguousarray(sample["hidden"]))[None, None].float()
            mask[:] = torch.nn.functional.interpolate(given, tuple(size), mode="nearest-exact")[0, 0] > 0.5
    return masks


class MapCollator:
    """Raw samples to model inputs by the image processor.

    Args:
        processor: the model's processor.
        task: what its maps are, an object or a name of `noise2map.tasks.TASKS`.
        resize: let the processor resize; ``False`` where the augmentation has cut all images to one size.
        keep_raw: also return the raw samples as ``"samples"`` and their ``"ids"``: evaluation needs maps at their own size.

    Raises:
        ValueError: if the task is unknown.
    """

    def __init__(self, processor: Any, task: Task | str, keep_raw: bool = False, resize: bool = True) -> None:
        self.processor, self.task, self.keep_raw = processor, get_task(task) if isinstance(task, str) else task, keep_raw
        # Images of several shapes make one batch: they are brought to the very size that is trained at.
        exact = {"keep_aspect_ratio": False} if self.task.of_images else {}
        self.options: dict[str, Any] = exact if resize else {"do_resize": False}

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The inputs of the model and its ``labels``, e.g. ``pixel_values`` ``(B, 3, H, W)`` and class ids ``(B, H, W)``.

        Where samples say what of their images is covered, ``hidden`` ``(B, H, W)`` bool does, and ``visibility`` ``(B, X, Y)``
        uint8 which cells are seen; they are no inputs of the model.
        """
        batch = self.task.batch(self.processor, samples, **self.options)
        if any("hidden" in sample for sample in samples):
            batch["hidden"] = hidden_masks(samples, batch["labels"].shape[-2:])
        if all("visibility" in sample for sample in samples):
            batch["visibility"] = torch.stack([torch.from_numpy(sample["visibility"]) for sample in samples])
        if self.keep_raw:
            batch["samples"] = list(samples)
            batch["ids"] = [str(sample["id"]) for sample in samples]
        return batch
