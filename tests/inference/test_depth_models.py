"""The one adapter for depth models: what each kind gives, in metres or without a unit, at the size of the image."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_generator import save_map_models
from transformers import (
    CHMv2Config,
    DepthAnythingConfig,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
    GLPNConfig,
    GLPNForDepthEstimation,
    GLPNImageProcessor,
    Tipsv2DptConfig,
)

from noise2map import Noise2MapImageProcessor
from noise2map.inference.depth_models import (
    DepthModel,
    MapModelDepth,
    TransformersDepth,
    depth_of_disparity,
    gives_metres,
    load_depth_model,
)
from noise2map.inference.loading import is_map_model, load_model
from noise2map.metrics import render_depth


def images(count=3, height=32, width=48, seed=0):
    return torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def varied(model):
    """As initialised a model's depth hardly varies, or is cut off at zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("neck", "decoder", "head")):
                parameter.normal_().abs_()
    return model.eval()


def glpn():
    torch.manual_seed(0)
    blocks = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}
    return GLPNForDepthEstimation(GLPNConfig(**blocks, decoder_hidden_size=8, max_depth=10)).eval()


def dpt():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8}
    return varied(DPTForDepthEstimation(DPTConfig(image_size=32, patch_size=16, **sizes)))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, model, processor in (
        ("glpn", glpn(), GLPNImageProcessor()),
        ("dpt", dpt(), DPTImageProcessor(size={"height": 32, "width": 32})),
        ("bare", glpn(), None),
    ):
        model.save_pretrained(root / name)
        if processor is not None:
            processor.save_pretrained(root / name)
    return {**save_map_models(root), **{name: root / name for name in ("glpn", "dpt", "bare")}}


def raw_depth(model, processor, picture):
    """What transformers' own recipe gives for one image, written out: processor, model, bicubic back to its size."""
    with torch.no_grad():
        out = model(**processor(images=Image.fromarray(picture.permute(1, 2, 0).numpy()), return_tensors="pt")).predicted_depth
    return torch.nn.functional.interpolate(out[None], picture.shape[-2:], mode="bicubic", align_corners=False)[0, 0]


def test_glpn_gives_metres_to_evaluations_and_to_labels(models):
    """What GLPN calls predicted_depth is a sigmoid times the largest depth: far is large. Labels once took it for inverse depth."""
    model, pictures = load_depth_model(str(models["glpn"]), "cpu"), images(2, 32, 64)
    expected = torch.stack([raw_depth(glpn(), GLPNImageProcessor(), one) for one in pictures])
    assert model.metric and expected.std() > 0.005  # far more than the tolerances
    torch.testing.assert_close(model(pictures), expected.clamp(0.1, 100), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.label(pictures), expected, rtol=1e-4, atol=1e-4)
    found = model.label_image(Image.fromarray(pictures[1].permute(1, 2, 0).numpy()))
    np.testing.assert_allclose(found, expected[1].numpy(), rtol=1e-4, atol=1e-4)
    assert model.name.startswith("glpn@")


def test_dpt_gives_inverse_depth_to_both(models):
    """Near, large inverse depth, becomes small in both; labels are cut off at the 2nd and the 98th percentile."""
    model, pictures = load_depth_model(str(models["dpt"]), "cpu"), images(2, 20, 30)
    inverse = torch.stack([raw_depth(dpt(), DPTImageProcessor(size={"height": 32, "width": 32}), one) for one in pictures])
    assert not model.metric
    depth, label = model(pictures), model.label(pictures)
    low, high = inverse.amin((1, 2), keepdim=True), inverse.amax((1, 2), keepdim=True)
    torch.testing.assert_close(1 / depth, (inverse - low) / (high - low) + 0.05, rtol=1e-3, atol=1e-3)
    near, far = np.quantile(inverse.flatten(1).numpy(), [0.98, 0.02], axis=1)[..., None, None]
    expected = ((near - inverse.numpy()) / (near - far)).clip(0, 1)
    np.testing.assert_allclose(label.numpy(), expected, atol=1e-3)
    assert ((expected > 0) & (expected < 1)).mean() > 0.2
    assert label.amin((1, 2)).eq(0).all() and label.amax((1, 2)).eq(1).all()
    torch.testing.assert_close(model.label(pictures[1:]), label[1:])


def test_a_model_without_a_processor_is_shown_images_of_its_own_size(models):
    model = load_depth_model(str(models["bare"]), "cpu")
    assert model.processor is None and model.metric
    assert model(images(2, 32, 40)).shape == (2, 32, 40)


