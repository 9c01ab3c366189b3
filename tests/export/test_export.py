"""Exported graphs against the models they came from; the command, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import BACKBONES, images, tiny_config, tiny_depth_model, tiny_segmenter
from torch import nn

from noise2map.cli import main
from noise2map.export import parity
from noise2map.export.compiled import compile_program
from noise2map.export.folder import export_model
from noise2map.export.graph_model import graph_model, load_export
from noise2map.export.graphs import check_exportable, evaluating
from noise2map.export.onnx_files import check_operators, compress, quantize
from noise2map.export.swin import open_sizes
from noise2map.inference.predictor import Predictor
from noise2map.models import Noise2MapImageProcessor
from noise2map.models.encoder import ImageEncoder
from noise2map.models.normals import Noise2MapForNormalEstimation

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

PROCESSOR = {"size": {"height": 48, "width": 64}}


class Mirror:
    """A runner that asks the model itself."""

    def __init__(self, model, error=0.0):
        self.model, self.error = model, error

    def encode(self, pixel_values):
        return self.model.encode_image(pixel_values)

    def step(self, features, noisy_map, time, noise=None):
        context, shape = self.model.decoder.prepare(features), noisy_map.shape[:2]
        modulations = self.model.decoder.modulations(self.model.time_input(time))
        latent = None if noise is None else noise.flatten(0, 1)
        cells, said = self.model.predict_with(context, noisy_map.flatten(0, 1), time, modulations, latent, True)
        found = said + self.error, self.model.map_of(said), self.model.prediction_encoder()(cells)
        return tuple(one.unflatten(0, shape) for one in found)


MATCHED = {
    "map_encoding": "one_hot",
    "matched_filter": True,
    "map_pyramid_levels": 1,
    "feedback": "mean",
    "map_scale": 0.5,
    "upsampling": "convex",
}
CRPS = {"objective": "crps", "noise_channels": 3, "churn": 1.0, "depth_representation": "log"}


def models(backbone="convnext", **fields):
    torch.manual_seed(0)
    return {
        "classes": tiny_segmenter(backbone, **fields),
        "matched": tiny_segmenter(backbone, **MATCHED, **fields),
        "laplace": tiny_depth_model(backbone, objective="laplace", diffusion=False, **fields),
        "crps": tiny_depth_model(backbone, **CRPS, **fields),
        "normals": Noise2MapForNormalEstimation(tiny_config(backbone, objective="angular", **fields)).eval(),
    }


@pytest.mark.parametrize("name", models())
@torch.inference_mode()
def test_a_model_of_graphs_decodes_as_the_model(name):
    """All that lies around the graphs: here they are the model's own functions."""
    model = models()[name]
    exported = graph_model(model.config, type(model), Mirror(model))
    features = model.encode_image(images(2))
    keywords = {"num_inference_steps": 3, "ensemble_size": 2} if model.config.diffusion else {}
    outs = [one.decode_map(features, generator=torch.Generator().manual_seed(1), **keywords) for one in (model, exported)]
    torch.testing.assert_close(model.whole_prediction(outs[0]), model.whole_prediction(outs[1]))
    assert outs[0].uncertainties.keys() == outs[1].uncertainties.keys()
    assert exported.device == torch.device("cpu") and exported.task == model.task


def test_what_is_not_the_model_is_refused():
    model = tiny_segmenter()
    good = list(parity.compare(model, graph_model(model.config, type(model), Mirror(model))))
    parity.check(good)
    assert [one.flips for one in good] == [0, 0] and all(one.run < 1e-4 for one in good)
    bad = list(parity.compare(model, graph_model(model.config, type(model), Mirror(model, 0.1))))
    with pytest.raises(ValueError, match=r"the export is not the model: at 96x64.*decoder call differs by .*Nothing was written"):
        parity.check(bad)


@pytest.mark.parametrize("fields", [{"ensemble_size": 4}, {"sampling": "field"}, {"refine": "uncertain"}], ids=str)
def test_defaults_of_a_checkpoint_do_not_hinder_its_comparison(fields):
    model = tiny_segmenter(**fields)
    found = list(parity.compare(model, graph_model(model.config, type(model), Mirror(model))))
    parity.check(found)
    assert [one.samples for one in found] == [1, 2] and all(one.run < 1e-4 for one in found)


