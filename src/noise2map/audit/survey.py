"""A labelled dataset read once before any model runs: ids, checksums, classes, and everything that is wrong with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from noise2map.data.paired import raise_together
from noise2map.data.subsets import UNREADABLE
from noise2map.runs.files import content_checksum
from noise2map.runs.progress import progress_bar
from noise2map.tasks.base import Task


@dataclass
class Survey:
    """What is known of a dataset before a model has seen it.

    Attributes:
        checksums: Id of a sample to the checksum of its image and labels, in the order of the dataset.
        pixels: Labelled pixels of each class ``(K,)``.
    """

    checksums: dict[str, str] = field(default_factory=dict)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


def source_of(sample: Mapping[str, Any], labels: np.ndarray) -> str:
    """Checksum of a sample: it changes with a pixel of the image or of the labels."""
    parts = (str(labels.shape), np.ascontiguousarray(labels, np.int64).tobytes(), np.asarray(sample["image"]).tobytes())
    return content_checksum(parts, 32)


def survey(dataset: Any, task: Task, id2label: Mapping[int, str], ignore_index: int, progress: bool = True) -> Survey:
    """Read every sample.

    Args:
        dataset: Raw samples.
        task: A task with classes.
        id2label: The model's classes.
        ignore_index: The id of pixels without a label.
        progress: Show a bar on standard error.

    Raises:
        OSError: Naming all files at fault, if a sample cannot be read.
        ValueError: If samples make no sense, have labels that the model does not know or share an id; or if no label is known, or
            all are of one class.
    """
    if not len(dataset):
        raise ValueError("the dataset holds no images")
    found = Survey(pixels=np.zeros(len(id2label), np.int64))
    errors: list[Exception] = []
    for index in progress_bar(range(len(dataset)), desc="labels", unit="image", shown=progress):
        try:
            sample = dataset[index]
            task.check_sample(sample)
            labels = task.truth(sample).numpy()
            name = str(sample.get("id", index))
            ids, counts = np.unique(labels[labels != ignore_index], return_counts=True)
            if len(ids) and not (ids[0] >= 0 and ids[-1] < len(id2label)):
                wrong = int(ids[0] if ids[0] < 0 else ids[-1])
                raise ValueError(f"{name} has the label {wrong}; expected 0 to {len(id2label) - 1}, or {ignore_index} for unknown")
            if name in found.checksums:
                raise ValueError(f"two samples of the dataset share the id {name!r}")
        except UNREADABLE as error:
            errors.append(error)
            continue
        found.pixels[ids] += counts
        found.checksums[name] = source_of(sample, labels)
    raise_together(errors)
    present = np.flatnonzero(found.pixels)
    if not len(present):
        raise ValueError("no pixel of the labels is known; expected labels to audit")
    if len(present) == 1:
        only = id2label[int(present[0])]
        raise ValueError(f"all labels are of the class {only!r}; expected at least two classes to tell a wrong one")
    return found
