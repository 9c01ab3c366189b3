"""Streaming scores of sets of samples against brute force over pixels, pairs and subsets."""

import itertools
import math

import numpy as np
import pytest
import torch

from noise2map.metrics import bootstrap_intervals, mean_iou
from noise2map.metrics.samples import (
    DepthSampleScores,
    LabelSampleScores,
    LayerSampleScores,
    NormalsSampleScores,
    boundary_f1,
    central_coverage,
    energy_distance,
    flying_pixels,
    hungarian_matched_iou,
    mean_iou_of_maps,
    pairwise_iou,
    rank_histogram,
)
from noise2map.metrics.segmentation import SegmentationScores


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def depths(batch=3, count=4, size=(10, 12), seed=0):
    truth = 1 + 8 * torch.rand(batch, *size, generator=generator(seed))
    samples = truth[:, None] * torch.exp(0.3 * torch.randn(batch, count, *size, generator=generator(seed + 1)))
    truth[torch.rand(truth.shape, generator=generator(seed + 2)) < 0.2] = 0
    return samples, truth


def labels(batch=3, count=4, size=(8, 9), classes=3, seed=0):
    truth = torch.randint(classes, (batch, *size), generator=generator(seed))
    keep = torch.rand(batch, count, *size, generator=generator(seed + 1)) < 0.6
    samples = torch.where(keep, truth[:, None], torch.randint(classes, keep.shape, generator=generator(seed + 2)))
    truth[torch.rand(truth.shape, generator=generator(seed + 3)) < 0.15] = 255
    return samples, truth


# ---- what all tasks share --------------------------------------------------------------------------------------------------


def test_error_of_the_mean_of_r_samples_is_a_line_in_one_over_r():
    samples, truth = depths()
    metric = DepthSampleScores(4, 0.5, 20)
    metric.update(samples, truth)
    scores = metric.compute()
    mask, x, y = truth > 0.5, samples.clamp(0.5, 20).log().double(), truth.clamp_min(0.5).log().double()
    for r in range(1, 5):
        errors = [(x[:, list(chosen)].mean(1) - y).square()[mask].mean() for chosen in itertools.combinations(range(4), r)]
        expected = torch.stack(errors).mean().item()
        assert (scores["mse_intercept"] + scores["mse_slope"] / r).item() == pytest.approx(expected, rel=1e-5)
    variance, error = x.var(1)[mask].mean(), (x.mean(1) - y).square()[mask].mean()
    assert scores["spread_skill"].item() == pytest.approx(math.sqrt((1 + 1 / 4) * variance / error), rel=1e-5)


def test_calibrated_samples_have_spread_equal_to_skill_and_cover_their_levels():
    truth = torch.exp(0.2 * torch.randn(4, 60, 60, generator=generator(1)) + 1)
    samples = torch.exp(0.2 * torch.randn(4, 5, 60, 60, generator=generator(2)) + 1)
    metric = DepthSampleScores(5, 0.1, 100)
    metric.update(samples, truth)
    scores = metric.compute()
    assert scores["spread_skill"].item() == pytest.approx(1, abs=0.03)
    assert scores["mse_slope"].item() == pytest.approx(scores["mse_intercept"].item(), rel=0.1)
    assert scores["coverage_50"].item() == pytest.approx(0.5, abs=0.02) and scores["coverage_90"].item() == pytest.approx(
        0.9, abs=0.02
    )
    assert metric.ranks().tolist() == pytest.approx([1 / 6] * 6, abs=0.01)
    metric.reset()
    metric.update(1.05 * (samples / math.e).pow(0.5) * math.e, truth)  # half the spread
    assert metric.compute()["spread_skill"].item() < 0.6 and metric.compute()["coverage_50"].item() < 0.4


def test_one_sample_has_no_spread():
    samples, truth = depths(count=1)
    metric = DepthSampleScores(1, 0.5, 20)
    metric.update(samples, truth)
    scores = metric.compute()
    for name in ("spread_skill", "mse_slope", "coverage_50"):
        assert math.isnan(scores[name].item()), name
    assert scores["abs_rel_sample"].item() == scores["abs_rel_best"].item() == scores["abs_rel_median"].item()


def test_sums_do_not_depend_on_the_batch_and_intervals_resample_rows():
    samples, truth = labels(6)
    whole, parts = LabelSampleScores(3, 4, patch=4), LabelSampleScores(3, 4, patch=4)
    whole.update(samples, truth)
    for index in range(6):
        parts.update(samples[index : index + 1], truth[index : index + 1])
    for name, value in whole.compute().items():
        assert value.item() == pytest.approx(parts.compute()[name].item()), name
    assert torch.equal(whole.per_image(), parts.per_image())
    intervals = bootstrap_intervals(whole.per_image(), whole.statistic, 50)
    for name, interval in zip(whole.names, intervals):
        assert interval.estimate == pytest.approx(whole.compute()[name].item(), nan_ok=True), name


