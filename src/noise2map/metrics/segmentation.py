"""Segmentation scores from a streamed confusion matrix."""

from typing import Any

import torch
from torch import Tensor

from noise2map.metrics.histograms import histogram_rows
from noise2map.metrics.per_image import PerImageMetric


def confusion_matrix(prediction: Tensor, labels: Tensor, num_labels: int, ignore_index: int = 255) -> Tensor:
    """Count, for every image, how often a true class was predicted as each class.

    Args:
        prediction: Predicted class ids `(B, H, W)`, integers in `[0, num_labels)` wherever the truth is known.
        labels: True class ids `(B, H, W)`, integers in `[0, num_labels)` or `ignore_index`.
        num_labels: Number of classes `K`.
        ignore_index: True label of the pixels that do not count.

    Returns:
        Counts `(B, K, K)` int64: row = true class, column = predicted class.

    Raises:
        ValueError: If shapes differ or an id is outside the range.
    """
    if prediction.shape != labels.shape or prediction.ndim != 3:
        raise ValueError(
            f"prediction and labels must have the same shape (B, H, W), got {tuple(prediction.shape)} and {tuple(labels.shape)}"
        )
    if prediction.is_floating_point() or labels.is_floating_point():
        raise ValueError(f"class ids must be integers, got {prediction.dtype} and {labels.dtype}")
    known = (labels.long() != ignore_index).flatten(1)  # a byte may not hold the ignore label
    truth, guess = (torch.where(known, ids.flatten(1).long(), 0) for ids in (labels, prediction))
    for name, ids in (("label", truth), ("predicted label", guess)):
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= num_labels):
            worst = int(ids.max()) if int(ids.max()) >= num_labels else int(ids.min())
            raise ValueError(f"{name} {worst} is outside 0..{num_labels - 1} (ignore_index is {ignore_index})")
    counts = histogram_rows(truth * num_labels + guess, num_labels**2, valid=known)
    return counts.view(-1, num_labels, num_labels).long()


def counts_from_confusion(confusion: Tensor) -> Tensor:
    """Reduce confusion matrices `(..., K, K)` to the counts that the scores need.

    Returns:
        `(..., 3, K)` in the order correct pixels, true pixels, predicted pixels of each class. 3K numbers an image
        instead of K squared, from which mIoU, aAcc and mAcc of any set of images follow exactly.
    """
    return torch.stack([confusion.diagonal(dim1=-2, dim2=-1), confusion.sum(-1), confusion.sum(-2)], dim=-2)


def segmentation_scores(counts: Tensor) -> dict[str, Tensor]:
    """Scores of the counts `(3, K)` of :func:`counts_from_confusion`, in float64.

    A class that is neither in the truth nor in the prediction has no IoU, one that is not in the truth has no
    accuracy: these are NaN and do not enter the means.

    Returns:
        `mIoU`, `aAcc`, `mAcc` (scalars) and `IoU`, `Acc` `(K,)`, all in `[0, 1]`.
    """
    correct, true, predicted = counts.double().unbind(-2)
    iou = correct / (true + predicted - correct)
    accuracy = correct / true
    return {
        "mIoU": iou.nanmean(-1),
        "aAcc": correct.sum(-1) / true.sum(-1),
        "mAcc": accuracy.nanmean(-1),
        "IoU": iou,
        "Acc": accuracy,
    }


class SegmentationScores(PerImageMetric):
    """mIoU, pixel accuracy (aAcc) and mean class accuracy (mAcc) over a dataset.

    The confusion matrix is summed over all images before the ratios are taken (the mmsegmentation protocol), so the
    result does not depend on the batch size nor on the number of processes.

    Args:
        num_labels: Number of classes `K`.
        ignore_index: True label of the pixels that do not count.
        keep_per_image: Keep `3 K` counts an image for :meth:`per_image` (confidence intervals).
        **kwargs: Passed on to :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If `num_labels` is not positive.
    """

    full_state_update = False
    confusion: Tensor

    def __init__(self, num_labels: int, ignore_index: int = 255, keep_per_image: bool = True, **kwargs: Any) -> None:
        if num_labels < 1:
            raise ValueError(f"num_labels must be at least 1, got {num_labels}")
        super().__init__((3, num_labels), torch.int64, keep_per_image, **kwargs)
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.add_state("confusion", torch.zeros(num_labels, num_labels, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, labels: Tensor) -> None:
        """Add predicted and true class ids, both `(B, H, W)` integers; see :func:`confusion_matrix`."""
        confusion = confusion_matrix(prediction, labels, self.num_labels, self.ignore_index)
        self.confusion += confusion.sum(0)
        self._keep(counts_from_confusion(confusion))

    def compute(self) -> dict[str, Tensor]:
        """Scores over everything seen; see :func:`segmentation_scores`."""
        return segmentation_scores(counts_from_confusion(self.confusion))

    def per_image(self) -> Tensor:
        """Counts of every image, `(N, 3, K)` int64, for :func:`noise2map.metrics.bootstrap_interval`."""
        return super().per_image()


def mean_iou(counts: Tensor) -> Tensor:
    """MIoU of the per-image counts `(N, 3, K)` taken together: a statistic for the bootstrap."""
    return segmentation_scores(counts.sum(0))["mIoU"]


def pixel_accuracy(counts: Tensor) -> Tensor:
    """Pixel accuracy of the per-image counts `(N, 3, K)` taken together: a statistic for the bootstrap."""
    return segmentation_scores(counts.sum(0))["aAcc"]


def mean_accuracy(counts: Tensor) -> Tensor:
    """Mean class accuracy of the per-image counts `(N, 3, K)` taken together: a statistic for the bootstrap."""
    return segmentation_scores(counts.sum(0))["mAcc"]
