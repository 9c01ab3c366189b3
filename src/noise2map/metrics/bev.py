"""Intersection over union of overlapping map layers, at the thresholds of the published protocol."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from noise2map.metrics.uncertainty import check_unit_interval

BEV_THRESHOLDS = (0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65)

FINE_THRESHOLDS = tuple(k / 100 for k in range(1, 100))
"""Every hundredth, to choose from."""


def bev_counts(
    probabilities: Tensor,
    labels: Tensor,
    thresholds: Sequence[float | Sequence[float]] = BEV_THRESHOLDS,
    ignore_index: int = 255,
) -> Tensor:
    """True positives, false positives and false negatives of each sample.

    Args:
        probabilities: `(B, K, X, Y)` in [0, 1].
        labels: `(B, K, X, Y)` of 0, 1 or `ignore_index`.
        thresholds: Probabilities to cut at; a sequence cuts each layer at its own.
        ignore_index: Label of cells that do not count.

    Returns:
        `(B, 3, thresholds, K)` int64.

    Raises:
        ValueError: If shapes differ, a label is something else, or a probability that counts is not in [0, 1].
    """
    if probabilities.shape != labels.shape or labels.ndim != 4:
        raise ValueError(f"probabilities {tuple(probabilities.shape)} and labels {tuple(labels.shape)} must both be (B, K, X, Y)")
    known = labels != ignore_index
    truth = labels == 1
    if bool((known & ~truth & (labels != 0)).any()):
        raise ValueError(f"labels hold values other than 0, 1 and {ignore_index}")
    check_unit_interval(probabilities.where(known, 0), "probabilities")
    counts = []
    for threshold in thresholds:
        if isinstance(threshold, Sequence):
            guess = probabilities >= probabilities.new_tensor(threshold).view(-1, 1, 1)
        else:
            guess = probabilities >= threshold
        masks = (guess & truth & known, guess & ~truth & known, ~guess & truth & known)
        counts.append(torch.stack([mask.sum((2, 3)) for mask in masks], dim=1))
    return torch.stack(counts, dim=2)


def bev_scores(counts: Tensor, thresholds: Sequence[float] = BEV_THRESHOLDS) -> dict[str, Tensor]:
    """Scores of counts that have been summed over samples.

    Args:
        counts: `(..., 3, thresholds, K)`, see `bev_counts`.
        thresholds: What was cut at, 0.5 among them.

    Returns:
        `mIoU_max` and `mIoU_50` `(...)`, `IoU_max` and `IoU_50` `(..., K)`, `IoU` `(..., thresholds, K)`, in float64.
    """
    true_positives, false_positives, false_negatives = counts.double().unbind(-3)
    iou = true_positives / (true_positives + false_positives + false_negatives + 1e-7)
    best, half = iou.amax(-2), iou[..., list(thresholds).index(0.5), :]
    return {"mIoU_max": best.mean(-1), "mIoU_50": half.mean(-1), "IoU_max": best, "IoU_50": half, "IoU": iou}


def best_layer_thresholds(
    probabilities: Tensor,
    labels: Tensor,
    thresholds: Sequence[float] = FINE_THRESHOLDS,
    most: float = 1.25,
    ignore_index: int = 255,
) -> tuple[float, ...]:
    """For each layer the threshold at which it overlaps best over all samples; of several such the one nearest to 0.5.

    What a model cannot find overlaps best where it is shown nearly everywhere; `most` says how much of that is borne.

    Args:
        probabilities: `(B, K, X, Y)` in [0, 1].
        labels: `(B, K, X, Y)` of 0, 1 or `ignore_index`.
        thresholds: To choose from, 0.5 among them.
        most: A layer is not shown in more than so many times the cells that it is in, if any threshold allows that.
        ignore_index: Label of cells that do not count.

    Returns:
        K thresholds; 0.5 of a layer that is nowhere.
    """
    counts = bev_counts(probabilities, labels, thresholds, ignore_index).sum(0)
    hits, false_alarms, misses = counts
    sparing = hits + false_alarms <= most * (hits + misses)
    overlap = bev_scores(counts, thresholds)["IoU"].where(sparing, -1)
    found = []
    for layer, column in enumerate(overlap.T.tolist()):
        if not bool((hits + misses)[:, layer].any()):
            found.append(0.5)
        elif max(column) < 0:
            found.append(max(thresholds))
        else:
            found.append(min((one for one, iou in zip(thresholds, column) if iou == max(column)), key=lambda one: abs(one - 0.5)))
    return tuple(found)


class BevScores(Metric):
    """IoU of each layer over a dataset, at several thresholds.

    A cell counts as predicted where its probability is at least the threshold. True positives, false positives and false negatives
    are summed over all samples before the ratio is taken, so the result does not depend on the batch size nor on the number of
    processes. The published score takes for each layer the *best* threshold on the very samples that it is scored on
    (``IoU_max``); ``IoU_50`` is the honest one.

    Args:
        num_layers: Number of layers K.
        thresholds: Probabilities to cut at.
        ignore_index: Label of cells that do not count.

    Raises:
        ValueError: If there is no layer or no threshold, or 0.5 is not one of them.
    """

    full_state_update = False
    true_positives: Tensor
    false_positives: Tensor
    false_negatives: Tensor

    def __init__(
        self, num_layers: int, thresholds: Sequence[float] = BEV_THRESHOLDS, ignore_index: int = 255, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if num_layers < 1:
            raise ValueError(f"num_layers is {num_layers}; expected at least 1")
        if 0.5 not in thresholds:
            raise ValueError(f"thresholds are {tuple(thresholds)}; expected probabilities, 0.5 among them")
        self.num_layers, self.thresholds, self.ignore_index = num_layers, tuple(thresholds), ignore_index
        for name in ("true_positives", "false_positives", "false_negatives"):
            self.add_state(name, torch.zeros(len(self.thresholds), num_layers, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Adds samples.

        Args:
            probabilities: `(B, K, X, Y)` in [0, 1].
            labels: `(B, K, X, Y)` of 0, 1 or `ignore_index`.

        Raises:
            ValueError: If shapes differ or a label is something else.
        """
        if probabilities.shape != labels.shape or labels.ndim != 4 or labels.shape[1] != self.num_layers:
            raise ValueError(
                f"probabilities {tuple(probabilities.shape)} and labels {tuple(labels.shape)} "
                f"must both be (B, {self.num_layers}, X, Y)"
            )
        counts = bev_counts(probabilities, labels, self.thresholds, self.ignore_index).sum(0)
        self.true_positives += counts[0]
        self.false_positives += counts[1]
        self.false_negatives += counts[2]

    def compute(self) -> dict[str, Tensor]:
        """Scores in float64.

        Returns:
            `mIoU_max` and `mIoU_50` (scalars), `IoU_max` and `IoU_50` `(K,)`, `IoU` `(thresholds, K)`.
        """
        return bev_scores(torch.stack([self.true_positives, self.false_positives, self.false_negatives]), self.thresholds)
