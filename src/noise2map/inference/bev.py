"""Predicts bird's-eye-view maps of samples of a dataset, and shows them: views, layers, uncertainty, truth, the denoising."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from PIL import Image

from noise2map.data.freedoom import SURROUND_SAMPLES_ROOT
from noise2map.data.nuscenes import CAMERAS
from noise2map.data.opening import evaluation_split
from noise2map.inference.loading import load_model, pick_device, pick_dtype
from noise2map.inference.settings import config_settings, sampling_settings
from noise2map.metrics import bev_counts, bev_scores
from noise2map.models.decoding import MAX_STEPS, DecodingOptions
from noise2map.report import bev_panels
from noise2map.report.animation import animation_bytes
from noise2map.report.panels import Cell, uncertainty_limit
from noise2map.runs.files import encode_image, json_values, weights_checksum
from noise2map.runs.output_folder import OutputFolder
from noise2map.tasks.bev import map_extent, open_bev_dataset

SURROUND = "freedoom-surround"

GUESS_CALLS = 3
MAX_GUESSES = 64
ANIMATIONS = ("gif", "webp", "none")

_HOLD_MS = 2500
_DECODING = ("num_inference_steps", "ensemble_size", "average", "sampler", "seed")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BevPredictionOptions:
    """Options of a prediction; see ``noise2map predict-bev --help``.

    Attributes:
        samples: Tokens of samples, or their numbers in the split.
        model: Folder of a checkpoint, or hub id.
        out: Folder to write to.
        dataset: ``"nuscenes"`` or ``"freedoom-surround"``.
        root: Folder of the data; None for the shipped samples of Freedoom surround.
        split: Its split; None for the one that scores are reported for.
        decoding: Steps, noise samples, averaging, sampler, seed.
        threshold: Probability from which a layer counts as present; None for the processor's of each layer, 0.5 without any.
        cells: ``"visible"``, or ``"all"``: of freedoom-surround, to show and score what nobody can see, too.
        guesses: Whole maps to draw of each sample that may be true, beside the likely one; 0 for none.
        animation: ``"gif"``, ``"webp"`` or ``"none"``.
        animation_steps: Denoising steps of the animation, 2 to 1000.
        device: Device by name.
        dtype: Floating-point type by name.
        overwrite: Replace what was made with other settings.

    Raises:
        ValueError: If a value cannot work.
    """

    samples: Sequence[str]
    model: str
    out: Path
    dataset: str
    root: Path | None = None
    split: str | None = None
    decoding: DecodingOptions = field(default_factory=DecodingOptions)
    threshold: float | None = None
    cells: str = "visible"
    guesses: int = 0
    animation: str = "gif"
    animation_steps: int = 10
    device: str = "auto"
    dtype: str = "float32"
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError("name at least one sample: its token, or its number in the split")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(f"threshold must be between 0 and 1, got {self.threshold}")
        if self.cells != "visible" and self.dataset != SURROUND:
            raise ValueError(f"cells is {self.cells!r}; {self.dataset} labels every cell, expected 'visible'")
        if not 0 <= self.guesses <= MAX_GUESSES:
            raise ValueError(f"guesses must be from 0 to {MAX_GUESSES}, got {self.guesses}")
        if self.animation not in ANIMATIONS:
            raise ValueError(f"animation must be one of {', '.join(ANIMATIONS)}, got {self.animation!r}")
        if not 2 <= self.animation_steps <= MAX_STEPS:
            raise ValueError(f"animation_steps must be from 2 to {MAX_STEPS}, got {self.animation_steps}")


@dataclass
class BevPrediction:
    """The map of one sample, arrays on its grid ``[x, y]``: rows to the right, columns forward.

    Attributes:
        id: The sample's token.
        probabilities: Of each layer ``(K, X, Y)`` float32.
        uncertainty: ``(K, X, Y)`` float32 in [0, 1].
        uncertainty_kind: What it is.
        truth: ``(K, X, Y)`` uint8 of 0, 1 and 255 (not known).
        unseen: Cells that nobody sees but whose truth is known, ``(X, Y)`` bool; None where the sample does not say.
        guesses: Whole maps that may be true, ``(R, K, X, Y)`` bool, of `guess_maps`; None where none were drawn.
    """

    id: str
    probabilities: np.ndarray
    uncertainty: np.ndarray
    uncertainty_kind: str
    truth: np.ndarray
    unseen: np.ndarray | None = None
    guesses: np.ndarray | None = None

    @property
    def known(self) -> np.ndarray:
        """Cells whose truth is known, ``(X, Y)``."""
        return ~(self.truth == bev_panels.UNKNOWN).any(0)

    @property
    def largest_uncertainty(self) -> np.ndarray:
        """That of the most uncertain layer in each cell, ``(X, Y)``."""
        return self.uncertainty.max(0)

    @property
    def uncertainty_limit(self) -> float:
        """Where the color scale of `largest_uncertainty` ends: what cannot be seen does not count."""
        return uncertainty_limit(self.largest_uncertainty[self.known]) if self.known.any() else 1.0

    def mean_iou(self, threshold: float | Sequence[float]) -> float:
        """Mean IoU of the layers that are there, of this sample alone, cut at a probability or each at its own."""
        counts = bev_counts(torch.from_numpy(self.probabilities)[None], torch.from_numpy(self.truth)[None], (threshold,))[0]
        iou = bev_scores(counts, (0.5,))["IoU"][0]
        here = torch.from_numpy((self.truth == 1).any((1, 2)))
        return float(iou[here].mean()) if bool(here.any()) else float("nan")

    def scores(self) -> dict[str, float]:
        """Mean IoU at 0.5."""
        return {"mIoU_50": self.mean_iou(0.5)}


def predict_bev(options: BevPredictionOptions) -> list[Path]:
    """Predict samples and write, for each, ``panel.png``, ``map.npz``, ``denoising.gif`` into a folder of its name.

    The folder keeps the contract of :class:`noise2map.runs.output_folder.OutputFolder`: samples that are done are kept, results
    of other settings and foreign files refused.

    Args:
        options: What to predict.

    Returns:
        The folders of the samples.

    Raises:
        OSError: If data or the model is missing, or a file cannot be written.
        ValueError: If a sample is not in the split, a value cannot work, or the folder is refused.
    """
    with OutputFolder(options.out, overwrite=options.overwrite) as out:
        device = pick_device(options.device)
        model, processor = load_model(options.model, device, pick_dtype(options.dtype), ("noise2map-bev",))
        decoding = options.decoding.resolved(model.config)
        split = evaluation_split(options.dataset) if options.split is None else options.split
        shipped = options.root is None and options.dataset == SURROUND
        root = SURROUND_SAMPLES_ROOT if shipped else options.root
        dataset = open_bev_dataset(options.dataset, root, split, model, processor, options.cells)
        places = list(dict.fromkeys(find_sample(dataset, name) for name in options.samples))
        thresholds = shown_thresholds(model, processor, options.threshold)
        out.use(_settings(options, decoding, split, model, thresholds))
        for place in places:
            sample = dataset[place]
            token = str(sample["id"])
            if out.is_done(token, {"sample": token}):
                logger.info("%s: done before, in %s", token, options.out / token)
                continue
            features = encode_sample(model, processor, sample)
            prediction = predict_map(model, features, sample, decoding)
            if options.guesses:
                prediction.guesses = guess_maps(model, features, sample, options.guesses, decoding)
            wanted = options.animation != "none" and model.config.diffusion
            steps = denoising_steps(model, features, sample, options.animation_steps, decoding) if wanted else []
            files = _files(sample, prediction, steps, model, decoding, options, thresholds)
            paths = {name.partition(".")[0]: f"{token}/{name}" for name in files}
            line = {"id": token, "source": {"sample": token}, "files": paths, **json_values(prediction.scores())}
            out.write(line, {f"{token}/{name}": content for name, content in files.items()})
            score = prediction.scores()["mIoU_50"]
            logger.info("%s: mIoU %.1f %% of this sample's layers at 0.5, in %s", token, 100 * score, options.out / token)
        return [options.out / str(dataset[place]["id"]) for place in places]


def shown_thresholds(model: Any, processor: Any, threshold: float | None = None) -> float | list[float]:
    """Probability from which layers are shown: what is asked for, or else the processor's of each layer, or else 0.5.

    Raises:
        ValueError: If the processor has another number of thresholds than the model layers.
    """
    if threshold is None and processor.layer_thresholds is not None:
        processor.thresholds_of(model.config.num_labels)
        return list(processor.layer_thresholds)
    return 0.5 if threshold is None else threshold


def film_thresholds(model: Any, thresholds: float | list[float]) -> float | list[float]:
    """Thresholds of a film of the denoising: where steps lead to one whole map that may be true, each layer's is 0.5."""
    whole = isinstance(thresholds, list) and model.config.diffusion and model.config.matched_filter
    return 0.5 if whole else thresholds