def test_pixels_outside_the_mask_do_not_matter():
    samples, truth = depths(size=(8, 16))
    valid = torch.zeros_like(truth, dtype=torch.bool)
    valid[:, :, 8:] = True
    metric, cropped = DepthSampleScores(4, 0.5, 20, patch=2), DepthSampleScores(4, 0.5, 20, patch=2)
    spoilt = torch.where(valid[:, None], samples, torch.nan)
    metric.update(spoilt, truth, valid)
    cropped.update(samples[..., 8:], truth[..., 8:])
    for name, value in metric.compute().items():
        assert value.item() == pytest.approx(cropped.compute()[name].item(), rel=1e-5), name


def test_wrong_input_is_refused():
    samples, truth = depths()
    with pytest.raises(ValueError, match="R = 3 of each image"):
        DepthSampleScores(3, 0.5, 20).update(samples, truth)
    with pytest.raises(ValueError, match="NaN or infinite"):
        DepthSampleScores(4, 0.5, 20).update(samples * torch.nan, truth)
    with pytest.raises(ValueError, match="num_samples is 0"):
        NormalsSampleScores(0)
    guess, classes = labels()
    with pytest.raises(ValueError, match=r"sampled label is 9; expected 0\.\.2"):
        LabelSampleScores(3, 4).update(torch.full_like(guess, 9), classes)
    with pytest.raises(ValueError, match=r"sampled layer holds 0\.5"):
        LayerSampleScores(2, 1).update(torch.full((1, 1, 2, 4, 4), 0.5), torch.zeros(1, 2, 4, 4))


# ---- depth -----------------------------------------------------------------------------------------------------------------


def test_depth_scores_agree_with_loops():
    samples, truth = depths()
    metric = DepthSampleScores(4, 0.5, 20)
    metric.update(samples, truth)
    scores = metric.compute()
    rows = {"abs_rel_sample": [], "abs_rel_best": [], "abs_rel_median": []}
    crps = []
    for x, y in zip(samples.clamp(0.5, 20).double().numpy(), truth.double().numpy()):
        keep = y > 0.5
        each = [np.mean(np.abs(one[keep] - y[keep]) / y[keep]) for one in x]
        rows["abs_rel_sample"].append(np.mean(each))
        rows["abs_rel_best"].append(min(each))
        rows["abs_rel_median"].append(np.mean(np.abs(np.median(x, 0)[keep] - y[keep]) / y[keep]))
        for place in zip(*np.nonzero(keep)):
            values, true = np.log(x[(slice(None), *place)]), np.log(y[place])
            pairs = np.abs(values[:, None] - values[None]).sum() / (2 * 4 * 3)
            crps.append(np.abs(values - true).mean() - pairs)
    for name, values in rows.items():
        assert scores[name].item() == pytest.approx(np.mean(values), rel=1e-5), name
    assert scores["crps"].item() == pytest.approx(np.mean(crps), rel=1e-4)


def test_rank_histogram_agrees_with_drawing_tied_ranks():
    samples = torch.randint(4, (1, 3, 40, 50), generator=generator()).float()
    truth = torch.randint(4, (1, 40, 50), generator=generator(1)).float()
    valid = torch.rand(1, 40, 50, generator=generator(2)) < 0.8
    found = rank_histogram(samples, truth, valid)[0]
    expected = torch.zeros(4, dtype=torch.float64)
    for x, y in zip(samples[0].flatten(1).T[valid.flatten()], truth[valid]):
        low, high = int((x < y).sum()), int((x <= y).sum())
        expected[low : high + 1] += 1 / (high - low + 1)
    assert found.tolist() == pytest.approx(expected.tolist()) and found.sum().item() == pytest.approx(int(valid.sum()))


def test_coverage_of_ranks():
    assert central_coverage(torch.ones(7), 0.9).item() == pytest.approx(0.9)
    assert central_coverage(torch.tensor([0.0, 5.0, 0.0]), 0.5).item() == 1
    assert central_coverage(torch.tensor([5.0, 0.0, 5.0]), 0.5).item() == pytest.approx(0.25)  # a quarter of each outer third
    with pytest.raises(ValueError, match="expected a probability"):
        central_coverage(torch.ones(3), 0)


