"""Models that learn a distribution of whole maps, by either objective: what they draw, keep and learn."""

import pytest
import tiny_bev
import torch
from tiny_training import tiny_model

from noise2map import Noise2MapForSemanticSegmentation
from noise2map.diffusion import image_generator

FIELDS = {
    "low_rank": {"objective": "low_rank", "diffusion": False, "low_rank_factors": 2},
    "flow": {"objective": "flow", "diffusion": False, "flow_channels": 8, "flow_context_channels": 4, "flow_steps": 3},
}


def model(objective, **fields):
    return tiny_model(**FIELDS[objective], use_auxiliary_head=False, **fields)


@pytest.mark.parametrize("size", [(32, 48), (36, 44)])
@pytest.mark.parametrize(("objective", "least_spread", "rounding"), [("low_rank", 0.1, 1e-5), ("flow", 0.01, 1e-3)])
def test_a_model_draws_samples_from_one_call_of_its_decoder(tmp_path, objective, least_spread, rounding, size):
    net = model(objective).eval()
    pixels = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))
    cells = (size[0] // 4, size[1] // 4)
    with torch.no_grad():
        features = net.encode_image(pixels)
        out = net.decode_map(features, sampling="field", ensemble_size=5, generator=[image_generator(0, str(i)) for i in range(3)])
        assert out.samples.shape == (3, 5, 3, *cells) and out.logits.shape == (3, 3, *cells)
        assert out.samples.std(1).mean() > least_spread and "entropy" in out.uncertainties
        one = net.decode_map(features[1:2], sampling="field", ensemble_size=5, generator=[image_generator(0, "1")])
        assert torch.allclose(one.samples[0], out.samples[1], atol=1e-5)
        assert torch.allclose(one.logits[0], out.logits[1], atol=1e-5)
        assert net(pixel_values=pixels, sampling="field", ensemble_size=2).samples.shape == (3, 2, 3, *size)
        net.save_pretrained(tmp_path)
        again = Noise2MapForSemanticSegmentation.from_pretrained(tmp_path).eval()
        assert torch.allclose(again(pixel_values=pixels).logits, net(pixel_values=pixels).logits, atol=rounding)


@pytest.mark.parametrize("upsampling", ["bilinear", "convex"])
@pytest.mark.parametrize("objective", FIELDS)
def test_every_parameter_learns(objective, upsampling):
    net = model(objective, upsampling=upsampling)
    labels = torch.randint(0, 3, (2, 32, 48), generator=torch.Generator().manual_seed(0))
    net(pixel_values=torch.randn(2, 3, 32, 48), labels=labels).loss.backward()
    assert [name for name, value in net.named_parameters() if value.requires_grad and value.grad is None] == []
    assert net.head.classifier.weight.grad.abs().sum(1).min() > 0


@pytest.mark.parametrize(("objective", "least_spread"), [("low_rank", 0.05), ("flow", 0.01)])
def test_a_model_of_layers_draws_whole_maps(tmp_path, objective, least_spread):
    net = tiny_bev.tiny_bev(**FIELDS[objective], focal_gamma=0)
    net.train()(**tiny_bev.inputs(batch_size=3), labels=tiny_bev.labels(3)).loss.backward()
    assert [name for name, value in net.named_parameters() if value.requires_grad and value.grad is None] == []
    assert net.head.classifier.weight.grad.abs().sum(1).min() > 0
    net.eval()
    with torch.no_grad():
        features = net.encode_sensors(**tiny_bev.inputs(batch_size=3))
        out = net.decode_map(features, sampling="field", ensemble_size=4, generator=tiny_bev.generators(3))
        assert out.samples.shape == (3, 4, 6, 12, 16) and out.samples.std(1).mean() > least_spread
        assert out.probabilities.shape == (3, 6, 12, 16) and "entropy" in out.uncertainties
        one = net.decode_map(features[1:2], sampling="field", ensemble_size=4, generator=tiny_bev.generators(3)[1:2])
        assert torch.allclose(one.samples[0], out.samples[1], atol=1e-5)
        net.save_pretrained(tmp_path)
        again = type(net).from_pretrained(tmp_path).eval()
        assert torch.allclose(again.decode_map(features).probabilities, net.decode_map(features).probabilities, atol=1e-6)
