"""Official DDP checkpoints: all 22 published models, safe reading, and a report of every key."""

import collections
import os
import pickle

import numpy as np
import pytest
import torch
from golden_reference import published_models
from official_checkpoints import CONVNEXT, DEPTH, SEGMENTATION, small_weights, task_of
from safetensors.torch import save_file

from noise2map.convert import config_from_shapes, convert_ddp_state_dict, load_official_ddp, read_checkpoint
from noise2map.convert.ddp_keys import rename, split_parts
from noise2map.models import Noise2MapForDepthEstimation, Noise2MapForSemanticSegmentation


@pytest.fixture(scope="module")
def weights():
    return small_weights(SEGMENTATION)


def logits(model):
    with torch.no_grad():
        image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        out = model(pixel_values=image, num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    return out.logits if "logits" in out else out.predicted_depth


# ---- the published models --------------------------------------------------------------------------------------------------


@pytest.mark.golden
@pytest.mark.parametrize("name", published_models())
def test_published_model_converts_with_nothing_missing(name):
    published, task = published_models()[name], task_of(name)
    model_class = Noise2MapForDepthEstimation if task == "depth" else Noise2MapForSemanticSegmentation
    with torch.device("meta"):
        tensors = {key: torch.empty(shape) for key, shape in published["shapes"].items()}
        model = model_class(config_from_shapes(tensors, task))
        converted, report = convert_ddp_state_dict(tensors)
    ours = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert ours == {key: tuple(tensor.shape) for key, tensor in converted.items()}
    assert sum(p.numel() for p in model.parameters()) == published["parameters"]
    auxiliary = sum(p.numel() for key, p in model.named_parameters() if key.startswith("auxiliary_head"))
    assert published["parameters"] - auxiliary == published["parameters_without_auxiliary"]
    # Every key is accounted for, once.
    assert set(report.used) | set(report.dropped) == set(tensors)
    assert not set(report.used) & set(report.dropped)
    assert all(key.endswith("relative_position_index") for key in report.dropped)
    filled = [ours_ for names in report.used.values() for ours_ in names]
    assert len(filled) == len(set(filled))
    assert set(filled) == set(ours)


def test_published_sizes():
    exact = {name.split("_2x8")[0].split("_4x4")[0]: model["parameters"] for name, model in published_models().items()}
    assert exact["ddp_swin_t"] in (39_666_734, 39_565_864)
    assert {round(model["parameters"] / 1e6, 2) for name, model in published_models().items() if "ade20k" in name} == {
        39.67,
        60.98,
        99.15,
        207.72,
    }
    assert len(published_models()) == 22


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            SEGMENTATION,
            {"num_labels": 150, "average": "steps", "map_scale": 0.01, "time_input": "log_snr"},
        ),
        (CONVNEXT, {"num_labels": 19, "average": "last", "map_scale": 0.01, "time_input": "log_snr"}),
        (DEPTH, {"map_scale": 0.1, "time_input": "time", "min_inverse_snr": 0.0, "use_auxiliary_head": False}),
    ],
)
def test_settings_that_shapes_do_not_tell_are_the_published_ones(name, expected):
    config = config_from_shapes(small_weights(name), task_of(name))
    assert {field: getattr(config, field) for field in expected} == expected
    assert (config.num_inference_steps, config.sampler, config.time_difference, config.noise_schedule) == (3, "ddim", 1, "cosine")


def test_window_of_twelve_is_read_off_the_bias_table():
    shapes = published_models()["ddp_swin_l_2x8_512x512_160k_ade20k"]["shapes"]
    config = config_from_shapes({key: torch.empty(shape, device="meta") for key, shape in shapes.items()}, "segmentation")
    assert config.backbone_config.window_size == 12
    assert config.backbone_config.depths == [2, 2, 18, 2]
    assert config.backbone_config.num_heads == [6, 12, 24, 48]


# ---- layouts ---------------------------------------------------------------------------------------------------------------


def test_patch_merging_order_by_brute_force():
    """Official: feature c * 4 + 2 * row + column. transformers concatenates (0,0), (1,0), (0,1), (1,1) as (row, column)."""
    channels, out = 3, 5
    reduction = torch.arange(out * 4 * channels).view(out, 4 * channels).float()
    name = "encoder.backbone.swin.encoder.layers.0.downsample.reduction.weight"
    assert rename("backbone.stages.0.downsample.reduction.weight") == name
    ours = split_parts(name, reduction)[name]
    for c in range(channels):
        for place, (row, column) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
            assert torch.equal(ours[:, place * channels + c], reduction[:, c * 4 + 2 * row + column])
    norm = split_parts(name.replace("reduction", "norm"), reduction[0])
    assert torch.equal(next(iter(norm.values())), ours[0])


def test_qkv_is_cut_in_thirds():
    name = rename("backbone.stages.1.blocks.0.attn.w_msa.qkv.weight")
    tensor = torch.randn(12, 4)
    parts = split_parts(name, tensor)
    assert [key.rsplit(".", 2)[1] for key in parts] == ["q_proj", "k_proj", "v_proj"]
    assert torch.equal(torch.cat(list(parts.values())), tensor)


def test_unknown_names_have_no_name_here():
    for key in ("decode_head.conv_seg2.weight", "backbone.stages.0.blocks.0.norm3.weight", "x", "neck.2.conv.weight"):
        assert rename(key) is None


# ---- files -----------------------------------------------------------------------------------------------------------------


