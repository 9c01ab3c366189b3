"""Images whose layout is broken on purpose: benchmarks/shuffle_thirds.py."""

from itertools import permutations

import numpy as np
import pytest
import shuffle_thirds


@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_thirds_of_the_named_axis_stand_in_every_order(axis):
    image = np.random.default_rng(0).integers(0, 256, (10, 11, 3), np.uint8)
    upright = image if axis == "rows" else image.transpose(1, 0, 2)
    parts = upright[:3], upright[3:6], upright[6:]
    orders = {np.concatenate([parts[index] for index in order]).tobytes() for order in permutations(range(3))}
    found = set()
    for seed in range(60):
        drawn = shuffle_thirds.shuffled_thirds(image, np.random.default_rng(seed), shuffle_thirds.AXES[axis])
        found.add((drawn if axis == "rows" else drawn.transpose(1, 0, 2)).tobytes())
    assert image.shape == drawn.shape and found == orders
