"""Sparse refinement against the dense run, against itself in other batches, and its kernel against the dense kernel."""

import pytest
import tiny_bev
import torch
from tiny_models import images, tiny_depth_model, tiny_segmenter

from noise2map.diffusion import image_generator
from noise2map.models.denoising.refinement import SparseRefinement, most_uncertain, neighbour_range
from noise2map.models.kernels.deformable_attention import deformable_sample, pixel_grid
from noise2map.models.kernels.embedding_bag import pad_map, sample_at
from noise2map.models.map_decoder import ChosenTokens

REFINED = {"refine": "uncertain", "refine_share": 0.3}


def decode(model, features, ids, **choices):
    with torch.no_grad():
        return model.decode_map(features, generator=[image_generator(0, one) for one in ids], **choices)


def encoded(model, count=1):
    with torch.no_grad():
        return model.encode_image(images(count, 64, 96))


def test_samples_at_some_pixels_are_those_of_the_whole_map():
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, 5, 7, 2, 4, generator=generator)
    offsets, weights = torch.randn(2, 35, 2, 3, 2, generator=generator) * 4, torch.rand(2, 35, 2, 3, generator=generator)
    whole = deformable_sample(value, offsets, weights, "grid_sample", pixel_grid(5, 7))
    chosen = ChosenTokens.where(torch.rand(2, 5, 7, generator=generator) < 0.4)
    some = offsets[chosen.images, chosen.cells], weights[chosen.images, chosen.cells]
    found = sample_at(pad_map(value, value.dtype), *some, chosen.pixels, chosen.images)
    torch.testing.assert_close(found, whole[chosen.images, chosen.cells])
    torch.testing.assert_close(chosen.pixels.float(), pixel_grid(5, 7)[chosen.cells])


def test_most_uncertain_cells_of_each_map():
    value = torch.tensor([[[0.1, 0.9, 0.2], [0.8, 0.3, 0.4]], [[5.0, 5.0, 5.0], [5.0, 5.0, 5.0]]])
    expected = torch.tensor([[[0, 1, 0], [1, 0, 0]], [[1, 1, 0], [0, 0, 0]]]).bool()
    assert torch.equal(most_uncertain(value, 1 / 3), expected)
    assert most_uncertain(value, 1e-6).sum() == 2 and most_uncertain(value, 1).all()
    edge = neighbour_range(torch.tensor([[1.0, 1, 1, 4, 4]]).expand(1, 1, 3, 5))
    assert torch.equal(edge[0], torch.tensor([[0.0, 0, 3, 3, 0]]).expand(3, 5))


@pytest.mark.parametrize("make", [tiny_segmenter, tiny_depth_model])
def test_whole_share_is_the_dense_run(make, monkeypatch):
    model = make()
    features = encoded(model, 2)
    dense = decode(model, features, "ab", num_inference_steps=3)
    for share in (1, 0.999999):  # by the dense path, and by the sparse one with every token chosen
        out = decode(model, features, "ab", num_inference_steps=3, refine="uncertain", refine_share=share)
        for name in ("prediction", "uncertainty"):
            torch.testing.assert_close(getattr(out, name), getattr(dense, name), rtol=1e-4, atol=1e-5)
        assert share < 1 or torch.equal(out.prediction, dense.prediction)


@pytest.mark.parametrize("make", [tiny_segmenter, tiny_depth_model])
def test_threshold_from_none_of_the_tokens_to_all(make):
    model = make()
    features = encoded(model, 2)
    dense = decode(model, features, "ab", num_inference_steps=3, output_steps=True)
    once = dense.steps[0].prediction
    lowest, largest = (float(one) for one in model.cell_uncertainty(once).aminmax())

    def from_(threshold):
        return decode(model, features, "ab", num_inference_steps=3, refine="uncertain", refine_threshold=threshold).prediction

    assert torch.equal(from_(0), dense.prediction) and torch.equal(from_(largest * 1.001), once)
    torch.testing.assert_close(from_(lowest / 2), dense.prediction, rtol=1e-4, atol=1e-5)  # the sparse way, every token chosen


def test_layers_are_refined_from_a_threshold_on():
    model = tiny_bev.tiny_bev()
    with torch.no_grad():
        features = model.encode_sensors(**tiny_bev.inputs(batch_size=2))
    first = decode(model, features, "ab", num_inference_steps=1, output_steps=True).steps[0].prediction
    doubt = model.cell_uncertainty(first)
    p = first.sigmoid()
    torch.testing.assert_close(doubt, 2 * torch.minimum(p, 1 - p).amax(1))

    def from_(threshold):
        return decode(model, features, "ab", num_inference_steps=3, refine="uncertain", refine_threshold=threshold).prediction

    dense = decode(model, features, "ab", num_inference_steps=3).prediction
    torch.testing.assert_close(from_(float(doubt.min()) / 2), dense, rtol=1e-4, atol=1e-5)
    assert not torch.equal(from_(float(doubt.max()) * 1.001), dense)


