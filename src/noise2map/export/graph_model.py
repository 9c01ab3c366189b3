"""Exported graphs as a map model: predicted and scored like any other, so that what an export loses can be measured."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from noise2map.export.graphs import ENCODER, STEP
from noise2map.models import MapModel
from noise2map.models.encoder import check_images
from noise2map.zoo import EXPORT_FILE

SETTINGS = EXPORT_FILE
"""File that marks the folder of an export and says what is in it."""


class Runner(ABC):
    """Runs both graphs, on the CPU in float32."""

    @abstractmethod
    def encode(self, pixel_values: Tensor) -> Tensor:
        """See `EncoderGraph.forward`."""

    @abstractmethod
    def step(self, **inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `StepGraph.forward`."""


class OnnxRunner(Runner):
    """ONNX files in onnxruntime.

    Args:
        folder: with ``encoder.onnx`` and ``step.onnx``.

    Raises:
        ImportError: if onnxruntime is not installed.
        ValueError: if a file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError("running an ONNX export needs the package onnxruntime; install noise2map[export]") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.sessions = {}
        for name in (ENCODER, STEP):
            path = folder / f"{name}.onnx"
            if not path.is_file():
                raise FileNotFoundError(f"export folder {str(folder)!r} has no {path.name}; expected what noise2map export wrote")
            try:
                self.sessions[name] = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            except Exception as error:  # onnxruntime's errors have no common class
                raise ValueError(f"{path} cannot be read: {error}") from error

    def _run(self, name: str, inputs: dict[str, Tensor]) -> list[Tensor]:
        arrays = {key: np.ascontiguousarray(value.detach().float().numpy()) for key, value in inputs.items()}
        return [torch.from_numpy(value) for value in self.sessions[name].run(None, arrays)]

    def encode(self, pixel_values: Tensor) -> Tensor:
        """See `Runner.encode`."""
        return self._run(ENCODER, {"pixel_values": pixel_values})[0]

    def step(self, **inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Runner.step`."""
        prediction, whole, signal = self._run(STEP, inputs)
        return prediction, whole, signal