def test_a_wrong_signal_is_refused():
    """It is what the next step starts from, and no part of the map of this one."""
    model = tiny_depth_model()

    class Negated(Mirror):
        def step(self, **inputs):
            prediction, whole, signal = super().step(**inputs)
            return prediction, whole, -signal

    with pytest.raises(ValueError, match="the export is not the model"):
        parity.check(list(parity.compare(model, graph_model(model.config, type(model), Negated(model)))))


@torch.inference_mode()
def test_drawn_maps_cannot_be_denoised_by_an_export():
    model = tiny_segmenter()
    exported, features = graph_model(model.config, type(model), Mirror(model)), model.encode_image(images(1))
    outs = [
        one.decode_map(features, sampling="field", ensemble_size=2, generator=torch.Generator().manual_seed(1)).samples
        for one in (model, exported)
    ]
    torch.testing.assert_close(*outs)
    with pytest.raises(ValueError, match="num_inference_steps is 3; expected 1: an export encodes no drawn maps"):
        exported.decode_map(features, 3, sampling="field")


def test_the_model_keeps_its_mode():
    model = tiny_segmenter().train()
    model.encoder.eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert model.training and model.decoder.training and not any(module.training for module in model.encoder.modules())


@pytest.mark.parametrize("size", [(64, 64), (70, 101), (33, 40)])
@torch.inference_mode()
def test_swin_of_open_sizes_is_swin(size):
    torch.manual_seed(0)
    encoder = ImageEncoder(tiny_config("swin")).eval()
    expected = encoder(images(2, *size))
    torch.testing.assert_close(open_sizes(encoder)(images(2, *size)), expected, atol=1e-5, rtol=1e-5)


def test_quantized_numbers_are_within_half_a_step():
    values = np.random.default_rng(0).standard_normal((6, 40)).astype(np.float32) * np.logspace(-3, 3, 6, dtype=np.float32)[:, None]
    whole, scale = quantize(values, 0)
    assert whole.dtype == np.int8 and scale.shape == (6,)
    assert (np.abs(whole * scale[:, None] - values) <= 0.5001 * scale[:, None]).all()
    assert (quantize(np.zeros((2, 3), np.float32), 1)[0] == 0).all()


@pytest.mark.parametrize(("weights", "bytes_each", "tolerance"), [("float16", 2, 1e-3), ("int8", 1, 0.03)])
def test_stored_weights_are_small_and_close(weights, bytes_each, tolerance):
    """A convolution and two kinds of products by hand."""
    helper, kinds = onnx.helper, onnx.TensorProto
    generator = np.random.default_rng(0)
    arrays = {"k": (32, 16, 3, 3), "m": (32, 40), "g": (50, 40)}
    arrays = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in arrays.items()}
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMean", ["c"], ["r"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["r", "m"], ["p"]),
        helper.make_node("Gemm", ["p", "g"], ["y"], transB=1),
    ]
    ends = [helper.make_tensor_value_info(n, kinds.FLOAT, s) for n, s in (("x", ["b", 16, "h", "w"]), ("y", ["b", 50]))]
    initial = [onnx.numpy_helper.from_array(value, name) for name, value in arrays.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    inputs = {"x": generator.standard_normal((2, 16, 5, 6)).astype(np.float32)}
    before = onnxruntime.InferenceSession(model.SerializeToString()).run(None, inputs)[0]
    compress(model, weights)
    onnx.checker.check_model(model)
    check_operators(model)
    after = onnxruntime.InferenceSession(model.SerializeToString()).run(None, inputs)[0]
    assert 0 < np.abs(after - before).max() <= tolerance * np.abs(before).max()
    total = sum(value.size for value in arrays.values())
    assert len(model.SerializeToString()) < bytes_each * total + 2000


def test_operators_of_others_are_refused():
    node = onnx.helper.make_node("Magic", ["x"], ["y"], domain="com.elsewhere")
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], []))
    with pytest.raises(ValueError, match=r"com.elsewhere::Magic; expected operators of the ONNX standard"):
        check_operators(model)


