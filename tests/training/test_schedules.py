import json
import math

import pytest
import torch
from golden_reference import GOLDEN

from noise2map.training.optimization import LearningRateCurve

CURVES = json.loads((GOLDEN / "lr_curves.json").read_text())


@pytest.mark.golden
@pytest.mark.parametrize("name", CURVES)
def test_matches_the_recorded_curves_of_the_published_runs(name):
    recorded = CURVES[name]
    curve = LearningRateCurve(**recorded["curve"])
    for iteration, lr in recorded["lr"].items():
        assert recorded["base_lr"] * curve.factor(int(iteration)) == pytest.approx(lr, rel=1e-12)


def test_scheduler_sets_the_rate_of_every_group_at_every_step():
    curve = LearningRateCurve("cosine", iterations=20, warmup_iterations=5, warmup_ratio=0.1)
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": weights[:1], "lr": 1.0}, {"params": weights[1:], "lr": 10.0}])
    scheduler = curve.scheduler(optimizer)
    for iteration in range(20):
        # The definition written out: half a cosine, times a line from the ratio to one.
        expected = 0.5 * (1 + math.cos(math.pi * iteration / 20)) * min(1.0, 0.1 + 0.9 * iteration / 5)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected, 10 * expected])
        optimizer.step()
        scheduler.step()


def test_floor_and_power():
    curve = LearningRateCurve("poly", iterations=10, warmup_iterations=0, power=2.0, min_ratio=0.2)
    assert curve.factor(5) == pytest.approx(0.2 + 0.8 * 0.25)
    assert curve.factor(10) == pytest.approx(0.2)
    assert curve.factor(11) == pytest.approx(0.2)
    assert LearningRateCurve("constant", iterations=10, warmup_iterations=0).factor(9) == 1.0


@pytest.mark.parametrize(
    "field, value", [("policy", "step"), ("iterations", 0), ("warmup_iterations", -1), ("warmup_ratio", 0.0), ("min_ratio", 1.0)]
)
def test_impossible_values_are_named(field, value):
    with pytest.raises(ValueError, match=field) as error:
        LearningRateCurve(**{field: value})
    assert str(value) in str(error.value)
