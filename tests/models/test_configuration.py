"""The configuration: round trip, and every impossible field refused by a ValueError that names it."""

import json
import math

import pytest
from tiny_models import BACKBONES, tiny_config
from transformers import AutoConfig, ResNetConfig, SwinConfig

from noise2map.models import Noise2MapConfig, Noise2MapForDepthEstimation, Noise2MapForSemanticSegmentation
from noise2map.models.bev import Noise2MapBevConfig


def test_defaults_are_the_published_segmentation_model():
    config = Noise2MapConfig()
    assert isinstance(config.backbone_config, SwinConfig)
    assert config.backbone_config.out_features == ["stage1", "stage2", "stage3", "stage4"]
    assert (config.hidden_size, config.decoder_layers, config.decoder_attention_heads, config.decoder_n_points) == (256, 6, 8, 4)
    assert (config.map_encoding, config.map_scale, config.noise_schedule, config.time_difference) == (
        "class_embedding",
        0.01,
        "cosine",
        1,
    )
    assert (config.num_inference_steps, config.ensemble_size, config.sampler) == (3, 1, "ddim")


@pytest.mark.parametrize("backbone", BACKBONES)
def test_round_trip(backbone, tmp_path):
    config = tiny_config(backbone, id2label={0: "floor", 1: "wall", 2: "sky"}, num_labels=3, map_scale=0.1, uncertainty="step_flip")
    config.save_pretrained(tmp_path)
    for loaded in (Noise2MapConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is Noise2MapConfig
        assert type(loaded.backbone_config) is type(config.backbone_config)
        ours, theirs = config.to_dict(), loaded.to_dict()
        for fields in (ours, theirs, ours["backbone_config"], theirs["backbone_config"]):
            fields.pop("_name_or_path", None)
        assert ours == theirs
        assert loaded.id2label == {0: "floor", 1: "wall", 2: "sky"}
        assert loaded.num_labels == 3


def test_a_backbone_may_be_given_as_a_dict():
    config = Noise2MapConfig(backbone_config={"model_type": "resnet", "out_features": ["stage1", "stage2", "stage3", "stage4"]})
    assert isinstance(config.backbone_config, ResNetConfig)


@pytest.mark.parametrize(
    ("field", "hint"),
    [("hiden_size", "hidden_size"), ("map_scales", "map_scale"), ("num_inference_step", "num_inference_steps"), ("ensemble", None)],
)
def test_unknown_fields_are_refused_with_a_hint(field, hint, tmp_path):
    match = f"Noise2MapConfig has no field '{field}'" + (f"; did you mean '{hint}'" if hint else "")
    with pytest.raises(ValueError, match=match):
        Noise2MapConfig(**{field: 3})
    written = {**tiny_config().to_dict(), field: 3}
    (tmp_path / "config.json").write_text(json.dumps(written, default=str))
    for read in (Noise2MapConfig.from_pretrained, AutoConfig.from_pretrained):
        with pytest.raises(ValueError, match=match):
            read(tmp_path)


IMPOSSIBLE = [
    ({"hidden_size": "256"}, "hidden_size is '256'; expected int"),
    ({"hidden_size": 25.5}, "hidden_size is 25.5; expected int"),
    ({"hidden_size": None}, "hidden_size is None; expected int"),
    ({"decoder_layers": [6]}, r"decoder_layers is \[6\]; expected int"),
    ({"map_scale": "small"}, r"map_scale is 'small'; expected float \| int"),
    ({"diffusion": "yes"}, "diffusion is 'yes'; expected bool"),
    ({"num_inference_steps": "auto"}, "num_inference_steps is 'auto'; expected int"),
    ({"uncertainty": 3}, r"uncertainty is 3; expected str \| None"),
    ({"backbone_config": "swin"}, "backbone_config is 'swin'"),
    ({"backbone_config": {"model_type": "swim"}}, "model_type 'swim'; expected a backbone"),
    ({"backbone_config": {"embed_dim": 8}}, "model_type None"),
    ({"num_labels": 0}, "num_labels is 0; expected an integer of at least 1"),
    ({"num_labels": "five"}, "num_labels is 'five'"),
    ({"num_labels": 2.5}, "num_labels is 2.5"),
    ({"id2label": ["floor", "wall"]}, r"id2label is \['floor', 'wall'\]; expected a name for each class id from 0 on"),
    ({"id2label": {0: "floor", 2: "wall"}}, "expected a name for each class id from 0 on"),
    ({"id2label": {"floor": 0}}, "expected a name for each class id from 0 on"),
    ({"id2label": {}}, "expected a name for each class id from 0 on"),
    ({"map_encoding": "two_hot"}, "map_encoding is 'two_hot'; expected one of 'class_embedding', 'one_hot', 'analog_bits'"),
    ({"noise_schedule": "sigmoid"}, "noise_schedule is 'sigmoid'; expected one of 'cosine', 'linear'"),
    ({"time_input": "t"}, "time_input is 't'"),
    ({"average": "mean"}, "average is 'mean'; expected one of 'last', 'steps'"),
    ({"sampler": "euler"}, "sampler is 'euler'"),
    ({"objective": "eps"}, "objective is 'eps'"),
    ({"loss_average": "none"}, "loss_average is 'none'"),
    ({"depth_representation": "inverse"}, "depth_representation is 'inverse'; expected one of 'linear', 'log'"),
    ({"depth_noising": "nearest"}, "depth_noising is 'nearest'"),
    ({"depth_noising": "bilinear", "depth_representation": "log"}, "depth_noising 'bilinear' mixes in 0 m"),
    ({"uncertainty": "variance"}, "uncertainty is 'variance'"),
    ({"hidden_size": 0}, "hidden_size is 0; expected a positive number"),
    ({"decoder_layers": 0}, "decoder_layers is 0"),
    ({"num_inference_steps": 0}, "num_inference_steps is 0"),
    ({"ensemble_size": -1}, "ensemble_size is -1"),
    ({"map_scale": 0.0}, r"map_scale is 0\.0"),
    ({"map_scale": math.nan}, "map_scale is nan"),
    ({"map_scale": math.inf}, "map_scale is inf"),
    ({"temperature": 0}, "temperature is 0"),
    ({"hidden_size": 36}, "hidden_size 36 is not a multiple of decoder_attention_heads 8"),
    ({"hidden_size": 40}, "hidden_size 40 is not a multiple of group_norm_groups 32"),
    ({"hidden_size": 6, "decoder_attention_heads": 2, "group_norm_groups": 3}, "hidden_size is 6; .* multiple of 4"),
    ({"min_depth": 0}, "min_depth is 0; expected a positive number"),
    ({"min_depth": 5.0, "max_depth": 5.0}, r"max_depth is 5\.0 m; expected more than min_depth"),
    ({"max_depth": math.inf}, "max_depth is inf m"),
    ({"sample_max_depth": 1e-4}, r"sample_max_depth is 0\.0001 m"),
    ({"auto_threshold": 1}, r"auto_threshold is 1; expected a fraction in \[0, 1\)"),
    ({"auto_threshold": -0.1}, r"auto_threshold is -0\.1"),
    ({"time_difference": -1}, "time_difference is -1; expected a number of at least 0"),
    ({"time_difference": math.nan}, "time_difference is nan"),
    ({"min_inverse_snr": -1e-5}, "min_inverse_snr is -1e-05"),
    ({"auxiliary_loss_weight": -0.4}, r"auxiliary_loss_weight is -0\.4"),
    ({"gradient_weight": -1}, "gradient_weight is -1; expected a number of at least 0"),
    ({"gradient_weight": 1, "objective": "laplace_mixture"}, "gradient_weight is 1, a loss of the median, .* 'laplace_mixture'"),
    ({"palette": ["red", "#00ff00"]}, "palette is .*; expected colors such as '#8040ff'"),
    ({"num_labels": 3, "palette": ["#ff0000"]}, "palette has 1 colors; expected one for each of the 3 classes"),
]


@pytest.mark.parametrize(("fields", "match"), IMPOSSIBLE)
def test_impossible_fields(fields, match):
    with pytest.raises(ValueError, match=match):
        Noise2MapConfig(**fields)


@pytest.mark.parametrize(("fields", "match"), IMPOSSIBLE[:6])
def test_impossible_fields_in_a_file(fields, match, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**tiny_config().to_dict(), **fields}, default=str))
    for read in (Noise2MapConfig.from_pretrained, AutoConfig.from_pretrained):
        with pytest.raises(ValueError, match=match):
            read(tmp_path)


