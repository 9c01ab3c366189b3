"""Parts of the model: pyramid, position encoding, time embedding, heads, the two halves of the projection, compilation."""

import copy
import math

import pytest
import torch
from tiny_models import images, tiny_config, tiny_segmenter
from torch.nn import functional
from transformers import AutoConfig

from noise2map.models.depth import DepthHead
from noise2map.models.encoder import FeaturePyramid
from noise2map.models.map_decoder import TimeEmbedding, modulated_norm, sine_position_encoding
from noise2map.models.segmentation import Noise2MapForSemanticSegmentation, SegmentationHead


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def test_pyramid_lets_coarse_maps_reach_fine_ones():
    torch.manual_seed(0)
    pyramid = FeaturePyramid([4, 6, 8, 10], 8, 2)
    maps = [torch.randn(1, c, s, s) for c, s in ((4, 16), (6, 8), (8, 4), (10, 2))]
    before = pyramid(maps)
    assert [m.shape for m in before] == [(1, 8, s, s) for s in (16, 8, 4, 2)]
    after = pyramid([*maps[:3], torch.randn(1, 10, 2, 2)])
    assert not torch.allclose(before[0], after[0])
    fine = pyramid([torch.randn(1, 4, 16, 16), *maps[1:]])
    assert torch.equal(before[1], fine[1])  # and fine ones do not reach coarse ones


