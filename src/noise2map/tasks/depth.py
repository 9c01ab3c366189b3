"""Depth maps: their scorer."""

from typing import Any

import torch
from torch import Tensor

from noise2map.metrics import DEPTH_SCORES, DepthScores, absolute_relative_error, depth_is_wrong, depth_valid
from noise2map.tasks.base import ImageScorer, as_floats, resize_bilinear, sort_rows


class DepthScorer(ImageScorer):
    """The nine depth scores, and every kind of uncertainty against the absolute relative error.

    Args:
        min_depth: Truth and prediction are scored above this, metres.
        max_depth: And below this.
        model_range: The model's own range, to which its output is clamped before it is resized, metres.
        device: Where scores are computed.
    """

    statistics = DEPTH_SCORES
    error_kind = "continuous"

    def __init__(self, min_depth: float, max_depth: float, model_range: tuple[float, float], device: torch.device) -> None:
        super().__init__(device)
        self.range, self.model_range = (min_depth, max_depth), model_range
        self.maps = DepthScores(min_depth, max_depth).to(device)
        self.pooled = DepthScores(min_depth, max_depth, average="pixel", keep_per_image=False).to(device)

    def _channels(self, output: Any) -> int:
        return 1

    def _prediction(self, output: Any, part: list[int], average: str, processed: tuple[int, int], size: tuple[int, int]) -> Tensor:
        depth_m = output.predicted_depth[part, None].float().clamp(*self.model_range)
        return resize_bilinear(depth_m, processed, size)[:, 0].to(self.device)

    def _update(self, prediction: Tensor, truth: Tensor, kinds: dict[str, Tensor], indices: list[int]) -> None:
        self.maps.update(prediction, truth)
        self.pooled.update(prediction, truth)
        valid = depth_valid(truth, *self.range)
        prediction, truth = prediction.clamp(*self.range), torch.where(valid, truth, 1)
        error, wrong = absolute_relative_error(prediction, truth), depth_is_wrong(prediction, truth)
        self._score_uncertainties(kinds, error, wrong, valid, indices)

    def scores(self) -> dict[str, float]:
        """The nine scores, averaged over images."""
        return as_floats(self.maps.compute())

    def image_rows(self) -> Tensor:
        """Scores `(N, 9)`."""
        return sort_rows(self.maps.per_image().cpu(), self.order)

    def image_scores(self) -> dict[str, Tensor]:
        """The nine scores of every image."""
        return dict(zip(DEPTH_SCORES, self.image_rows().unbind(1)))

    def extras(self) -> dict[str, Any]:
        """The same scores pooled over pixels, which some papers report."""
        return {"pooled": as_floats(self.pooled.compute())}
