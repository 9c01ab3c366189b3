"""A prediction as files: class ids or metres in plain formats, uncertainty, a panel to look at, numbers for the record."""

import math
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from noise2map.inference.predictor import Predictor
from noise2map.runs.files import encode_image
from noise2map.tasks.prediction import Prediction

_FULL_16_BITS = 65535


def uncertainty_png_units(prediction: Prediction) -> int:
    """Units of 1 of the 16-bit PNG of an uncertainty: 65535, or for depth the power of ten that fills the range.

    Samples of a depth model often agree within a thousandth of the depth, which is some 60 units of 65535.
    """
    if prediction.task.has_classes or prediction.uncertainty is None:
        return _FULL_16_BITS
    greatest = float(prediction.uncertainty.max())
    return 10 ** min(9, math.floor(math.log10(_FULL_16_BITS / greatest))) if greatest > 0 else _FULL_16_BITS


def encode_maps(prediction: Prediction, predictor: Predictor, name: str, arrays: bool = True) -> dict[str, tuple[str, bytes]]:
    """The files of a prediction.

    Args:
        prediction: The maps of one image.
        predictor: What made them: it knows the palette and the range of depth.
        name: The files' name without suffix.
        arrays: Whether to write floats, too.

    Returns:
        Kind to relative path and content: ``labels`` (palette PNG of ids), ``depth`` (16-bit PNG) or ``normals`` (RGB PNG); of
        the latter two ``arrays`` (npz with ``depth_m`` or ``normals`` and ``uncertainty`` in float32 as they were computed, at
        the processed size); ``uncertainty`` (16-bit PNG, see :func:`uncertainty_png_units`) where it is defined.
    """
    maps = prediction.task.files(prediction, name, predictor.model.config)
    kept = {kind: values for kind, values in prediction.computed.items() if kind != "uncertainty"}
    if arrays and kept:
        buffer = BytesIO()
        np.savez_compressed(buffer, **prediction.computed)
        maps["arrays"] = (f"{prediction.task.stored_folder}/{name}.npz", buffer.getvalue())
    if prediction.uncertainty is not None:
        scaled = prediction.uncertainty.astype(np.float64) * uncertainty_png_units(prediction)
        units = np.rint(scaled).clip(0, _FULL_16_BITS).astype(np.uint16)
        maps["uncertainty"] = (f"uncertainty/{name}.png", encode_image(Image.fromarray(units)))
    return maps


def map_summary(prediction: Prediction, predictor: Predictor) -> dict[str, Any]:
    """Numbers for the record: class shares or quantiles of the depth, and the mean uncertainty."""
    summary = prediction.task.summary(prediction, predictor.model.config)
    if prediction.uncertainty is not None:
        mean = float(f"{prediction.uncertainty.mean(dtype=np.float64):.6g}")
        shares = prediction.task.in_metres and prediction.uncertainty_kind == "sample_variance"
        unit = "share of the depth" if shares else "0 to 1"
        units = uncertainty_png_units(prediction)
        summary["uncertainty"] = {"kind": prediction.uncertainty_kind, "mean": mean, "unit": unit, "png_units_per_1": units}
    return summary