def loop_boundary_f1(prediction, depth, valid):
    """From the definition: four directions, ten thresholds."""
    total, weights = 0.0, 0.0
    for t in np.linspace(1.05, 1.25, 10):
        precision, recall = [], []
        for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            hits = said = true = 0
            for y, x in itertools.product(*map(range, depth.shape)):
                y2, x2 = y + dy, x + dx
                if not (0 <= y2 < depth.shape[0] and 0 <= x2 < depth.shape[1] and valid[y, x] and valid[y2, x2]):
                    continue
                a, b = prediction[y2, x2] / prediction[y, x] > t, depth[y2, x2] / depth[y, x] > t
                hits, said, true = hits + (a and b), said + a, true + b
            precision.append(hits / max(said, 1))
            recall.append(hits / max(true, 1))
        p, r = np.mean(precision), np.mean(recall)
        total, weights = total + t * (2 * p * r / (p + r) if p + r else 0), weights + t
    return total / weights


def test_boundary_f1_agrees_with_the_definition():
    _, truth = depths(2, 1, (6, 7))
    blocks = truth.clamp_min(1).repeat_interleave(2, -1)
    prediction = (blocks * (1 + 0.1 * torch.rand(blocks.shape, generator=generator(5)))).double()
    valid = torch.rand(blocks.shape, generator=generator(6)) < 0.9
    found = boundary_f1(prediction, blocks, valid)
    for index in range(2):
        expected = loop_boundary_f1(prediction[index].numpy(), blocks[index].double().numpy(), valid[index].numpy())
        assert found[index].item() == pytest.approx(expected, abs=1e-6)
    assert boundary_f1(3 * blocks, blocks, valid).tolist() == pytest.approx([1, 1])  # no scale
    assert math.isnan(boundary_f1(prediction, torch.full_like(blocks, 3.0), valid)[0])


def test_a_blurred_edge_flies_and_a_sharp_or_shifted_one_does_not():
    truth = torch.full((1, 9, 16), 2.0)
    truth[..., 8:] = 6.0
    valid = torch.ones_like(truth, dtype=torch.bool)
    _, edge = flying_pixels(truth, truth, valid)
    assert edge[0, 4].nonzero().flatten().tolist() == [6, 7, 8, 9]  # windows that reach over the jump
    blurred = truth.clone()
    blurred[..., 7], blurred[..., 8] = 3.0, 4.5
    assert flying_pixels(blurred, truth, valid)[0][0, 4].nonzero().flatten().tolist() == [7, 8]
    assert not bool(flying_pixels(truth.roll(1, -1)[..., :], truth, valid)[0][..., 1:].any())
    assert not bool(flying_pixels(1.05 * truth, truth, valid)[0].any())
    assert not bool(flying_pixels(blurred, truth, ~valid)[1].any())


# ---- classes and layers ----------------------------------------------------------------------------------------------------


def set_iou(a, b, known, classes):
    values = []
    for k in range(classes):
        both = ((a == k) & (b == k) & known).sum()
        either = (((a == k) | (b == k)) & known).sum()
        if either:
            values.append(both / either)
    return np.mean(values) if values else 1.0


def test_label_scores_agree_with_loops():
    samples, truth = labels()
    metric = LabelSampleScores(3, 4)
    metric.update(samples, truth)
    scores, found = metric.compute(), {name: [] for name in ("ged_pixel", "ged_iou", "hm_iou", "wrong_sample", "wrong_best")}
    best, edges = [], np.zeros(3)
    for x, y in zip(samples.numpy(), truth.numpy()):
        known = y != 255
        pixel = [np.mean((one != y)[known]) for one in x]
        iou = [set_iou(one, y, known, 3) for one in x]
        pairs = list(itertools.permutations(range(4), 2))
        found["ged_pixel"].append(2 * np.mean(pixel) - np.mean([np.mean((x[i] != x[j])[known]) for i, j in pairs]))
        found["ged_iou"].append(2 * (1 - np.mean(iou)) - np.mean([1 - set_iou(x[i], x[j], known, 3) for i, j in pairs]))
        found["hm_iou"].append(np.mean(iou))
        found["wrong_sample"].append(np.mean(pixel))
        found["wrong_best"].append(min(pixel))
        best.append(x[int(np.argmin(pixel))])
        for shift in ((0, 1), (1, 0)):
            near, far = (
                (slice(0, y.shape[0] - shift[0]), slice(0, y.shape[1] - shift[1])),
                (slice(shift[0], None), slice(shift[1], None)),
            )
            both = known[near] & known[far]
            changes = np.mean([((one[near] != one[far]) & both).sum() for one in x])
            edges += (changes, ((y[near] != y[far]) & both).sum(), both.sum())
    for name, values in found.items():
        assert scores[name].item() == pytest.approx(np.mean(values)), name
    assert scores["edge_share"].item() == pytest.approx(edges[0] / edges[2])
    assert scores["edge_ratio"].item() == pytest.approx(edges[0] / edges[1])
    reference = SegmentationScores(3)
    reference.update(torch.from_numpy(np.stack(best)), truth)
    assert scores["mIoU_best"].item() == pytest.approx(mean_iou(reference.per_image()).item())


