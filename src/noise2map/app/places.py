"""A request for the bird's-eye view of a shipped place."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch

from noise2map.app.files import SETTINGS, Files, settings_bytes, with_all
from noise2map.app.limits import LIMITS, Limits, check_known, choice, number, whole_number
from noise2map.app.maps import MAX_FRAMES, SEED_RANGE, watched
from noise2map.app.pixel import PixelReport, color_of
from noise2map.data.freedoom import SURROUND_SAMPLES_ROOT
from noise2map.data.opening import evaluation_split
from noise2map.inference.bev import (
    SURROUND,
    BevPrediction,
    draw_prediction,
    encode_sample,
    film_thresholds,
    predict_map,
    prediction_cells,
    shown_thresholds,
)
from noise2map.inference.loading import load_model
from noise2map.models.decoding import AVERAGES, DecodingOptions
from noise2map.report import bev_panels
from noise2map.report.html import Page, image_uri
from noise2map.runs.files import encode_image
from noise2map.tasks.bev import map_extent, open_bev_dataset

_FIELDS = ("model", "place", "steps", "samples", "average", "seed", "threshold")
MISSING = "The bird's-eye view needs shapely and OpenCV: pip install 'noise2map[app]'."


@dataclass
class PlaceModel:
    """A model of the bird's-eye view with the shipped places as it needs them."""

    name: str
    model: Any
    processor: Any
    dataset: Any

    @classmethod
    def load(cls, name: str, device: torch.device) -> "PlaceModel":
        """Loads a model.

        Raises:
            ImportError: If what draws the true maps is not installed.
            OSError: If the model is missing.
            ValueError: If it is none of the bird's-eye view.
        """
        model, processor = load_model(name, device, kinds=("noise2map-bev",))
        try:
            dataset = open_bev_dataset(SURROUND, SURROUND_SAMPLES_ROOT, evaluation_split(SURROUND), model, processor)
        except ImportError as error:
            raise ImportError(MISSING) from error
        return cls(name, model, processor, dataset)


@dataclass
class PlaceMap:
    """The map of a place, for clicks.

    Attributes:
        prediction: Probabilities, uncertainty and truth of the layers.
        names: Of the layers.
        palette: Their colors, ``(K, 3)`` uint8.
        size_m: What the map covers to the right and forward, metres; the car stands in its middle.
        threshold: Probability from which a layer counts as present, of all or of each.
    """

    prediction: BevPrediction
    names: dict[int, str]
    palette: np.ndarray
    size_m: tuple[float, float]
    threshold: float | list[float]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the map as it is shown, one pixel for each cell, forward up."""
        return self.prediction.probabilities.shape[1], self.prediction.probabilities.shape[2]

    @property
    def limit(self) -> float:
        """Where the color scale of the uncertainty ends."""
        return self.prediction.uncertainty_limit

    @property
    def uncertainty_title(self) -> str:
        """``"uncertainty (entropy)"``."""
        return f"uncertainty ({self.prediction.uncertainty_kind.replace('_', ' ')})"

    def report(self, x: int, y: int) -> PixelReport:
        """What the map says about a cell: the probability of every layer, the likeliest first.

        Args:
            x: Column, from 0.
            y: Row from the top, which is forward.

        Raises:
            ValueError: If there is no such cell.
        """
        width, height = self.size
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"there is no cell {x}, {y} in a map of {width} x {height}")
        cell = ..., x, height - 1 - y
        p, truth = self.prediction.probabilities[cell], self.prediction.truth[cell]
        present = [self._name(k) for k in np.flatnonzero(bev_panels.cut_layers(p, self.threshold))]
        report = PixelReport(x, y, ", ".join(present) or "nothing", what="cell")
        order = [int(k) for k in np.argsort(-p, kind="stable")]
        report.bars = [(self._name(k), float(p[k]), color_of(self.palette, k)) for k in order]
        right, forward = ((place + 0.5) / count - 0.5 for place, count in zip((x, height - 1 - y), self.size))
        report.facts.append(("right, forward", f"{right * self.size_m[0]:+.1f} m, {forward * self.size_m[1]:+.1f} m"))
        known = not (truth == bev_panels.UNKNOWN).any()
        true = ", ".join(self._name(k) for k in np.flatnonzero(truth == 1)) or "nothing"
        report.facts.append(("truth", true if known else "cannot be seen"))
        report.facts.append((self.uncertainty_title, f"{float(self.prediction.largest_uncertainty[cell]):.3f}"))
        return report

    def layers(self) -> dict[str, np.ndarray]:
        """Truth, map and uncertainty painted one over the other, ``(Y, X, 3)`` uint8, by the names of the page's layers."""
        found, known = self.prediction, self.prediction.known
        return {
            "image": bev_panels.paint_layers(found.truth, self.palette),
            "map": bev_panels.paint_layers(bev_panels.cut_layers(found.probabilities, self.threshold), self.palette, known),
            "uncertainty": bev_panels.paint_uncertainty(found.largest_uncertainty, known, self.limit),
        }

    def _name(self, layer: Any) -> str:
        return self.names[int(layer)].replace("_", " ")


