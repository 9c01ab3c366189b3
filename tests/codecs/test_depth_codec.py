"""Depth codec: round trip, range, and invalid pixels that never leak."""

import math

import pytest
import torch

from noise2map.codecs import DepthCodec, check_depth

REPRESENTATIONS = ["linear", "log"]


def make(representation="linear", scale=0.1, low=0.5, high=20.0):
    return DepthCodec(low, high, scale, representation)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("scale", [0.01, 0.1, 1.0])
def test_round_trip_and_range(representation, scale):
    codec = make(representation, scale)
    depth_m = torch.linspace(0.5, 20, 60).view(3, 4, 5)
    signal = codec.encode(depth_m)
    assert codec.channels == 1
    assert signal.shape == (3, 1, 4, 5)
    assert float(signal.min()) == pytest.approx(-scale)
    assert float(signal.max()) == pytest.approx(scale)
    assert torch.allclose(codec.decode(signal), depth_m, rtol=1e-5)


def test_linear_is_linear_and_log_is_logarithmic():
    depth_m = torch.tensor([[[0.5, 10.25, 20.0]]])
    assert make("linear", 1.0).encode(depth_m).flatten().tolist() == pytest.approx([-1, 0, 1], abs=1e-6)
    middle = torch.tensor([[[0.5, math.sqrt(0.5 * 20), 20.0]]])
    assert make("log", 1.0).encode(middle).flatten().tolist() == pytest.approx([-1, 0, 1], abs=1e-6)
    ratios = make("log", 1.0).encode(torch.tensor([[[1.0, 2.0, 4.0, 8.0]]])).flatten().diff()
    assert torch.allclose(ratios, ratios[:1].expand(3))


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_depths_beyond_the_range_are_clamped(representation):
    codec = make(representation)
    signal = codec.encode(torch.tensor([[[0.001, 0.4, 21.0, 1e6]]])).flatten()
    assert torch.allclose(signal, torch.tensor([-0.1, -0.1, 0.1, 0.1]))
    decoded = codec.decode(torch.tensor([[[[-5.0, -0.1, 0.1, 5.0]]]])).flatten()
    assert decoded.tolist() == pytest.approx([0.5, 0.5, 20, 20])


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("behind", [0.0, 5.0, -3.0, 1e9, math.nan, math.inf, -math.inf])
def test_what_stands_behind_the_mask_never_leaks(representation, behind):
    codec = make(representation)
    generator = torch.Generator().manual_seed(0)
    depth_m = torch.rand(2, 6, 7, generator=generator) * 19 + 0.6
    valid = torch.rand(2, 6, 7, generator=generator) > 0.4
    clean = codec.encode(torch.where(valid, depth_m, torch.tensor(1.0)), valid)
    masked = codec.encode(torch.where(valid, depth_m, torch.tensor(behind)), valid)
    assert torch.equal(clean, masked)
    assert bool((masked.squeeze(1)[~valid] == 0).all())  # the middle of the range
    assert bool(torch.isfinite(masked).all())


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_zero_marks_invalid_pixels(representation):
    codec = make(representation)
    depth_m = torch.tensor([[[0.0, 3.0], [7.0, 0.0]]])
    assert torch.equal(codec.encode(depth_m), codec.encode(depth_m, depth_m > 0))
    assert codec.encode(depth_m)[0, 0, 0, 0] == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -0.5])
def test_impossible_depths(bad):
    depth_m = torch.ones(1, 3, 3)
    depth_m[0, 1, 1] = depth_m[0, 2, 2] = bad
    with pytest.raises(ValueError, match=r"2 impossible values such as .* expected finite metres"):
        make().encode(depth_m)
    with pytest.raises(ValueError, match="2 impossible"):
        check_depth(depth_m, torch.ones_like(depth_m, dtype=torch.bool))
    make().encode(depth_m, depth_m == 1)  # not among the valid pixels: fine


def test_integers_are_no_metres():
    with pytest.raises(ValueError, match="floating point metres"):
        make().encode(torch.ones(1, 2, 2, dtype=torch.int64))


@pytest.mark.parametrize(("low", "high"), [(5.0, 5.0), (5.0, 1.0), (0.0, 5.0), (-1.0, 5.0), (1.0, math.inf), (math.nan, 5.0)])
def test_empty_or_impossible_range(low, high):
    with pytest.raises(ValueError, match=r"depth range is .*expected 0 < min_depth < max_depth"):
        DepthCodec(low, high)


def test_unknown_representation():
    with pytest.raises(ValueError, match="'disparity'; expected 'linear' or 'log'"):
        DepthCodec(1, 2, representation="disparity")


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_readout_is_encoded_and_clamped(representation):
    codec = make(representation)
    depth_m = torch.tensor([[[[0.7, 3.0, 19.0, 500.0]]]])
    signal = codec.encode_prediction(depth_m)
    assert torch.equal(signal, codec.encode(depth_m.squeeze(1)))
    assert float(signal.max()) == pytest.approx(0.1)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_gradients_pass_through_the_normalisation(representation):
    codec = make(representation, scale=1.0)
    depth_m = torch.tensor([2.0, 9.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(codec.normalise, depth_m)