def test_wrong_types_are_refused_after_construction_too():
    config = tiny_config()
    with pytest.raises(ValueError, match="decoder_layers is 'six'; expected int"):
        config.decoder_layers = "six"
    config.decoder_layers = 3
    assert config.decoder_layers == 3


@pytest.mark.parametrize("field", ["auto_threshold", "auxiliary_loss_weight", "time_difference", "min_inverse_snr"])
def test_whole_numbers_are_numbers(field):
    assert getattr(Noise2MapConfig(**{field: 0}), field) == 0


def test_what_only_the_model_can_see():
    with pytest.raises(ValueError, match="ignore_index 2 is one of the 5 class ids"):
        Noise2MapForSemanticSegmentation(tiny_config(semantic_loss_ignore_index=2))
    backbone = BACKBONES["convnext"]()
    backbone.out_features = ["stage3", "stage4"]
    for model_class in (Noise2MapForSemanticSegmentation, Noise2MapForDepthEstimation):
        with pytest.raises(ValueError, match=r"backbone_config gives 2 feature maps .*expected 4"):
            model_class(Noise2MapConfig(backbone_config=backbone))


@pytest.mark.parametrize("kind", [Noise2MapConfig, Noise2MapBevConfig])
def test_names_by_their_ids_are_enough(kind, tmp_path):
    names = {"floor": 0, "wall": 1, "sky": 2}
    config = kind(label2id=names)
    assert config.num_labels == 3 and config.id2label == {0: "floor", 1: "wall", 2: "sky"} and config.label2id == names
    config.save_pretrained(tmp_path)
    assert kind.from_pretrained(tmp_path).id2label == config.id2label
    with pytest.raises(ValueError, match="expected a name for each class id from 0 on"):
        kind(label2id={"floor": 1, "wall": 2})