def test_models_without_a_graph_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot export a model on a 'hiera' backbone"):
        check_exportable(tiny_segmenter("hiera"))
    with pytest.raises(ValueError, match="cannot export a model of objective 'flow'"):
        check_exportable(tiny_segmenter(objective="flow", diffusion=False))
    with pytest.raises(ValueError, match="cannot export a Linear; expected a model of maps"):
        check_exportable(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"in torch.bfloat16 on cpu; expected one in float32 on the CPU"):
        check_exportable(tiny_segmenter().bfloat16())
    for options, message in (
        ({"format": "tensorrt"}, "format is 'tensorrt'; expected one of onnx, torch, aoti"),
        ({"weights": "int4"}, "weights are 'int4'; expected float32, float16, int8"),
        ({"format": "torch", "weights": "int8"}, "weights are 'int8'; expected 'float32' with format 'torch'"),
    ):
        with pytest.raises(ValueError, match=message):
            export_model(tiny_segmenter(), None, tmp_path / "out", **options)
    with pytest.raises(ValueError, match="on a 'swin' backbone with format 'torch'; expected format 'onnx'"):
        export_model(tiny_segmenter("swin"), None, tmp_path / "out", format="torch")
    assert not (tmp_path / "out").exists()


def test_sensors_are_refused_in_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["export", "freedoom-bev-camera-completion-tiny", "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "cannot export bev models" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_half_an_export_is_refused(tmp_path):
    (tmp_path / "export.json").write_text('{"format": "onnx"}')
    with pytest.raises(FileNotFoundError, match=r"has no encoder.onnx; expected a whole export"):
        Predictor.from_pretrained(tmp_path)
    for broken in ("[", "[]", "{}"):
        (tmp_path / "export.json").write_text(broken)
        with pytest.raises(ValueError, match=r"export.json does not say what was exported"):
            Predictor.from_pretrained(tmp_path)
    (tmp_path / "export.json").write_text('{"format": "aoti"}')
    with pytest.raises(FileNotFoundError, match=r"has no encoder.pt2; expected a whole export of format aoti"):
        Predictor.from_pretrained(tmp_path)
    (tmp_path / "export.json").write_text('{"format": "torch"}')
    with pytest.raises(ValueError, match="is an export of format 'torch', which is a program"):
        load_export(tmp_path, type(tiny_segmenter()))
    with pytest.raises(FileNotFoundError, match=r"has no encoder.pt2; expected what noise2map export wrote"):
        load_export(tmp_path, type(tiny_segmenter()), run_programs=True)
    (tmp_path / "export.json").write_text('{"format": "tensorrt"}')
    with pytest.raises(ValueError, match="is an export of format 'tensorrt'; expected 'onnx', 'torch' or 'aoti'"):
        load_export(tmp_path, type(tiny_segmenter()), run_programs=True)


# ---- whole exports: tracing takes some seconds ---------------------------------------------------------------------------------


def exported(model, folder, **options):
    processor = Noise2MapImageProcessor(**PROCESSOR)
    lines = []
    export_model(model, processor, folder, tell=lines.append, **options)
    return lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    model = tiny_segmenter()
    model.config.architectures = [type(model).__name__]
    exported(model, folder / "onnx", palette=np.zeros((5, 3), np.uint8))
    model.save_pretrained(folder / "model")
    Noise2MapImageProcessor(**PROCESSOR).save_pretrained(folder / "model")
    return folder


@pytest.mark.slow
def test_an_export_in_place_of_another_leaves_nothing_of_it(folder, tmp_path):
    shutil.copytree(folder / "onnx", tmp_path / "out")
    assert {"run.py", "encoder.onnx", "step.onnx"} <= set(os.listdir(tmp_path / "out"))
    exported(tiny_segmenter(decoder_layers=1), tmp_path / "out", format="torch", overwrite=True)
    assert {"encoder.pt2", "step.pt2", "export.json", "config.json", "preprocessor_config.json"} == {
        path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".") and path.name != "settings.json"
    }