def test_position_encoding_by_its_formula():
    height, width, channels = 3, 5, 16
    encoding = sine_position_encoding(height, width, channels, torch.device("cpu"), torch.float32)
    for y in range(height):
        for x in range(width):
            row = []
            for position, count in ((y, height), (x, width)):
                angle = (position + 0.5) / (count + 1e-6) * 2 * math.pi
                for k in range(channels // 2):
                    value = angle / 10000 ** (2 * (k // 2) / (channels // 2))
                    row.append(math.sin(value) if k % 2 == 0 else math.cos(value))
            assert encoding[y * width + x].tolist() == pytest.approx(row, abs=1e-5)


def test_time_embedding_by_its_formula():
    torch.manual_seed(0)
    embedding = TimeEmbedding(3, 6)
    time = torch.tensor([-2.5, 0.0, 11.0])
    features = embedding.fourier(time)
    for i, u in enumerate(time.tolist()):
        angles = [u * w * 2 * math.pi for w in embedding.frequencies.tolist()]
        expected = [u, *(math.sin(a) for a in angles), *(math.cos(a) for a in angles)]
        assert features[i].tolist() == pytest.approx(expected, abs=1e-4)
    assert embedding(time).shape == (3, 6)
    # Half precision could not tell the times of a run apart.
    assert embedding.to(torch.bfloat16).fourier(time).dtype == torch.float32


def test_projection_in_two_halves_is_the_projection_of_both():
    model = tiny_segmenter()
    features, x_t = model.encode_image(images(2)), torch.randn(6, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    context = model.decoder.prepare(features)
    both = torch.cat([features.repeat_interleave(3, 0), x_t], dim=1)
    expected = model.decoder.projection(both).flatten(2).transpose(1, 2)
    assert torch.allclose(model.decoder.fuse(context, x_t), expected, atol=1e-5)


def test_context_of_some_images():
    model = tiny_segmenter()
    context = model.decoder.prepare(model.encode_image(images(3)))
    some = context.select(torch.tensor([2, 0]))
    assert torch.equal(some.image, context.image[[2, 0]])
    assert some.size == context.size == (16, 16)


def test_the_noisy_map_and_the_time_matter():
    model = tiny_segmenter()
    context = model.decoder.prepare(model.encode_image(images()))
    noise = torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    early, late = model.decoder.modulations(torch.tensor([-5.0, 5.0])).split(1)
    tokens = model.decoder(context, noise[0], early)
    assert not torch.allclose(tokens, model.decoder(context, noise[1], early), atol=1e-2)
    assert not torch.allclose(tokens, model.decoder(context, noise[0], late), atol=1e-2)


def test_layers_that_are_not_told_the_time():
    model = tiny_segmenter(time_conditioning=False)
    assert not any("time" in name for name, _ in model.named_parameters())
    early, late = model.decoder.modulations(torch.tensor([-5.0, 5.0]))
    assert torch.equal(early, torch.zeros_like(early))
    assert torch.equal(early, late)


def test_one_layer_sees_its_neighbourhood():
    """Fresh weights read at offsets of one and two pixels: what changes far away is not seen."""
    model = tiny_segmenter(decoder_layers=1)
    context = model.decoder.prepare(model.encode_image(images()))
    x_t = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    changed = x_t.clone()
    changed[..., 0, 0] += 1
    modulations = model.decoder.modulations(torch.tensor([0.0]))
    before, after = (model.decoder(context, x, modulations).view(16, 16, 16) for x in (x_t, changed))
    moved = (before - after).abs().amax(-1) > 1e-6
    assert bool(moved[0, 0])
    assert bool(moved[:3, :3].sum() > 1)
    assert not bool(moved[3:].any())
    assert not bool(moved[:, 3:].any())


def test_segmentation_head_is_a_linear_map_of_each_token():
    head = SegmentationHead(tiny_config(temperature=2.0))
    tokens = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(0))
    logits = head(tokens, (3, 4))
    assert logits.shape == (2, 5, 3, 4)
    assert torch.allclose(logits[1, :, 2, 1], head.classifier(tokens[1, 2 * 4 + 1]) / 2, atol=1e-6)


def test_depth_heads():
    tokens = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(0)) * 100
    fields = {"min_depth": 0.5, "max_depth": 20.0}
    linear = DepthHead(tiny_config(**fields))
    z = linear.regressor(tokens.transpose(1, 2).unflatten(2, (3, 4)))
    assert torch.allclose(linear(tokens, (3, 4)), functional.relu(z) + 0.5)
    logarithmic = DepthHead(tiny_config(**fields, depth_representation="log"))
    logarithmic.load_state_dict(linear.state_dict())
    depth_m = logarithmic(tokens, (3, 4))
    assert torch.allclose(depth_m, (math.sqrt(0.5 * 20) * z.exp()).clamp(0.25, 40), rtol=1e-4)
    assert float(depth_m.max()) == pytest.approx(40, rel=1e-4)
    assert float(logarithmic(tokens * 1e6, (3, 4)).max()) < 41  # no overflow


@pytest.mark.slow
def test_compiled_decoder_equals_eager():
    model = tiny_segmenter()
    features = model.encode_image(images(2))
    noise = torch.randn(2, 2, model.codec.channels, 16, 16, generator=torch.Generator().manual_seed(0))
    eager = model.decode_map(features, num_inference_steps=3, noise=noise, ensemble_size=2, output_steps=True)
    model.decoder.compile()
    compiled = model.decode_map(features, num_inference_steps=3, noise=noise, ensemble_size=2, output_steps=True)
    for ours, theirs in zip(eager.steps, compiled.steps, strict=True):
        assert torch.allclose(ours.readout, theirs.readout, atol=1e-4)


def test_time_modulations_of_a_bfloat16_model_are_rounded_once():
    half = tiny_segmenter(time_input="log_snr").to(torch.bfloat16)
    exact = copy.deepcopy(half).double()
    times = half.schedule.log_snr(torch.tensor([1.0, 2 / 3, 0.1]))
    said, expected = half.decoder.modulations(times), exact.decoder.modulations(times)
    assert said.dtype == torch.bfloat16
    # One rounding of eight significant bits, and float32 on the way to it.
    assert ((said.double() - expected).abs() <= expected.abs() * 2**-8 + 1e-6).all()


def modulated(dtype, rows):
    generator = torch.Generator().manual_seed(0)
    norm = torch.nn.LayerNorm(32).to(dtype)
    norm.weight.copy_(1 + 0.3 * torch.randn(32, generator=generator))
    norm.bias.copy_(0.3 * torch.randn(32, generator=generator))
    tokens, modulation = (
        torch.randn(3, 200, 32, generator=generator).to(dtype),
        torch.randn(rows, 64, generator=generator).to(dtype),
    )
    scale, shift = modulation.double()[:, None].chunk(2, -1)
    exact = copy.deepcopy(norm).double()(tokens.double()) * (scale + 1) + shift
    return norm, tokens, modulation, exact


@pytest.mark.parametrize("rows", [1, 3])
def test_norm_and_modulation_in_one_pass_equal_the_two(rows):
    norm, tokens, modulation, exact = modulated(torch.float32, rows)
    assert torch.allclose(modulated_norm(norm, tokens, modulation).double(), exact, atol=1e-5)
    heard = []
    norm.register_forward_hook(lambda *call: heard.append(call))
    assert torch.allclose(modulated_norm(norm, tokens, modulation).double(), exact, atol=1e-5) and len(heard) == 1


def test_one_pass_is_no_coarser_than_two_in_bfloat16():
    norm, tokens, modulation, exact = modulated(torch.bfloat16, 1)
    scale, shift = modulation[:, None].chunk(2, -1)
    two_passes = torch.addcmul(shift, norm(tokens), scale + 1)
    once, twice = ((found.double() - exact).square().mean() for found in (modulated_norm(norm, tokens, modulation), two_passes))
    assert once < 1.05 * twice


def test_modulated_norm_has_gradients():
    norm, tokens, modulation, _ = modulated(torch.float64, 1)
    with torch.enable_grad():
        inputs = [tokens[:1, :3].clone().requires_grad_(), modulation.clone().requires_grad_()]
        assert torch.autograd.gradcheck(lambda *given: modulated_norm(norm, *given), inputs)


def test_a_backbone_of_coarse_features_is_refused():
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
    config = tiny_config()
    config.backbone_config = AutoConfig.for_model(
        "resnet", **sizes, downsample_in_first_stage=True, out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    model = Noise2MapForSemanticSegmentation(config).eval()
    with pytest.raises(ValueError, match="features of images of 64x64 pixels are 8x8; expected a quarter"):
        model.encode_image(torch.zeros(1, 3, 64, 64))
