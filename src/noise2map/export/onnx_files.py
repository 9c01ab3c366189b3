"""Exported programs as ONNX files of standard operators, with weights in float32, float16 or int8."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from noise2map.export.graphs import AXES, INPUTS, OUTPUTS, quiet
from noise2map.runs.files import write_bytes

OPSET = 18
"""Version of the operators: the oldest one that the exporter writes, so that older runtimes read the files, too."""

WEIGHTS = ("float32", "float16", "int8")

# Fewer numbers are not worth it: biases, norms, small tables.
_LEAST_NUMBERS = 1024
# Tables of codes stay as they are: the decoder was trained to read these very numbers.
_EXACT = {"Gather", "Sigmoid"}
_MISSING = "{name} export needs the packages onnx and onnxscript; install noise2map[export]"


def onnx_model(program: Any, name: str, weights: str = "float32") -> Any:
    """An exported program as an ONNX model.

    Args:
        program: of `noise2map.export.graphs.trace`; the graph of an encoder itself goes through the older exporter, which takes
            sizes as they come.
        name: `ENCODER` or `STEP`, which says what inputs and outputs are called.
        weights: precision in which weights of matrix products and convolutions are stored: ``"float32"``, ``"float16"``, or
            ``"int8"`` with a scale for each output channel. Arithmetic is in float32.

    Raises:
        ImportError: if onnx or onnxscript is not installed.
        ValueError: if the weights' precision is unknown, or the graph holds an operator that is not of the ONNX standard.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights are {weights!r}; expected one of {', '.join(WEIGHTS)}")
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(_MISSING.format(name="ONNX")) from error
    if isinstance(program, torch.nn.Module):
        inputs, model = list(INPUTS[name]), _scripted(program, name)
    else:
        inputs = [one for one in INPUTS[name] if one in program.graph_signature.user_inputs]
        model = _converted(program, inputs, OUTPUTS[name])
    check_operators(model)
    _name_axes(model, inputs, OUTPUTS[name])
    if weights != "float32":
        compress(model, weights)
    onnx.checker.check_model(model)
    return model


def _converted(program: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    with quiet(), torch.no_grad():
        written = torch.onnx.export(
            program,
            dynamo=True,
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    assert written is not None
    return written.model_proto


def _scripted(graph: torch.nn.Module, name: str) -> Any:
    import onnx

    buffer, inputs = BytesIO(), INPUTS[name]
    axes = {one: {place: axis for place, axis in enumerate(AXES[one]) if axis} for one in (*inputs, *OUTPUTS[name])}
    with quiet(), torch.no_grad():
        torch.onnx.export(
            graph,
            (torch.zeros(2, 3, 90, 117),),
            buffer,
            dynamo=False,
            input_names=list(inputs),
            output_names=list(OUTPUTS[name]),
            opset_version=OPSET,
            dynamic_axes=axes,
        )
    return onnx.load_from_string(buffer.getvalue())


def check_operators(model: Any) -> None:
    """Refuses a model with operators that a runtime would need a library for.

    Raises:
        ValueError: naming them.
    """
    foreign = sorted({f"{node.domain}::{node.op_type}" for node in model.graph.node if node.domain not in ("", "ai.onnx")})
    foreign += sorted(f"function {one.name}" for one in model.functions)
    if foreign:
        raise ValueError(f"the graph holds {', '.join(foreign)}; expected operators of the ONNX standard alone")


def write_onnx(model: Any, path: Path) -> None:
    """Writes a model, whole or not at all."""
    write_bytes(path, model.SerializeToString())


def _name_axes(model: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Open axes get names that say what they are, in place of the tracer's symbols."""
    axes = {**AXES, "signal": AXES["noisy_map"]}
    enlarged = ("batch", "samples", None, "map_rows", "map_columns")
    for value in (*model.graph.input, *model.graph.output):
        names = axes.get(value.name, enlarged)
        for dimension, name in zip(value.type.tensor_type.shape.dim, names):
            if name is not None:
                dimension.dim_param = name
    del model.graph.value_info[:]


def compress(model: Any, weights: str) -> None:
    """Stores large weights of an ONNX model in fewer bits, in place; operators of the standard bring them back to float32.

    Args:
        model: the model.
        weights: ``"float16"``, or ``"int8"``: symmetric, rounded to nearest, one scale for each output channel.
    """
    from onnx import TensorProto, helper, numpy_helper

    uses = {name: (node, place) for node in model.graph.node for place, name in enumerate(node.input)}
    nodes, kept = [], []
    for tensor in model.graph.initializer:
        node, place = uses.get(tensor.name, (None, 0))
        count = int(np.prod(tensor.dims))
        small = tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2 or count < _LEAST_NUMBERS
        if small or node is None or node.op_type in _EXACT:
            kept.append(tensor)
            continue
        values, stored = numpy_helper.to_array(tensor), f"{tensor.name}.{weights}"
        if weights == "float16":
            kept.append(numpy_helper.from_array(values.astype(np.float16), stored))
            nodes.append(helper.make_node("Cast", [stored], [tensor.name], name=stored, to=TensorProto.FLOAT))
            continue
        axis = _output_axis(node, place, values.ndim)
        whole, scale = quantize(values, axis)
        kept += [numpy_helper.from_array(whole, stored), numpy_helper.from_array(scale, f"{stored}.scale")]
        nodes.append(helper.make_node("DequantizeLinear", [stored, f"{stored}.scale"], [tensor.name], name=stored, axis=axis))
    nodes += list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)


def quantize(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers ``values ~ whole * scale`` of 8 bits.

    Args:
        values: any shape.
        axis: axis along which each entry has a scale of its own.

    Returns:
        ``whole``, int8 in -127..127, and ``scale``, float32, one for each entry of the axis.
    """
    others = tuple(index for index in range(values.ndim) if index != axis)
    largest = np.abs(values).max(axis=others, keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(values / scale).astype(np.int8), scale.reshape(-1)


def _output_axis(node: Any, place: int, ndim: int) -> int:
    """Axis of output channels of a weight."""
    if node.op_type == "Gemm":
        transposed = any(one.name == "transB" and one.i for one in node.attribute)
        return 0 if transposed else 1
    return ndim - 1 if node.op_type == "MatMul" and place == 1 else 0