def _settings(
    options: BevPredictionOptions, decoding: DecodingOptions, split: str, model: Any, thresholds: float | list[float]
) -> dict[str, Any]:
    """Settings that decide the files of a sample."""
    return {
        "command": "predict-bev",
        "model": options.model,
        "weights": weights_checksum(model),
        "dataset": options.dataset,
        "root": "shipped" if options.root is None else os.path.abspath(options.root),
        "split": split,
        **config_settings(model.config),
        **{name: getattr(decoding, name) for name in _DECODING},
        **sampling_settings(options.decoding, decoding, model.config),
        "threshold": thresholds,
        "cells": options.cells,
        "guesses": options.guesses,
        "animation": options.animation,
        "animation_steps": options.animation_steps,
        "dtype": options.dtype,
    }


def find_sample(dataset: Any, name: str) -> int:
    """Place of a sample by its token, or by its number in the split.

    Raises:
        ValueError: If there is none.
    """
    if not name.isdecimal():
        return dataset.index_of(name)
    if int(name) >= len(dataset):
        raise ValueError(f"sample {name} is not in the split: it has {len(dataset)}, numbered from 0")
    return int(name)


@torch.no_grad()
def encode_sample(model: Any, processor: Any, sample: dict[str, Any]) -> torch.Tensor:
    """Features of the sensors of one sample, the input of any number of decodings."""
    inputs = dict(processor([sample]))
    inputs.pop("labels")
    return model.encode_sensors(**send_to_device(inputs, model.device))


