"""Flow stochastic segmentation networks: whole maps from noise around what the decoder says."""

import math

import pytest
import torch
from tiny_training import CLASSES, tiny_config, tiny_model

from noise2map.models.distributions.flow import FlowNetwork, LayerFlow, LogitFlow

FIELDS = {"objective": "flow", "diffusion": False, "flow_channels": 8, "flow_context_channels": 4, "flow_steps": 3}


def model(**fields):
    return tiny_model(**{**FIELDS, "use_auxiliary_head": False, **fields})


class KnownPosterior(torch.nn.Module):
    """In place of the network: two maps alone, all of class 0, or with a chance of 0.3 all of class 1, told from y_t by Bayes."""

    def __init__(self, start):
        super().__init__()
        self.start, self.calls = start, 0

    def forward(self, y, t, context):
        self.calls += 1
        t = t.view(-1, 1, 1, 1)
        middle = (1 - t) * self.start
        codes = torch.eye(2).view(2, 1, 2, 1, 1)
        squares = (y - middle - t * codes).square().sum((2, 3, 4)) / (2 * (1 - t).square().view(1, -1))
        evidence = math.log(0.3 / 0.7) + squares[0] - squares[1]
        return torch.stack([torch.zeros_like(evidence), evidence], 1)[:, :, None, None].expand(-1, -1, *y.shape[-2:])


def whole_maps(steps, count=4000):
    start = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(5))
    network = KnownPosterior(start)
    flow = LogitFlow(start, torch.zeros(1, 0, 3, 4), network, steps)
    drawn = flow.sample(count, [torch.Generator().manual_seed(0)])[0].softmax(1)[:, 1].flatten(1)
    assert network.calls == steps
    return drawn


def test_maps_come_as_often_as_they_should_and_whole():
    drawn = whole_maps(steps=40)
    likely = (drawn.mean(1) > 0.5).double()
    assert float(likely.mean()) == pytest.approx(0.3, abs=0.03)
    assert float((drawn.std(1) > 0.05).double().mean()) == 0
    assert float(((drawn > 0.02) & (drawn < 0.98)).double().mean()) < 0.02


def test_one_step_says_what_is_likely_in_each_pixel():
    assert torch.allclose(whole_maps(steps=1, count=10), torch.tensor(0.3), atol=1e-5)


@pytest.mark.slow
def test_a_trained_flow_draws_both_maps_and_nothing_between():
    torch.manual_seed(0)
    network, context = FlowNetwork(2, 0, 16), torch.zeros(64, 0, 4, 4)
    start = torch.nn.Parameter(torch.zeros(1, 2, 1, 1))
    optimizer = torch.optim.AdamW([*network.parameters(), start], lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 800)
    for _ in range(800):
        labels = (torch.rand(64, 1, 1) < 0.3).long().expand(64, 4, 4)
        optimizer.zero_grad()
        LogitFlow(start.expand(64, 2, 4, 4), context, network, 20).loss(labels, 255).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        flow = LogitFlow(start.expand(1, 2, 4, 4), context[:1], network, 20)
        drawn = flow.sample(500, [torch.Generator().manual_seed(0)])[0].argmax(1).flatten(1).double().mean(1)
        marginal = flow.marginal_logits().softmax(1)[0, 1]
    assert float(((drawn > 0) & (drawn < 1)).double().mean()) < 0.01
    assert float(drawn.mean()) == pytest.approx(0.3, abs=0.08)
    assert torch.allclose(marginal, torch.tensor(0.3), atol=0.04)


def network_and_prediction(classes=3, batch=2):
    torch.manual_seed(1)
    return FlowNetwork(classes, 4, 8), torch.randn(batch, classes + 4, 5, 7)


