"""Codec of non-exclusive layers."""

import itertools

import pytest
import torch

from noise2map.codecs import BinaryLayersCodec, MultiLabelCodec


def make(num_labels=6, channels=32, scale=0.01, **kwargs):
    torch.manual_seed(0)
    return MultiLabelCodec(num_labels, channels, scale, **kwargs)


@pytest.mark.parametrize("scale", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("num_labels", [1, 2, 6])
def test_round_trip_of_every_combination(num_labels, scale):
    codec = make(num_labels, scale=scale)
    combinations = torch.tensor(list(itertools.product([0, 1], repeat=num_labels)))
    layers = combinations.T[None, :, :, None]  # (1, K, 2^K, 1)
    signal = codec.encode(layers)
    assert signal.shape == (1, 32, len(combinations), 1)
    assert float(signal.detach().abs().max()) <= scale
    assert torch.equal(codec.decode(signal), layers)


def test_signal_by_definition():
    codec = make(3, channels=5, scale=0.2)
    table = codec.embedding.weight.detach()
    signal = codec.encode(torch.tensor([1, 0, 1]).view(1, 3, 1, 1)).flatten()
    mean = (table[1] + table[0] + table[3]) / 3
    assert torch.allclose(signal, (mean.sigmoid() * 2 - 1) * 0.2)


def test_boolean_and_float_masks_are_the_same():
    codec = make()
    layers = torch.randint(0, 2, (2, 6, 4, 5), generator=torch.Generator().manual_seed(0))
    assert torch.equal(codec.encode(layers), codec.encode(layers.bool()))
    assert torch.equal(codec.encode(layers), codec.encode(layers.float()))


def test_gradients_reach_the_table():
    codec = make(4, channels=3)
    layers = torch.zeros(1, 4, 2, 2, dtype=torch.int64)
    layers[:, 1] = 1
    codec.encode(layers).sum().backward()
    used = codec.embedding.weight.grad.abs().sum(1) > 0
    assert used.tolist() == [True, False, True, False, False]  # "absent" and the one layer present


def test_readout_thresholds_probabilities():
    codec = make(2, threshold=0.3)
    logits = torch.logit(torch.tensor([0.29, 0.31])).view(1, 2, 1, 1)
    assert torch.equal(codec.encode_prediction(logits), codec.encode(torch.tensor([0, 1]).view(1, 2, 1, 1)))


def test_impossible_input():
    codec = make(3)
    with pytest.raises(ValueError, match=r"\(1, 2, 4, 4\); expected \(B, 3, h, w\)"):
        codec.encode(torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match="other than 0 and 1"):
        codec.encode(torch.full((1, 3, 4, 4), 2))
    with pytest.raises(ValueError, match="other than 0 and 1"):
        codec.encode(torch.full((1, 3, 4, 4), float("nan")))
    with pytest.raises(ValueError, match="num_labels is 0"):
        MultiLabelCodec(0, 8)
    for threshold in (0, 1, 1.5):
        with pytest.raises(ValueError, match="threshold"):
            MultiLabelCodec(2, 8, threshold=threshold)


@pytest.mark.parametrize("layers", (1, 4))
@pytest.mark.parametrize("codec", (MultiLabelCodec(3, 8), BinaryLayersCodec(3)))
def test_another_number_of_layers_is_refused(codec, layers):
    with pytest.raises(ValueError, match=rf"\(1, {layers}, 2, 2\); expected \(B, 3, h, w\)"):
        codec.encode(torch.zeros(1, layers, 2, 2, dtype=torch.long))


def test_binary_layers_are_signs_and_come_back():
    codec, layers = BinaryLayersCodec(3, 0.5), torch.randint(0, 2, (2, 3, 4, 5), generator=torch.Generator().manual_seed(0))
    signal = codec.encode(layers)
    assert torch.equal(signal, torch.where(layers == 1, 0.5, -0.5)) and torch.equal(codec.decode(signal), layers)
    assert torch.equal(codec.encode_prediction((layers * 2.0 - 1) * 3), signal)
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        codec.encode(layers + 1)
