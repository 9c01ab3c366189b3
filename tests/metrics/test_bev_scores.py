"""IoU of overlapping layers: the published numbers, and a count by hand."""

import numpy as np
import pytest
import torch

from noise2map.metrics.bev import BEV_THRESHOLDS, BevScores

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
