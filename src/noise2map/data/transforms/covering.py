"""Covers part of an image with grey: what is behind stays in the maps, and a mask says where it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from noise2map.data.transforms.geometric import MEAN_COLOR
from noise2map.data.transforms.sample import Sample, check_probability

KINDS = ("rectangle", "strips", "window", "mixed")

Shares = tuple[float, float]


def cover(sample: Mapping[str, Any], hidden: np.ndarray, color: tuple[int, int, int] = MEAN_COLOR) -> Sample:
    """The sample with part of its image painted over; its maps stay.

    Args:
        sample: A raw sample with ``image``; what is ``hidden`` already stays so.
        hidden: Pixels to cover, ``(H, W)`` bool.
        color: What they are painted with; the default is close to 0 for networks.
    """
    result = dict(sample)
    image = sample["image"].copy()
    image.paste(color, mask=Image.fromarray(hidden.astype(np.uint8) * 255))
    result["image"] = image
    result["hidden"] = hidden | sample["hidden"] if "hidden" in sample else hidden
    return result


@dataclass(frozen=True)
class Hide:
    """Covers part of an image: the truth stays, and ``hidden`` ``(H, W)`` bool says what was covered.

    Shares are of the sides of the image, drawn uniformly, places likewise. Put it behind all other transforms: training then
    completes what it sees.

    Attributes:
        kind: ``"rectangle"`` covers one; ``"window"`` all but one; ``"strips"`` two to four upright or level ones of one width,
            anywhere, together as wide as a side of a rectangle; ``"mixed"`` one of the three.
        p: Probability of covering anything.
        height: Range of the height of a rectangle, window or all level strips together; at most 1.
        width: Range of the width of a rectangle, window or all upright strips together; at most 1.
        color: What is painted over it, RGB.
    """

    kind: str = "rectangle"
    p: float = 1.0
    height: Shares = (0.5, 0.83)
    width: Shares = (0.38, 0.69)
    color: tuple[int, int, int] = MEAN_COLOR

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"hide is {self.kind!r}; expected one of {', '.join(KINDS)}")
        check_probability(self.p, "hide")
        for name in ("height", "width"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"hidden {name} is {(low, high)}; expected shares of the image's side, 0 < low <= high <= 1")

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator) -> Sample:
        """The sample with part of its image covered, and ``hidden``."""
        width, height = sample["image"].size
        hidden = np.zeros((height, width), bool)
        if rng.random() < self.p:
            kind = str(rng.choice(KINDS[:-1])) if self.kind == "mixed" else self.kind
            hidden = self._strips(height, width, rng) if kind == "strips" else self._rectangle(height, width, rng)
            if kind == "window":
                hidden = ~hidden
        return cover(sample, hidden, self.color)

    def _rectangle(self, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        rows, columns = (_place(side, rng.uniform(*shares), rng) for side, shares in ((height, self.height), (width, self.width)))
        mask = np.zeros((height, width), bool)
        mask[rows, columns] = True
        return mask

    def _strips(self, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """Strips of one width that do not overlap: their gaps are drawn, and what is left is shared out at random."""
        upright = bool(rng.integers(2))
        side, shares = (width, self.width) if upright else (height, self.height)
        count = int(rng.integers(2, 5))
        each = max(round(rng.uniform(*shares) * side / count), 1)
        line = np.zeros(side, bool)
        left_over = max(side - each * count, 0)
        for number, gap in enumerate(np.sort(rng.integers(0, left_over + 1, count))):
            line[gap + number * each : gap + (number + 1) * each] = True
        return np.broadcast_to(line if upright else line[:, None], (height, width)).copy()


def _place(side: int, share: float, rng: np.random.Generator) -> slice:
    """A stretch of a side, anywhere."""
    length = min(max(round(share * side), 1), side)
    start = int(rng.integers(0, side - length + 1))
    return slice(start, start + length)
