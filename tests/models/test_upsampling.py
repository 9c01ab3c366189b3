"""Convex upsampling against bilinear interpolation, plain loops, and what a convex mean must keep."""

import pytest
import torch
from tiny_models import class_map, depth_map, images, tiny_config, tiny_depth_model, tiny_segmenter
from torch.nn import functional

from noise2map.diffusion import image_generator
from noise2map.models import Noise2MapBevConfig, Noise2MapForNormalEstimation
from noise2map.models.upsampling import ConvexUpsampling, bilinear_weights, mix_neighbours


def tiny_normals_model(seed=0, **fields):
    torch.manual_seed(seed)
    return Noise2MapForNormalEstimation(tiny_config(**{"map_scale": 0.1, **fields})).eval()


MODELS = {
    "classes": tiny_segmenter,
    "classes_matched": lambda **kw: tiny_segmenter(
        map_encoding="one_hot", map_scale=1.0, matched_filter=True, feedback="mean", time_difference=0, time_input="time", **kw
    ),
    "classes_energy": lambda **kw: tiny_segmenter(
        map_encoding="one_hot", map_scale=1.0, objective="energy", noise_channels=2, **kw
    ),
    "classes_flow": lambda **kw: tiny_segmenter(objective="flow", diffusion=False, **kw),
    "classes_low_rank": lambda **kw: tiny_segmenter(objective="low_rank", diffusion=False, **kw),
    "classes_self_aligned": lambda **kw: tiny_segmenter(self_aligned=True, **kw),
    "depth": lambda **kw: tiny_depth_model(depth_representation="log", **kw),
    "depth_laplace": lambda **kw: tiny_depth_model(depth_representation="log", objective="laplace", **kw),
    "depth_mixture": lambda **kw: tiny_depth_model(depth_representation="log", objective="laplace_mixture", diffusion=False, **kw),
    "normals": tiny_normals_model,
    "normals_angular": lambda **kw: tiny_normals_model(objective="angular", **kw),
}


def labels_of(model, count):
    if model.task == "normals":
        vectors = torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        return functional.normalize(vectors, dim=1)
    return class_map(count) if model.task == "segmentation" else depth_map(count)


def seeded(*names):
    return [image_generator(0, name) for name in names]