def test_certain_cells_keep_what_the_first_step_said():
    model = tiny_segmenter()
    out = decode(model, encoded(model), "a", num_inference_steps=3, output_steps=True, **REFINED)
    first, *later = (step.prediction for step in out.steps)
    chosen = most_uncertain(model.cell_uncertainty(first), 0.3)[:, None].expand_as(first)
    for prediction in later:
        assert torch.equal(prediction[~chosen], first[~chosen])
        assert (prediction[chosen] != first[chosen]).all()


def test_images_with_different_numbers_of_open_tokens_do_not_depend_on_their_batch():
    model = tiny_segmenter()
    features = encoded(model, 3)
    uncertainty = model.cell_uncertainty(decode(model, features, "abc", num_inference_steps=1).prediction)
    choices = {"num_inference_steps": 3, "refine": "uncertain", "refine_threshold": float(uncertainty.flatten().quantile(0.7))}
    assert len(set((uncertainty >= choices["refine_threshold"]).flatten(1).sum(1).tolist())) == 3
    together = decode(model, features, "abc", **choices)
    for row, one in enumerate("abc"):
        alone = decode(model, features[row : row + 1], one, **choices)
        torch.testing.assert_close(together.prediction[row : row + 1], alone.prediction, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "fields", "choices"),
    [
        (tiny_segmenter, {}, {"num_inference_steps": 3, "ensemble_size": 2}),
        (tiny_segmenter, {}, {"num_inference_steps": "auto"}),
        (tiny_segmenter, {"map_encoding": "one_hot", "matched_filter": True}, {"num_inference_steps": 3, "average": "steps"}),
        (tiny_depth_model, {"upsampling": "convex", "objective": "laplace"}, {"num_inference_steps": 2, "sampler": "ddpm"}),
        (tiny_depth_model, {"objective": "crps", "noise_channels": 2}, {"num_inference_steps": 2}),
    ],
)
def test_three_images_are_three_single_ones(make, fields, choices):
    model = make(auto_threshold=0.05, **fields)
    features = encoded(model, 3)
    together = decode(model, features, "abc", **REFINED, **choices)
    for row, one in enumerate("abc"):
        alone = decode(model, features[row : row + 1], one, **REFINED, **choices)
        torch.testing.assert_close(together.prediction[row : row + 1], alone.prediction, rtol=1e-4, atol=1e-5)
        assert together.num_steps[row] == alone.num_steps[0]


def test_tokens_outside_the_share_are_not_computed(monkeypatch):
    model = tiny_segmenter()
    features, rows = encoded(model), []
    for layer in model.decoder.layers:
        layer.linear_in.register_forward_hook(lambda module, given, found: rows.append(found.numel() // found.shape[-1]))
    decode(model, features, "a", num_inference_steps=3, **REFINED)
    tokens = features.shape[-2] * features.shape[-1]
    assert rows == [tokens] * 2 + [round(0.3 * tokens)] * 4


def test_configuration_is_the_default_and_bad_values_are_named():
    model = tiny_segmenter(refine="uncertain", refine_share=0.2)
    features = encoded(model)
    by_config = decode(model, features, "a", num_inference_steps=2)
    by_call = decode(model, features, "a", num_inference_steps=2, refine="uncertain", refine_share=0.2)
    whole = decode(model, features, "a", num_inference_steps=2, refine="all")
    assert torch.equal(by_config.logits, by_call.logits) and not torch.equal(by_config.logits, whole.logits)
    with pytest.raises(ValueError, match=r"refine_share is 1\.5; expected a share above 0, at most 1"):
        tiny_segmenter(refine_share=1.5)
    with pytest.raises(ValueError, match="refine is 'some'; expected one of 'all', 'uncertain'"):
        model.decode_map(features, refine="some")
    with pytest.raises(ValueError, match=r"refine_share is 0\.5; refine='all' leaves none out"):
        tiny_segmenter().decode_map(features, refine_share=0.5)
    with pytest.raises(ValueError, match=r"refine_threshold is nan; expected an uncertainty of at least 0"):
        tiny_segmenter(refine_threshold=float("nan"))
    with pytest.raises(ValueError, match=r"refine_share is 0\.5 and refine_threshold 0\.1; expected one of them"):
        model.decode_map(features, refine_share=0.5, refine_threshold=0.1)
    by_threshold = tiny_segmenter(refine="uncertain", refine_threshold=0.0)
    assert torch.equal(decode(by_threshold, features, "a", num_inference_steps=2).logits, whole.logits)
    model.decoder = torch.nn.Identity()
    with pytest.raises(ValueError, match="Identity computes whole maps alone"):
        SparseRefinement(model, 0.5)
