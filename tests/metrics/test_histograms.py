"""Histogram scores against brute force on the unbinned values, with ties."""

import math

import pytest
import torch
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from noise2map.metrics import histograms as h


def _histogram(values: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    weights = None if weights is None else weights[None]
    return h.histogram_rows(h.bin_index(values)[None], h.num_bins(), weights)[0]


def test_bins_are_ordered_and_cover_the_unit_interval():
    values = torch.tensor([0.0, -0.0, 1e-9, 2.0**-24, 1e-4, 0.5, 0.999999, 1.0])
    index = h.bin_index(values)
    assert index[0] == index[1] == index[2] == 0
    assert index[3] == 1
    assert (index.diff() >= 0).all()
    assert index[-1] == h.num_bins() - 1
    assert index[-2] == h.num_bins() - 2


@pytest.mark.parametrize("bits", [h.FINE_BITS, h.COARSE_BITS])
def test_bins_have_a_relative_width(bits):
    values = torch.logspace(-6.5, 0, 200_001, dtype=torch.float64).clamp(max=1).float()
    index = h.bin_index(values, bits)
    assert (index.diff() >= 0).all()
    first = torch.searchsorted(index, index)
    relative = values / values[first] - 1
    assert relative.max() < 2.0**-bits
    assert relative.max() > 2.0 ** -(bits + 1)
    assert 0.9 * (h.OCTAVES - 2.5) * 2**bits < len(index.unique()) <= h.num_bins(bits)


@pytest.mark.parametrize("scale", [1.0, 1e-4])
@pytest.mark.parametrize("levels", [None, 4])
def test_ranking_scores_agree_with_torchmetrics(scale, levels):
    """Fine values within the bin width; few values (a flip count) exactly."""
    generator = torch.Generator().manual_seed(3)
    wrong = torch.rand(20_000, generator=generator) < 0.2
    values = torch.rand(20_000, generator=generator) ** 2 * torch.where(wrong, 1.0, 0.7)
    if levels:
        values = (values * levels).round() / levels
    values = values * scale
    positive, negative = _histogram(values[wrong]), _histogram(values[~wrong])
    tolerance = 1e-6 if levels else 1e-3
    auroc = binary_auroc(values / scale, wrong.long()).item()
    precision = binary_average_precision(values / scale, wrong.long()).item()
    assert 0.55 < auroc < 0.95
    assert h.roc_auc(positive, negative).item() == pytest.approx(auroc, abs=tolerance)
    assert h.average_precision(positive, negative).item() == pytest.approx(precision, abs=tolerance)


def test_ranking_scores_by_hand():
    positive, negative = torch.tensor([0.0, 1.0, 1.0]).double(), torch.tensor([1.0, 1.0, 0.0]).double()
    assert h.roc_auc(positive, negative).item() == pytest.approx((1.5 + 2) / 4)
    assert h.average_precision(positive, negative).item() == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert math.isnan(h.roc_auc(positive, torch.zeros(3).double()))
    assert math.isnan(h.average_precision(torch.zeros(3).double(), negative))


def test_risk_coverage_area_against_brute_force():
    """Mean over coverages k/N of the mean error of the k lowest, ties averaged over many random orders."""
    generator = torch.Generator().manual_seed(5)
    values = (torch.rand(4000, generator=generator) * 12).round() / 12
    errors = torch.rand(4000, generator=generator).double() ** 3 * (0.2 + values)
    brute = []
    for _ in range(60):
        order = torch.argsort(values + 1e-3 * torch.rand(4000, generator=generator))
        brute.append((errors[order].cumsum(0) / torch.arange(1, 4001)).mean())
    area = h.risk_coverage_area(_histogram(values), _histogram(values, errors))
    assert area.item() == pytest.approx(torch.stack(brute).mean().item(), abs=3e-4)


def test_risk_coverage_area_closed_forms():
    """An uninformative ranking costs the mean error; the oracle of a binary error costs r + (1 - r) ln(1 - r)."""
    counts = torch.tensor([10.0, 0.0, 30.0]).double()
    assert h.risk_coverage_area(counts, 0.3 * counts).item() == pytest.approx(0.3)
    for rate in (0.1, 0.5, 0.9):
        counts = torch.tensor([1000 * (1 - rate), 1000 * rate]).double()
        area = h.risk_coverage_area(counts, torch.tensor([0.0, 1000 * rate]).double())
        assert area.item() == pytest.approx(rate + (1 - rate) * math.log(1 - rate))
    assert math.isnan(h.risk_coverage_area(torch.zeros(4).double(), torch.zeros(4).double()))


def test_rows_are_kept_apart_and_invalid_values_left_out():
    index = torch.tensor([[0, 2, 2], [1, 0, 0]])
    weights = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    valid = torch.tensor([[True, True, False], [True, True, True]])
    assert h.histogram_rows(index, 3).tolist() == [[1, 0, 2], [2, 1, 0]]
    assert h.histogram_rows(index, 3, weights).tolist() == [[1, 0, 5], [11, 4, 0]]
    assert h.histogram_rows(index, 3, weights, valid).tolist() == [[1, 0, 2], [11, 4, 0]]
    assert h.histogram_rows(index, 3, valid=~valid).tolist() == [[0, 0, 1], [0, 0, 0]]


def test_mid_ranks():
    assert h.mid_ranks(torch.tensor([2.0, 0.0, 3.0]).double())[[0, 2]].tolist() == [0.5, 3.0]
