"""Class-map codecs: round trip, range, gradients and impossible ids, for every encoding and number of classes."""

import math

import pytest
import torch

from noise2map.codecs import AnalogBitsCodec, ClassEmbeddingCodec, OneHotCodec

CLASSES = [1, 2, 8, 19, 150, 255]
ENCODINGS = ["class_embedding", "one_hot", "analog_bits"]


def make(encoding, num_labels, scale=0.01, ignore_index=255):
    torch.manual_seed(0)
    if encoding == "class_embedding":
        return ClassEmbeddingCodec(num_labels, channels=32, scale=scale, ignore_index=ignore_index)
    return {"one_hot": OneHotCodec, "analog_bits": AnalogBitsCodec}[encoding](num_labels, scale, ignore_index)


def all_labels(num_labels, ignore_index=255):
    """A map ``(2, h, 4)`` that holds every class and the ignore label."""
    ids = torch.cat([torch.arange(num_labels), torch.tensor([ignore_index])])
    return ids.repeat(8)[: 8 * len(ids)].view(2, -1, 4)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("num_labels", CLASSES)
@pytest.mark.parametrize("scale", [0.01, 0.1, 1.0])
def test_round_trip_and_range(encoding, num_labels, scale):
    codec = make(encoding, num_labels, scale)
    labels = all_labels(num_labels)
    signal = codec.encode(labels)
    assert signal.shape == (2, codec.channels, *labels.shape[1:])
    assert float(signal.detach().abs().max()) <= scale * (1 + 1e-6)
    assert torch.equal(codec.decode(signal), labels)
    assert codec.decode(signal).dtype == torch.int64


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_round_trip_survives_noise_below_half_the_distance(encoding):
    codec = make(encoding, 19)
    labels = all_labels(19)
    codes = codec.codes().detach()
    distance = torch.cdist(codes, codes) + torch.eye(20) * 1e9
    signal = codec.encode(labels).detach()
    push = torch.randn(signal.shape, generator=torch.Generator().manual_seed(0))
    push = push / push.norm(dim=1, keepdim=True) * 0.49 * float(distance.min())
    assert torch.equal(codec.decode(signal + push), labels)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_decode_is_the_nearest_code(encoding):
    codec = make(encoding, 8, scale=1.0)
    signal = torch.randn(2, codec.channels, 5, 5, generator=torch.Generator().manual_seed(0))
    codes = codec.codes().detach()
    decoded = codec.decode(signal)
    for b in range(2):
        for y in range(5):
            for x in range(5):
                row = int((codes - signal[b, :, y, x]).norm(dim=1).argmin())
                assert int(decoded[b, y, x]) == (255 if row == 8 else row)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_another_ignore_label(encoding):
    codec = make(encoding, 3, ignore_index=-100)
    labels = torch.tensor([[[0, 1], [2, -100]]])
    assert torch.equal(codec.decode(codec.encode(labels)), labels)
    with pytest.raises(ValueError, match=r"class id 255; expected 0\.\.2 or -100"):
        codec.encode(torch.tensor([[[255]]]))


@pytest.mark.parametrize("num_labels", CLASSES)
def test_channels(num_labels):
    assert make("class_embedding", num_labels).channels == 32
    assert make("one_hot", num_labels).channels == num_labels
    assert make("analog_bits", num_labels).channels == math.ceil(math.log2(num_labels + 1))


def test_one_hot_by_definition():
    codec = OneHotCodec(3, scale=0.5)
    assert codec.encode(torch.tensor([[[1, 255]]]))[0, :, 0].T.tolist() == [[-0.5, 0.5, -0.5], [-0.5, -0.5, -0.5]]


def test_analog_bits_by_definition():
    codec = AnalogBitsCodec(10, scale=0.5)
    for label in (0, 1, 5, 9, 255):
        number = 10 if label == 255 else label
        bits = [0.5 if digit == "1" else -0.5 for digit in f"{number:04b}"[::-1]]
        assert codec.encode(torch.tensor([[[label]]])).flatten().tolist() == bits