def random_values(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_bilinear_weights_are_those_of_torch():
    values = random_values(2, 3, 5, 7)
    weights = bilinear_weights().float()[:, :, None, None].expand(2, 16, 9, 5, 7)
    expected = functional.interpolate(values, scale_factor=4, mode="bilinear", align_corners=False)
    assert torch.allclose(mix_neighbours(values, weights), expected, atol=1e-5)


def test_weights_by_plain_loops():
    values, weights = random_values(1, 2, 3, 4), random_values(1, 16, 9, 3, 4, seed=1).softmax(2)
    found = mix_neighbours(values, weights)
    assert found.shape == (1, 2, 12, 16)
    for y in range(12):
        for x in range(16):
            expected = torch.zeros(2)
            for neighbour in range(9):
                row = min(max(y // 4 + neighbour // 3 - 1, 0), 2)
                column = min(max(x // 4 + neighbour % 3 - 1, 0), 3)
                expected += weights[0, 4 * (y % 4) + x % 4, neighbour, y // 4, x // 4] * values[0, :, row, column]
            assert torch.allclose(found[0, :, y, x], expected, atol=1e-5)


def test_pixels_stay_within_their_surroundings():
    torch.manual_seed(0)
    module = ConvexUpsampling(8)
    torch.nn.init.normal_(module.weights.weight)  # far from bilinear
    mix = module(random_values(2, 20, 8) * 3, (4, 5))
    assert torch.allclose(mix(torch.full((2, 1, 4, 5), 3.5)), torch.full((2, 1, 16, 20), 3.5))
    values = random_values(2, 1, 4, 5)
    around = functional.pad(values, (1, 1, 1, 1), mode="replicate")
    high, low = functional.max_pool2d(around, 3, 1), -functional.max_pool2d(-around, 3, 1)
    mixed = mix(values)
    assert bool((mixed <= high.repeat_interleave(4, 2).repeat_interleave(4, 3) + 1e-5).all())
    assert bool((mixed >= low.repeat_interleave(4, 2).repeat_interleave(4, 3) - 1e-5).all())
    bilinear = functional.interpolate(values, scale_factor=4, mode="bilinear", align_corners=False)
    assert not torch.allclose(mixed, bilinear, atol=0.1)


def test_untrained_model_is_nearly_the_bilinear_one():
    bilinear, convex = tiny_segmenter(), tiny_segmenter(upsampling="convex")
    missing = convex.load_state_dict(bilinear.state_dict(), strict=False).missing_keys
    assert all(key.startswith("upsampling.") for key in missing)
    with torch.no_grad():
        ours, theirs = (
            one(pixel_values=images(), num_inference_steps=1, generator=seeded("a")).logits for one in (convex, bilinear)
        )
    assert torch.allclose(ours, theirs, atol=0.02 * float(theirs.std()))


@pytest.mark.parametrize("name", MODELS)
def test_map_has_all_pixels_and_every_parameter_learns(name):
    model = MODELS[name](upsampling="convex").train()
    labels = labels_of(model, 2)
    out = model(pixel_values=images(2), labels=labels, generator=seeded("a", "b"))
    assert out.prediction.shape[-2:] == (64, 64)
    out.loss.backward()
    still = [key for key, p in model.named_parameters() if p.requires_grad and (p.grad is None or not bool(p.grad.any()))]
    if not model.config.diffusion:  # the map's half of the projection sees zeros, and time is always the same
        still = [key for key in still if "time" not in key]
    assert not [key for key in still if key.startswith(("upsampling", "head", "decoder"))]


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_is_its_images_and_cells_are_fed_back(name):
    model = MODELS[name](upsampling="convex")
    options = {"num_inference_steps": 1} if not model.config.diffusion else {"num_inference_steps": 3, "ensemble_size": 2}
    options["average"] = "steps" if name == "depth_laplace" else "last"
    with torch.no_grad():
        together = model.decode_map(model.encode_image(images(3)), generator=seeded("a", "b", "c"), output_steps=True, **options)
        assert together.prediction.shape[-2:] == together.uncertainty.shape[-2:] == (64, 64)
        assert {tuple(step.x0.shape[-2:]) for step in together.steps} == {(16, 16)}
        for index, one in enumerate("abc"):
            alone = model.decode_map(model.encode_image(images(3)[index : index + 1]), generator=seeded(one), **options)
            assert torch.allclose(together.prediction[index], alone.prediction[0], rtol=1e-3, atol=1e-4)


def test_stopped_images_keep_their_maps():
    model = tiny_depth_model(upsampling="convex", depth_representation="log", auto_threshold=0.3, auto_max_steps=5)
    with torch.no_grad():
        features = model.encode_image(images(4))
        out = model.decode_map(features, num_inference_steps="auto", generator=seeded(*"abcd"), output_steps=True)
        for index, name in enumerate("abcd"):
            alone = model.decode_map(features[index : index + 1], num_inference_steps="auto", generator=seeded(name))
            assert int(alone.num_steps) == int(out.num_steps[index])
            assert torch.allclose(out.predicted_depth[index], alone.predicted_depth[0], rtol=1e-4)


def test_saved_and_loaded(tmp_path):
    model = tiny_depth_model(upsampling="convex", objective="laplace")
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    with torch.no_grad():
        ours, theirs = (one(pixel_values=images(1, 60, 90), generator=seeded("a")) for one in (model, again))
    assert ours.predicted_depth.shape == ours.predicted_scale.shape == (1, 60, 90)
    assert torch.allclose(ours.predicted_depth, theirs.predicted_depth, atol=1e-5)
    assert torch.allclose(ours.predicted_scale, theirs.predicted_scale, atol=1e-5)


def test_edges_between_two_pixels_can_be_learnt():
    """A step inside a cell, which bilinear interpolation must smear over four pixels."""
    torch.manual_seed(0)
    module, tokens = ConvexUpsampling(8), random_values(1, 6, 8)
    values = torch.tensor([0.0, 0.0, 1.0]).view(1, 1, 1, 3).expand(1, 1, 2, 3)
    truth = (torch.arange(12) >= 6).float().expand(1, 1, 8, 12)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(150):
        loss = (module(tokens, (2, 3))(values) - truth).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    bilinear = functional.interpolate(values, scale_factor=4, mode="bilinear", align_corners=False)
    assert float(loss.detach()) < 0.02 < float((bilinear - truth).square().mean())


def test_what_cannot_be():
    with pytest.raises(ValueError, match="upsampling 'convex' has no part in the objective 'l2'"):
        tiny_segmenter(upsampling="convex", objective="l2")
    with pytest.raises(ValueError, match="upsampling is 'nearest'; expected one of 'bilinear', 'convex'"):
        tiny_segmenter(upsampling="nearest")
    with pytest.raises(ValueError, match="upsampling is 'convex'; expected 'bilinear': the map has a grid of its own"):
        Noise2MapBevConfig(upsampling="convex")
