"""Scores of samples as training losses: closed forms, brute force, and that the right spread has the lowest score."""

import math

import pytest
import torch

from noise2map.diffusion import almost_fair_crps, energy_score, map_crps, map_energy_score


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_fair_score_is_that_of_the_distribution_whatever_the_number_of_members():
    # CRPS of N(0, 1) at y (Gneiting & Raftery 2007, Eq. 21)
    y = 0.7
    normal = torch.distributions.Normal(0.0, 1.0)
    density = math.exp(-(y**2) / 2) / math.sqrt(2 * math.pi)
    expected = y * (2 * normal.cdf(torch.tensor(y)).item() - 1) + 2 * density - 1 / math.sqrt(math.pi)
    for members in (2, 5):
        drawn = draw(20, members, 100, 100)
        score = almost_fair_crps(drawn, torch.full((20, 100, 100), y), torch.ones(20, 100, 100, dtype=torch.bool), fairness=1)
        assert score.item() == pytest.approx(expected, abs=0.01)


def test_it_is_the_sum_over_pairs_and_valid_cells():
    members, truth = draw(2, 3, 4, 5), draw(2, 4, 5, seed=1)
    valid = draw(2, 4, 5, seed=2) > 0
    scores = []
    for b, y, x in valid.nonzero().tolist():
        u = members[b, :, y, x].tolist()
        error = sum(abs(one - truth[b, y, x].item()) for one in u) / 3
        pairs = sum(abs(u[i] - u[j]) for i in range(3) for j in range(3)) / (2 * 3 * 2)
        scores.append(error - 0.95 * pairs)
    assert almost_fair_crps(members, truth, valid).item() == pytest.approx(sum(scores) / len(scores), rel=1e-5)


@pytest.mark.parametrize("score", ("crps", "energy"))
def test_a_map_score_rewards_coherence_that_single_cells_do_not_show(score):
    # The truth is one offset for the whole map; members have the right marginal, with a common offset or one for each cell.
    count, size = 400, 8
    truth = draw(count, 1, 1).expand(count, size, size)
    common, scattered = draw(count, 2, 1, 1, seed=1).expand(count, 2, size, size), draw(count, 2, size, size, seed=2)
    valid = torch.ones(count, size, size, dtype=torch.bool)
    if score == "crps":
        cells = [almost_fair_crps(one, truth, valid).item() for one in (common, scattered)]
        maps = [map_crps(one, truth, valid).item() for one in (common, scattered)]
    else:
        common, scattered, truth = common.unsqueeze(2), scattered.unsqueeze(2), truth.unsqueeze(1)
        cells = [energy_score(one, truth, valid, 1, 1).item() for one in (common, scattered)]
        maps = [map_energy_score(one, truth, valid).item() for one in (common, scattered)]
    assert cells[0] == pytest.approx(cells[1], abs=0.06)
    assert maps[0] < 0.9 * maps[1]


def test_energy_score_by_brute_force():
    members, truth = draw(1, 2, 3, 4, 4), draw(1, 3, 4, 4, seed=1)
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    valid[0, 0, 0] = False
    scores = []
    for y in (0, 2):
        for x in (0, 2):
            known = valid[0, y : y + 2, x : x + 2]
            u, v, w = (one[:, y : y + 2, x : x + 2][:, known] for one in (members[0, 0], members[0, 1], truth[0]))
            score = ((u - w).norm() + (v - w).norm()) / 2 - 0.95 * (u - v).norm() / 2
            scores.append(score.item() / math.sqrt(int(known.sum())))
    assert energy_score(members, truth, valid, 2, 2).item() == pytest.approx(sum(scores) / 4, rel=1e-4)


def test_what_is_not_valid_does_not_matter_and_gradients_are_finite():
    members, truth, valid = draw(1, 2, 16, 16).requires_grad_(), draw(1, 16, 16, seed=1), draw(1, 16, 16, seed=2) > 0
    score = map_crps(members, truth, valid)
    assert map_crps(members, torch.where(valid, truth, 1e6), valid).item() == score.item()
    probabilities = members.unsqueeze(2).expand(-1, -1, 3, -1, -1).softmax(2)
    same = torch.cat([probabilities[:, :1], probabilities[:, :1]], 1)  # equal members: the root at zero
    energy = map_energy_score(same, probabilities[:, 0].detach(), valid)
    (gradient,) = torch.autograd.grad(score + energy, members)
    assert bool(torch.isfinite(gradient).all())
    assert almost_fair_crps(members, truth, torch.zeros_like(valid)).item() == 0


def test_one_member_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        almost_fair_crps(draw(1, 1, 4, 4), draw(1, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least 2"):
        energy_score(draw(1, 1, 2, 4, 4), draw(1, 2, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool), 2, 2)
