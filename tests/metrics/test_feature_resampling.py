"""The Fréchet distance carried on to infinitely many samples, where the answer is known."""

import pytest
import torch

from noise2map.metrics import centered_interval, extrapolated_distance, feature_distance


def gaussians(count, seed, shift=0.0):
    """Unit normals in 16 dimensions, moved by a vector of a given length."""
    values = torch.randn(count, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values + shift / 16**0.5


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_the_bias_of_the_number_is_extrapolated_away(shift):
    """Between two normals of equal covariance the distance is the squared shift; that of a few samples is far above."""
    plain, carried = [], []
    for seed in range(16):
        a, b = gaussians(500, 2 * seed, shift), gaussians(600, 2 * seed + 1)
        plain.append(float(feature_distance("frechet", a, b)))
        carried.append(extrapolated_distance(a, b))
    bias, left = (sum(values) / len(values) - shift**2 for values in (plain, carried))
    assert bias > 0.1 and abs(left) < 0.5 * bias


def test_parts_are_the_seeds_and_few_samples_are_refused():
    a, b = gaussians(40, 0), gaussians(40, 1)
    assert extrapolated_distance(a, b, seed=3) == extrapolated_distance(a, b, seed=3) != extrapolated_distance(a, b, seed=4)
    with pytest.raises(ValueError, match="got 40 and 3 samples"):
        extrapolated_distance(a, b[:3])


def test_an_interval_of_a_distance_stops_at_zero():
    values = torch.tensor([0.0, 0.1, 0.2, 0.9])
    free, kept = centered_interval(0.05, values, 10), centered_interval(0.05, values, 10, lowest=0.0)
    assert free.low < 0 == kept.low and kept.high == free.high
    assert centered_interval(-0.01, values, 10, lowest=0.0).low == -0.01  # an estimate below it stays in its interval