def test_the_loss_is_the_mean_of_the_cross_entropies_of_its_two_times(monkeypatch):
    """Of both calls, seen from outside: labelled cells alone count."""
    network, prediction = network_and_prediction()
    labels = torch.randint(0, 3, (2, 5, 7), generator=torch.Generator().manual_seed(2))
    labels[0, 0] = 255
    seen = []
    network.register_forward_hook(lambda module, given, found: seen.append((given[1], found.detach())))
    loss = LogitFlow.from_prediction(prediction, 3, network, 3).loss(labels, 255)
    (t, logits), expected = seen[0], []
    assert len(seen) == 1 and t[:2].tolist() == [0, 0] and bool(((t[2:] > 0) & (t[2:] < 1)).all())
    for half in logits.split(2):
        expected.append(torch.nn.functional.cross_entropy(half, labels, ignore_index=255))
    assert loss.item() == pytest.approx(float(sum(expected)) / 2, rel=1e-5)
    assert LogitFlow.from_prediction(prediction, 3, network, 3).loss(torch.full_like(labels, 255), 255).item() == 0


def test_the_loss_of_layers_is_the_sum_of_their_cross_entropies():
    network, prediction = network_and_prediction()
    layers = (torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(2)) < 0.4).long()
    layers[1, :, 2:] = 255
    seen = []
    network.register_forward_hook(lambda module, given, found: seen.append(found.detach()))
    loss = LayerFlow.from_prediction(prediction, 3, network, 3).loss(layers, 255)
    truth, known = (layers == 1).float(), layers != 255
    parts = [torch.nn.functional.binary_cross_entropy_with_logits(half[known], truth[known]) for half in seen[0].split(2)]
    assert loss.item() == pytest.approx(float(3 * sum(parts) / 2), rel=1e-5)
    assert LayerFlow.from_prediction(prediction, 3, network, 3).loss(torch.full_like(layers, 255), 255).item() == 0


def test_the_truth_is_mixed_with_noise_around_the_start():
    network, prediction = network_and_prediction(batch=400)
    labels = torch.full((400, 5, 7), 2)
    seen = []
    network.register_forward_hook(lambda module, given, found: seen.append(given))
    LogitFlow.from_prediction(prediction, 3, network, 3).loss(labels, 255)
    y, t, _ = seen[0]
    code = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1)
    at = t.view(-1, 1, 1, 1)
    rest = (y - at * code) / (1 - at) - prediction[:, :3].repeat(2, 1, 1, 1)
    assert float(rest.mean()) == pytest.approx(0, abs=0.01) and float(rest.std()) == pytest.approx(1, abs=0.01)


def test_a_temperature_divides_what_the_network_says():
    nets = [model().eval(), model(temperature=2.0).eval()]
    nets[1].load_state_dict(nets[0].state_dict())
    pixels = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, cooled = (net._whole_maps(net.head(torch.zeros(1, 96, net.config.hidden_size), (8, 12))) for net in nets)
        torch.testing.assert_close(cooled.start, whole.start)
        y, t = torch.zeros(1, 3, 8, 12), torch.zeros(1)
        torch.testing.assert_close(cooled._logits_at(y, t, cooled.context), whole._logits_at(y, t, whole.context) / 2)
        plain, cool = (net(pixel_values=pixels).logits.softmax(1) for net in nets)
    assert float(cool.amax(1).mean()) < float(plain.amax(1).mean())


def test_half_precision_answers_alike():
    net = model().eval()
    pixels = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = net(pixel_values=pixels).logits.softmax(1)
        net.to(torch.bfloat16)
        rough = net(pixel_values=pixels).logits
    assert rough.dtype == torch.float32 and float((rough.softmax(1) - exact).abs().max()) < 0.1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"diffusion": True}, "objective 'flow' draws maps in one pass of the decoder; expected diffusion False"),
        ({"flow_channels": 12}, "flow_channels is 12; expected a multiple of 8"),
        ({"flow_steps": 0}, "flow_steps is 0; expected a positive number"),
    ],
)
def test_impossible_values_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(id2label=CLASSES, **{**FIELDS, **fields})