@torch.no_grad()
def predict_map(model: Any, features: torch.Tensor, sample: dict[str, Any], decoding: DecodingOptions) -> BevPrediction:
    """The map of an encoded sample, with the truth; seed and token fix the noise."""
    out = decoding.decode(model, features, [str(sample["id"])])
    kind = model.config.uncertainty or model.default_uncertainty
    uncertainty = (out.uncertainty if out.uncertainty is not None else out.uncertainties["entropy"])[0]
    return BevPrediction(
        str(sample["id"]),
        out.probabilities[0].float().cpu().numpy(),
        uncertainty.float().clamp(0, 1).cpu().numpy(),
        kind if out.uncertainty is not None else "entropy",
        np.asarray(sample["labels"], np.uint8),
        None if "visibility" not in sample else np.asarray(sample["visibility"]) > 0,
    )


@torch.no_grad()
def guess_maps(model: Any, features: torch.Tensor, sample: dict[str, Any], count: int, decoding: DecodingOptions) -> np.ndarray:
    """Whole maps that may be true, drawn by noise that is smooth over the map; a model that reads its map mends them by two calls.

    Args:
        model: The model; further calls of one without ``matched_filter`` would only draw all maps to the likeliest one.
        features: Of `encode_sample`.
        sample: The sample; its token and the seed fix the noise.
        count: How many.
        decoding: Gives the seed and the sampler.

    Returns:
        Layers ``(count, K, X, Y)`` bool.
    """
    calls = GUESS_CALLS if model.config.matched_filter and model.config.diffusion else 1
    options = DecodingOptions(
        num_inference_steps=calls, ensemble_size=count, sampling="field", sampler=decoding.sampler, seed=decoding.seed
    )
    out = options.resolved(model.config).decode(model, features, [str(sample["id"])], output_samples=True)
    return (out.samples[0] > 0).cpu().numpy()


@torch.no_grad()
def denoising_steps(model: Any, features: torch.Tensor, sample: dict[str, Any], num_steps: int, decoding: DecodingOptions) -> list:
    """The steps of one denoising of an encoded sample, from one noise."""
    chosen: dict[str, Any] = {"num_inference_steps": num_steps, "ensemble_size": 1, "average": "last"}
    slow = replace(decoding, sampling="diffusion", field_smoothness=None, **chosen)
    return slow.decode(model, features, [str(sample["id"])], output_steps=True).steps


