"""Uncertainty scores against torchmetrics and brute force on the raw pixels."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from noise2map.metrics import UNCERTAINTY_SCORES, UncertaintyScores


def _binary(seed: int = 0, batch: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    uncertainty = torch.rand(batch, 40, 50, generator=generator) ** 3
    wrong = torch.rand(uncertainty.shape, generator=generator) < 0.05 + 0.8 * uncertainty
    valid = torch.rand(uncertainty.shape, generator=generator) < 0.9
    return uncertainty, wrong, valid


def _continuous(seed: int = 0, batch: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    uncertainty = torch.rand(batch, 40, 50, generator=generator) ** 2
    error = (0.02 + uncertainty) * torch.randn(uncertainty.shape, generator=generator).abs()
    valid = torch.rand(uncertainty.shape, generator=generator) < 0.9
    return uncertainty, error, error > 0.25, valid


def _brute_area(rank_by: np.ndarray, error: np.ndarray) -> float:
    ordered = error[np.argsort(rank_by, kind="stable")]
    return float(np.mean(np.cumsum(ordered) / np.arange(1, len(ordered) + 1)))


def _brute_scores(uncertainty: torch.Tensor, error: torch.Tensor, wrong: torch.Tensor) -> dict[str, float]:
    u, e = uncertainty.double().numpy(), error.double().numpy()
    area, oracle, mean = _brute_area(u, e), _brute_area(e, e), e.mean()
    return {
        "auroc": binary_auroc(uncertainty, wrong.long()).item(),
        "aupr": binary_average_precision(uncertainty, wrong.long()).item(),
        "aurc": area,
        "excess_aurc": area - oracle,
        "ause": (area - oracle) / mean,
        "prr": 1 - (area - oracle) / (mean - oracle),
        "pearson": pearson_corrcoef(uncertainty.double(), error.double()).item(),
        "spearman": spearman_corrcoef(uncertainty.double(), error.double()).item(),
        "mean_uncertainty": u.mean(),
        "mean_error": mean,
        "error_rate": wrong.double().mean().item(),
    }


def _assert_close(scores: dict[str, torch.Tensor], expected: dict[str, float], tolerance: float) -> None:
    for name, value in expected.items():
        assert scores[name].item() == pytest.approx(value, abs=tolerance), name


def test_binary_scores_agree_with_brute_force():
    uncertainty, wrong, valid = _binary()
    metric = UncertaintyScores("binary")
    metric.update(uncertainty[:2], wrong[:2], valid=valid[:2])
    metric.update(uncertainty[2:], wrong[2:], valid=valid[2:])
    expected = _brute_scores(uncertainty[valid], wrong[valid], wrong[valid])
    _assert_close(metric.compute(), expected, 2e-3)
    assert 0.7 < expected["auroc"] < 0.9  # the data is neither trivial nor noise


def test_continuous_scores_agree_with_brute_force():
    uncertainty, error, wrong, valid = _continuous()
    metric = UncertaintyScores("continuous")
    metric.update(uncertainty[:3], error[:3], wrong[:3], valid[:3])
    metric.update(uncertainty[3:], error[3:], wrong[3:], valid[3:])
    expected = _brute_scores(uncertainty[valid], error[valid], wrong[valid])
    _assert_close(metric.compute(), expected, 2e-3)
    assert math.isnan(metric.compute()["uce"])


def test_sparsification_area_is_the_area_between_the_two_curves():
    """AUSE as it is usually drawn: remove the most uncertain fraction f, divide by the error at f = 0, integrate."""
    uncertainty, error, wrong, _ = _continuous(1)
    u, e = uncertainty.flatten().numpy(), error.flatten().double().numpy()
    kept_by_uncertainty, kept_by_error = e[np.argsort(u)], np.sort(e)
    fractions = np.linspace(0, 1, 2001)[:-1]
    kept = np.maximum(1, np.round((1 - fractions) * len(e)).astype(int))
    gap = [(kept_by_uncertainty[:k].mean() - kept_by_error[:k].mean()) / e.mean() for k in kept]
    metric = UncertaintyScores("continuous")
    metric.update(uncertainty, error, wrong)
    assert metric.compute()["ause"].item() == pytest.approx(np.mean(gap), abs=2e-3)


def test_tiny_uncertainties_are_ranked_as_finely_as_large_ones():
    """The variance of a confident model lives near zero; equal-width bins would call it all one tie."""
    uncertainty, wrong, _ = _binary(2)
    large, small = UncertaintyScores("binary"), UncertaintyScores("binary")
    large.update(uncertainty, wrong)
    small.update(uncertainty * 2.0**-9, wrong)
    for name in ("auroc", "aurc", "spearman"):
        assert small.compute()[name].item() == pytest.approx(large.compute()[name].item(), abs=2e-3)


def test_oracle_and_constant_uncertainty():
    _, wrong, _ = _binary(3)
    oracle, constant = UncertaintyScores("binary"), UncertaintyScores("binary")
    oracle.update(wrong.float(), wrong)
    constant.update(torch.full(wrong.shape, 0.3), wrong)
    best, chance = oracle.compute(), constant.compute()
    rate = wrong.double().mean().item()
    for name, value in {"auroc": 1, "aupr": 1, "excess_aurc": 0, "ause": 0, "prr": 1, "pearson": 1, "spearman": 1}.items():
        assert best[name].item() == pytest.approx(value, abs=1e-9), name
    for name, value in {"auroc": 0.5, "aupr": rate, "aurc": rate, "prr": 0}.items():
        assert chance[name].item() == pytest.approx(value, abs=1e-9), name
    assert math.isnan(chance["pearson"]) and math.isnan(chance["spearman"])
    assert best["uce"].item() == pytest.approx(0, abs=1e-9)
    assert chance["uce"].item() == pytest.approx(abs(rate - 0.3), abs=1e-6)


def test_uncertainty_calibration_error_against_a_loop():
    uncertainty, wrong, _ = _binary(4)
    metric = UncertaintyScores("binary")
    metric.update(uncertainty, wrong)
    u, w, total = uncertainty.flatten().double(), wrong.flatten().double(), 0.0
    for k in range(15):
        inside = (u >= k / 15) & (u < (k + 1) / 15)
        total += abs((u[inside] - w[inside]).sum().item())
    assert metric.compute()["uce"].item() == pytest.approx(total / len(u), abs=1e-6)


def test_per_image_rows_are_the_scores_of_single_images():
    uncertainty, wrong, valid = _binary(5)
    metric = UncertaintyScores("binary")
    metric.update(uncertainty, wrong, valid=valid)
    rows = metric.per_image()
    assert rows.shape == (5, len(UNCERTAINTY_SCORES))
    for i in range(5):
        alone = UncertaintyScores("binary")
        alone.update(uncertainty[i : i + 1], wrong[i : i + 1], valid=valid[i : i + 1])
        assert torch.allclose(rows[i], torch.stack([alone.compute()[name] for name in UNCERTAINTY_SCORES]))
    expected = pearson_corrcoef(uncertainty[1][valid[1]].double(), wrong[1][valid[1]].double())
    assert rows[1, UNCERTAINTY_SCORES.index("pearson")].item() == pytest.approx(expected.item(), abs=1e-6)
    assert metric.compute()["auroc_image"].item() == pytest.approx(rows[:, 0].mean().item())


def test_undefined_images_do_not_enter_the_image_mean():
    uncertainty, wrong, _ = _binary(6, batch=3)
    wrong[1] = False  # nothing to detect
    valid = torch.ones_like(wrong)
    valid[2] = False  # nothing to score
    metric = UncertaintyScores("binary")
    metric.update(uncertainty, wrong, valid=valid)
    rows = metric.per_image()
    assert torch.isnan(rows[1, :2]).all() and torch.isnan(rows[2]).all()
    assert metric.compute()["auroc_image"].item() == pytest.approx(rows[0, 0].item())


@pytest.mark.parametrize("kind", ["binary", "continuous"])
def test_merging_two_halves_equals_the_whole(kind):
    uncertainty, error, wrong, valid = _continuous(7)
    error = wrong if kind == "binary" else error
    whole, first, second = (UncertaintyScores(kind) for _ in range(3))
    whole.update(uncertainty, error, wrong, valid)
    first.update(uncertainty[:1], error[:1], wrong[:1], valid[:1])
    second.update(uncertainty[1:], error[1:], wrong[1:], valid[1:])
    first.merge_state(second)
    assert len(first.per_image()) == 5
    for name, value in whole.compute().items():
        assert first.compute()[name].item() == pytest.approx(value.item(), rel=1e-9, nan_ok=True)


def test_memory_does_not_grow_with_the_number_of_pixels():
    metric = UncertaintyScores("continuous", keep_per_image=False)
    uncertainty, error, wrong, _ = _continuous(8)
    metric.update(uncertainty, error, wrong)
    before = sum(value.numel() for value in metric.metric_state.values() if isinstance(value, torch.Tensor))
    metric.update(uncertainty, error, wrong)
    after = sum(value.numel() for value in metric.metric_state.values() if isinstance(value, torch.Tensor))
    assert before == after < 100_000
    assert metric.metric_state["rows"] == []


def test_risk_coverage_curve():
    uncertainty, wrong, _ = _binary(9)
    metric = UncertaintyScores("binary")
    metric.update(uncertainty, wrong)
    coverage, risk = metric.risk_coverage_curve(200)
    assert coverage[-1] == 1 and risk[-1].item() == pytest.approx(wrong.double().mean().item())
    ordered = wrong.flatten()[uncertainty.flatten().argsort()].double()
    assert risk[49].item() == pytest.approx(ordered[: len(ordered) // 4].mean().item(), abs=2e-3)
    assert risk.mean().item() == pytest.approx(metric.compute()["aurc"].item(), abs=3e-3)


def test_bad_input_is_refused():
    uncertainty, wrong, valid = _binary(10, batch=1)
    metric = UncertaintyScores("binary")
    with pytest.raises(ValueError, match="uncertainty must be in"):
        metric.update(uncertainty * 1.5, wrong)
    with pytest.raises(ValueError, match="1 NaN"):
        broken = uncertainty.clone()
        broken[0, 0, 0] = torch.nan
        metric.update(broken, wrong)
    with pytest.raises(ValueError, match="one shape"):
        metric.update(uncertainty, wrong[:, :3])
    with pytest.raises(ValueError, match="one shape"):
        metric.update(uncertainty, wrong, valid=valid[0])
    with pytest.raises(ValueError, match="0 or 1"):
        metric.update(uncertainty, wrong * 0.5)
    with pytest.raises(ValueError, match="need `wrong`"):
        UncertaintyScores("continuous").update(uncertainty, wrong.float())
    with pytest.raises(ValueError, match="at least 0"):
        UncertaintyScores("continuous").update(uncertainty, -1.0 * wrong, wrong)
    with pytest.raises(ValueError, match="'binary' or 'continuous'"):
        UncertaintyScores("both")


def test_nothing_is_asked_of_invalid_pixels():
    uncertainty, error, wrong, valid = _continuous(11, batch=2)
    clean, dirty = UncertaintyScores("continuous"), UncertaintyScores("continuous")
    clean.update(uncertainty, error, wrong, valid)
    dirty.update(torch.where(valid, uncertainty, torch.nan), torch.where(valid, error, -torch.inf), wrong | ~valid, valid)
    for name in UNCERTAINTY_SCORES:
        assert dirty.compute()[name].item() == pytest.approx(clean.compute()[name].item(), nan_ok=True)


def test_rounding_above_one_is_forgiven():
    metric = UncertaintyScores("binary")
    metric.update(torch.tensor([[[1.00001, 0.2]]]), torch.tensor([[[True, False]]]))
    assert metric.compute()["auroc"].item() == 1
