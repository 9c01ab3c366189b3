"""Fresh weights have the published distributions."""

import pytest
import torch
from golden_reference import numbers
from tiny_models import tiny_depth_model, tiny_segmenter
from transformers import SwinConfig

from noise2map.convert.ddp_keys import rename
from noise2map.models import Noise2MapConfig, Noise2MapForDepthEstimation, Noise2MapForSemanticSegmentation

STAGES = ["stage1", "stage2", "stage3", "stage4"]


@pytest.fixture(scope="module")
def fresh():
    """Tensors of new models of the published sizes (with a shallow backbone, which keeps its own initialisation)."""
    torch.manual_seed(0)
    backbone = SwinConfig(embed_dim=96, depths=[1, 1, 1, 1], num_heads=[3, 6, 12, 24], out_features=STAGES)
    config = Noise2MapConfig(backbone_config=backbone, num_labels=150)
    tensors = Noise2MapForSemanticSegmentation(config).state_dict()
    depth = Noise2MapForDepthEstimation(Noise2MapConfig(backbone_config=backbone, decoder_layers=1)).state_dict()
    return {**tensors, **{key: value for key, value in depth.items() if key.startswith("head.regressor")}}


@pytest.mark.golden
@pytest.mark.parametrize("key", [key for key in numbers()["initialisation"] if key != "time_mlp.0.weights"])
def test_distribution_is_the_published_one(fresh, key):
    mean, std, low, high = numbers()["initialisation"][key]
    ours = fresh[rename(key)].float()
    if std == 0:  # a constant
        assert torch.equal(ours, torch.full_like(ours, mean))
        return
    count = ours.numel()
    # Each of the two spreads is known to about one part in sqrt(2 count).
    assert float(ours.std()) == pytest.approx(std, rel=8 / (2 * count) ** 0.5 + 1e-3)
    assert abs(float(ours.mean())) < 6 * std / count**0.5
    bound = max(-low, high)
    if bound < 1.8 * std:  # uniform: the ends are sharp
        slack = 1 + 10 / count
        assert bound / slack / 1.02 < float(ours.abs().max()) <= bound * slack * 1.02


@pytest.mark.golden
def test_offsets_start_in_eight_directions(fresh):
    for layer in range(6):
        bias = fresh[f"decoder.layers.{layer}.attention.offsets.bias"]
        assert torch.allclose(bias, torch.tensor(numbers()["initial_offsets"]), atol=2e-4)


def test_every_layer_is_initialised_alike(fresh):
    for name, value in fresh.items():
        if name.startswith("decoder.layers.0.") and name.endswith("weight"):
            for layer in range(1, 6):
                other = fresh[name.replace("layers.0.", f"layers.{layer}.")]
                assert float(other.std()) == pytest.approx(float(value.std()), rel=0.05)
                assert not value.any() or value.ndim < 2 or not torch.equal(value, other)


def test_frequencies_are_standard_normal():
    torch.manual_seed(0)
    drawn = torch.cat([tiny_segmenter(seed=seed).decoder.time_embedding.frequencies.detach() for seed in range(30)])
    assert float(drawn.mean()) == pytest.approx(0, abs=0.25)
    assert float(drawn.std()) == pytest.approx(1, abs=0.2)


def test_the_seed_decides(tmp_path):
    first, again, other = (tiny_depth_model(seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert any(not torch.equal(value, other[key]) for key, value in first.items())


def test_weights_missing_from_a_checkpoint_are_initialised_and_the_others_kept(tmp_path):
    """Fine-tuning on other classes: the new head is fresh and everything else is what was loaded."""
    old = tiny_segmenter(num_labels=5)
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.fill_(7.0)
    old.save_pretrained(tmp_path)
    new = Noise2MapForSemanticSegmentation.from_pretrained(tmp_path, num_labels=9, ignore_mismatched_sizes=True)
    fresh_names = {"head.classifier.weight", "head.classifier.bias", "codec.embedding.weight"}
    fresh_names |= {"auxiliary_head.classifier.weight", "auxiliary_head.classifier.bias"}
    for name, parameter in new.named_parameters():
        assert bool((parameter == 7).all()) == (name not in fresh_names), name
    assert float(new.codec.embedding.weight.detach().std()) == pytest.approx(1, abs=0.2)
    assert new(pixel_values=torch.zeros(1, 3, 64, 64)).logits.shape[1] == 9


def test_a_new_head_has_no_calibration_of_the_old_one(tmp_path):
    calibration = {"temperature": 1.5, "confidences": [[0.0, 0.2], [1.0, 0.8]]}
    tiny_segmenter(num_labels=5, calibration=calibration).save_pretrained(tmp_path)
    assert Noise2MapForSemanticSegmentation.from_pretrained(tmp_path).config.calibration == calibration
    new, info = Noise2MapForSemanticSegmentation.from_pretrained(
        tmp_path, num_labels=9, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert new.config.calibration is None and new.calibration is None and info["mismatched_keys"]


@pytest.mark.parametrize("classes", [{"num_labels": 7}, {"id2label": {i: f"c{i}" for i in range(7)}}])
def test_other_classes_bring_their_palette(tmp_path, classes):
    tiny_segmenter(palette=[f"#{index:02x}0000" for index in range(5)]).save_pretrained(tmp_path)
    for palette in (None, [f"#00{index:02x}00" for index in range(7)]):
        model = Noise2MapForSemanticSegmentation.from_pretrained(tmp_path, ignore_mismatched_sizes=True, palette=palette, **classes)
        assert model.config.palette == palette and model.config.num_labels == 7


def test_gain_of_the_map_scales_its_half_of_the_projection_alone(tmp_path):
    usual, quiet = tiny_segmenter(seed=3), tiny_segmenter(seed=3, map_projection_gain=0.25)
    width = usual.decoder.feature_channels
    ours, theirs = quiet.decoder.projection.weight, usual.decoder.projection.weight
    assert torch.equal(ours[:, :width], theirs[:, :width])
    assert torch.equal(ours[:, width:], theirs[:, width:] * 0.25)
    # It is a matter of fresh weights: what was saved is loaded as it is.
    quiet.save_pretrained(tmp_path)
    loaded = Noise2MapForSemanticSegmentation.from_pretrained(tmp_path)
    assert torch.equal(loaded.decoder.projection.weight, ours) and loaded.config.map_projection_gain == 0.25
