"""Frames of the videos that are written, in colors that mean the same from the first to the last."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from noise2map.inference.predictor import Predictor
from noise2map.report.palettes import UNCERTAINTY_MAP, colorize
from noise2map.report.panels import uncertainty_limit
from noise2map.tasks import task_of
from noise2map.tasks.base import ImageTask
from noise2map.tasks.prediction import Prediction

_SHARE = 0.55  # of the map in the overlay


class Painter:
    """Paints predictions of one clip.

    Args:
        predictor: What predicts them.
        references: Predictions whose ranges decide the colors, at least one.

    Attributes:
        kinds: Names of the videos: map, overlay and, where it is defined, uncertainty.
        ranges: What the ends of the colors mean, for the record.
    """

    def __init__(self, predictor: Predictor, references: Sequence[Prediction]) -> None:
        task = task_of(predictor.model)
        assert isinstance(task, ImageTask)
        self.task, self.palette = task, predictor.palette
        self.reference = torch.cat([one.values for one in references], dim=-2)
        self.kinds = ["map", "overlay"]
        self.ranges: dict[str, Any] = self.task.color_range(self.reference)
        stated = [one.uncertainty for one in references if one.uncertainty is not None]
        if stated:
            self.kinds.append("uncertainty")
            self.ranges["uncertainty"] = [0.0, uncertainty_limit(*stated)]

    def paint(self, prediction: Prediction) -> dict[str, np.ndarray]:
        """Kind to ``(H, W, 3)`` uint8."""
        assert prediction.image is not None
        painted = self.task.paint(prediction.values, self.reference, self.palette)
        mixed = _SHARE * painted + (1 - _SHARE) * prediction.image
        frames = {"map": painted, "overlay": mixed.round().astype(np.uint8)}
        if prediction.uncertainty is not None and "uncertainty" in self.ranges:
            frames["uncertainty"] = colorize(prediction.uncertainty, 0.0, self.ranges["uncertainty"][1], UNCERTAINTY_MAP)
        return frames