def test_depth_of_a_map_model_is_that_of_the_model_and_independent_of_the_batch(models):
    model = load_depth_model(str(models["depth"]), "cpu")
    inner, processor = load_model(models["depth"], "cpu")
    pictures = images()
    pixels = processor(images=list(pictures), do_resize=False, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        noise = [torch.Generator().manual_seed(0) for _ in pictures]
        expected = inner(pixel_values=pixels, num_inference_steps=1, ensemble_size=1, generator=noise).predicted_depth
    found = model(pictures)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.label(pictures), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(pictures[2:]), found[2:], rtol=1e-4, atol=1e-4)
    assert model.metric and model.depth_range == (0.5, 40.0)
    assert model(images(2, 20, 24)).shape == (2, 20, 24)
    with pytest.raises(ValueError, match="expected a model for depth"):
        load_depth_model(str(models["segmentation"]), "cpu")


@pytest.mark.parametrize(
    "settings",
    [
        {"do_resize": False},
        {"size": {"height": 32, "width": 64}, "keep_aspect_ratio": False},
        {"size": {"shortest_edge": 64, "longest_edge": 96}},
    ],
)
def test_a_map_model_is_shown_images_as_its_processor_says(models, tmp_path, settings):
    inner, _ = load_model(models["depth"], "cpu")
    processor = Noise2MapImageProcessor(**settings)
    model = MapModelDepth(inner, processor, "mine")
    pictures = images(2, 48, 80)
    columns, rows = processor.processed_size(80, 48)
    seen = []
    inner.encoder.register_forward_pre_hook(lambda module, given: seen.append(tuple(given[0].shape)))
    assert model(pictures).shape == (2, 48, 80) and seen == [(2, 3, rows, columns)]
    assert processor(images=list(pictures), return_tensors="pt")["pixel_values"].shape == seen[0]


def test_a_map_model_of_the_hub_is_a_depth_model(models, tmp_path, monkeypatch):
    """As it lies in the cache of the hub: names of ours are told from others by their configuration."""
    commit, cached = "a" * 40, tmp_path / "models--me--depth"
    shutil.copytree(models["depth"], cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert is_map_model("me/depth") and not is_map_model("me/other") and not is_map_model(str(models["glpn"]))


def test_pictures_of_relative_depth_are_those_of_the_models_own_disparity():
    disparity = torch.tensor([[[2.0, 4.0], [10.0, 3.0]]])
    depth = depth_of_disparity(disparity)
    assert depth.min() == pytest.approx(1 / 1.05) and depth.max() == pytest.approx(20)
    expected = ((disparity - 2) / 8 * 255).round()
    assert (render_depth(depth)[:, 0].float() - expected).abs().max() <= 1
    assert render_depth(depth_of_disparity(torch.full((1, 2, 2), 3.0))).max() == 0


@pytest.mark.parametrize(
    "config, metric",
    [
        (DPTConfig(), False),
        (GLPNConfig(), True),
        (CHMv2Config(), True),
        (Tipsv2DptConfig(), True),
        (DepthAnythingConfig(depth_estimation_type="metric"), True),
        (DepthAnythingConfig(), False),
        (SimpleNamespace(model_type="depth_pro"), True),
        (SimpleNamespace(model_type="zoedepth"), True),
        (SimpleNamespace(model_type="prompt_depth_anything", depth_estimation_type="relative"), False),
    ],
)
def test_which_models_give_metres(config, metric):
    assert gives_metres(config) is metric


def test_what_is_not_known_to_be_metric_is_refused(models, tmp_path):
    with pytest.raises(ValueError, match="'depth_next' give metres is not known"):
        gives_metres(SimpleNamespace(model_type="depth_next"))
    bare = SimpleNamespace(model_type="depth_pro")
    model = torch.nn.Linear(1, 1)
    model.config = bare
    with pytest.raises(ValueError, match="no image processor"):
        TransformersDepth(model, "x")
    with pytest.raises(ValueError, match="neither a folder, nor shipped"):
        load_depth_model("no-such-model", "cpu")
    (tmp_path / "config.json").write_text(json.dumps(GLPNConfig().to_dict()))
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="could not be loaded"):
        load_depth_model(str(tmp_path), "cpu")


def test_images_of_many_megapixels_are_labelled():
    """torch's own quantile takes no more than 16 million values."""

    class Far(DepthModel):
        metric = False

        def predict(self, images):
            return images[:, 0].float()

    ramp = torch.arange(4200).view(1, 1, 1, -1).expand(1, 3, 4100, -1)
    found = Far().label(ramp)
    assert found.shape == (1, 4100, 4200)
    inside = found[0, 0, 200:4000]
    assert torch.allclose(inside, 1 - (torch.arange(200.0, 4000) - 0.02 * 4199) / (0.96 * 4199), atol=1e-3)
