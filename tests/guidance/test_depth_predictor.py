import math

import pytest
import torch
from tiny_guidance import tiny_predictor, tiny_unet
from torch.nn import functional

from noise2map.codecs import DepthCodec
from noise2map.guidance import DepthPredictor, UNetFeatureTap


@pytest.fixture(scope="module")
def unet():
    return tiny_unet()


def features_of(unet, batch_size=2):
    with torch.no_grad(), UNetFeatureTap(unet) as tap:
        unet(torch.randn(batch_size, 3, 16, 16), 100)
    return tap.features


def naive(predictor, features, timestep, blocks, size):
    """Upsample, concatenate, and apply an ordinary linear layer to each pixel."""
    head = predictor.heads["blocks_" + "_".join(map(str, blocks))]
    wide = torch.cat(
        [functional.interpolate(predictor.standardizers[str(k)](features[k]), size, mode="bilinear") for k in blocks], 1
    )
    weight = torch.cat([head.first[str(k)].weight[:, :, 0, 0] for k in blocks], 1)
    pixels = wide.permute(0, 2, 3, 1)
    time = predictor.time_embedding(predictor.time_proj(torch.tensor([timestep])).to(weight.dtype))
    scale, shift = head.time(functional.silu(time))[0].chunk(2)
    hidden = functional.silu((functional.linear(pixels, weight, head.bias)) * (1 + scale) + shift)
    for layer in list(head.rest)[1:]:
        hidden = functional.linear(hidden, layer.weight[:, :, 0, 0], layer.bias) if hasattr(layer, "weight") else layer(hidden)
    return hidden.permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", [(16, 16), (7, 11), (2, 2)])
def test_equals_upsampling_and_concatenating_first(unet, size):
    predictor = tiny_predictor(unet)
    for standardizer in predictor.standardizers.values():
        standardizer.mean.normal_()
        standardizer.std.uniform_(0.5, 2)
    features = features_of(unet)
    with torch.no_grad():
        for blocks in ((2, 4, 5, 6, 7), (6,)):
            signal = predictor(features, 100, blocks, size)
            assert signal.shape == (2, 1, *size)
            torch.testing.assert_close(signal, naive(predictor, features, 100, blocks, size), atol=2e-5, rtol=1e-5)


def test_one_predictor_for_all_times(unet):
    predictor, features = tiny_predictor(unet), features_of(unet)
    with torch.no_grad():
        early, late = predictor(features, 10), predictor(features, 700)
        both = predictor(features, torch.tensor([10, 700]))
    assert not torch.allclose(early, late, atol=1e-4)
    torch.testing.assert_close(both[0], early[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both[1], late[1], atol=1e-5, rtol=1e-5)


def test_save_and_load(unet, tmp_path):
    predictor = tiny_predictor(unet, min_depth=0.5, max_depth=20.0, probe_blocks=[[2], [7]])
    predictor.standardizers["6"].mean.fill_(3.0)
    predictor.save_pretrained(tmp_path)
    again, features = DepthPredictor.from_pretrained(tmp_path), features_of(unet)
    again.check_unet(unet)
    assert again.branches == ((2, 4, 5, 6, 7), (6,), (2,), (7,)) and again.blocks == (2, 4, 5, 6, 7)
    with torch.no_grad():
        for blocks in again.branches:
            assert torch.equal(again(features, 5, blocks), predictor(features, 5, blocks))
    assert again.depth_range == predictor.depth_range and again.depth_range.metric


def test_every_parameter_learns(unet):
    predictor, features = tiny_predictor(unet), features_of(unet)
    (predictor(features, 5).sum() + predictor(features, 5, (6,)).sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in predictor.parameters())


@pytest.mark.parametrize("representation", ["log", "linear"])
def test_metric_depth(unet, representation):
    predictor = tiny_predictor(unet, min_depth=0.5, max_depth=20.0, depth_representation=representation)
    depth = torch.tensor([[[0.5, 3.0], [20.0, 0.0]]])
    signal, valid = predictor.encode_depth(depth)
    torch.testing.assert_close(signal, DepthCodec(0.5, 20.0, 1.0, representation).encode(depth))
    assert valid.tolist() == [[[[True, True], [True, False]]]]
    torch.testing.assert_close(predictor.decode_depth(signal)[valid[:, 0]], depth[valid[:, 0]], rtol=1e-5, atol=1e-5)


def test_relative_depth(unet):
    predictor = tiny_predictor(unet)
    depth = torch.tensor([[[0.0, 0.25], [1.0, float("nan")]]])
    signal, valid = predictor.encode_depth(depth)
    assert signal.flatten().tolist() == [-1, -0.5, 1, 0] and valid.flatten().tolist() == [True, True, True, False]
    assert predictor.decode_depth(signal).flatten()[:3].tolist() == [0, 0.25, 1]
    assert predictor.decode_depth(torch.full((1, 1, 1, 1), 9.0)).item() == 1
    with pytest.raises(ValueError, match=r"relative depth holds 2.0"):
        predictor.encode_depth(torch.full((1, 2, 2), 2.0))


def test_belongs_to_its_unet(unet):
    predictor = tiny_predictor(unet)
    predictor.check_unet(unet)
    predictor.check_unet(tiny_unet().to(torch.bfloat16))
    with pytest.raises(ValueError, match="another U-Net of the same shape"):
        predictor.check_unet(tiny_unet(seed=5))
    with pytest.raises(ValueError, match="expects channels"):
        predictor.check_unet(tiny_unet(block_out_channels=(8, 16, 16)))
    with pytest.raises(ValueError, match="16, 16"):
        predictor.check_unet(tiny_unet(sample_size=32))
    with pytest.raises(ValueError, match="lacks the requested"):
        predictor.check_unet(tiny_unet(layers_per_block=1))
    predictor.register_to_config(unet_signature=None)
    predictor.check_unet(tiny_unet(seed=5))


def test_bad_input(unet):
    predictor, features = tiny_predictor(unet), features_of(unet)
    with pytest.raises(ValueError, match=r"no branch on blocks \(7,\)"):
        predictor(features, 5, (7,))
    with pytest.raises(ValueError, match="feature of block 2 has none"):
        predictor({6: features[6]}, 5)
    with pytest.raises(ValueError, match="block 6 has 3 channels"):
        predictor({6: features[6][:, :3]}, 5, (6,))
    with pytest.raises(ValueError, match="lacks the requested"):
        DepthPredictor.for_unet(unet, strong_blocks=(2, 30))
    with pytest.raises(ValueError, match="nothing to disagree"):
        tiny_predictor(unet, strong_blocks=(6,))
    with pytest.raises(ValueError, match="two bounds"):
        tiny_predictor(unet, min_depth=1.0)
    with pytest.raises(ValueError, match="min_log_snr is inf"):
        tiny_predictor(unet, min_log_snr=math.inf)
    with pytest.raises(ValueError, match="hidden_sizes"):
        tiny_predictor(unet, hidden_sizes=())
