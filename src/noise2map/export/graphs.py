"""The two graphs of a map model, encoder and one decoder step, traced with open sizes by `torch.export`."""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.swin.modeling_swin import SwinLayer

from noise2map.export.swin import open_sizes
from noise2map.models import MapModel

# Sizes of the traced examples: what is open must be neither 0 nor 1 there, and no two sizes may agree by chance.
_BATCH, _SAMPLES, _HEIGHT, _WIDTH = 2, 3, 96, 128

ENCODER, STEP = "encoder", "step"

INPUTS = {ENCODER: ("pixel_values",), STEP: ("features", "noisy_map", "time", "noise")}
"""Names of the inputs of both graphs; a model without noise channels has no ``noise``."""

OUTPUTS = {ENCODER: ("features",), STEP: ("prediction", "map", "signal")}
"""Names of their outputs."""

AXES = {
    "pixel_values": ("batch", None, "height", "width"),
    "features": ("batch", None, "rows", "columns"),
    "noisy_map": ("batch", "samples", None, "rows", "columns"),
    "time": (None,),
    "noise": ("batch", "samples", None, "rows", "columns"),
}
"""Open axes of the inputs by name; None is a fixed one."""


# Axes that several inputs have; those of images have bounds that the tracer finds by itself.
_SHARED = ("batch", "samples", "rows", "columns")


class EncoderGraph(nn.Module):
    """Normalised images ``(B, 3, H, W)`` -> features ``(B, C, h, w)``."""

    def __init__(self, model: MapModel) -> None:
        super().__init__()
        self.encoder = open_sizes(copy.deepcopy(model.encoder))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """See `MapModel.encode_image`."""
        return self.encoder(pixel_values)


class StepGraph(nn.Module):
    """One decoder call, with all that a sampler needs to know of its answer."""

    def __init__(self, model: MapModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, features: Tensor, noisy_map: Tensor, time: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step.

        Args:
            features: of the encoder, ``(B, C, h, w)``.
            noisy_map: noisy maps ``(B, R, M, h, w)``.
            time: their time in [0, 1], ``(1,)``.
            noise: noise channels ``(B, R, n, h, w)`` of a model that has them; zeros for its call without noise.

        Returns:
            What the head says ``(B, R, K', h, w)``; the map in it ``(B, R, K, h, w)``, logits, metres or unit vectors, without
            parameters of its distribution; and the clean signal it stands for ``(B, R, M, h, w)``, for the next step. The first
            two have four times as many rows and columns where the model enlarges its maps itself.
        """
        model, shape = self.model, noisy_map.shape[:2]
        context = model.decoder.prepare(features)
        # A half of the projection for each sample: the decoder would divide their number by the images', which forbids one sample.
        context = replace(context, image=context.image[:, None].expand(-1, shape[1], -1, -1).flatten(0, 1))
        modulations = model.decoder.modulations(model.time_input(time))
        latent = None if noise is None else noise.flatten(0, 1)
        cells, prediction = model.predict_with(context, noisy_map.flatten(0, 1), time, modulations, latent, True)
        signal = model.prediction_encoder()(cells)
        found = prediction, model.map_of(prediction), signal
        prediction, whole, signal = (values.reshape(*shape, *values.shape[1:]) for values in found)
        return prediction, whole, signal


def check_exportable(model: Any) -> None:
    """Refuses models whose graphs cannot have open sizes.

    Raises:
        ValueError: saying what stands in the way.
    """
    if not isinstance(model, MapModel):
        raise ValueError(f"cannot export a {type(model).__name__}; expected a model of maps of single images")
    if model.dtype != torch.float32 or model.device.type != "cpu":
        raise ValueError(f"cannot export a model in {model.dtype} on {model.device}; expected one in float32 on the CPU")
    if getattr(model.encoder, "backbone", None) is None:
        raise ValueError(
            f"cannot export {model.task} models: sensors are gathered by indices that differ from sample to sample (cameras' "
            "rays, LiDAR points), which has no graph of open sizes; expected a model of maps of single images"
        )
    if model.config.objective == "flow":
        raise ValueError(
            "cannot export a model of objective 'flow': a further network draws its maps, and the two graphs of an export hold the "
            "encoder and the decoder; expected another objective"
        )
    kind, fixed = model.config.backbone_config.model_type, model.encoder.image_size
    if fixed is not None:
        raise ValueError(
            f"cannot export a model on a {kind!r} backbone: it takes images of {fixed} alone; expected one of open sizes"
        )


def entangled(model: MapModel) -> bool:
    """Whether sizes within the encoder hang together so that `torch.export` is lost in proving that they fit (shifted windows)."""
    return any(isinstance(module, SwinLayer) for module in model.encoder.modules())


def trace(model: MapModel) -> dict[str, Any]:
    """Traces both graphs of a model in evaluation mode on the CPU in float32.

    Args:
        model: the model; it is not changed.

    Returns:
        Exported programs by name, `ENCODER` and `STEP`; in place of the encoder's the graph itself where `entangled`.

    Raises:
        ValueError: if the model cannot be exported, see `check_exportable`, or its backbone decides by the size of the image.
    """
    check_exportable(model)
    config = model.config
    images = torch.zeros(_BATCH, 3, _HEIGHT, _WIDTH)
    with evaluating(model), torch.no_grad(), quiet():
        encoder, step = EncoderGraph(model), StepGraph(model).eval()
        # Contiguous, as whoever calls a compiled step will have them: it reads its inputs by the strides of these examples.
        features = encoder(images).contiguous()
        rows, columns = features.shape[-2:]
        inputs = {
            "features": features,
            "noisy_map": torch.zeros(_BATCH, _SAMPLES, model.codec.channels, rows, columns),
            "time": torch.ones(1),
        }
        if config.noise_channels:
            inputs["noise"] = torch.zeros(_BATCH, _SAMPLES, config.noise_channels, rows, columns)
        try:
            first = encoder if entangled(model) else _trace(encoder, {"pixel_values": images})
            return {ENCODER: first, STEP: _trace(step, inputs)}
        except (RuntimeError, torch._dynamo.exc.UserError) as error:
            kind = config.backbone_config.model_type
            raise ValueError(f"cannot export a model on a {kind!r} backbone with open sizes: {_first_line(error)}") from error


def _trace(graph: nn.Module, inputs: dict[str, Tensor]) -> Any:
    # Axes of one name are one size, in every input.
    names = {axis for name in inputs for axis in AXES[name] if axis}
    shared = {axis: torch.export.Dim(axis) if axis in _SHARED else torch.export.Dim.DYNAMIC for axis in names}
    shapes = {name: {place: shared[axis] for place, axis in enumerate(AXES[name]) if axis} for name in inputs}
    return torch.export.export(graph, (), kwargs=inputs, dynamic_shapes=shapes, strict=False)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode; afterwards each of its modules is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps notices of the exporters (of packages that are not there and not needed) off the screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.onnx._internal.exporter", "torch.export", "onnxscript")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before):
            logger.setLevel(level)
