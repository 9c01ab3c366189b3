"""`benchmarks/ambiguity_dial.py`: a map is worse where less can be told, and the ranks are those of scipy."""

import ambiguity_dial
import numpy as np
import pytest

from noise2map.data import load_samples
from noise2map.data.subsets import Subset
from noise2map.inference import Predictor


def test_ranks_of_error_and_uncertainty_are_compared():
    stats = pytest.importorskip("scipy.stats")
    error, uncertainty = np.random.default_rng(0).random((2, 6))
    rows = [{"error": a, "uncertainty": b} for a, b in zip(error, uncertainty)]
    assert ambiguity_dial.follows(rows) == pytest.approx(stats.spearmanr(error, uncertainty).statistic)


def test_the_error_grows_with_what_is_hidden():
    predictor, frames = (
        Predictor.from_pretrained("freedoom-segmentation-tiny", "cpu"),
        Subset.evenly_spaced(load_samples(task="both"), 4),
    )
    read = ambiguity_dial.of_images(predictor, 1, 0)
    rows = [ambiguity_dial.measure(read, frames, "hide_share", share, steps=1) for share in (0.0, 0.75)]
    assert rows[1]["error"] > rows[0]["error"] + 0.1
    assert all(0 < row["uncertainty"] < 1 and row["kind"] for row in rows)
