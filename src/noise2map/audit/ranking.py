"""Ranking of suspicious regions, of images by them, and of images to label next."""

import heapq
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from noise2map.audit.regions import Region

SUSPECT_COLUMNS = (
    *("rank", "image", "score", "label", "model", "label_probability", "model_probability"),
    *("left", "top", "right", "bottom", "area"),
)


@dataclass(frozen=True)
class Suspect:
    """A region whose labels are likely wrong.

    Attributes:
        id: Id of its image.
        score: How suspicious it is, see `Region.score`.
        region: The region.
    """

    id: str
    score: float
    region: Region

    @property
    def order(self) -> tuple[float, str, int]:
        """What suspects are sorted by, the most suspicious first: whatever the order of the images."""
        return (-self.score, self.id, self.region.runs[0])

    def row(self, rank: int, id2label: Mapping[int, str]) -> dict[str, Any]:
        """A row of ``suspects.csv``; probabilities are geometric means over the region."""
        left, top, right, bottom = self.region.box
        return {
            "rank": rank,
            "image": self.id,
            "score": round(self.score, 4),
            "label": id2label[self.region.label],
            "model": id2label[self.region.model],
            "label_probability": float(f"{math.exp(self.region.log_label):.3g}"),
            "model_probability": float(f"{math.exp(self.region.log_model):.3g}"),
            "left": left,
            "top": top,
            "right": right,
            "bottom": bottom,
            "area": self.region.area,
        }


def regions_in(path: Path) -> list[Region]:
    """The regions of one image, from the file that the pass of the model wrote."""
    return [Region.from_json(values) for values in json.loads(path.read_text(encoding="utf-8"))]


def suspects_of(root: Path, lines: Iterable[Mapping[str, Any]], log_frequency: np.ndarray) -> Iterator[Suspect]:
    """Every region that is likelier under the model's class than under its labels, image by image."""
    for line in lines:
        for region in regions_in(root / line["files"]["regions"]):
            score = region.score(log_frequency)
            if score > 0:
                yield Suspect(line["id"], score, region)


@dataclass
class Ranking:
    """Everything that an audit ranks.

    Attributes:
        suspects: The most suspicious regions, the first first.
        images: Rows of ``images.csv``: every image, those with the most suspicious regions first.
        next: Rows of ``label_next.csv``: every image, those that the model is least sure of first.
        regions: How many regions were ranked.
    """

    suspects: list[Suspect]
    images: list[dict[str, Any]]
    next: list[dict[str, Any]]
    regions: int


def rank(root: Path, lines: Sequence[Mapping[str, Any]], log_frequency: np.ndarray, top: int) -> Ranking:
    """Rank regions and images. Memory grows with the number of images and ``top``, not with the number of regions.

    Args:
        root: The output folder.
        lines: What the pass of the model says of each image.
        log_frequency: Logarithm of each class's share of the labels ``(K,)``.
        top: The most regions to keep.
    """
    best: dict[str, float] = {}
    counts: dict[str, int] = {}

    def counted() -> Iterator[Suspect]:
        for one in suspects_of(root, lines, log_frequency):
            best[one.id] = max(best.get(one.id, 0.0), one.score)
            counts[one.id] = counts.get(one.id, 0) + 1
            yield one

    suspects = heapq.nsmallest(top, counted(), key=lambda one: one.order)
    images = [
        {
            "image": line["id"],
            "score": round(best.get(line["id"], 0.0), 4),
            "regions": counts.get(line["id"], 0),
            "denied": round(line["denied"] / max(line["known"], 1), 4),
            "label_probability": float(f"{math.exp(line['log_label']):.3g}") if line["known"] else None,
            "unlabelled": round(1 - line["known"] / (line["size"][0] * line["size"][1]), 4),
        }
        for line in lines
    ]
    images.sort(key=lambda row: (-row["score"], row["image"]))
    unsure = sorted(lines, key=lambda line: (-line["uncertainty"], line["id"]))
    following = [
        {
            "image": line["id"],
            "uncertainty": line["uncertainty"],
            "window_uncertainty": line["window_uncertainty"],
            **dict(zip(("left", "top", "right", "bottom"), line["window"])),
        }
        for line in unsure
    ]
    for rows in (images, following):
        rows[:] = [{"rank": place, **row} for place, row in enumerate(rows, 1)]
    return Ranking(suspects, images, following, sum(counts.values()))
