"""The benchmark of whole maps against smooth draws scores as the library does."""

import known_populations as known
import pytest
import torch

from noise2map.metrics.samples import LabelSampleScores, patch_energy_score


def labels(count, seed):
    return torch.randint(3, (count, 18, 14), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def hidden():
    mask = torch.zeros(18, 14, dtype=torch.bool)
    mask[2:15, 3:11] = True
    return mask


def test_energy_scores_are_those_of_the_metric_over_every_truth(hidden):
    drawn, truths = labels(16, 0), labels(5, 1)
    found = known.scores_of(drawn, truths, hidden)
    samples, valid = drawn.expand(5, -1, -1, -1), hidden.expand(5, -1, -1)
    score, counted = patch_energy_score(samples, truths, valid, lambda a, b: 2.0 * (a != b), known.PATCH)
    assert counted[0].sum() == 3  # of six patches the cover fills half or more
    assert found["energy"] == pytest.approx(score[counted].mean().item(), abs=1e-6)
    box = (slice(None), slice(2, 15), slice(3, 11))
    whole, _ = patch_energy_score(
        samples[..., 2:15, 3:11].repeat_interleave(8, -2).repeat_interleave(13, -1),
        truths[box].repeat_interleave(8, -2).repeat_interleave(13, -1),
        torch.ones(5, 104, 104, dtype=torch.bool),
        lambda a, b: 2.0 * (a != b),
        104,
    )
    assert found["energy_whole"] == pytest.approx(whole.mean().item(), abs=1e-6)
    scores = LabelSampleScores(3, 16)
    scores.update(samples, truths, valid)
    assert found["wrong_sample"] == pytest.approx(scores.compute()["wrong_sample"].item(), abs=1e-6)


def test_nothing_is_below_whole_maps_of_the_population_on_average(hidden):
    """The energy score is proper: half the mean distance of two maps of the population is its least, and draws of it have it."""
    population = labels(4, 2)
    places = known.patches(hidden, known.PATCH)
    least = known.distances(population, population, places).mean().item() / 2
    each_as_often = population.repeat(100, 1, 1)
    assert known.scores_of(each_as_often, population, hidden)["energy"] == pytest.approx(least, rel=0.01)
    for other in (population[:2].repeat(100, 1, 1), labels(200, 3)):
        assert known.scores_of(other, population, hidden)["energy"] > 1.05 * least
