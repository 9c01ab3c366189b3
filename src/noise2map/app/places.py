"""A request for the bird's-eye view of a shipped place."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch

from noise2map.app.files import Files, with_all
from noise2map.app.limits import LIMITS, Limits, check_known, choice, number, whole_number
from noise2map.app.maps import MAX_FRAMES, SEED_RANGE, watched
from noise2map.data.freedoom import SURROUND_SAMPLES_ROOT
from noise2map.data.opening import evaluation_split
from noise2map.inference.bev import SURROUND, BevPrediction, draw_prediction, encode_sample, predict_map
from noise2map.inference.loading import load_model
from noise2map.models.decoding import AVERAGES, DecodingOptions
from noise2map.report import bev_panels
from noise2map.report.html import Page, image_uri
from noise2map.report.panels import Cell
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
class PlaceResult:
    """The map of a place, drawn.

    Attributes:
        html: The panel and the denoising, for the page.
        files: What can be downloaded.
        bytes: Memory that it takes, about.
    """

    html: str
    files: Files
    bytes: int


@torch.inference_mode()
def run_place(
    found: PlaceModel, fields: Mapping[str, Any], tick: Callable[[], object] = lambda: None, limits: Limits = LIMITS
) -> PlaceResult:
    """Predicts a place from above.

    Args:
        found: The model.
        fields: Place, steps, samples, average, seed, threshold.
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
    threshold = number(fields, "threshold", 0.5, 0.05, 0.95)
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
    panel = draw_prediction(sample, prediction, id2label, palette, size_m, threshold)
    page.cells([[Cell("views, map, truth, errors and uncertainty", np.asarray(panel))]])
    if shown:
        rows = bev_panels.denoising_cells(shown, prediction.known, palette, threshold, prediction.truth)
        page.player(rows, "The denoising, step by step", bev_panels.layer_legend(id2label, palette))
    files: Files = {"panel.png": lambda: encode_image(panel), "map.npz": lambda: _arrays(prediction, threshold)}
    return PlaceResult(page.body(), with_all(files), prediction.probabilities.nbytes * 3 + panel.width * panel.height * 3)


def _arrays(prediction: BevPrediction, threshold: float) -> bytes:
    buffer = BytesIO()
    np.savez_compressed(
        buffer,
        probabilities=prediction.probabilities.astype(np.float16),
        layers=prediction.probabilities >= threshold,
        uncertainty=prediction.uncertainty.astype(np.float16),
        truth=prediction.truth,
    )
    return buffer.getvalue()


def thumbnail_of(sample: Mapping[str, Any]) -> str:
    """The view ahead of a place as an address that holds the image itself."""
    return image_uri(np.asarray(sample["images"][1].convert("RGB").resize((160, 90))))
