"""Normals: round trip, unknown pixels, refusals."""

import pytest
import torch

from noise2map.codecs import NormalsCodec
from noise2map.codecs.normals import check_normals, unit_vectors


def normals(seed=0, shape=(2, 3, 5, 7)):
    vectors = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    vectors = vectors / vectors.square().sum(1, keepdim=True).sqrt()
    vectors[:, :, 0, :2] = 0
    return vectors


@pytest.mark.parametrize("scale", [0.01, 0.1, 1.0])
def test_round_trip(scale):
    codec, truth = NormalsCodec(scale), normals()
    signal = codec.encode(truth)
    assert signal.shape == (2, 3, 5, 7) and codec.channels == 3
    known = truth.abs().sum(1) > 0
    assert torch.allclose(signal.norm(dim=1)[known], torch.tensor(scale, dtype=torch.float64))
    assert torch.equal(signal[:, :, 0, :2], torch.zeros(2, 3, 2, dtype=torch.float64))
    assert torch.allclose(codec.decode(signal), truth, atol=1e-12)
    assert torch.equal(codec.encode_prediction(truth), signal) and torch.equal(codec.encode_readout(truth), signal)


def test_a_noisy_signal_decodes_to_the_nearest_direction():
    codec, truth = NormalsCodec(0.1), normals()
    assert torch.allclose(codec.decode(codec.encode(truth) * 3.7), truth, atol=1e-12)
    assert torch.equal(unit_vectors(torch.zeros(1, 3, 1, 1)), torch.zeros(1, 3, 1, 1))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.ones(1, 3, 2, 2), "4 vectors of a length such as 1.732"),
        (torch.full((1, 3, 1, 1), float("nan")), "1 vectors of a length such as nan"),
        (torch.zeros(1, 2, 2, 2), r"shape \(1, 2, 2, 2\); expected \(B, 3, H, W\)"),
        (torch.zeros(1, 3, 2, 2, dtype=torch.int64), "type torch.int64"),
    ],
)
def test_what_is_no_normal_is_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        check_normals(bad)
    with pytest.raises(ValueError, match=message):
        NormalsCodec().encode(bad)


def test_the_rounding_of_half_precision_passes():
    half = normals().half()
    check_normals(half)
    assert not torch.equal(half.double().norm(dim=1), normals().norm(dim=1))  # something was rounded