def test_class_embedding_by_definition():
    codec = ClassEmbeddingCodec(4, channels=6, scale=0.02)
    assert codec.embedding.weight.shape == (5, 6)
    expected = (torch.sigmoid(codec.embedding.weight[2]) * 2 - 1) * 0.02
    assert torch.allclose(codec.encode(torch.tensor([[[2]]])).flatten(), expected)
    expected_ignore = (torch.sigmoid(codec.embedding.weight[4]) * 2 - 1) * 0.02
    assert torch.allclose(codec.encode(torch.tensor([[[255]]])).flatten(), expected_ignore)


def test_gradients_reach_the_rows_that_were_used_and_no_other():
    codec = ClassEmbeddingCodec(6, channels=4, scale=0.1)
    codec.encode(torch.tensor([[[0, 3], [3, 255]]])).sum().backward()
    used = codec.embedding.weight.grad.abs().sum(1) > 0
    assert used.tolist() == [True, False, False, True, False, False, True]
    sigmoid = codec.embedding.weight[3].detach().sigmoid()
    assert torch.allclose(codec.embedding.weight.grad[3], 2 * 0.1 * 2 * sigmoid * (1 - sigmoid))  # seen twice


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_readout_is_the_code_of_the_likeliest_class(encoding):
    codec = make(encoding, 8)
    logits = torch.randn(2, 8, 3, 4, generator=torch.Generator().manual_seed(0))
    expected = codec.encode(logits.argmax(1))
    assert torch.equal(codec.encode_prediction(logits), expected)
    assert torch.equal(codec.encode_prediction(logits, codec.codes()), expected)
    assert torch.equal(codec.encode(logits.argmax(1), codec.codes()), expected)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("bad", [8, 254, 256, -1, 10_000])
def test_class_ids_out_of_range(encoding, bad):
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    labels[0, 2, 1] = bad
    with pytest.raises(ValueError, match=rf"class id {bad}; expected 0\.\.7 or 255 \(ignore\)"):
        make(encoding, 8).encode(labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_types_that_are_no_class_ids(dtype):
    with pytest.raises(ValueError, match="expected integer class ids"):
        make("one_hot", 3).encode(torch.zeros(1, 2, 2, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_small_integers(dtype):
    # A byte cannot hold the row of the ignore label where there are many classes.
    labels = torch.tensor([[[0, 7], [100, 127]]])
    for num_labels, ignore_index in ((150, 255), (400, 500)):
        codec = make("class_embedding", num_labels, ignore_index=ignore_index)
        assert torch.equal(codec.encode(labels.to(dtype)), codec.encode(labels))
    assert torch.equal(make("one_hot", 128).encode(labels.to(torch.int8)), make("one_hot", 128).encode(labels))


def test_empty_map():
    assert make("one_hot", 3).encode(torch.zeros(0, 4, 4, dtype=torch.int64)).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_impossible_sizes(encoding):
    with pytest.raises(ValueError, match="num_labels is 0"):
        make(encoding, 0)
    with pytest.raises(ValueError, match="ignore_index 2 is one of the 3 class ids"):
        make(encoding, 3, ignore_index=2)
    for scale in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"scale is .*positive"):
            make(encoding, 3, scale=scale)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_half_precision_keeps_the_classes_apart(encoding):
    codec = make(encoding, 19)
    labels = all_labels(19)
    assert torch.equal(codec.to(torch.bfloat16).decode(codec.encode(labels)), labels)


@pytest.mark.parametrize("codec", (ClassEmbeddingCodec(4, 8), OneHotCodec(4), AnalogBitsCodec(4)))
def test_the_scale_is_the_published_one_where_none_is_given(codec):
    assert codec.scale == 0.01 and codec.ignore_index == 255
    assert codec.codes().abs().max() <= 0.01