def test_brier_score_is_the_energy_distance_of_pixels():
    """Frequencies of many samples, pixel by pixel: |one-hot truth - p|^2."""
    probabilities = torch.tensor([0.5, 0.3, 0.2])
    truth = torch.tensor([0, 1, 2, 2]).repeat(1, 60, 15)
    samples = torch.multinomial(probabilities, 8 * 3600, replacement=True, generator=generator()).view(1, 8, 60, 60)
    metric = LabelSampleScores(3, 8)
    metric.update(samples, truth)
    brier = (torch.nn.functional.one_hot(truth, 3) - probabilities).square().sum(-1).mean().item()
    assert metric.compute()["ged_pixel"].item() == pytest.approx(brier, abs=0.01)


def test_energy_distance_of_several_truths():
    to_truth, among, truths = torch.tensor([[0.2, 0.4], [0.6, 0.0]]), torch.tensor([[0.0, 0.8], [0.8, 0.0]]), torch.zeros(2, 2)
    truths[0, 1] = truths[1, 0] = 0.3
    assert energy_distance(to_truth, among, truths).item() == pytest.approx(0.6 - 0.8 - 0.3)
    assert energy_distance(to_truth, among, truths, fair=False).item() == pytest.approx(0.6 - 0.4 - 0.15)
    assert energy_distance(to_truth[:1, :1], torch.zeros(1, 1)).item() == pytest.approx(0.4)


def test_hungarian_matching_agrees_with_all_permutations():
    iou = torch.rand(4, 2, generator=generator())
    repeated = iou.repeat(1, 2).numpy()
    expected = max(np.mean([repeated[i, j] for i, j in enumerate(order)]) for order in itertools.permutations(range(4)))
    assert hungarian_matched_iou(iou) == pytest.approx(expected)
    assert hungarian_matched_iou(iou[:, :1]) == pytest.approx(iou[:, 0].mean().item())
    with pytest.raises(ValueError, match="at least one sample"):
        hungarian_matched_iou(torch.zeros(0, 2))


def test_maps_without_any_class_agree():
    nothing = torch.zeros(1, 2, 6, dtype=torch.bool)
    common, union = pairwise_iou(nothing, nothing)
    assert torch.equal(mean_iou_of_maps(common[..., None], union[..., None]), torch.ones(1, 2, 2))


def test_layers_that_exclude_each_other_score_like_classes():
    samples, truth = labels()
    known = truth != 255
    one_hot = torch.nn.functional.one_hot(samples, 3).movedim(-1, 2)
    layers = torch.nn.functional.one_hot(torch.where(known, truth, 0), 3).movedim(-1, 1)
    layers = torch.where(known[:, None], layers, 255)
    of_labels, of_layers = LabelSampleScores(3, 4, patch=4), LayerSampleScores(3, 4, patch=4)
    of_labels.update(samples, truth)
    of_layers.update(one_hot.float(), layers)
    expected, found = of_labels.compute(), of_layers.compute()
    for name in ("energy", "spread_skill", "mse_slope", "ged_iou", "hm_iou", "mIoU_sample", "mIoU_best"):
        assert found[name].item() == pytest.approx(expected[name].item(), rel=1e-5), name
    # two of three layers are wrong where a class is
    assert found["wrong_sample"].item() == pytest.approx(2 / 3 * expected["wrong_sample"].item())


# ---- normals ---------------------------------------------------------------------------------------------------------------


def test_normals_turned_by_an_angle():
    truth = torch.zeros(2, 3, 5, 5)
    truth[:, 2] = 1
    truth[0, :, 0] = 0
    turned = [torch.tensor([math.sin(a), 0.0, math.cos(a)]).view(3, 1, 1).expand(3, 5, 5) for a in map(math.radians, (10, 30))]
    samples = torch.stack(turned)[None].expand(2, -1, -1, -1, -1)
    metric = NormalsSampleScores(2, patch=5)
    metric.update(samples, truth)
    scores = metric.compute()
    assert scores["mean_angle_sample"].item() == pytest.approx(20, abs=1e-3) and scores["mean_angle_best"].item() == pytest.approx(
        10, abs=1e-3
    )
    chord = [2 * math.sin(math.radians(a) / 2) for a in (10, 30, 20)]
    assert scores["energy"].item() == pytest.approx((chord[0] + chord[1] - chord[2]) / 2, abs=1e-5)
    assert scores["mse_slope"].item() == pytest.approx(chord[2] ** 2 / 2, abs=1e-5)
