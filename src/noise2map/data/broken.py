"""Going on when a few files of a large data set are broken, without hiding which."""

import warnings
from typing import Any

BROKEN = (OSError, ValueError)
"""What data sets raise, naming the file, when a sample cannot be read or makes no sense."""


class SkipBroken:
    """A data set for training in which an unreadable sample is replaced by the next one that can be read.

    Each broken sample is named in a warning, once in a process. Too many of them are an error: a disk that went away
    should not look like an epoch. Do not evaluate on this (a neighbour would count twice): evaluation should fail, or
    be given a list without the broken files.

    Args:
        dataset: Any data set of raw samples.
        at_most: How many different broken samples to skip.

    Attributes:
        broken: What was wrong, by index.

    Raises:
        ValueError: If ``at_most`` is negative.
    """

    def __init__(self, dataset: Any, at_most: int = 20) -> None:
        if at_most < 0:
            raise ValueError(f"at_most is {at_most}; expected a number of samples, at least 0")
        self.dataset, self.at_most = dataset, at_most
        self.broken: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample, or the next one that can be read.

        Raises:
            OSError: The error of the sample that is one too many.
            ValueError: As above.
        """
        total = len(self.dataset)
        for step in range(total):
            place = (index + step) % total
            if place in self.broken:
                continue
            try:
                return self.dataset[place]
            except BROKEN as error:
                self.broken[place] = str(error)
                if len(self.broken) > self.at_most:
                    raise type(error)(f"more than {self.at_most} broken samples; the last: {error}") from error
                warnings.warn(f"skipped: {error}", stacklevel=2)
        raise ValueError(f"none of the {total} samples can be read; the first: {next(iter(self.broken.values()))}")

    def __getattr__(self, name: str) -> Any:
        """Names of classes, colours and whatever else the data set knows."""
        if name == "dataset":  # not there yet while a worker unpickles
            raise AttributeError(name)
        return getattr(self.dataset, name)
