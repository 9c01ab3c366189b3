"""IoU of overlapping layers: the published numbers, and a count by hand."""

import numpy as np
import pytest
import torch

from noise2map.metrics.bev import BEV_THRESHOLDS, BevScores, best_layer_thresholds, bev_counts

PUBLISHED = {  # recorded from the public evaluation: best threshold, 0.5 and 0.65 of each layer
    "drivable_area": (0.3120124936103821, 0.29294756054878235, 0.25313806533813477),
    "ped_crossing": (0.3515625, 0.3084922134876251, 0.22709164023399353),
    "walkway": (0.2995319664478302, 0.260794460773468, 0.20119522511959076),
    "stop_line": (0.3813953399658203, 0.3404255211353302, 0.25600001215934753),
    "carpark_area": (0.3248000144958496, 0.2849557399749756, 0.24390244483947754),
    "divider": (0.3364197611808777, 0.301247775554657, 0.2474437654018402),
}


def samples():
    rng = np.random.Generator(np.random.PCG64(31))
    for _ in range(2):
        probabilities = torch.from_numpy(rng.random((6, 20, 20)).astype(np.float32))
        yield probabilities[None], torch.from_numpy(rng.random((6, 20, 20)) < 0.4).long()[None]


def test_scores_are_the_published_ones():
    scores = BevScores(6)
    for pair in samples():
        scores.update(*pair)
    result = scores.compute()
    recorded = torch.tensor(list(PUBLISHED.values()), dtype=torch.float64)
    torch.testing.assert_close(result["IoU_max"], recorded[:, 0], atol=1e-6, rtol=0)
    torch.testing.assert_close(result["IoU_50"], recorded[:, 1], atol=1e-6, rtol=0)
    torch.testing.assert_close(result["IoU"][BEV_THRESHOLDS.index(0.65)], recorded[:, 2], atol=1e-6, rtol=0)
    assert result["mIoU_max"].item() == pytest.approx(0.33428701758384705, abs=1e-6)


def test_batches_and_unknown_cells():
    (first, second), whole = [BevScores(6) for _ in range(2)], BevScores(6)
    pairs = list(samples())
    whole.update(torch.cat([p for p, _ in pairs]), torch.cat([y for _, y in pairs]))
    for pair in pairs:
        first.update(*pair)
    assert torch.equal(first.compute()["IoU"], whole.compute()["IoU"])
    probabilities, labels = pairs[0]
    hidden = labels.clone()
    hidden[..., 10:] = 255
    second.update(probabilities, hidden)
    part = BevScores(6)
    part.update(probabilities[..., :10], labels[..., :10])
    assert torch.equal(second.compute()["IoU"], part.compute()["IoU"])


def test_a_probability_on_the_threshold_counts():
    scores = BevScores(1)
    scores.update(torch.full((1, 1, 2, 2), 0.5), torch.ones(1, 1, 2, 2, dtype=torch.long))
    assert scores.compute()["IoU_50"].item() == pytest.approx(1)


def test_impossible_inputs_are_refused():
    with pytest.raises(ValueError, match=r"must both be \(B, 6, X, Y\)"):
        BevScores(6).update(torch.zeros(1, 5, 2, 2), torch.zeros(1, 5, 2, 2))
    with pytest.raises(ValueError, match="values other than 0, 1 and 255"):
        BevScores(1).update(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 3))
    with pytest.raises(ValueError, match=r"0\.5 among them"):
        BevScores(1, thresholds=(0.4,))
    with pytest.raises(ValueError, match="num_layers is 0"):
        BevScores(0)


def iou_at(probabilities, labels, threshold):
    """Of one layer, over all known cells; and how often it is shown for each cell that it is in."""
    known = labels != 255
    guess, real = (probabilities >= np.float32(threshold))[known], labels[known] == 1
    return (guess & real).sum() / ((guess | real).sum() + 1e-7), guess.sum() / max(real.sum(), 1)


def test_the_best_threshold_of_each_layer_is_that_of_trying_all():
    rng = np.random.default_rng(3)
    real = rng.random((5, 4, 12, 9)) < np.array([0.7, 0.2, 0.1, 0.05])[:, None, None]
    probabilities = np.where(real, rng.beta(2, 3, real.shape), rng.beta(1, 6, real.shape)).astype(np.float32)
    labels = np.where(rng.random(real.shape) < 0.1, 255, real)
    grid = [k / 100 for k in range(1, 100)]
    for most in (1.2, 2.0, 1e9):
        expected = []
        for k in range(4):
            tried = [iou_at(probabilities[:, k], labels[:, k], one) for one in grid]
            best = max(iou for iou, shown in tried if shown <= most)
            expected.append([one for one, (iou, shown) in zip(grid, tried) if shown <= most and abs(iou - best) < 1e-12])
        found = best_layer_thresholds(torch.from_numpy(probabilities), torch.from_numpy(labels), most=most)
        assert all(one in equal for one, equal in zip(found, expected)) and len(found) == 4


def test_thresholds_where_nothing_decides():
    probabilities = torch.full((1, 4, 2, 5), 0.9)
    labels = torch.zeros(1, 4, 2, 5, dtype=torch.long)
    labels[:, 0] = 1  # every threshold up to 0.9 is as good: the one nearest to 0.5
    labels[:, 1] = 255
    probabilities[:, 2] = 1.0
    labels[:, 2, 0, 0] = 1  # shown ten times as often as it is, whatever the threshold
    assert best_layer_thresholds(probabilities, labels) == (0.5, 0.5, 0.99, 0.5)


def test_each_layer_is_counted_at_its_own_threshold():
    probabilities = torch.rand(3, 2, 6, 7, generator=torch.Generator().manual_seed(1))
    labels = (torch.rand(3, 2, 6, 7, generator=torch.Generator().manual_seed(2)) < 0.4).long()
    counts = bev_counts(probabilities, labels, (0.3, (0.3, 0.8), 0.8))
    assert torch.equal(counts[:, :, 1, 0], counts[:, :, 0, 0]) and torch.equal(counts[:, :, 1, 1], counts[:, :, 2, 1])


def test_unknown_cells_may_hold_anything_and_logits_are_refused():
    probabilities, labels = next(samples())
    labels[:, :, :5] = 255
    expected = bev_counts(probabilities, labels)
    spoilt = probabilities.clone()
    spoilt[:, :, :5] = torch.nan
    assert bev_counts(spoilt, labels).equal(expected)
    for wrong, said in ((probabilities.logit(), "values from"), (spoilt, "NaN")):
        with pytest.raises(ValueError, match=said):
            bev_counts(wrong, torch.zeros_like(labels))
