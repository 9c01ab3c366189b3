"""Stochastic segmentation networks: a normal distribution of low rank over all logits of a map."""

import numpy as np
import pytest
import torch
from tiny_training import CLASSES, tiny_config, tiny_model

from noise2map.models.distributions.low_rank import LowRankLayers, LowRankNormal


def prediction(batch=2, classes=3, rank=2, size=(3, 4), seed=0):
    return torch.randn(batch, classes * (2 + rank), *size, generator=torch.Generator().manual_seed(seed)) * 0.4


def test_samples_have_the_mean_and_the_covariance_that_were_asked_for():
    whole = LowRankNormal.from_prediction(prediction(batch=1), 3)
    drawn = whole.sample(40_000, [torch.Generator().manual_seed(1)])[0].flatten(1)
    factors = whole.factors[0].flatten(1)
    expected = factors.T @ factors + whole.deviation[0].flatten().square().diag()
    assert torch.allclose(drawn.mean(0), whole.mean[0].flatten(), atol=0.06)
    assert torch.allclose(torch.cov(drawn.T), expected, atol=0.06, rtol=0.05)


def test_the_loss_is_that_of_softmax_where_nothing_varies():
    values = prediction(rank=1)
    values[:, 3:6], values[:, 6:] = -10, 0
    labels = torch.randint(0, 3, (2, 3, 4), generator=torch.Generator().manual_seed(2))
    labels[0, 0] = 255
    whole = LowRankNormal.from_prediction(values, 3)
    expected = torch.nn.functional.cross_entropy(values[:, :3], labels, ignore_index=255)
    assert float(whole.negative_log_likelihood(labels, 255, 4)) == pytest.approx(float(expected), abs=1e-3)
    assert float(whole.negative_log_likelihood(torch.full_like(labels, 255), 255, 4)) == 0


def test_common_factors_explain_pixels_that_change_together():
    """Two classes, both maps of one class as likely: independent pixels cannot say so, one factor can."""
    labels = torch.zeros(1, 3, 4, dtype=torch.long)
    certain = torch.zeros(1, 4, 3, 4)
    certain[:, 2:] = -10  # no deviation of a pixel's own
    nothing, all_or_none = torch.zeros(1, 2, 3, 4), torch.tensor([20.0, -20.0]).view(1, 2, 1, 1).expand(1, 2, 3, 4)
    wholes = [LowRankNormal.from_prediction(torch.cat([certain, factor], 1), 2) for factor in (nothing, all_or_none)]
    losses = [float(whole.negative_log_likelihood(labels, 255, 200)) for whole in wholes]
    assert losses[0] == pytest.approx(np.log(2), abs=0.01)
    assert losses[1] == pytest.approx(np.log(2) / 12, abs=0.03)


def test_marginals_are_those_of_the_samples():
    whole = LowRankNormal.from_prediction(prediction(seed=3), 3)
    drawn = whole.sample(4000, [torch.Generator().manual_seed(i) for i in range(2)]).softmax(2).mean(1)
    assert torch.allclose(whole.marginal_logits().softmax(1), drawn, atol=0.03)


def model(**fields):
    fields = {"objective": "low_rank", "diffusion": False, "low_rank_factors": 2, "use_auxiliary_head": False, **fields}
    return tiny_model(**fields)


def test_a_temperature_divides_the_whole_distribution():
    nets = [model().eval(), model(temperature=2.0).eval()]
    nets[1].load_state_dict(nets[0].state_dict())
    tokens = 0.3 * torch.randn(2, 96, nets[0].config.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, cooled = (LowRankNormal.from_prediction(net.head(tokens, (8, 12)), 3) for net in nets)
    for name in ("mean", "factors", "deviation"):
        torch.testing.assert_close(getattr(cooled, name), getattr(whole, name) / 2)


def test_diffusion_is_refused():
    with pytest.raises(ValueError, match="expected diffusion False"):
        tiny_config(id2label=CLASSES, objective="low_rank")


def test_layers_have_the_binary_cross_entropy_where_nothing_varies():
    values = prediction(rank=1)
    values[:, 3:6], values[:, 6:] = -10, 0
    layers = (torch.rand(2, 3, 3, 4, generator=torch.Generator().manual_seed(2)) < 0.4).long()
    layers[0, :, 0] = 255
    whole, known = LowRankLayers.from_prediction(values, 3), layers != 255
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(values[:, :3], (layers == 1).float(), reduction="none")
    expected = sum(float(entropy[:, k][known[:, k]].mean()) for k in range(3))
    assert float(whole.negative_log_likelihood(layers, 255, 4)) == pytest.approx(expected, abs=1e-3)
    assert float(whole.negative_log_likelihood(torch.full_like(layers, 255), 255, 4)) == 0


def test_marginals_of_layers_are_those_of_their_samples():
    whole = LowRankLayers.from_prediction(prediction(seed=3), 3)
    drawn = whole.sample(4000, [torch.Generator().manual_seed(i) for i in range(2)]).sigmoid().mean(1)
    assert torch.allclose(whole.marginal_logits().sigmoid(), drawn, atol=0.03)
