"""Predicts bird's-eye-view maps of samples of a data set, and shows them: views, layers, uncertainty, truth, the denoising."""

from collections.abc import Callable, Sequence
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
from noise2map.metrics import bev_counts, bev_scores
from noise2map.models.decoding import DecodingOptions, Dials
from noise2map.report import bev_panels
from noise2map.report.animation import animation_bytes
from noise2map.report.panels import Cell, uncertainty_limit
from noise2map.runs.files import check_writable, write_bytes, write_json
from noise2map.tasks.bev import map_extent, open_bev_dataset

SURROUND = "freedoom-surround"

ANIMATIONS = ("gif", "webp", "none")

_HOLD_MS = 2500


@dataclass
class BevPredictionJob:
    """What to predict; see ``noise2map predict-bev --help``.

    Attributes:
        samples: Tokens of samples, or their numbers in the split.
        model: Folder of a checkpoint, or hub id.
        out: Folder to write to.
        dataset: ``"nuscenes"`` or ``"freedoom-surround"``.
        root: Folder of the data; None for the shipped samples of Freedoom surround.
        split: Its split; None for the one that scores are reported for.
        dials: Steps, noise samples, averaging, sampler, seed.
        threshold: Probability from which a layer counts as present.
        animation: ``"gif"``, ``"webp"`` or ``"none"``.
        animation_steps: Denoising steps of the animation.
        device: Device by name.
        dtype: Floating-point type by name.

    Raises:
        ValueError: If a value cannot work.
    """

    samples: Sequence[str]
    model: str
    out: Path
    dataset: str
    root: Path | None = None
    split: str | None = None
    dials: Dials = field(default_factory=Dials)
    threshold: float = 0.5
    animation: str = "gif"
    animation_steps: int = 10
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError("name at least one sample: its token, or its number in the split")
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold must be between 0 and 1, got {self.threshold}")
        if self.animation not in ANIMATIONS:
            raise ValueError(f"animation must be one of {', '.join(ANIMATIONS)}, got {self.animation!r}")
        if self.animation_steps < 2:
            raise ValueError(f"animation_steps must be at least 2, got {self.animation_steps}")


@dataclass
class BevPrediction:
    """The map of one sample, arrays on its grid ``[x, y]``: rows to the right, columns forward.

    Attributes:
        id: The sample's token.
        probabilities: Of each layer ``(K, X, Y)`` float32.
        uncertainty: ``(K, X, Y)`` float32 in [0, 1].
        uncertainty_kind: What it is.
        truth: ``(K, X, Y)`` uint8 of 0, 1 and 255 (not known).
    """

    id: str
    probabilities: np.ndarray
    uncertainty: np.ndarray
    uncertainty_kind: str
    truth: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """Cells whose truth is known, ``(X, Y)``."""
        return ~(self.truth == bev_panels.UNKNOWN).any(0)

    def mean_iou(self, threshold: float) -> float:
        """Mean IoU of the layers that are there, of this sample alone, cut at a probability."""
        cuts = (threshold, 0.5)
        counts = bev_counts(torch.from_numpy(self.probabilities)[None], torch.from_numpy(self.truth)[None], cuts)[0]
        iou = bev_scores(counts, cuts)["IoU"][0]
        here = torch.from_numpy((self.truth == 1).any((1, 2)))
        return float(iou[here].mean()) if bool(here.any()) else float("nan")

    def scores(self) -> dict[str, float]:
        """Mean IoU at 0.5."""
        return {"mIoU_50": self.mean_iou(0.5)}


def predict_bev(job: BevPredictionJob, say: Callable[[str], object] = lambda text: None) -> list[Path]:
    """Predict samples and write, for each, ``panel.png``, ``map.npz``, ``denoising.gif`` into a folder of its name.

    Args:
        job: What to predict.
        say: Called with a line for each sample.

    Returns:
        The folders written.

    Raises:
        OSError: If data or the model is missing, or a file cannot be written.
        ValueError: If a sample is not in the split, or a value cannot work.
    """
    check_writable(job.out)
    device = pick_device(job.device)
    model, processor = load_model(job.model, device, pick_dtype(job.dtype), ("noise2map-bev",))
    dials = job.dials.resolved(model.config)
    split = evaluation_split(job.dataset) if job.split is None else job.split
    shipped = job.root is None and job.dataset == SURROUND
    dataset = open_bev_dataset(job.dataset, SURROUND_SAMPLES_ROOT if shipped else job.root, split, model, processor)
    places = [find_sample(dataset, name) for name in job.samples]
    folders = []
    for place in dict.fromkeys(places):
        sample = dataset[place]
        prediction, steps = _predict(model, processor, sample, dials, job)
        folder = job.out / str(sample["id"])
        _write(folder, sample, prediction, steps, model, dials, job)
        folders.append(folder)
        score = prediction.scores()["mIoU_50"]
        say(f"{sample['id']}: mIoU {100 * score:.1f} % of this sample's layers at 0.5, in {folder}")
    return folders


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