def test_state_dict_as_trained_frameworks_save_it(weights, tmp_path):
    """Nested under state_dict, next to meta with numpy scalars and an optimiser, with the prefix of a parallel wrapper."""
    expected = logits(load_official_ddp(weights, "segmentation"))
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    content = {
        "meta": {
            "iter": 160000,
            "CLASSES": ("wall", "floor"),
            "hook_msgs": {"best_score": np.float64(0.47)},
        },
        "state_dict": collections.OrderedDict((f"module.{key}", value) for key, value in weights.items()),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(content, tmp_path / "best.pth")
    torch.save(weights, tmp_path / "plain.pt")
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    older_numpy = (tmp_path / "old.pth").read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (tmp_path / "older.pth").write_bytes(older_numpy)
    save_file({key: value.clone() for key, value in weights.items()}, tmp_path / "w.safetensors")
    for name in ("best.pth", "plain.pt", "old.pth", "older.pth", "w.safetensors"):
        tensors = read_checkpoint(tmp_path / name)
        assert set(tensors) == set(weights)
        assert all(torch.equal(value, tensors[key]) for key, value in weights.items()), name
    for checkpoint in (str(tmp_path / "best.pth"), content):
        assert torch.equal(logits(load_official_ddp(checkpoint)), expected)


@pytest.mark.parametrize("name", [SEGMENTATION, CONVNEXT, DEPTH])
def test_converted_model_is_the_same_when_saved_and_loaded(name, tmp_path):
    model = load_official_ddp(small_weights(name))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    state = loaded.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.allclose(logits(loaded), logits(model), atol=1e-5)
    assert not model.training


class Payload:
    """Pickled, it makes a folder when it is read by a reader that trusts it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("place", ["top", "meta", "state_dict"])
@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(weights, tmp_path, place, new_format):
    path, trace = tmp_path / "model.pth", tmp_path / "it_ran"
    payload = Payload(str(trace))
    content = {
        "top": payload,
        "meta": {"state_dict": weights, "meta": {"x": payload}},
        "state_dict": {**weights, "x": payload},
    }[place]
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(ValueError, match=r"model\.pth .*never executed"):
        load_official_ddp(path)
    assert not trace.exists()
    with open(path, "rb") as file:  # the test can fail: a trusting reader runs it
        if not new_format and place == "top":
            for _ in range(3):
                pickle.load(file)
            pickle.load(file)
            assert trace.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_truncated_files(weights, tmp_path, suffix, share):
    path = tmp_path / f"model{suffix}"
    if suffix == ".pth":
        torch.save(weights, path)
    else:
        save_file(weights, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=rf"model\{suffix}.*cannot be read"):
        load_official_ddp(path)


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        load_official_ddp(tmp_path / "nowhere.pth")
    text = tmp_path / "text.pth"
    text.write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"text\.pth"):
        load_official_ddp(text)
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list; expected a dict of tensors"):
        load_official_ddp(tmp_path / "list.pth")
    torch.save({"meta": {"iter": 3}}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="holds no tensors"):
        load_official_ddp(tmp_path / "empty.pth")


# ---- keys that do not fit --------------------------------------------------------------------------------------------------


def test_unknown_keys(weights):
    with pytest.raises(ValueError, match=r"1 unknown keys, such as \['decode_head\.extra\.weight'\]"):
        load_official_ddp({**weights, "decode_head.extra.weight": torch.zeros(1)})


def test_missing_keys(weights):
    for key, match in (
        ("time_mlp.3.weight", "no key 'time_mlp.3.weight'; expected an official DDP segmentation model"),
        ("neck.1.down.conv.weight", r"1 weights unset \['encoder.merge.conv.weight'\]"),
        ("backbone.norm2.bias", r"1 weights unset \['encoder.backbone.hidden_states_norms.stage3.bias'\]"),
        ("decode_head.conv_seg.weight", "neither decode_head.conv_seg, decode_head.conv_depth"),
    ):
        with pytest.raises(ValueError, match=match):
            load_official_ddp({k: v for k, v in weights.items() if k != key})


def test_wrong_shapes(weights):
    with pytest.raises(ValueError, match=r"has shape \(31,\); expected \(32,\)"):
        load_official_ddp({**weights, "neck.0.lateral_convs.0.gn.weight": torch.zeros(31)})


def test_wrong_task(weights):
    with pytest.raises(ValueError, match="task is 'depth', but the checkpoint's keys are those of a segmentation model"):
        load_official_ddp(weights, "depth")
    with pytest.raises(ValueError, match="task is 'panoptic'; expected one of segmentation, depth"):
        load_official_ddp(weights, "panoptic")


def test_other_backbones_are_refused(weights):
    with pytest.raises(ValueError, match="backbone is neither Swin nor ConvNeXt"):
        load_official_ddp({k: v for k, v in weights.items() if not k.startswith("backbone.")})


def test_fields_may_be_set(weights):
    model = load_official_ddp(weights, map_scale=0.1, num_inference_steps=10, id2label={i: f"class {i}" for i in range(150)})
    assert (model.config.map_scale, model.config.num_inference_steps, model.config.id2label[3]) == (0.1, 10, "class 3")
    with pytest.raises(ValueError, match="no field 'map_scales'"):
        load_official_ddp(weights, map_scales=0.1)


def test_report_counts_keys(weights):
    report = load_official_ddp(weights).conversion_report
    assert report.summary() == f"{len(weights) - 12} keys used, 12 knowingly dropped"
    assert set(report.dropped.values()) == {"computed from the window size"}
    assert report.used["decode_head.conv_seg.weight"] == ["head.classifier.weight"]


def test_the_checkpoint_is_left_as_it_was(weights):
    before = {key: value.clone() for key, value in weights.items()}
    model = load_official_ddp(weights)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in weights.items())
