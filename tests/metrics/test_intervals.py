"""Bootstrap intervals against the normal approximation, coverage, and pairing."""

import math

import numpy as np
import pytest
import torch

from noise2map.metrics import (
    bootstrap_interval,
    bootstrap_intervals,
    mean_iou,
    nan_mean,
    paired_bootstrap_interval,
    paired_bootstrap_intervals,
)


def test_interval_of_a_mean_matches_the_normal_approximation():
    rows = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 5
    interval = bootstrap_interval(rows, n=2000)
    half = 1.96 * rows.std().item() / math.sqrt(400)
    assert interval.estimate == pytest.approx(rows.mean().item())
    assert interval.low == pytest.approx(rows.mean().item() - half, abs=0.15 * half)
    assert interval.high == pytest.approx(rows.mean().item() + half, abs=0.15 * half)
    assert interval.images == 400 and interval.excludes_zero()


def test_coverage_is_near_nominal():
    generator = torch.Generator().manual_seed(1)
    hits = 0
    for _ in range(150):
        rows = torch.rand(40, generator=generator)
        interval = bootstrap_interval(rows, n=200, confidence=0.9)
        hits += interval.low <= 0.5 <= interval.high
    assert 0.8 <= hits / 150 <= 0.97


def test_seed_decides():
    rows = torch.rand(30, generator=torch.Generator().manual_seed(2))
    assert bootstrap_interval(rows, n=50, seed=3) == bootstrap_interval(rows, n=50, seed=3)
    assert bootstrap_interval(rows, n=50, seed=3) != bootstrap_interval(rows, n=50, seed=4)


def test_mean_iou_of_resampled_counts():
    """Ten images right everywhere, ten wrong everywhere: mIoU depends on how many of each are drawn."""
    right = torch.tensor([[4, 4], [4, 4], [4, 4]])
    wrong = torch.tensor([[0, 0], [4, 4], [4, 4]])
    counts = torch.stack([right] * 10 + [wrong] * 10)
    interval = bootstrap_interval(counts, mean_iou, n=500)
    assert interval.estimate == pytest.approx(1 / 3)  # share p of right pixels: p / (2 - p) at p = 1/2
    assert interval.low == pytest.approx(0.3 / 1.7, abs=0.06)
    assert interval.high == pytest.approx(0.7 / 1.3, abs=0.08)


def test_pairing_cancels_what_is_hard_for_both():
    generator = torch.Generator().manual_seed(4)
    difficulty = torch.rand(100, generator=generator)
    b = difficulty + 0.01 * torch.randn(100, generator=generator)
    a = difficulty + 0.02 + 0.01 * torch.randn(100, generator=generator)
    paired = paired_bootstrap_interval(a, b)
    assert paired.estimate == pytest.approx((a - b).mean().item(), abs=1e-6)
    assert paired.excludes_zero() and paired.low > 0.01
    separate_a, separate_b = bootstrap_interval(a), bootstrap_interval(b)
    assert separate_b.high > separate_a.low  # unpaired, nothing could be said
    assert not paired_bootstrap_interval(a, a).excludes_zero()


def test_undefined_rows_and_single_images():
    rows = torch.tensor([1.0, torch.nan, 3.0])
    assert bootstrap_interval(rows, n=50).estimate == 2
    single = bootstrap_interval(torch.tensor([0.7]))
    assert math.isnan(single.low) and math.isnan(single.high) and not single.excludes_zero()


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="at least one image"):
        bootstrap_interval(torch.zeros(0))
    with pytest.raises(ValueError, match="n=0"):
        bootstrap_interval(torch.ones(3), n=0)
    with pytest.raises(ValueError, match="confidence=1"):
        bootstrap_interval(torch.ones(3), confidence=1)
    with pytest.raises(ValueError, match="one shape"):
        paired_bootstrap_interval(torch.ones(3), torch.ones(4))


def test_several_statistics_at_once_equal_one_at_a_time():
    a = torch.rand(25, 3, generator=torch.Generator().manual_seed(5))
    b = torch.rand(25, 3, generator=torch.Generator().manual_seed(6))
    together, apart = bootstrap_intervals(a, n=100), [bootstrap_interval(a[:, i], n=100) for i in range(3)]
    paired = paired_bootstrap_intervals(a, b, n=100)
    for i in range(3):
        assert together[i].low == pytest.approx(apart[i].low, rel=1e-6)
        assert together[i].high == pytest.approx(apart[i].high, rel=1e-6)
        assert paired[i].low == pytest.approx(paired_bootstrap_interval(a[:, i], b[:, i], n=100).low, rel=1e-5)


def test_resampled_clusters_agree_with_resampling_their_sums():
    """Six images of three places: the same places are drawn as rows of sums are where each place is one row."""
    rows = torch.tensor([[1.0, 1], [2, 1], [4, 1], [8, 1], [16, 1], [32, 1]])
    clusters = ["a", "b", "a", "c", "c", "c"]
    sums = torch.tensor([[5.0, 2], [2, 1], [56, 3]])
    ratio = lambda r: (r.sum(0)[0] / r.sum(0)[1])[None]  # noqa: E731
    found = bootstrap_intervals(rows, ratio, 200, clusters=clusters)[0]
    expected = bootstrap_intervals(sums, ratio, 200)[0]
    assert (found.estimate, found.low, found.high) == pytest.approx((expected.estimate, expected.low, expected.high))
    assert found.images == 6 and found.clusters == 3 and expected.clusters is None
    paired = paired_bootstrap_intervals(rows, rows[:, :1], ratio, 50, clusters=clusters, other_statistic=nan_mean)[0]
    assert (paired.low, paired.high) == pytest.approx((0, 0))


def test_intervals_over_one_cluster_say_nothing():
    interval = bootstrap_intervals(torch.arange(4.0)[:, None], n=20, clusters=["a"] * 4)[0]
    assert math.isnan(interval.low) and interval.estimate == 1.5
    with pytest.raises(ValueError, match="clusters of 2 images"):
        bootstrap_intervals(torch.arange(4.0)[:, None], clusters=["a", "b"])


def test_places_that_differ_widen_the_interval():
    generator = torch.Generator().manual_seed(0)
    places = torch.arange(200) // 20
    rows = torch.randn(10, 1, generator=generator)[places] + 0.1 * torch.randn(200, 1, generator=generator)
    by_image, by_place = (bootstrap_intervals(rows, clusters=c)[0] for c in (None, places.tolist()))
    # standard error of a mean of ten places against one of 200 images: sqrt(20) times as wide
    assert (by_place.high - by_place.low) / (by_image.high - by_image.low) == pytest.approx(20**0.5, rel=0.2)


def test_clusters_may_be_a_tensor_or_an_array():
    rows = torch.rand(60, generator=torch.Generator().manual_seed(5))
    names = [index // 10 for index in range(60)]
    expected = bootstrap_interval(rows, n=100, clusters=names)
    assert expected.clusters == 6
    assert bootstrap_interval(rows, n=100, clusters=torch.tensor(names)) == expected
    assert bootstrap_interval(rows, n=100, clusters=np.array(names)) == expected