@dataclass
class PlaceResult:
    """The map of a place, or a drawn image, for the page.

    Attributes:
        html: The panel and the denoising.
        files: What can be downloaded.
        bytes: Memory that it takes, about.
        map: What can be clicked; None for a drawn image.
    """

    html: str
    files: Files
    bytes: int
    map: PlaceMap | None = None


@torch.inference_mode()
def run_place(
    found: PlaceModel, fields: Mapping[str, Any], tick: Callable[[], object] = lambda: None, limits: Limits = LIMITS
) -> PlaceResult:
    """Predicts a place from above.

    Args:
        found: The model.
        fields: Place, steps, samples, average, seed, threshold; without the last the model's own, of each layer.
        tick: Called before each call of the decoder; may raise to stop the run.
        limits: The most calls.

    Raises:
        ValueError: If a field cannot work.
    """
    check_known(fields, _FIELDS)
    place = whole_number(fields, "place", 0, 0, len(found.dataset) - 1)
    steps, samples = (whole_number(fields, name, 1, 1, limits.calls) for name in ("steps", "samples"))
    if steps * samples > limits.calls:
        raise ValueError(f"{steps} steps of {samples} samples are {steps * samples} calls; at most {limits.calls} are made here")
    asked = number(fields, "threshold", 0.5, 0.05, 0.95) if "threshold" in fields else None
    threshold = shown_thresholds(found.model, found.processor, asked)
    seed = whole_number(fields, "seed", 0, *SEED_RANGE)
    average = choice(fields, "average", AVERAGES)
    options = DecodingOptions(num_inference_steps=steps, ensemble_size=samples, average=average, seed=seed)
    decoding = options.resolved(found.model.config)
    sample, model = found.dataset[place], found.model
    with watched(model.decoder, tick):
        features = encode_sample(model, found.processor, sample)
        prediction = predict_map(model, features, sample, decoding)
        shown: list[Any] = []
        if model.config.diffusion and 1 < steps <= MAX_FRAMES:
            one = DecodingOptions(num_inference_steps=steps, ensemble_size=1, average="last", seed=seed)
            shown = one.decode(model, features, [str(sample["id"])], output_steps=True).steps
    id2label = {int(index): str(name) for index, name in model.config.id2label.items()}
    palette = bev_panels.layer_palette(id2label)
    size_m = map_extent(model.config)["size_m"]
    page = Page("")
    views, maps = prediction_cells(sample, prediction, palette, size_m, threshold)
    if views:
        page.cells([views[:3], views[3:]], "What the car sees")
    page.cells([maps], "Map, truth, errors and uncertainty", bev_panels.layer_legend(id2label, palette))
    panel = draw_prediction(sample, prediction, id2label, palette, size_m, threshold)
    if shown:
        cuts = threshold if asked is not None else film_thresholds(model, threshold)
        rows = bev_panels.denoising_cells(shown, prediction.known, palette, cuts, prediction.truth)
        page.player(rows, "The denoising, step by step", bev_panels.layer_legend(id2label, palette))
    files: Files = {"panel.png": lambda: encode_image(panel), "map.npz": lambda: _arrays(prediction, threshold)}
    said = {"model": fields.get("model", found.name), "place": str(sample["id"]), "steps": decoding.num_inference_steps}
    said |= {"samples": decoding.ensemble_size, "average": decoding.average, "threshold": threshold, "seed": seed}
    files[SETTINGS] = lambda: settings_bytes(said)
    size = prediction.probabilities.nbytes * 3 + panel.width * panel.height * 3
    return PlaceResult(page.body(), with_all(files), size, PlaceMap(prediction, id2label, palette, size_m, threshold))


def _arrays(prediction: BevPrediction, threshold: float | list[float]) -> bytes:
    buffer = BytesIO()
    np.savez_compressed(
        buffer,
        probabilities=prediction.probabilities.astype(np.float16),
        layers=bev_panels.cut_layers(prediction.probabilities, threshold),
        uncertainty=prediction.uncertainty.astype(np.float16),
        truth=prediction.truth,
    )
    return buffer.getvalue()


def thumbnail_of(sample: Mapping[str, Any]) -> str:
    """The view ahead of a place as an address that holds the image itself."""
    return image_uri(np.asarray(sample["images"][1].convert("RGB").resize((160, 90))))
