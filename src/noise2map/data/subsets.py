"""Subsets and wrappers of datasets that keep class names and colors: evenly spaced, cropped, without unreadable samples."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from noise2map.data.transforms.sample import Sample, Transform, identity_generator

UNREADABLE = (OSError, ValueError)
"""Errors of datasets, naming the file, when a sample cannot be read or makes no sense."""


def evenly_spaced(total: int, count: int, *, ends: bool = False) -> list[int]:
    """Indices of ``count`` of ``total`` samples at even distances, ascending; all of them if there are no more than ``count``.

    Args:
        total: Number of samples.
        count: How many indices.
        ends: Include the first and the last sample. Otherwise the range is cut into ``count`` equal parts and the middle of each is
            taken, which favors no end: the rule for scores.

    Raises:
        ValueError: If ``count`` is negative.
    """
    if count < 0:
        raise ValueError(f"count is {count}; expected a number of samples, at least 0")
    if count >= total:
        return list(range(total))
    if ends:
        return [int(index) for index in np.linspace(0, total - 1, count).round()]
    return [(2 * place + 1) * total // (2 * count) for place in range(count)]


class Subset:
    """Some samples of a dataset, with its class names and colors.

    Args:
        dataset: Any dataset of raw samples.
        indices: Which samples, in which order.

    Attributes:
        id2label: Names of the classes; empty where the dataset has none.
        palette: Colors of the classes, ``(K, 3)`` uint8; None where the dataset has none.
        missing: Files that the whole dataset lacks.
        warnings: What looks wrong in the whole dataset.
        without_depth: Lines of its list that say that there is no depth.
    """

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, list(indices)
        self.id2label: dict[int, str] = getattr(dataset, "id2label", {})
        self.palette: np.ndarray | None = getattr(dataset, "palette", None)
        self.missing: list[Any] = getattr(dataset, "missing", [])
        self.warnings: list[str] = getattr(dataset, "warnings", [])
        self.without_depth: int = getattr(dataset, "without_depth", 0)

    @classmethod
    def evenly_spaced(cls, dataset: Any, limit: int | None = None) -> "Subset":
        """At most ``limit`` samples at even distances: a fair look at a dataset whose neighbors look alike.

        Args:
            dataset: Any dataset of raw samples.
            limit: How many at most; None for all.

        Raises:
            ValueError: If ``limit`` is not positive.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        return cls(dataset, evenly_spaced(len(dataset), len(dataset) if limit is None else limit))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        """The raw sample at a place of the subset."""
        return self.dataset[self.indices[index]]


def hold_out(dataset: Any, every: int) -> tuple[Subset, Subset]:
    """Part a dataset into training and validation: samples 0, ``every``, 2 ``every`` ... are held out for validation.

    Raises:
        ValueError: If ``every`` is below 2: nothing would be left to train on.
    """
    if every < 2:
        raise ValueError(f"every is {every}; expected at least 2")
    train = [index for index in range(len(dataset)) if index % every]
    return Subset(dataset, train), Subset(dataset, range(0, len(dataset), every))


def sample_ids(dataset: Any) -> list[str] | None:
    """Ids of all samples where a dataset knows them without reading one, else None."""
    if hasattr(dataset, "ids"):
        return [str(one) for one in dataset.ids]
    if hasattr(dataset, "paths"):
        return [path.name for path in dataset.paths]
    inner = getattr(dataset, "dataset", None)
    names = None if inner is None else sample_ids(inner)
    if names is None or not hasattr(dataset, "indices"):
        return names
    return [names[index] for index in dataset.indices]


class _Wrapper:
    """A dataset with as many samples as the one it wraps; whatever else that one knows is asked of it."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        """Names of classes, colors and whatever else the dataset knows."""
        # Not there yet while a worker unpickles; and how it is pickled, Python 3.10 would ask of the dataset inside.
        if name == "dataset" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dataset, name)


class Cropped(_Wrapper):
    """A dataset whose samples are cropped or masked, one by one.

    Args:
        dataset: Any dataset of raw samples.
        crop: From raw sample to raw sample.
    """

    def __init__(self, dataset: Any, crop: Callable[[Mapping[str, Any]], Sample]) -> None:
        super().__init__(dataset)
        self.crop = crop

    def __getitem__(self, index: int) -> Sample:
        """The raw sample, cropped."""
        return self.crop(self.dataset[index])


class Redrawn(_Wrapper):
    """A dataset whose samples go through a transform, with draws that depend on the seed and a sample's id alone.

    So evaluations see the same whatever the order, the batches and the rest of the dataset.

    Args:
        dataset: Any dataset of raw samples.
        transform: From raw sample and generator to raw sample, see `noise2map.data.transforms`.
        seed: Seed of the draws.
    """

    def __init__(self, dataset: Any, transform: Transform, seed: int) -> None:
        super().__init__(dataset)
        self.transform, self.seed = transform, seed

    def __getitem__(self, index: int) -> Sample:
        """The raw sample, transformed."""
        sample = self.dataset[index]
        return self.transform(sample, identity_generator(self.seed, str(sample["id"])))


class SkipUnreadable(_Wrapper):
    """A dataset for training in which an unreadable sample is replaced by the next one that can be read.

    Each unreadable sample is named in a warning, once in a process. Too many of them are an error: a disk that went away
    should not look like an epoch. Do not evaluate on this (a neighbor would count twice): evaluation should fail, or
    be given a list without the broken files.

    Args:
        dataset: Any dataset of raw samples.
        at_most: How many different unreadable samples to skip.

    Attributes:
        broken: What was wrong, by index.

    Raises:
        ValueError: If ``at_most`` is negative.
    """

    def __init__(self, dataset: Any, at_most: int = 20) -> None:
        if at_most < 0:
            raise ValueError(f"at_most is {at_most}; expected a number of samples, at least 0")
        super().__init__(dataset)
        self.at_most = at_most
        self.broken: dict[int, str] = {}

    def __getitem__(self, index: int) -> Sample:
        """The sample, or the next one that can be read.

        Raises:
            IndexError: Beyond the last sample.
            OSError: The error of the sample that is one too many.
            ValueError: As above.
        """
        total = len(self.dataset)
        if not -total <= index < total:
            raise IndexError(f"sample {index} of {total}")
        for step in range(total):
            place = (index + step) % total
            if place in self.broken:
                continue
            try:
                return self.dataset[place]
            except UNREADABLE as error:
                self.broken[place] = str(error)
                if len(self.broken) > self.at_most:
                    raise type(error)(f"more than {self.at_most} broken samples; the last: {error}") from error
                warnings.warn(f"skipped: {error}", stacklevel=2)
        raise ValueError(f"none of the {total} samples can be read; the first: {next(iter(self.broken.values()))}")
