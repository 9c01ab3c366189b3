"""Fréchet and kernel distances against closed forms, SciPy and torchmetrics; sample counts, names, intervals."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from noise2map.metrics import (
    DepthFeatures,
    DepthFrechetDistance,
    Distance,
    FeatureExtractor,
    FeatureStatistics,
    FrechetDistance,
    KernelDistance,
    centered_interval,
    feature_distance,
    frechet_distance,
    kernel_distance,
    render_depth,
    resampled_distances,
)
from noise2map.metrics import feature_distances as kernel

pytestmark = pytest.mark.filterwarnings("ignore:.*images. below 2048")


def spd(size, seed):
    x = np.random.default_rng(seed).standard_normal((size, 2 * size))
    return torch.from_numpy(x @ x.T / (2 * size))


class Patches(FeatureExtractor):
    """Mean colors of the four quarters: 12 features."""

    name, size, num_features = "quarters", 12, 12

    def forward(self, images):
        return nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)


def pictures(count, seed, shift=0.0):
    values = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 0.7 + shift
    return (values.clamp(0, 1) * 255).to(torch.uint8)


# ---- closed forms ----------------------------------------------------------------------------------------------------------


def test_in_one_dimension_it_is_the_difference_of_means_and_deviations():
    m, s = torch.tensor([[1.5], [-2.0]]), torch.tensor([[[0.25]], [[9.0]]])
    assert frechet_distance(m[0], s[0], m[1], s[1]).item() == pytest.approx(3.5**2 + (0.5 - 3.0) ** 2, rel=1e-12)


def test_diagonal_and_commuting_covariances():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 6, generator=generator, dtype=torch.float64).unbind(0)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    expected = (a.sqrt() - b.sqrt()).square().sum().item()
    zero = torch.zeros(6)
    assert frechet_distance(zero, a.diag(), zero, b.diag()).item() == pytest.approx(expected, rel=1e-12)
    turned = [turn @ x.diag() @ turn.T for x in (a, b)]
    assert frechet_distance(zero, turned[0], zero, turned[1]).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [2, 7, 30])
def test_general_covariances_against_the_square_root_of_the_product(size):
    a, b, m = spd(size, 1), spd(size, 2), torch.linspace(-1, 1, size, dtype=torch.float64)
    by_scipy = m.square().sum() + a.trace() + b.trace() - 2 * np.trace(sqrtm((a @ b).numpy()).real)
    by_eigenvalues = m.square().sum() + a.trace() + b.trace() - 2 * np.sqrt(np.linalg.eigvals((a @ b).numpy())).real.sum()
    found = frechet_distance(m, a, torch.zeros(size), b).item()
    assert found == pytest.approx(float(by_scipy), rel=1e-9) and found == pytest.approx(float(by_eigenvalues), rel=1e-9)


def test_covariances_of_rank_one_have_a_closed_form():
    """tr((aa' bb')^(1/2)) = |a'b|: where SciPy's square root fails or wants a small number added."""
    a, b = torch.randn(2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind(0)
    zero = torch.zeros(50)
    expected = a.square().sum() + b.square().sum() - 2 * (a @ b).abs()
    found = frechet_distance(zero, torch.outer(a, a), zero, torch.outer(b, b)).item()
    assert found == pytest.approx(expected.item(), rel=1e-10)


def test_it_is_symmetric_zero_for_equals_and_unchanged_by_rotations():
    a, b, m = spd(9, 3), spd(9, 4), torch.arange(9.0)
    turn = torch.linalg.qr(spd(9, 5))[0]
    value = frechet_distance(m, a, -m, b).item()
    assert frechet_distance(-m, b, m, a).item() == pytest.approx(value, rel=1e-12)
    assert frechet_distance(turn @ m.double(), turn @ a @ turn.T, turn @ -m.double(), turn @ b @ turn.T).item() == pytest.approx(
        value
    )
    assert frechet_distance(m, a, m, a).item() < 1e-12


def test_impossible_covariances_are_refused():
    m, a = torch.zeros(2), torch.eye(2)
    with pytest.raises(ValueError, match="symmetric"):
        frechet_distance(m, torch.tensor([[1.0, 0.5], [0.0, 1.0]]), m, a)
    with pytest.raises(ValueError, match="semi-definite"):
        frechet_distance(m, torch.diag(torch.tensor([1.0, -0.5])), m, a)
    with pytest.raises(ValueError, match="one D"):
        frechet_distance(m, a, torch.zeros(3), torch.eye(3))


def test_distance_of_features_equals_that_of_their_covariances():
    x, y = torch.randn(2, 30, 7, generator=torch.Generator().manual_seed(0)).unbind(0)
    few = x[:5] * 2 + 1  # fewer than features
    for a, b in ((x, y), (few, y), (few, x[5:9])):
        statistics = [FeatureStatistics.of(one) for one in (a, b)]
        moments = [part for one in statistics for part in (one.mean, one.covariance())]
        assert feature_distance("frechet", a, b).item() == pytest.approx(frechet_distance(*moments).item(), rel=1e-9)
    with pytest.raises(ValueError, match="at least 2 samples"):
        feature_distance("frechet", x[:1], y)


# ---- statistics ------------------------------------------------------------------------------------------------------------


def test_streamed_statistics_equal_those_of_all_samples_far_from_the_origin():
    """A mean of 1e6 with a spread of 1e-2: sums of squares would leave no correct digit of the covariance."""
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e-2 + 1e6
    whole = FeatureStatistics.of(x[:0])
    for part in x.split([1, 99, 0, 200]):
        whole = whole.merged(FeatureStatistics.of(part))
    assert whole.count == 300
    torch.testing.assert_close(whole.mean, x.mean(0), rtol=1e-15, atol=0)
    torch.testing.assert_close(whole.covariance(), x.T.cov(), rtol=1e-6, atol=1e-12)


def test_features_that_are_not_numbers_are_refused():
    x = torch.ones(4, 2)
    x[2, 1] = math.nan
    with pytest.raises(ValueError, match="features of 1 of 4 samples"):
        FeatureStatistics.of(x)


# ---- against torchmetrics --------------------------------------------------------------------------------------------------


def test_fid_equals_that_of_torchmetrics():
    real, fake = pictures(60, 0), pictures(50, 1, 0.2)
    ours, theirs = FrechetDistance(Patches()), FrechetInceptionDistance(feature=Patches())
    theirs.set_dtype(torch.float64)
    for start in range(0, 60, 25):
        for images, is_real in ((real, True), (fake, False)):
            if len(images[start : start + 25]):
                ours.update(images[start : start + 25], real=is_real)
                theirs.update(images[start : start + 25], real=is_real)
    assert ours.compute().item() == pytest.approx(theirs.compute().item(), rel=1e-4)
    assert ours.compute().item() > 0.1


def test_kid_equals_that_of_torchmetrics_on_one_subset_of_all():
    real, fake = pictures(40, 0), pictures(40, 1, 0.2)
    ours = KernelDistance(Patches())
    theirs = KernelInceptionDistance(feature=Patches(), subsets=1, subset_size=40)
    for images, is_real in ((real, True), (fake, False)):
        ours.update(images, real=is_real)
        theirs.update(images, real=is_real)
    assert ours.compute().item() == pytest.approx(theirs.compute()[0].item(), rel=1e-4)


def test_kernel_distance_by_brute_force_with_weights(monkeypatch):
    monkeypatch.setattr(kernel, "_BLOCK", 3)  # blocks that do not divide the samples
    x, y = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind(0)
    u = torch.tensor([[2, 0, 1, 1, 3, 0, 0.0]])
    v = torch.tensor([[1, 1, 1, 1, 1, 1, 1.0]])

    def mean(a, b, wa, wb, same):
        pairs = [(i, j) for i in range(7) for j in range(7) if not (same and i == j)]
        total = sum(wa[i] * wb[j] for i, j in pairs)
        return sum(wa[i] * wb[j] * (a[i] @ b[j] / 4 + 1) ** 3 for i, j in pairs) / total

    expected = mean(x, x, u[0], u[0], True) + mean(y, y, v[0], v[0], True) - 2 * mean(x, y, u[0], v[0], False)
    assert kernel_distance(x, y, u, v).item() == pytest.approx(expected.item(), rel=1e-10)
    known = kernel.mean_kernel(y, v)
    assert known.item() == pytest.approx(mean(y, y, v[0], v[0], True).item(), rel=1e-10)
    assert kernel_distance(x, y, u, v, within_b=known).item() == pytest.approx(expected.item(), rel=1e-10)


def test_kernel_distance_of_one_tensor_with_itself_keeps_the_pairs_of_equal_samples_between_the_sets():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = [[float(x[i] @ x[j] / 4 + 1) ** 3 for j in range(6)] for i in range(6)]
    between = sum(map(sum, values)) / 36
    within = (sum(map(sum, values)) - sum(values[i][i] for i in range(6))) / 30
    expected = 2 * (within - between)
    assert expected < -0.1  # equal samples lie nearer than two draws of one distribution
    assert kernel_distance(x, x).item() == pytest.approx(expected, rel=1e-10)
    assert kernel_distance(x, x.clone()).item() == pytest.approx(expected, rel=1e-10)


def test_kernel_distance_is_unbiased_where_frechet_is_not():
    """Two sets of one distribution, 20 samples of 8 features: KID is zero on average, FID is not."""
    generator = torch.Generator().manual_seed(0)
    sets = torch.randn(2, 100, 20, 8, generator=generator, dtype=torch.float64)
    kid = torch.stack([kernel_distance(a, b) for a, b in zip(*sets)])
    fid = torch.stack([feature_distance("frechet", a, b) for a, b in zip(*sets)])
    assert abs(kid.mean()) < 3 * kid.std() / 10
    assert fid.mean() > 20 * fid.std() / 10


# ---- intervals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["frechet", "kernel"])
def test_intervals_cover_the_mean_of_repeated_draws(kind):
    """Features with a known law, drawn again and again: about 95 % of the intervals hold the mean distance."""
    generator = torch.Generator().manual_seed(1)

    def draw():
        sets = torch.randn(2, 80, 3, generator=generator, dtype=torch.float64)
        return sets[0] * 1.3 + 0.7, sets[1]

    truth = torch.stack([feature_distance(kind, *draw()) for _ in range(400)]).mean().item()
    covered = 0
    for repeat in range(40):
        generated, reference = draw()
        values = resampled_distances(kind, [generated], reference, 40, repeat)[:, 0]
        interval = centered_interval(feature_distance(kind, generated, reference).item(), values, 80)
        assert interval.low < interval.estimate < interval.high
        covered += interval.low <= truth <= interval.high
    assert covered >= 33  # P(fewer | 95 % coverage) < 0.001


def test_the_bias_of_the_bootstrap_estimates_that_of_the_number_of_samples():
    generator = torch.Generator().manual_seed(0)
    sets = torch.randn(2, 200, 4, generator=generator, dtype=torch.float64)
    value = feature_distance("frechet", *sets).item()  # the true distance is zero: all of it is bias
    bias = resampled_distances("frechet", [sets[0]], sets[1], 100).mean().item() - value
    assert 0.4 * value < bias < 1.6 * value


def test_differences_of_paired_sets_are_tighter_than_their_intervals():
    base = torch.randn(150, 4, generator=torch.Generator().manual_seed(0))
    reference = torch.randn(150, 4, generator=torch.Generator().manual_seed(1))
    near, far = base + 0.3, base + 0.5  # one seed each row
    values = resampled_distances("frechet", [near, far], reference, 80)
    assert (values[:, 1] - values[:, 0]).std() < 0.5 * values.std(0).max()
    assert (values[:, 1] > values[:, 0]).all()
    again = resampled_distances("frechet", [far], reference, 80)
    torch.testing.assert_close(values[:, 1:], again)


def test_impossible_resampling_is_refused():
    x = torch.randn(5, 2)
    with pytest.raises(ValueError, match="kind must be"):
        resampled_distances("hellinger", [x], x)
    with pytest.raises(ValueError, match="n must be"):
        resampled_distances("kernel", [x], x, 0)
    with pytest.raises(ValueError, match="confidence"):
        centered_interval(1.0, torch.ones(3), 5, 95)


# ---- metric classes --------------------------------------------------------------------------------------------------------


def test_too_few_samples_for_the_features_is_an_error_unless_asked():
    metric = FrechetDistance(Patches())
    metric.update(pictures(12, 0), real=False)
    metric.update(pictures(40, 1), real=True)
    with pytest.raises(ValueError, match="12 generated images and 12 features: the covariance is singular"):
        metric.compute()
    forced = FrechetDistance(Patches(), allow_singular=True)
    forced.update(pictures(12, 0), real=False)
    forced.update(pictures(40, 1), real=True)
    expected = feature_distance("frechet", Patches()(pictures(12, 0)), Patches()(pictures(40, 1)))
    assert forced.compute().item() == pytest.approx(expected.item(), rel=1e-6)
    kernel = KernelDistance(Patches())
    kernel.update(pictures(12, 0), real=False)
    kernel.update(pictures(40, 1), real=True)
    assert math.isfinite(kernel.compute())


def test_few_samples_give_a_warning():
    metric = FrechetDistance(Patches())
    for real in (True, False):
        metric.update(pictures(30, int(real)), real=real)
    with pytest.warns(UserWarning, match="FID of 30 generated images: below 2048"):
        metric.compute()
    many = FrechetDistance(Patches())
    for real in (True, False):
        many.update(pictures(2048, int(real)), real=real)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        many.compute()


def test_result_names_the_features_and_refuses_others():
    metric = FrechetDistance(Patches())
    metric.update(pictures(30, 0), real=True)
    metric.update(pictures(30, 1, 0.1), real=False)
    result = metric.result(resamples=20)
    assert "FID" in str(result) and "quarters" in str(result) and "30 against 30" in str(result)
    assert result.low < result.value < result.high and result.bias > 0
    sides = [metric._features(side) for side in ("generated", "reference")]
    drawn = resampled_distances("frechet", [sides[0]], sides[1], 20, 0)
    assert result.bias == pytest.approx(drawn.mean().item() - result.value)
    assert result.value == pytest.approx(metric.compute().item())
    other = Distance("FID", 1.0, math.nan, math.nan, math.nan, "inception", 30, 30)
    with pytest.raises(ValueError, match="different extractor"):
        _ = result < other
    with pytest.raises(ValueError, match="different metric"):
        _ = result - Distance("KID", 1.0, math.nan, math.nan, math.nan, "quarters", 30, 30)
    fewer = Distance("FID", 1.0, math.nan, math.nan, math.nan, "quarters", 20, 30)
    with pytest.warns(UserWarning, match="falls with the number"):
        assert (result - fewer) == pytest.approx(result.value - 1)


def test_an_interval_of_frechet_distances_ends_at_zero():
    """Of equal sets the spread of resamples, centred on zero, reaches below it, where no such distance lies; kernel ones do."""
    metrics = FrechetDistance(Patches()), KernelDistance(Patches())
    for metric in metrics:
        for real in (True, False):
            metric.update(pictures(30, 0), real=real)
    frechet, kid = (metric.result(resamples=50) for metric in metrics)
    sides = [metrics[0]._features(side) for side in ("generated", "reference")]
    values = resampled_distances("frechet", [sides[0]], sides[1], 50, 0)[:, 0]
    assert centered_interval(frechet.value, values, 30).low < -1e-3
    assert frechet.low == pytest.approx(0, abs=1e-9) and frechet.high > 1e-3 and kid.low < -1e-3


def test_without_kept_features_the_distance_is_the_same_and_there_is_no_interval():
    kept, lean = FrechetDistance(Patches()), FrechetDistance(Patches(), keep_features=False)
    for metric in (kept, lean):
        metric.update(pictures(30, 0), real=True)
        metric.update(pictures(30, 1), real=False)
    assert lean.compute() == kept.compute()
    with pytest.raises(ValueError, match="keep_features"):
        lean.result()
    with pytest.raises(ValueError, match="keep_features"):
        KernelDistance(Patches(), keep_features=False)


def test_wrong_images_and_features_are_refused():
    metric = FrechetDistance(Patches())
    for wrong in (torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            metric.update(wrong, real=True)
    with pytest.raises(ValueError, match=r"\(B, 12\)"):
        metric.update_features(torch.zeros(2, 5), real=True)


def test_reset_forgets_everything():
    metric = FrechetDistance(Patches())
    for real in (True, False):
        metric.update(pictures(30, int(real)), real=real)
    first = metric.compute()
    metric.reset()
    for real in (True, False):
        metric.update(pictures(30, int(real)), real=real)
    assert metric.compute() == first


# ---- depth -----------------------------------------------------------------------------------------------------------------


def test_rendering_of_disparity_is_blind_to_scale_and_that_of_metres_is_not():
    depth = torch.tensor([[[1.0, 2.0], [4.0, 1.0]]])
    grey = render_depth(depth)
    assert grey[0, 0].tolist() == [[255, 85], [0, 255]] and (grey[0, 0] == grey[0, 2]).all()  # 1/1, 1/2, 1/4
    assert (render_depth(depth * 7) == grey).all()
    metric = render_depth(depth, "metric", (1.0, 4.0))
    assert metric[0, 0].tolist() == [[255, 128], [0, 255]]  # log 2 is half way
    assert (render_depth(depth * 1.5, "metric", (1.0, 4.0)) != metric).any()
    assert (render_depth(torch.full((1, 2, 2), 3.0)) == 0).all()


def test_impossible_depth_and_renderings_are_refused():
    with pytest.raises(ValueError, match="positive and finite"):
        render_depth(torch.tensor([[[1.0, 0.0]]]))
    with pytest.raises(ValueError, match="rendering must be"):
        DepthFeatures(lambda x: x, Patches(), "color")
    with pytest.raises(ValueError, match="0 < near < far"):
        render_depth(torch.ones(1, 2, 2), "metric", (2.0, 1.0))


def test_dfid_is_fid_of_rendered_depth_and_sees_nothing_else():
    def estimator(images):  # depth from the red channel alone
        return 1 + images[:, 0].float()

    real, fake = pictures(40, 0), pictures(40, 1)
    recolored = real.clone()
    recolored[:, 1:] = fake[:, 1:]
    metric = DepthFrechetDistance(Patches(), estimator, "metric", "red", (1.0, 256.0))
    metric.update(real, real=True)
    metric.update(recolored, real=False)
    assert metric.compute().item() < 1e-12
    result = metric.result(0)
    assert result.metric == "dFID" and result.extractor == "quarters of metric of red"
    other = DepthFrechetDistance(Patches(), estimator, "metric", "red", (1.0, 256.0))
    other.update(real, real=True)
    other.update(fake, real=False)
    rendered = [Patches()(render_depth(estimator(x), "metric", (1.0, 256.0))) for x in (fake, real)]
    assert other.compute().item() == pytest.approx(feature_distance("frechet", *rendered).item(), rel=1e-9)


def test_kernel_distance_refuses_sets_of_other_shapes():
    good = torch.randn(4, 3)
    for a, b in ((good, torch.randn(4)), (torch.randn(4), good), (good, torch.randn(4, 2)), (good, torch.randn(4, 3, 1))):
        with pytest.raises(ValueError, match=r"\(N, D\) and \(M, D\)"):
            kernel_distance(a, b)
