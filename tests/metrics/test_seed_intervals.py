import math

import pytest
import torch
from scipy import stats

from noise2map.metrics import seed_interval


@pytest.mark.parametrize("count", range(2, 32))
def test_interval_is_students(count):
    values = torch.randn(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64) + 3
    low, high = stats.t.interval(0.95, count - 1, loc=values.mean().item(), scale=stats.sem(values.numpy()))
    found = seed_interval(values)
    assert (found.low, found.high) == (pytest.approx(low, rel=1e-4), pytest.approx(high, rel=1e-4))
    assert found.estimate == pytest.approx(values.mean().item()) and found.images == count


def test_one_seed_has_no_interval_and_no_seed_is_refused():
    found = seed_interval(torch.tensor([2.0]))
    assert found.estimate == 2 and math.isnan(found.low) and math.isnan(found.high)
    for wrong in (torch.zeros(0), torch.tensor([1.0, math.nan]), torch.zeros(2, 2)):
        with pytest.raises(ValueError, match="finite result"):
            seed_interval(wrong)
