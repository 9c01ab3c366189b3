"""Regions whose labels a model denies, and how suspicious they are."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from noise2map.audit.components import as_runs, connected_components
from noise2map.tasks.contradiction import Contradiction

LEAST_FREQUENCY = 1e-3
"""A class that is rarer than this among the labels counts as this rare: else whatever looks like it would be suspicious."""

AREA_POWER = 0.2
"""How much the area weighs in a score; chosen on the validation maps of Freedoom (``benchmarks/audit.py``)."""


@dataclass(frozen=True)
class Region:
    """A connected region of one class of the model, where the labels say something else.

    Attributes:
        model: The model's class.
        labels: Class id of the labels to its number of pixels in the region.
        box: Left, top, right and bottom in pixels, the latter two exclusive.
        log_model: Mean over pixels of the logarithm of the probability of the model's class.
        log_label: The same of the label of each pixel.
        share: Area as a share of the image.
        runs: Its pixels, see `noise2map.audit.components.as_runs`.
    """

    model: int
    labels: Mapping[int, int]
    box: tuple[int, int, int, int]
    log_model: float
    log_label: float
    share: float
    runs: tuple[int, ...]

    @property
    def area(self) -> int:
        """Number of pixels."""
        return sum(self.runs[1::2])

    @property
    def label(self) -> int:
        """The commonest label in it; of equally common ones the least id."""
        return min(self.labels, key=lambda one: (-self.labels[one], one))

    def evidence(self, log_frequency: np.ndarray) -> float:
        """Mean over its pixels of ``log p(image | model's class) - log p(image | label)``, nats.

        By Bayes' rule that is the difference of ``log p(class | image) - log p(class)``. Without the frequencies, rare classes
        would fill the list: a model says "wall" of most doors that it misses, and is sure of it, because walls are common.

        Args:
            log_frequency: Logarithm of each class's share of the labels ``(K,)``.
        """
        prior = sum(count * float(log_frequency[one]) for one, count in self.labels.items()) / self.area
        return self.log_model - self.log_label + prior - float(log_frequency[self.model])

    def score(self, log_frequency: np.ndarray) -> float:
        """How suspicious its labels are: `evidence`, times the share of the image to the power of `AREA_POWER`."""
        return self.evidence(log_frequency) * self.share**AREA_POWER

    def as_json(self) -> dict[str, Any]:
        """Values for a file; `from_json` undoes it."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Region":
        """A region from a file."""
        labels = {int(one): int(count) for one, count in values["labels"].items()}
        return cls(**{**values, "labels": labels, "box": tuple(values["box"]), "runs": tuple(values["runs"])})


def denied_regions(found: Contradiction, min_share: float) -> list[Region]:
    """Regions of an image whose labels the model denies, in the order of their first pixels.

    Connected pixels of one class of the model, whatever their labels. Left out are regions that are small, or nowhere three
    pixels thick: where two classes meet, model and labels differ by a pixel without either being wrong.

    Args:
        found: Model and labels.
        min_share: Least area, as a share of the image.
    """
    denied = found.denied
    numbers, count = connected_components(np.where(denied, found.model, -1))
    if not count:
        return []
    height, width = denied.shape
    flat = numbers.ravel()
    areas = np.bincount(flat, minlength=count + 1)
    thick = np.zeros(count + 1, bool)
    thick[_cores(numbers)] = True
    wanted = (areas >= max(1.0, min_share * flat.size)) & thick
    wanted[0] = False
    order = np.argsort(flat, kind="stable")
    ends = areas.cumsum()
    regions = []
    for number in np.flatnonzero(wanted):
        places = order[ends[number] - areas[number] : ends[number]]
        rows, columns = np.divmod(places, width)
        ids, counts = np.unique(found.label.ravel()[places], return_counts=True)
        regions.append(
            Region(
                model=int(found.model.ravel()[places[0]]),
                labels=dict(zip(ids.tolist(), counts.tolist())),
                box=(int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1),
                log_model=round(float(found.log_model.ravel()[places].mean(dtype=np.float64)), 4),
                log_label=round(float(found.log_label.ravel()[places].mean(dtype=np.float64)), 4),
                share=len(places) / (height * width),
                runs=tuple(as_runs(places)),
            )
        )
    return regions


def _cores(numbers: np.ndarray) -> np.ndarray:
    """Numbers of the regions that hold a square of three by three pixels."""
    if min(numbers.shape) < 3:
        return numbers[:0].ravel()
    squares = np.lib.stride_tricks.sliding_window_view(numbers, (3, 3))
    low, high = squares.min((2, 3)), squares.max((2, 3))
    return np.unique(low[low == high])


def log_frequencies(pixels: np.ndarray) -> np.ndarray:
    """Logarithm of each class's share of the labels.

    Args:
        pixels: Labelled pixels of each class ``(K,)``.

    Returns:
        ``(K,)`` float64, at least the logarithm of `LEAST_FREQUENCY`.
    """
    return np.log(np.maximum(pixels / max(int(pixels.sum()), 1), LEAST_FREQUENCY))