class ProgramRunner(Runner):
    """Functions of torch: exported programs.

    Args:
        encode: of the encoder.
        step: of the step.
    """

    def __init__(self, encode: Callable[..., Any], step: Callable[..., Any]) -> None:
        self._encode, self._step = encode, step

    @classmethod
    def open(cls, folder: Path, kind: str) -> "ProgramRunner":
        """Loads both from files, which runs what is in them.

        Args:
            folder: with ``encoder.pt2`` and ``step.pt2``.
            kind: ``"torch"``, programs of `torch.export`, or ``"aoti"``, packages of AOTInductor.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: for another kind.
        """
        if kind not in ("torch", "aoti"):
            raise ValueError(f"{str(folder)!r} is an export of format {kind!r}; expected 'onnx', 'torch' or 'aoti'")
        functions = []
        for name in (ENCODER, STEP):
            path = folder / f"{name}.pt2"
            if not path.is_file():
                raise FileNotFoundError(f"export folder {str(folder)!r} has no {path.name}; expected what noise2map export wrote")
            if kind == "aoti":
                from torch._inductor import aoti_load_package

                functions.append(aoti_load_package(str(path)))
            else:
                functions.append(torch.export.load(path).module(check_guards=False))
        return cls(*functions)

    def encode(self, pixel_values: Tensor) -> Tensor:
        """See `Runner.encode`."""
        return self._encode(pixel_values=pixel_values.contiguous())

    def step(self, **inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Runner.step`."""
        prediction, whole, signal = self._step(**{name: value.contiguous() for name, value in inputs.items()})
        return prediction, whole, signal


@dataclass
class FeatureContext:
    """What the calls of a run share: the features themselves ``(B, C, h, w)``."""

    features: Tensor

    def select(self, rows: Tensor) -> "FeatureContext":
        """The context of some of the images."""
        return FeatureContext(self.features[rows])


class GraphDecoder(nn.Module):
    """Stands where a model has its decoder; the graph computes everything at each call."""

    def __init__(self, feature_channels: int) -> None:
        super().__init__()
        self.feature_channels = feature_channels

    def prepare(self, features: Tensor) -> FeatureContext:
        """See `MapDecoder.prepare`."""
        return FeatureContext(features)

    def modulations(self, time: Tensor) -> Tensor:
        """Empty ones, ``(T, 0)``: the graph computes its own."""
        return time.new_zeros(len(time), 0)


class GraphCalls:
    """Mixin before a class of map models: encoder and decoder calls go to a `Runner`; the rest stays the class's own."""

    encodes_maps = False
    runner: Runner
    config: Any

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """float32."""
        return torch.float32

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """See `MapModel.encode_image`."""
        check_images(pixel_values)
        return self.runner.encode(pixel_values.float())

    def predict_with(
        self, context: FeatureContext, x_t: Tensor, t: Tensor, modulations: Tensor, latent: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `MapModel.predict_with`; in place of the cells' prediction comes their signal, which `prediction_encoder` keeps."""
        shape = (len(context.features), -1)
        inputs = {"features": context.features, "noisy_map": x_t.unflatten(0, shape), "time": t.reshape(-1)[:1]}
        if self.config.noise_channels:
            given = x_t.new_zeros(x_t.shape[0], self.config.noise_channels, *x_t.shape[2:]) if latent is None else latent
            inputs["noise"] = given.unflatten(0, shape)
        prediction, whole, signal = self.runner.step(**inputs)
        return signal.flatten(0, 1), (prediction if latent is None else whole).flatten(0, 1)

    def prediction_encoder(self) -> Callable[[Tensor], Tensor]:
        """See `MapModel.prediction_encoder`; signals are encoded already."""
        return lambda signal: signal


def graph_model(config: Any, model_class: type[MapModel], runner: Runner, checksum: bytes = b"") -> MapModel:
    """A map model whose networks are exported graphs.

    Args:
        config: of the model that was exported.
        model_class: its class.
        runner: runs the graphs.
        checksum: of the graphs' files, which becomes part of the model's state: predictions tell by it what made them.
    """
    kind = type(f"Exported{model_class.__name__}", (GraphCalls, model_class), {})
    with torch.device("meta"):
        model = kind(config)
    model.decoder = GraphDecoder(config.hidden_size)
    model.encoder, model.head = nn.Identity(), nn.Identity()
    model.to_empty(device="cpu")
    for value in model.parameters():
        value.data.zero_()
    model.register_buffer("graphs", torch.frombuffer(bytearray(checksum or b"\0"), dtype=torch.uint8).clone())
    model.runner = runner
    return model.eval()


def load_export(folder: str | Path, model_class: type[MapModel], *, run_programs: bool = False) -> MapModel:
    """An export as a map model.

    Args:
        folder: of the export.
        model_class: the class that its configuration names.
        run_programs: also open exports for torch, whose files are programs: run them only if you know who wrote them.

    Raises:
        ImportError: if onnxruntime is not installed.
        OSError: if a file is missing.
        ValueError: if a file cannot be read, or the export is a program that is not to be run.
    """
    folder = Path(folder).expanduser()
    kind = json.loads((folder / SETTINGS).read_text(encoding="utf-8")).get("format")
    if kind != "onnx" and not run_programs:
        raise ValueError(f"{str(folder)!r} is an export of format {kind!r}, which is a program; expected one of format 'onnx'")
    config = model_class.config_class.from_pretrained(folder)
    runner = OnnxRunner(folder) if kind == "onnx" else ProgramRunner.open(folder, kind)
    digest = hashlib.sha256()
    for name in (ENCODER, STEP):
        digest.update((folder / f"{name}.{'onnx' if kind == 'onnx' else 'pt2'}").read_bytes())
    return graph_model(config, model_class, runner, digest.digest())