@pytest.mark.slow
def test_graphs_hold_standard_operators_and_open_axes(folder):
    for name in ("encoder", "step"):
        model = onnx.load(folder / "onnx" / f"{name}.onnx")
        assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
        axes = {one.name: [d.dim_param for d in one.type.tensor_type.shape.dim] for one in model.graph.input}
        assert axes["features" if name == "step" else "pixel_values"][0] == "batch"
    assert {node.op_type for node in model.graph.node} >= {"GridSample"}
    assert axes["noisy_map"] == ["batch", "samples", "", "rows", "columns"]


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width", "batch", "samples"), [(64, 64, 1, 1), (75, 122, 3, 2)])
@torch.inference_mode()
def test_graphs_are_the_model_at_other_sizes(folder, height, width, batch, samples):
    model, graphs = tiny_segmenter(), load_export(folder / "onnx", type(tiny_segmenter()))
    pixels = images(batch, height, width)
    features = model.encode_image(pixels)
    torch.testing.assert_close(graphs.encode_image(pixels), features, atol=1e-4, rtol=1e-4)
    noise = torch.randn(batch, samples, model.codec.channels, *features.shape[-2:])
    outs = [one.decode_map(features, 3, samples, noise=noise) for one in (model, graphs)]
    torch.testing.assert_close(outs[1].logits, outs[0].logits, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_the_script_needs_no_torch_and_gives_the_map_of_predict(folder, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3)).astype(np.uint8)).resize((70, 90))
    image.save(tmp_path / "image.png")
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n\nclass Refuse:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'transformers', 'noise2map'):\n            raise ImportError(name)\n\n"
        "sys.meta_path.insert(0, Refuse())\n"
    )
    script, out = folder / "onnx" / "run.py", tmp_path / "map.npy"
    words = [sys.executable, str(script), str(tmp_path / "image.png"), "--out", str(out), "--samples", "2", "--seed", "3"]
    done = subprocess.run(words, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    predictors = [Predictor.from_pretrained(folder / name) for name in ("model", "onnx")]
    maps = [one(image, ids=["image.png"], ensemble_size=2, seed=3)[0].labels for one in predictors]
    assert (np.load(out) != maps[0]).mean() < 0.01
    assert (maps[1] != maps[0]).mean() < 0.01


@pytest.mark.slow
def test_smaller_weights_are_measured_and_not_refused(tmp_path):
    lines = exported(tiny_segmenter(decoder_layers=1), tmp_path / "int8", weights="int8")
    assert "labels flip" in lines[0]
    assert json.loads((tmp_path / "int8" / "export.json").read_text())["parity"][0]["step"] > 0


# Encoder and step are graphs of their own: each pair of these tests one of either. A single layer: the others repeat its nodes.
PAIRS = {"classes": "swin", "matched": "resnet", "laplace": "dinov3_convnext", "crps": "convnext", "normals": "convnext"}
assert set(PAIRS) == set(models()) and set(PAIRS.values()) == set(BACKBONES) - {"hiera"}


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_every_backbone_of_open_sizes_task_and_formulation_exports(name, tmp_path):
    model = models(PAIRS[name], decoder_layers=1)[name]
    assert len(exported(model, tmp_path / "out")) == len(parity.CASES)


@pytest.mark.slow
@torch.inference_mode()
@torch.inference_mode()
def test_a_compiled_package_is_the_program(tmp_path):
    layer = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.LayerNorm(4))
    rows = torch.export.Dim("rows")
    program = torch.export.export(layer, (torch.randn(5, 3),), dynamic_shapes=({0: rows},))
    run = compile_program(program, tmp_path / "layer.pt2")
    assert (tmp_path / "layer.pt2").is_file()
    for count in (2, 9):
        x = torch.randn(count, 3)
        torch.testing.assert_close(run(x), layer(x))


def test_without_a_compiler_there_is_no_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, str(tmp_path / "g++")))
    with pytest.raises(OSError, match="format 'aoti' needs a C\\+\\+ compiler"):
        export_model(tiny_segmenter(), None, tmp_path / "out", format="aoti")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@torch.inference_mode()
def test_programs_of_torch_are_the_model(tmp_path):
    model = tiny_depth_model(decoder_layers=1)
    exported(model, tmp_path / "out", format="torch")
    names = {path.name for path in Path(tmp_path / "out").iterdir()}
    assert {"encoder.pt2", "step.pt2", "export.json"} <= names and "run.py" not in names
    encode, step = (torch.export.load(tmp_path / "out" / f"{name}.pt2").module(check_guards=False) for name in ("encoder", "step"))
    for batch, samples, height, width in ((1, 1, 64, 104), (3, 2, 72, 101)):
        pixels = images(batch, height, width)
        features = model.encode_image(pixels)
        torch.testing.assert_close(encode(pixel_values=pixels), features, atol=1e-4, rtol=1e-4)
        inputs = {"features": features, "noisy_map": torch.randn(batch, samples, 1, *features.shape[-2:]), "time": torch.ones(1)}
        for ours, theirs in zip(Mirror(model).step(**inputs), step(**inputs), strict=True):
            torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    pixels, noise = images(1, 64, 104), torch.randn(1, 1, 1, 16, 26)
    opened = load_export(tmp_path / "out", type(model), run_programs=True)
    ours, theirs = (one(pixels, num_inference_steps=2, noise=noise).predicted_depth for one in (model, opened))
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