def _predict(model: Any, processor: Any, sample: dict[str, Any], dials: Dials, job: BevPredictionJob) -> tuple[BevPrediction, list]:
    features = encode_sample(model, processor, sample)
    prediction = predict_map(model, features, sample, dials)
    wanted = job.animation != "none" and model.config.diffusion
    return prediction, denoising_steps(model, features, sample, job.animation_steps, dials) if wanted else []


@torch.no_grad()
def encode_sample(model: Any, processor: Any, sample: dict[str, Any]) -> torch.Tensor:
    """What a model makes of the sensors of one sample, the input of any number of decodings."""
    inputs = dict(processor([sample]))
    inputs.pop("labels")
    return model.encode_sensors(**send_to_device(inputs, model.device))


@torch.no_grad()
def predict_map(model: Any, features: torch.Tensor, sample: dict[str, Any], options: DecodingOptions) -> BevPrediction:
    """The map of an encoded sample, with the truth; seed and token fix the noise."""
    out = options.decode(model, features, [str(sample["id"])])
    kind = model.config.uncertainty or model.default_uncertainty
    uncertainty = (out.uncertainty if out.uncertainty is not None else out.uncertainties["entropy"])[0]
    return BevPrediction(
        str(sample["id"]),
        out.probabilities[0].float().cpu().numpy(),
        uncertainty.float().clamp(0, 1).cpu().numpy(),
        kind if out.uncertainty is not None else "entropy",
        np.asarray(sample["labels"], np.uint8),
    )


@torch.no_grad()
def denoising_steps(model: Any, features: torch.Tensor, sample: dict[str, Any], num_steps: int, dials: DecodingOptions) -> list:
    """The steps of one denoising of an encoded sample, from one noise."""
    slow = replace(dials, num_inference_steps=num_steps, ensemble_size=1, average="last")
    return slow.decode(model, features, [str(sample["id"])], output_steps=True).steps


def _write(
    folder: Path, sample: dict[str, Any], prediction: BevPrediction, steps: list, model: Any, dials: Dials, job: BevPredictionJob
) -> None:
    id2label = {int(index): str(name) for index, name in model.config.id2label.items()}
    palette = bev_panels.layer_palette(id2label)
    picture = draw_prediction(sample, prediction, id2label, palette, map_extent(model.config)["size_m"], job.threshold)
    arrays = BytesIO()
    np.savez_compressed(
        arrays,
        probabilities=prediction.probabilities.astype(np.float16),
        layers=prediction.probabilities >= job.threshold,
        uncertainty=prediction.uncertainty.astype(np.float16),
        truth=prediction.truth,
    )
    write_bytes(folder / "map.npz", arrays.getvalue())
    if steps:
        frames = bev_panels.denoising_pictures(steps, prediction.known, palette, id2label, job.threshold)
        write_bytes(folder / f"denoising.{job.animation}", animation_bytes(frames, f".{job.animation}", 450, _HOLD_MS))
    write_bytes(folder / "panel.png", _png(picture))
    facts = {
        "sample": prediction.id,
        "model": job.model,
        "layers": id2label,
        "steps": dials.num_inference_steps,
        "ensemble": dials.ensemble_size,
        "average": dials.average,
        "sampler": dials.sampler,
        "seed": dials.seed,
        "threshold": job.threshold,
        "uncertainty": prediction.uncertainty_kind,
        "axes": "[layer, x, y]: x to the right of the car, y forward, the first cell lowest",
        **prediction.scores(),
    }
    write_json(folder / "prediction.json", facts)


def draw_prediction(
    sample: dict[str, Any],
    prediction: BevPrediction,
    id2label: dict[int, str],
    palette: np.ndarray,
    size_m: tuple[float, float],
    threshold: float = 0.5,
) -> Image.Image:
    """Views, LiDAR, map, truth, errors and uncertainty of a sample as one picture; the map covers ``size_m`` metres."""
    layers, known = prediction.probabilities >= threshold, prediction.known
    unsure = prediction.uncertainty.max(0)
    limit = uncertainty_limit(unsure[known]) if known.any() else 1.0
    score = prediction.mean_iou(threshold)
    maps = [
        bev_panels.map_cell("map", bev_panels.paint_layers(layers, palette, known), f"mIoU {score:.1%}"),
        bev_panels.map_cell("truth", bev_panels.paint_layers(prediction.truth, palette)),
        bev_panels.error_cell(layers, prediction.truth),
        bev_panels.uncertainty_map_cell(unsure, known, limit, prediction.uncertainty_kind.replace("_", " ")),
    ]
    views: list[Cell] = []
    if "images" in sample:
        views = bev_panels.view_cells([np.asarray(image.convert("RGB")) for image in sample["images"]], CAMERAS)
    if "points" in sample and len(sample["points"]):
        maps.append(bev_panels.map_cell("LiDAR from above", bev_panels.points_picture(sample["points"], size_m)))
    heading = f"{prediction.id} ({sample['location']})" if "location" in sample else prediction.id
    return bev_panels.bev_panel(views, maps, id2label, palette, heading)


def _png(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
