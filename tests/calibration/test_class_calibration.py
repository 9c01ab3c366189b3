"""The benchmark of class calibrations on pixels whose error is known, per map and in all, against torchmetrics."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_segmenter
from torchmetrics.functional.classification import multiclass_calibration_error

from noise2map.calibration.drawing import DrawnImages
from noise2map.tasks import get_task
from noise2map.tasks.calibrating import DrawnPixels

PATH = Path(__file__).parents[2] / "benchmarks" / "class_calibration.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("class_calibration", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawn(temperatures, seed, images=3, pixels=800):
    """Images of maps whose logits are too sure by known factors."""
    generator = torch.Generator().manual_seed(seed)
    count = len(temperatures) * images * pixels
    honest = 2 * torch.randn(count, 5, generator=generator)
    truth = torch.multinomial(honest.softmax(1), 1, generator=generator)[:, 0]
    image = torch.arange(count) // pixels
    factor = torch.tensor(temperatures)[image // images]
    names = [f"map {index}" for index in range(len(temperatures)) for _ in range(images)]
    return DrawnImages(DrawnPixels(honest * factor[:, None], truth, image), [str(i) for i in range(len(names))], names)


def test_what_helps_where_maps_are_alike_and_what_is_left_where_they_are_not(benchmark):
    calibrator = get_task("segmentation").calibrator(tiny_segmenter(num_labels=5))
    first, second = drawn([2.0, 2.0, 2.0], 0), drawn([1.4, 2.8], 1)
    rows = {(row["method"], row["scored"]): row for row in benchmark.compare(calibrator, first, second)}
    raw = multiclass_calibration_error(second.pixels.stated.softmax(1), second.pixels.truth, num_classes=5, n_bins=15)
    before = rows["before", "other maps"]
    assert before["ece_percent"] == pytest.approx(100 * float(raw), abs=1e-3)
    assert before["ece_low_percent"] <= before["ece_percent"] <= before["ece_high_percent"]
    for method in ("temperature", "isotonic", "entropy", "vector"):
        alike = rows[method, "maps left out"]
        assert alike["ece_percent"] < 3 < rows["before", "maps left out"]["ece_percent"] and alike["map_gap_sd_percent"] < 2
    # Of maps that differ no calibration mends the difference: each is off in its own direction, but for its own temperature.
    assert rows["temperature", "other maps"]["map_gap_sd_percent"] > 5
    own = rows["own", "other maps"]
    assert own["map_ece_percent"] < 4 and abs(own["gap_percent"]) < 1e-2 and own["map_gap_sd_percent"] < 1e-2
    assert (
        len({round(row["error_percent"], 4) for (name, where), row in rows.items() if where == "other maps" and name != "vector"})
        == 1
    )


def test_gaps_of_images_add_up(benchmark):
    one = drawn([1.0, 3.0], 2, images=2, pixels=200)
    sums = benchmark.bin_sums(one.pixels.stated, one.pixels, 4)
    confidence, labels = one.pixels.stated.double().softmax(1).max(1)
    right = (labels == one.pixels.truth).numpy()
    for index in range(4):
        own = (one.pixels.image == index).numpy()
        assert float(sums[index, -1]) == own.sum() == 200
        assert float(sums[index, :-1].sum()) == pytest.approx(float(np.sum(right[own] - confidence.numpy()[own])))
