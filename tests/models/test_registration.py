"""``import noise2map`` alone makes transformers know our models, and imports neither torch nor transformers."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor, pipeline
from transformers.pipelines.depth_estimation import DepthEstimationPipeline

import noise2map
from noise2map import (
    Noise2MapBevConfig,
    Noise2MapBevProcessor,
    Noise2MapConfig,
    Noise2MapForBevSegmentation,
    Noise2MapForDepthEstimation,
    Noise2MapForSemanticSegmentation,
    Noise2MapImageProcessor,
)

DEPTH, ROOMS = "freedoom-depth-laplace-tiny", "freedoom-segmentation-tiny"
_LIGHT = """
import sys
import noise2map
from noise2map.zoo import zoo_path
assert "torch" not in sys.modules and "transformers" not in sys.modules, "import noise2map is heavy"
"""
_LATE = """
import sys
import transformers
from transformers import AutoConfig, AutoImageProcessor, pipeline
before = {name for name in sys.modules if name.startswith("noise2map")}
import noise2map
from noise2map.zoo import zoo_path
assert not before and "noise2map.models" not in sys.modules, "import noise2map is heavy"
"""
_USE = {
    "config": """
from transformers import AutoConfig
print(type(AutoConfig.from_pretrained(zoo_path("freedoom-depth-laplace-tiny"))).__name__)
""",
    "processor": """
from transformers import AutoImageProcessor
print(type(AutoImageProcessor.from_pretrained(zoo_path("freedoom-depth-laplace-tiny"))).__name__)
""",
    "models": """
from transformers import AutoModelForDepthEstimation, AutoModelForSemanticSegmentation
print(type(AutoModelForDepthEstimation.from_pretrained(zoo_path("freedoom-depth-laplace-tiny"))).__name__)
print(type(AutoModelForSemanticSegmentation.from_pretrained(zoo_path("freedoom-segmentation-tiny"))).__name__)
""",
    "pipeline": """
from transformers import pipeline
print(type(pipeline("image-segmentation", model=zoo_path("freedoom-segmentation-tiny"))).__name__)
print(type(pipeline("depth-estimation", model=str(zoo_path("freedoom-depth-laplace-tiny")))).__name__)
""",
}
_EXPECTED = {
    "config": ["Noise2MapConfig"],
    "processor": ["Noise2MapImageProcessor"],
    "models": ["Noise2MapForDepthEstimation", "Noise2MapForSemanticSegmentation"],
    "pipeline": ["MapSegmentationPipeline", "MapDepthPipeline"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "use"), [("noise2map", "config"), ("noise2map", "processor"), ("noise2map", "models"), ("transformers", "pipeline")]
)
def test_importing_the_package_is_enough(first, use):
    code = (_LIGHT if first == "noise2map" else _LATE) + _USE[use]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == _EXPECTED[use]
    assert "not supported" not in result.stderr


def test_one_order_in_a_process_of_its_own():
    result = subprocess.run([sys.executable, "-c", _LIGHT + _USE["pipeline"]], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == _EXPECTED["pipeline"]
    assert "not supported" not in result.stderr


def test_other_models_keep_their_pipeline():
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32}
    config = DPTConfig(**small, backbone_out_indices=[0, 0, 1, 1], neck_hidden_sizes=[16, 16, 16, 16], fusion_hidden_size=16)
    found = pipeline("depth-estimation", model=DPTForDepthEstimation(config), image_processor=DPTImageProcessor())
    assert type(found) is DepthEstimationPipeline


@pytest.mark.parametrize("name", ["freedoom-depth-laplace-tiny", "zoo/freedoom-depth-laplace-tiny"])
def test_shipped_names_are_understood(name):
    model = Noise2MapForDepthEstimation.from_pretrained(name)
    assert model.config.max_depth == Noise2MapConfig.from_pretrained(name).max_depth
    assert dict(Noise2MapImageProcessor.from_pretrained(name).size) == {"height": 120, "width": 160}


def test_every_class_understands_shipped_names():
    assert Noise2MapForSemanticSegmentation.from_pretrained(ROOMS).config.num_labels > 2
    bev = "freedoom-bev-camera-completion-tiny"
    assert type(Noise2MapForBevSegmentation.from_pretrained(bev).config) is Noise2MapBevConfig
    assert Noise2MapBevProcessor.from_pretrained(bev).image_size == [96, 160]


def test_a_folder_comes_before_a_shipped_name(tmp_path, monkeypatch):
    Noise2MapImageProcessor(size={"shortest_edge": 99}).save_pretrained(tmp_path / DEPTH)
    monkeypatch.chdir(tmp_path)
    assert dict(Noise2MapImageProcessor.from_pretrained(DEPTH).size) == {"shortest_edge": 99}


def test_pipelines_by_shipped_name(tmp_path):
    found = noise2map.pipeline(DEPTH, seed=3)
    assert type(found).__name__ == "MapDepthPipeline"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    whole = pipeline("depth-estimation", model=str(noise2map.zoo.zoo_path(DEPTH)), seed=3)
    assert torch.equal(found(image)["predicted_depth"], whole(image)["predicted_depth"])
    with pytest.raises(ValueError, match="did you mean 'freedoom-depth-laplace-tiny'"):
        noise2map.pipeline("freedoom-depth-laplace-tyni")
    (tmp_path / "config.json").write_text('{"model_type": "noise2map", "architectures": ["Noise2MapForNormalEstimation"]}')
    (tmp_path / "preprocessor_config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(ValueError, match="Noise2MapForNormalEstimation; expected a model for depth-estimation or"):
        noise2map.pipeline(tmp_path)


@pytest.mark.parametrize("kind", ["grey", "transparent", "turned", "file"])
def test_a_pipeline_reads_images_as_the_predictor_does(kind, tmp_path):
    from noise2map.inference.predictor import Predictor

    random = np.random.default_rng(0)
    given = Image.fromarray(random.integers(0, 255, (60, 80, 3), dtype=np.uint8)).resize((160, 120))
    if kind == "grey":
        given = Image.fromarray(np.asarray(given.convert("L")).astype(np.uint16) * 257)
    elif kind == "transparent":
        given.putalpha(Image.fromarray(random.integers(0, 2, (120, 160), dtype=np.uint8) * 255))
    elif kind == "turned":
        facts = Image.Exif()
        facts[0x0112] = 6
        given.save(tmp_path / "a.png", exif=facts)
        given = Image.open(tmp_path / "a.png")
    else:
        Image.fromarray(np.asarray(given.convert("L")).astype(np.uint16) * 257).save(tmp_path / "a.png")
        given = str(tmp_path / "a.png")
    expected = Predictor.from_pretrained(DEPTH)(given, seed=0)[0].depth_m
    found = noise2map.pipeline(DEPTH)(given, seed=0)["predicted_depth"]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
