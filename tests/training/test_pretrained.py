"""Backbones pretrained elsewhere, made small here and saved as transformers saves them."""

import pytest
import torch
from tiny_models import BACKBONES, tiny_segmenter
from torch.nn import functional
from transformers import ConvNextForImageClassification, SwinConfig, SwinForImageClassification

from noise2map.training.maps.pretrained import load_backbone, resize_bias_table


def classifier(tmp_path, kind, **fields):
    config = BACKBONES[kind]()
    for name, value in fields.items():
        setattr(config, name, value)
    torch.manual_seed(7)
    model = {"swin": SwinForImageClassification, "convnext": ConvNextForImageClassification}[kind](config)
    model.save_pretrained(tmp_path / kind)
    return model.eval(), str(tmp_path / kind)


@pytest.mark.parametrize("kind", ["swin", "convnext"])
def test_a_classifiers_weights_reach_the_backbone(tmp_path, kind):
    donor, source = classifier(tmp_path, kind)
    backbone = tiny_segmenter(kind).encoder.backbone
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert load_backbone(backbone, source) == []
    image = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    inner = donor.swin if kind == "swin" else donor.convnext
    with torch.no_grad():
        expected = inner(image, output_hidden_states=True)
        found = (backbone.swin if kind == "swin" else backbone)(image, output_hidden_states=True)
    for ours, theirs in zip(found.hidden_states, expected.hidden_states):
        assert torch.allclose(ours, theirs, atol=1e-5)
    after = backbone.state_dict()
    same = [name for name in after if torch.equal(after[name], before[name])]
    assert any("hidden_states_norms" in name for name in same)  # no classifier has them


def test_tables_of_other_windows_are_resized(tmp_path):
    _, source = classifier(tmp_path, "swin", window_size=2)
    backbone = tiny_segmenter("swin").encoder.backbone  # windows of 4
    resized = load_backbone(backbone, source)
    assert len(resized) == 4 and all(name.endswith("relative_position_bias_table") for name in resized)


def test_a_resized_table_is_bicubic_for_each_head():
    table = torch.randn(9, 3, generator=torch.Generator().manual_seed(1))  # windows of 2
    larger = resize_bias_table(table, 49)
    for head in range(3):
        square = functional.interpolate(table[:, head].view(1, 1, 3, 3), size=(7, 7), mode="bicubic", align_corners=False)
        assert torch.allclose(larger[:, head].view(7, 7), square[0, 0], atol=1e-6)
    flat = torch.full((9, 2), 0.5)
    assert torch.allclose(resize_bias_table(flat, 25), torch.full((25, 2), 0.5), atol=1e-6)


def test_what_does_not_fit_is_named(tmp_path):
    _, swin = classifier(tmp_path, "swin")
    backbone = tiny_segmenter("convnext").encoder.backbone
    with pytest.raises(ValueError, match="is a 'swin'; the recipe's backbone is a 'convnext'"):
        load_backbone(backbone, swin)
    _, wide = classifier(tmp_path, "convnext", hidden_sizes=[16, 16, 24, 32])
    with pytest.raises(ValueError, match="other sizes than the recipe's"):
        load_backbone(backbone, wide)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_backbone(backbone, str(tmp_path / "nowhere"))
    deeper = SwinConfig(embed_dim=8, depths=[1, 1, 3, 1], num_heads=[1, 2, 2, 4], window_size=4)
    deep = tiny_segmenter("swin").encoder.backbone.__class__(deeper)
    with pytest.raises(ValueError, match=r"lacks .* weights of SwinBackbone"):
        load_backbone(deep, swin)


def test_without_a_network_the_message_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match=r"nobody/no-such-backbone.*Without a network") as error:
        load_backbone(tiny_segmenter("swin").encoder.backbone, "nobody/no-such-backbone")
    assert "\n" not in str(error.value)
