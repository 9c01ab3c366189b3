"""A prediction as files: class ids or metres in plain formats, uncertainty, a panel to look at, numbers for the record."""

import math
from dataclasses import asdict
from typing import Any

import numpy as np
from PIL import Image

from noise2map.models.decoding import PredictionOptions
from noise2map.report.panels import render
from noise2map.runs.files import encode_arrays, encode_image
from noise2map.runs.strips import by_strips
from noise2map.tasks.prediction import Prediction

LEFT_OUT = "left_out"
"""Name, in the record of a prediction, of the kinds of files that were not asked for: ``"panels"``, ``"arrays"``."""

_FULL_16_BITS = 65535


def uncertainty_png_units(prediction: Prediction) -> int:
    """Units of 1 of the 16-bit PNG of an uncertainty: 65535, or for depth the power of ten that fills the range.

    Samples of a depth model often agree within a thousandth of the depth, which is some 60 units of 65535.
    """
    if prediction.task.has_classes or prediction.uncertainty is None:
        return _FULL_16_BITS
    greatest = float(prediction.uncertainty.max())
    return 10 ** min(9, math.floor(math.log10(_FULL_16_BITS / greatest))) if greatest > 0 else _FULL_16_BITS


def encode_prediction(
    prediction: Prediction, name: str, config: Any, options: PredictionOptions, *, panel: bool = True, arrays: bool = True
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The record of a prediction, and its files.

    The files are ``labels`` (palette PNG of ids), ``depth`` (16-bit PNG) or ``normals`` (RGB PNG); of the latter two ``arrays``
    (npz with ``depth_m`` or ``normals``, ``uncertainty`` and where the model predicts one ``scale`` (of log depth) or
    ``scale_degrees`` in float32 as they were computed, at the processed size);
    ``uncertainty`` (16-bit PNG, see `uncertainty_png_units`) where it is defined; with an interval the
    images of `ImageTask.interval_images` and ``interval`` (npz, at the size of the image); ``panel``.

    Args:
        prediction: The maps of one image, with the image.
        name: The files' name without suffix.
        config: Of the model: it knows the range of depth and the names of classes.
        options: What the map was predicted with.
        panel: Whether to draw image, map and uncertainty side by side.
        arrays: Whether to write floats, too.

    Returns:
        JSON values: id, sizes, options, class shares or quantiles of the depth, mean uncertainty, what was `LEFT_OUT` on
        request, and ``files``, kind to path;
        and the content of the files, path to bytes.
    """
    heading, units = _describe(prediction, options), uncertainty_png_units(prediction)
    task, uncertainty = prediction.task, prediction.uncertainty
    files = task.files(prediction, name, config)
    summary = task.summary(prediction, config)
    if arrays and any(kind != "uncertainty" for kind in prediction.computed):
        files["arrays"] = (f"{task.stored_folder}/{name}.npz", encode_arrays(prediction.computed))
    if uncertainty is not None:
        scaled = by_strips(
            lambda part: np.rint(part.astype(np.float64) * units).clip(0, _FULL_16_BITS).astype(np.uint16), uncertainty
        )
        files["uncertainty"] = (f"uncertainty/{name}.png", encode_image(Image.fromarray(scaled)))
        kind = prediction.uncertainty_kind
        summary["uncertainty"] = {
            "kind": kind,
            "mean": float(f"{uncertainty.mean(dtype=np.float64):.6g}"),
            "unit": "share of the depth" if task.in_metres and kind == "sample_variance" else "0 to 1",
            "png_units_per_1": units,
        }
    if prediction.interval:
        for kind, values in task.interval_images(prediction, config).items():
            files[kind] = (f"{kind}/{name}.png", encode_image(Image.fromarray(values)))
        if arrays:
            files["interval"] = (f"interval/{name}.npz", encode_arrays(prediction.interval))
    if panel:
        drawn = render(task.panel(prediction, prediction.image, heading, prediction.uncertainty_title))
        files["panel"] = (f"panels/{name}.png", encode_image(drawn))
    left_out = [kind for kind, written in (("panels", panel), ("arrays", arrays)) if not written]
    record = {
        "id": prediction.id,
        "size": [prediction.image.shape[1], prediction.image.shape[0]],
        "processed_size": list(prediction.processed_size),
        "num_steps": prediction.num_steps,
        "options": asdict(options),
        **({} if prediction.tiles is None else {"tiles": prediction.tiles.record()}),
        **summary,
        **({LEFT_OUT: left_out} if left_out else {}),
        "files": {kind: path for kind, (path, _) in files.items()},
    }
    return record, dict(files.values())


def _describe(prediction: Prediction, options: PredictionOptions) -> str:
    steps, samples = prediction.num_steps, options.ensemble_size or 1
    counted = f"{steps} step{'s' if steps > 1 else ''}" + (" (auto)" if options.num_inference_steps == "auto" else "")
    return f"{prediction.id}  ·  {counted}, {samples} sample{'s' if samples > 1 else ''}, {options.average}  ·  seed {options.seed}"
