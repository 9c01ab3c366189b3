"""Segmentation scores against torchmetrics, mmsegmentation's nan rules and cases counted by hand."""

import math

import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix, multiclass_jaccard_index

from noise2map.codecs import OneHotCodec
from noise2map.metrics import (
    SegmentationScores,
    confusion_matrix,
    counts_from_confusion,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
    segmentation_scores,
)


def _random_maps(seed: int, batch: int = 4, num_labels: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_labels, (batch, 9, 11), generator=generator)
    prediction = torch.where(
        torch.rand(labels.shape, generator=generator) < 0.6,
        labels,
        torch.randint(num_labels, labels.shape, generator=generator),
    )
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    return prediction, labels


def test_agrees_with_torchmetrics():
    prediction, labels = _random_maps(0)
    metric = SegmentationScores(5)
    metric.update(prediction, labels)
    scores = metric.compute()
    keywords = {"num_classes": 5, "ignore_index": 255}
    assert scores["mIoU"].item() == pytest.approx(multiclass_jaccard_index(prediction, labels, **keywords).item())
    assert scores["aAcc"].item() == pytest.approx(multiclass_accuracy(prediction, labels, average="micro", **keywords).item())
    assert scores["mAcc"].item() == pytest.approx(multiclass_accuracy(prediction, labels, average="macro", **keywords).item())
    assert torch.equal(metric.confusion, multiclass_confusion_matrix(prediction, labels, **keywords))


def test_hand_case_with_absent_classes():
    """Class 2 is only predicted (IoU 0, no accuracy), class 3 is nowhere (no IoU): as mmsegmentation's nanmean."""
    labels = torch.tensor([[[0, 0, 0, 1], [1, 1, 255, 255]]])
    prediction = torch.tensor([[[0, 0, 1, 1], [1, 2, 3, 0]]])
    metric = SegmentationScores(4)
    metric.update(prediction, labels)
    scores = metric.compute()
    assert scores["IoU"][:3].tolist() == pytest.approx([2 / 3, 2 / 4, 0.0])
    assert math.isnan(scores["IoU"][3])
    assert scores["mIoU"].item() == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert scores["aAcc"].item() == pytest.approx(4 / 6)
    assert scores["mAcc"].item() == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert torch.isnan(scores["Acc"][2:]).all()


def test_batching_and_merging_do_not_change_the_result():
    prediction, labels = _random_maps(1, batch=6)
    whole = SegmentationScores(5)
    whole.update(prediction, labels)
    first, second = SegmentationScores(5), SegmentationScores(5)
    first.update(prediction[:2], labels[:2])
    for i in range(2, 6):
        second.update(prediction[i : i + 1], labels[i : i + 1])
    first.merge_state(second)
    assert torch.equal(first.confusion, whole.confusion)
    assert torch.equal(first.compute()["IoU"], whole.compute()["IoU"])


def test_per_image_counts_rebuild_the_total():
    prediction, labels = _random_maps(2)
    metric = SegmentationScores(5)
    metric.update(prediction[:3], labels[:3])
    metric.update(prediction[3:], labels[3:])
    counts = metric.per_image()
    assert counts.shape == (4, 3, 5)
    scores = metric.compute()
    assert mean_iou(counts).item() == scores["mIoU"].item()
    assert pixel_accuracy(counts).item() == scores["aAcc"].item()
    assert mean_accuracy(counts).item() == scores["mAcc"].item()
    single = confusion_matrix(prediction[2:3], labels[2:3], 5)
    assert segmentation_scores(counts[2])["mIoU"] == segmentation_scores(counts_from_confusion(single[0]))["mIoU"]
    lean = SegmentationScores(5, keep_per_image=False)
    lean.update(prediction, labels)
    assert lean.per_image().shape == (0, 3, 5)


def test_nothing_but_ignored_pixels_is_nan():
    metric = SegmentationScores(3)
    metric.update(torch.zeros(1, 2, 2, dtype=torch.long), torch.full((1, 2, 2), 255))
    assert math.isnan(metric.compute()["mIoU"])


@pytest.mark.parametrize(
    ("prediction", "labels", "message"),
    [
        (torch.tensor([[[7]]]), torch.tensor([[[0]]]), r"predicted label 7 .*0\.\.2"),
        (torch.tensor([[[0]]]), torch.tensor([[[4]]]), r"label 4 is outside 0\.\.2"),
        (torch.tensor([[[0]]]), torch.tensor([[[-1]]]), r"label -1"),
        (torch.tensor([[[0, 1]]]), torch.tensor([[[0]]]), "same shape"),
        (torch.tensor([[[0.5]]]), torch.tensor([[[0]]]), "integers"),
    ],
)
def test_bad_ids_are_refused(prediction, labels, message):
    with pytest.raises(ValueError, match=message):
        SegmentationScores(3).update(prediction, labels)


def test_a_prediction_outside_the_classes_is_fine_where_the_truth_is_ignored():
    metric = SegmentationScores(2)
    metric.update(torch.tensor([[[9, 1]]]), torch.tensor([[[255, 1]]]))
    assert metric.compute()["aAcc"].item() == 1


def test_num_labels_must_be_positive():
    with pytest.raises(ValueError, match="num_labels"):
        SegmentationScores(0)


def test_an_ignore_label_that_a_byte_cannot_hold_is_none_of_its_classes():
    ids = torch.full((1, 4, 4), 156, dtype=torch.uint8)  # -100 as a byte
    scores = SegmentationScores(200, ignore_index=-100)
    scores.update(ids, ids)
    assert float(scores.compute()["aAcc"]) == 1
    signal = OneHotCodec(200, ignore_index=-100).encode(ids[:, :1, :1])
    assert int(signal[0, :, 0, 0].argmax()) == 156
