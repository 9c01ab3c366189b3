"""Calibration of probabilities against torchmetrics, loops and closed forms."""

import math

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from noise2map.metrics import ExpectedCalibrationError, ProbabilityScores


def _predictions(seed: int = 0, sharpness: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(4, 6, 30, 40, generator=generator)
    honest = (logits / 1.5).softmax(1)
    labels = torch.multinomial(honest.permute(0, 2, 3, 1).reshape(-1, 6), 1, generator=generator).view(4, 30, 40)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    return logits.softmax(1), labels


def _updated(probabilities, labels, bins=15):
    metric = ExpectedCalibrationError(bins)
    confidence, guess = probabilities.max(1)
    for part in (slice(0, 1), slice(1, 4)):
        metric.update(confidence[part], (guess == labels)[part], valid=(labels != 255)[part])
    return metric


@pytest.mark.parametrize("bins", [15, 10])
def test_ece_and_mce_agree_with_torchmetrics(bins):
    probabilities, labels = _predictions()
    scores = _updated(probabilities, labels, bins).compute()
    for name, norm in (("ece", "l1"), ("mce", "max")):
        expected = multiclass_calibration_error(probabilities, labels, num_classes=6, n_bins=bins, norm=norm, ignore_index=255)
        assert scores[name].item() == pytest.approx(expected.item(), abs=1e-5)
    assert scores["ece"] > 0.05  # overconfident on purpose


def test_adaptive_ece_against_a_sorted_split():
    probabilities, labels = _predictions(1)
    confidence, guess = probabilities.max(1)
    keep = labels != 255
    order = confidence[keep].argsort()
    c, a = confidence[keep][order].double(), (guess == labels)[keep][order].double()
    expected = sum(abs((x - y).sum()) for x, y in zip(c.tensor_split(15), a.tensor_split(15))) / len(c)
    assert _updated(probabilities, labels).compute()["adaptive_ece"].item() == pytest.approx(expected.item(), abs=1e-3)


def test_adaptive_ece_splits_ties():
    """Two confidences, each right as often as it says: no gap however the bins fall."""
    confidence = torch.tensor([0.5] * 8 + [0.75] * 8).view(1, 4, 4)
    correct = torch.tensor([1, 0] * 4 + [1, 1, 1, 0] * 2).view(1, 4, 4)
    metric = ExpectedCalibrationError(3)
    metric.update(confidence, correct)
    assert metric.compute()["adaptive_ece"].item() == pytest.approx(0, abs=1e-12)
    assert metric.compute()["ece"].item() == pytest.approx(0, abs=1e-12)


def test_reliability_diagram():
    metric = ExpectedCalibrationError(4)
    metric.update(torch.tensor([[[0.3, 0.4, 0.9, 1.0]]]), torch.tensor([[[True, False, True, True]]]))
    diagram = metric.reliability()
    assert diagram["share"].tolist() == [0, 0.5, 0, 0.5]
    assert diagram["accuracy"][[1, 3]].tolist() == [0.5, 1.0]
    assert diagram["confidence"][[1, 3]].tolist() == pytest.approx([0.35, 0.95])
    assert math.isnan(diagram["accuracy"][0])


def test_brier_and_nll_against_torch():
    probabilities, labels = _predictions(2)
    metric = ProbabilityScores()
    metric.update(probabilities[:1], labels[:1])
    metric.update(probabilities[1:], labels[1:])
    keep = labels != 255
    flat, truth = probabilities.permute(0, 2, 3, 1)[keep].double(), labels[keep]
    one_hot = torch.nn.functional.one_hot(truth, 6)
    scores = metric.compute()
    assert scores["brier"].item() == pytest.approx(((flat - one_hot) ** 2).sum(1).mean().item(), rel=1e-6)
    assert scores["nll"].item() == pytest.approx(torch.nn.functional.nll_loss(flat.log(), truth).item(), rel=1e-6)


def test_brier_extremes():
    certain = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    right, wrong = ProbabilityScores(), ProbabilityScores()
    right.update(certain, torch.zeros(1, 1, 1, dtype=torch.long))
    wrong.update(certain, torch.ones(1, 1, 1, dtype=torch.long))
    assert right.compute()["brier"].item() == 0 and wrong.compute()["brier"].item() == 2
    assert right.compute()["nll"].item() == 0 and 20 < wrong.compute()["nll"].item() < 30


def test_merging_equals_the_whole():
    probabilities, labels = _predictions(3)
    confidence, guess = probabilities.max(1)
    first, second = ExpectedCalibrationError(), ExpectedCalibrationError()
    first.update(confidence[:2], (guess == labels)[:2], labels[:2] != 255)
    second.update(confidence[2:], (guess == labels)[2:], labels[2:] != 255)
    first.merge_state(second)
    whole = _updated(probabilities, labels)
    for name, value in whole.compute().items():
        assert first.compute()[name].item() == pytest.approx(value.item(), rel=1e-9)


def test_bad_input_is_refused():
    probabilities, labels = _predictions(4)
    with pytest.raises(ValueError, match="num_bins"):
        ExpectedCalibrationError(0)
    with pytest.raises(ValueError, match="confidence must be in"):
        ExpectedCalibrationError().update(torch.full((1, 2, 2), 1.2), torch.ones(1, 2, 2))
    with pytest.raises(ValueError, match="probabilities"):
        ProbabilityScores().update(probabilities, labels[:2])
    with pytest.raises(ValueError, match=r"0\.\.5"):
        ProbabilityScores().update(probabilities, labels.where(labels != 0, 6))


def test_what_stands_at_ignored_pixels_has_no_part_and_logits_are_refused():
    probabilities, labels = _predictions()
    metric, spoilt = ProbabilityScores(), ProbabilityScores()
    metric.update(probabilities, labels)
    spoilt.update(probabilities.masked_fill((labels == 255)[:, None], torch.nan), labels)
    assert spoilt.compute() == metric.compute()
    with pytest.raises(ValueError, match=r"probabilities must be in \[0, 1\]"):
        metric.update(probabilities.log(), labels)
    with pytest.raises(ValueError, match="1 NaN"):
        probabilities[0, 0, 0, 0] = torch.nan
        metric.update(probabilities, torch.zeros_like(labels))


def test_without_pixels_no_score_is_a_number():
    scores = ExpectedCalibrationError()
    scores.update(torch.rand(1, 4, 4), torch.ones(1, 4, 4), valid=torch.zeros(1, 4, 4, dtype=torch.bool))
    assert {name for name, value in scores.compute().items() if value.isnan()} == set(scores.compute())


def test_class_ids_are_not_taken_for_right_and_wrong():
    metric = ExpectedCalibrationError()
    with pytest.raises(ValueError, match="correct must be bool, or 0 and 1"):
        metric.update(torch.rand(1, 4, 4), torch.full((1, 4, 4), 3))
    metric.update(torch.full((1, 1, 2), 0.8), torch.tensor([[[1, 3]]]), torch.tensor([[[True, False]]]))
    assert float(metric.compute()["accuracy"]) == 1
