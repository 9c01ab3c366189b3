"""Feature extractors by name: what they compute, what they are called, what is refused."""

import importlib.util
import json

import pytest
import torch
from tiny_generator import save_map_models
from transformers import ViTConfig, ViTModel

from noise2map.generation.evaluation.feature_extractors import make_extractor
from noise2map.inference.loading import load_model
from noise2map.metrics import FrechetDistance


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    paths = save_map_models(root)
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    ViTModel(ViTConfig(**sizes, image_size=8, patch_size=4)).save_pretrained(root / "vit")
    (root / "vit" / "preprocessor_config.json").write_text(
        json.dumps({"size": {"height": 8, "width": 8}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 1.0]})
    )
    return {**paths, "vit": root / "vit"}


def pictures(count=3, height=32, width=48, seed=0):
    return torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def test_encoder_features_are_means_of_the_backbones_maps(models):
    extractor = make_extractor(str(models["segmentation"]), "cpu")
    model, processor = load_model(models["segmentation"], "cpu")
    images = pictures()
    pixels = processor(images=list(images), do_resize=False, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        stages = model.encoder.backbone(pixels).feature_maps
        merged = model.encode_image(pixels).mean((2, 3))
    torch.testing.assert_close(extractor(images), stages[3].mean((2, 3)), rtol=1e-4, atol=1e-5)
    second = make_extractor(f"{models['segmentation']}:stage2", "cpu")
    torch.testing.assert_close(second(images), stages[1].mean((2, 3)), rtol=1e-4, atol=1e-5)
    last = make_extractor(f"{models['segmentation']}:merged", "cpu")
    torch.testing.assert_close(last(images), merged, rtol=1e-4, atol=1e-5)
    assert (extractor.size, second.size, last.size) == (16, 8, 16)
    torch.testing.assert_close(extractor(images)[1:2], extractor(images[1:2]), rtol=1e-4, atol=1e-5)
    small = extractor(pictures(2, 16, 16))  # enlarged to what the model was trained at
    assert small.shape == (2, 16) and small.isfinite().all()


def test_names_tell_weights_and_layers_apart(models, tmp_path):
    first, again = (make_extractor(str(models["segmentation"]), "cpu").name for _ in range(2))
    assert first == again and first.startswith("segmentation:stage4@")
    model, processor = load_model(models["segmentation"], "cpu")
    with torch.no_grad():
        model.encoder.backbone.embeddings.patch_embeddings.bias[0] += 1e-3
    model.save_pretrained(tmp_path / "segmentation")
    processor.save_pretrained(tmp_path / "segmentation")
    other = make_extractor(str(tmp_path / "segmentation"), "cpu").name
    assert other.startswith("segmentation:stage4@") and other != first
    assert make_extractor(f"{models['segmentation']}:stage3", "cpu").name.split("@")[0] == "segmentation:stage3"


def test_the_default_extractor_needs_no_download():
    extractor = make_extractor(device="cpu")
    assert extractor.name.startswith("freedoom-segmentation-tiny:stage4@") and extractor.size == 256
    assert not any(weight.requires_grad for weight in extractor.parameters())


def test_any_vision_backbone_from_a_folder(models):
    extractor = make_extractor(str(models["vit"]), "cpu")
    images = pictures(2, 8, 8)
    pixels = (images / 255 - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.5, 0.5, 1.0])[:, None, None]
    with torch.no_grad():
        expected = ViTModel.from_pretrained(models["vit"]).eval()(pixel_values=pixels).pooler_output
    torch.testing.assert_close(extractor(images), expected, rtol=1e-4, atol=1e-5)
    assert extractor.size == 8 and extractor.name.startswith("vit@")
    metric = FrechetDistance(extractor)
    with pytest.warns(UserWarning, match="below 2048"):
        metric.update(pictures(20, 12, 12), real=True)
        metric.update(pictures(20, 12, 12, seed=1), real=False)
        assert metric.compute() > 0


@pytest.mark.skipif(importlib.util.find_spec("torch_fidelity") is not None, reason="torch-fidelity is installed")
def test_inception_without_its_package_says_what_is_missing():
    with pytest.raises(ImportError, match="torch-fidelity"):
        make_extractor("inception", "cpu")


def test_unknown_extractors_and_layers_are_refused(models):
    with pytest.raises(ValueError, match="layer must be one of stage1"):
        make_extractor(f"{models['segmentation']}:stage9", "cpu")
    with pytest.raises(ValueError, match="no checkpoint of this library"):
        make_extractor(f"{models['vit']}:stage1", "cpu")
    with pytest.raises(ValueError, match="neither a folder, nor shipped"):
        make_extractor("freedom-segmentation", "cpu")