def _files(
    sample: dict[str, Any],
    prediction: BevPrediction,
    steps: list,
    model: Any,
    decoding: DecodingOptions,
    options: BevPredictionOptions,
    thresholds: float | list[float],
) -> dict[str, bytes]:
    """The files of one sample, name to content."""
    id2label = {int(index): str(name) for index, name in model.config.id2label.items()}
    palette = bev_panels.layer_palette(id2label)
    size_m = map_extent(model.config)["size_m"]
    arrays = BytesIO()
    further = {"unseen": prediction.unseen, "guesses": prediction.guesses}
    np.savez_compressed(
        arrays,
        **{name: value for name, value in further.items() if value is not None},
        probabilities=prediction.probabilities.astype(np.float16),
        layers=bev_panels.cut_layers(prediction.probabilities, thresholds),
        uncertainty=prediction.uncertainty.astype(np.float16),
        truth=prediction.truth,
    )
    files = {"map.npz": arrays.getvalue()}
    if steps:
        suffix = f".{options.animation}"
        cuts = film_thresholds(model, thresholds)
        frames = bev_panels.denoising_animation(steps, prediction.known, palette, id2label, cuts)
        files[f"denoising{suffix}"] = animation_bytes(frames, suffix, 450, _HOLD_MS)
    files["panel.png"] = encode_image(draw_prediction(sample, prediction, id2label, palette, size_m, thresholds))
    facts = {
        "sample": prediction.id,
        "model": options.model,
        "layers": id2label,
        "steps": decoding.num_inference_steps,
        "ensemble": decoding.ensemble_size,
        "average": decoding.average,
        "sampler": decoding.sampler,
        "seed": decoding.seed,
        "threshold": thresholds,
        "cells": options.cells,
        "uncertainty": prediction.uncertainty_kind,
        "axes": "[layer, x, y]: x to the right of the car, y forward, the first cell lowest",
        **json_values(prediction.scores()),
    }
    files["prediction.json"] = (json.dumps(facts, indent=2) + "\n").encode()
    return files


def draw_prediction(
    sample: dict[str, Any],
    prediction: BevPrediction,
    id2label: dict[int, str],
    palette: np.ndarray,
    size_m: tuple[float, float],
    threshold: float | Sequence[float] = 0.5,
) -> Image.Image:
    """Views, LiDAR, map, truth, errors and uncertainty of a sample as one image; the map covers ``size_m`` metres."""
    views, maps = prediction_cells(sample, prediction, palette, size_m, threshold)
    heading = f"{prediction.id} ({sample['location']})" if "location" in sample else prediction.id
    guesses, unknown = guess_cells(prediction, palette), not bool(prediction.known.all())
    return bev_panels.bev_panel(views, maps, id2label, palette, heading, guesses=guesses, unknown=unknown)


def guess_cells(prediction: BevPrediction, palette: np.ndarray, whose: str = "") -> list[Cell]:
    """Whole maps that may be true, and whose they are; where the sample says what nobody sees, the rest is pale."""
    seen, note = (None, "") if prediction.unseen is None else (~prediction.unseen, "pale: seen")
    return [
        bev_panels.map_cell(f"{whose}guess {index + 1}", bev_panels.paint_layers(guess, palette, prediction.known, seen), note)
        for index, guess in enumerate([] if prediction.guesses is None else prediction.guesses)
    ]


def prediction_cells(
    sample: dict[str, Any],
    prediction: BevPrediction,
    palette: np.ndarray,
    size_m: tuple[float, float],
    threshold: float | Sequence[float] = 0.5,
) -> tuple[list[Cell], list[Cell]]:
    """What `draw_prediction` shows: the views, none where there are no cameras, and the maps."""
    layers, known = bev_panels.cut_layers(prediction.probabilities, threshold), prediction.known
    limit = prediction.uncertainty_limit
    kind = prediction.uncertainty_kind.replace("_", " ")
    score = prediction.mean_iou(threshold)
    maps = [
        bev_panels.map_cell("map", bev_panels.paint_layers(layers, palette, known), f"mIoU {score:.1%}"),
        bev_panels.map_cell("truth", bev_panels.paint_layers(prediction.truth, palette)),
        bev_panels.error_cell(layers, prediction.truth),
        bev_panels.uncertainty_map_cell(prediction.largest_uncertainty, known, limit, kind),
    ]
    views: list[Cell] = []
    if "images" in sample:
        views = bev_panels.view_cells([np.asarray(image.convert("RGB")) for image in sample["images"]], CAMERAS)
    if "points" in sample and len(sample["points"]):
        maps.append(bev_panels.map_cell("LiDAR from above", bev_panels.points_image(sample["points"], size_m)))
    return views, maps
