"""Components against scipy, regions and their scores against sums over pixels."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from noise2map.audit.components import as_runs, connected_components, mask_of
from noise2map.audit.regions import AREA_POWER, LEAST_FREQUENCY, Region, denied_regions, log_frequencies
from noise2map.tasks.contradiction import LEAST_PROBABILITY, contradiction


def blobs(seed, shape, classes=3):
    generator = np.random.default_rng(seed)
    keys = generator.integers(-1, classes, [max(1, -(-side // 3)) for side in shape])
    return keys.repeat(3, 0).repeat(3, 1)[: shape[0], : shape[1]]


@pytest.mark.parametrize("shape", [(1, 1), (1, 17), (19, 1), (24, 31), (60, 50)])
def test_components_are_those_of_scipy(shape):
    for seed in range(5):
        keys = blobs(seed, shape) if seed else np.full(shape, 2)
        numbers, count = connected_components(keys)
        expected = np.zeros(shape, int)
        for key in range(3):
            found, _ = ndimage.label(keys == key)
            expected[found > 0] = found[found > 0] + expected.max()
        assert count == expected.max() == numbers.max()
        assert ((numbers == 0) == (keys < 0)).all()
        pairs = np.unique(np.stack([numbers.ravel(), expected.ravel()]), axis=1)
        assert pairs.shape[1] == len(np.unique(expected))  # one to one
        firsts = [np.flatnonzero(numbers.ravel() == number)[0] for number in range(1, count + 1)]
        assert firsts == sorted(firsts)


def test_a_spiral_is_one_component():
    keys = np.full((41, 41), -1)
    row, column, turn, length = 0, 0, 0, 40
    while length > 0:
        for _ in range(length):
            keys[row, column] = 0
            row, column = row + (0, 1, 0, -1)[turn % 4], column + (1, 0, -1, 0)[turn % 4]
        turn += 1
        length -= 2 * (turn % 2)
    assert connected_components(keys)[1] == ndimage.label(keys == 0)[1] == 1


def test_runs_hold_the_mask():
    for seed in range(4):
        mask = np.random.default_rng(seed).random((9, 13)) < 0.5
        runs = as_runs(np.flatnonzero(mask))
        assert (mask_of(runs, mask.shape) == mask).all() and sum(runs[1::2]) == mask.sum()
    assert as_runs(np.zeros(0, int)) == [] and as_runs(np.arange(4, 9)) == [4, 5]


def scene(seed=0, shape=(30, 40), classes=4):
    """Logits that favor blocks of classes, and labels that mostly agree."""
    generator = np.random.default_rng(seed)
    model = blobs(seed + 7, shape, classes).clip(0)
    logits = torch.from_numpy(generator.normal(size=(classes, *shape)).astype(np.float32) * 0.3)
    logits.scatter_add_(0, torch.from_numpy(model)[None], torch.full((1, *shape), 4.0))
    labels = np.where(generator.random(shape) < 0.1, 255, model)
    labels[4:16, 5:25] = (labels[4:16, 5:25] + 1) % classes
    labels[generator.random(shape) < 0.02] = 255
    return logits, torch.from_numpy(labels.astype(np.int64))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_regions_and_scores_by_brute_force(seed):
    logits, truth = scene(seed)
    found = contradiction(logits, truth, 255)
    regions = denied_regions(found, 0.002)
    p, labels = logits.double().softmax(0).numpy(), truth.numpy()
    model = p.argmax(0)
    denied = (labels != 255) & (labels != model)
    pixels = np.bincount(labels[labels != 255], minlength=4)
    frequency = log_frequencies(pixels)
    assert np.exp(frequency) == pytest.approx(pixels / pixels.sum())
    expected = {}
    for one in range(4):
        numbers, count = ndimage.label(denied & (model == one))
        for number in range(1, count + 1):
            region = numbers == number
            thick = ndimage.binary_erosion(region, np.ones((3, 3)))
            if region.sum() < 0.002 * region.size or not thick.any():
                continue
            ratio = [math.log(p[one, y, x] / p[labels[y, x], y, x]) for y, x in zip(*np.nonzero(region))]
            prior = [frequency[labels[y, x]] - frequency[one] for y, x in zip(*np.nonzero(region))]
            score = (np.mean(ratio) + np.mean(prior)) * (region.sum() / region.size) ** AREA_POWER
            expected[region.tobytes()] = (one, score, region)
    assert len(expected) > 2
    assert {mask_of(one.runs, model.shape).tobytes() for one in regions} == set(expected)
    for one in regions:
        number, score, region = expected[mask_of(one.runs, model.shape).tobytes()]
        rows, columns = np.nonzero(region)
        assert one.model == number and one.area == region.sum() and sum(one.labels.values()) == one.area
        assert one.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert one.label == np.bincount(labels[region]).argmax()
        assert one.score(frequency) == pytest.approx(score, abs=1e-3)
        assert Region.from_json(one.as_json()) == one


def test_a_line_where_two_classes_meet_is_no_error():
    labels = torch.zeros(20, 20, dtype=torch.int64)
    labels[:, 10:] = 1
    shifted = torch.nn.functional.one_hot(labels.roll(2, 1), 2).movedim(-1, 0) * 9.0
    shifted[:, :, :2] = torch.tensor([9.0, 0.0])[:, None, None]
    assert denied_regions(contradiction(shifted, labels, 255), 0.001) == []
    thicker = torch.nn.functional.one_hot((torch.arange(20) >= 13).long().expand(20, 20), 2).movedim(-1, 0) * 9.0
    (region,) = denied_regions(contradiction(thicker, labels, 255), 0.001)
    assert region.area == 60 and region.model == 0 and region.labels == {1: 60}


def test_one_pixel_that_is_ruled_out_does_not_weigh_without_bounds():
    logits = torch.tensor([[[500.0]], [[-500.0]]]).expand(2, 4, 4)
    found = contradiction(logits, torch.ones(4, 4, dtype=torch.int64), 255)
    assert found.log_label == pytest.approx(np.full((4, 4), math.log(LEAST_PROBABILITY)), rel=1e-5)


def test_a_class_that_is_not_labelled_counts_as_a_rare_one():
    assert np.exp(log_frequencies(np.array([90, 10, 0]))) == pytest.approx([0.9, 0.1, LEAST_FREQUENCY])


def test_with_equal_probabilities_the_rarer_claim_is_more_suspicious():
    """Of a model that is as sure of a door (rare) as of a wall (common), the door is the stronger evidence."""
    frequency = log_frequencies(np.array([900, 80, 20]))
    door = Region(2, {0: 50}, (0, 0, 10, 5), math.log(0.8), math.log(0.1), 0.05, (0, 50))
    wall = Region(0, {2: 50}, (0, 0, 10, 5), math.log(0.8), math.log(0.1), 0.05, (0, 50))
    assert door.score(frequency) - wall.score(frequency) == pytest.approx(2 * math.log(900 / 20) * 0.05**AREA_POWER)
