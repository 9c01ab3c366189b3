"""A prediction as files: class ids or metres in plain formats, uncertainty, a panel to look at, numbers for the record."""

import math
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from noise2map.inference.predictor import Predictor
from noise2map.report.palettes import IGNORE_COLOR
from noise2map.runs.files import encode_image
from noise2map.tasks.prediction import Prediction

# Units of a depth PNG per metre: millimetres where 16 bits reach, else 1/256 m (as in KITTI), else centimetres.
_DEPTH_SCALES = (1000, 256, 100)
_FULL_16_BITS = 65535


def depth_png_scale(max_depth_m: float) -> int:
    """Units per metre of a 16-bit depth PNG for depths up to ``max_depth_m``."""
    return next((scale for scale in _DEPTH_SCALES if max_depth_m * scale <= _FULL_16_BITS), _DEPTH_SCALES[-1])


def uncertainty_png_units(prediction: Prediction) -> int:
    """Units of 1 of the 16-bit PNG of an uncertainty: 65535, or for depth the power of ten that fills the range.

    Samples of a depth model often agree within a thousandth of the depth, which is some 60 units of 65535.
    """
    if prediction.depth_m is None or prediction.uncertainty is None:
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
        Kind to relative path and content: ``labels`` (palette PNG of ids), or ``depth`` (16-bit PNG) and ``arrays`` (npz
        with ``depth_m`` and ``uncertainty`` in float32 as they were computed, at the processed size); ``uncertainty`` (16-bit
        PNG, see :func:`uncertainty_png_units`) where it is defined.
    """
    maps: dict[str, tuple[str, bytes]] = {}
    if prediction.labels is not None:
        maps["labels"] = (f"labels/{name}.png", encode_image(label_image(prediction.labels, predictor.palette)))
    if prediction.depth_m is not None:
        scale = depth_png_scale(predictor.model.config.max_depth)
        units = np.rint(prediction.depth_m.astype(np.float64) * scale).clip(0, _FULL_16_BITS).astype(np.uint16)
        maps["depth"] = (f"depth/{name}.png", encode_image(Image.fromarray(units)))
        if arrays:
            buffer = BytesIO()
            np.savez_compressed(buffer, **prediction.computed)
            maps["arrays"] = (f"depth/{name}.npz", buffer.getvalue())
    if prediction.uncertainty is not None:
        scaled = prediction.uncertainty.astype(np.float64) * uncertainty_png_units(prediction)
        units = np.rint(scaled).clip(0, _FULL_16_BITS).astype(np.uint16)
        maps["uncertainty"] = (f"uncertainty/{name}.png", encode_image(Image.fromarray(units)))
    return maps


def label_image(labels: np.ndarray, palette: np.ndarray) -> Image.Image:
    """Class ids as a picture whose pixel values are the ids: palette mode up to 256 classes, else 16-bit grey."""
    if labels.dtype != np.uint8:
        return Image.fromarray(labels.astype(np.uint16))
    table = np.zeros((256, 3), np.uint8)
    table[:] = IGNORE_COLOR
    table[: len(palette)] = palette
    image = Image.fromarray(labels)
    image.putpalette(table.tobytes())
    return image


def map_summary(prediction: Prediction, predictor: Predictor) -> dict[str, Any]:
    """Numbers for the record: class shares or quantiles of the depth, and the mean uncertainty."""
    summary: dict[str, Any] = {}
    if prediction.labels is not None:
        ids, counts = np.unique(prediction.labels, return_counts=True)
        shares = counts / prediction.labels.size
        order = np.argsort(-shares, kind="stable")
        summary["class_shares"] = {predictor.id2label.get(int(ids[i]), str(ids[i])): round(float(shares[i]), 6) for i in order}
    if prediction.depth_m is not None:
        quantiles = np.quantile(prediction.depth_m, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1])
        names = ("min", "q05", "q25", "median", "q75", "q95", "max")
        summary["depth_m"] = {name: round(float(value), 4) for name, value in zip(names, quantiles)}
        summary["depth_png_units_per_m"] = depth_png_scale(predictor.model.config.max_depth)
    if prediction.uncertainty is not None:
        mean = float(f"{prediction.uncertainty.mean(dtype=np.float64):.6g}")
        unit = "share of the depth" if prediction.uncertainty_kind == "sample_variance" else "0 to 1"
        units = uncertainty_png_units(prediction)
        summary["uncertainty"] = {"kind": prediction.uncertainty_kind, "mean": mean, "unit": unit, "png_units_per_1": units}
    return summary
