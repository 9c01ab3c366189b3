"""The demo's section of bird's-eye-view maps: shipped places seen all around, predicted by cameras alone and with LiDAR."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from noise2map.data.freedoom import SURROUND_SAMPLES_ROOT
from noise2map.data.nuscenes import CAMERAS
from noise2map.demo.section import DemoSection
from noise2map.inference.bev import (
    BevPrediction,
    denoising_steps,
    draw_prediction,
    encode_sample,
    film_thresholds,
    guess_cells,
    guess_maps,
    predict_map,
    shown_thresholds,
)
from noise2map.inference.loading import load_model, pick_device
from noise2map.metrics import bev_counts, bev_scores
from noise2map.models.decoding import DecodingOptions
from noise2map.report import bev_panels
from noise2map.report.animation import save_animation
from noise2map.report.html import GalleryItem, Page
from noise2map.report.panels import Cell, uncertainty_limit
from noise2map.report.tables import text_table, write_csv
from noise2map.runs.files import write_image
from noise2map.runs.words import counted
from noise2map.tasks.bev import map_extent, open_bev_dataset
from noise2map.zoo import available

SHIPPED = ("freedoom-bev-camera-completion-tiny", "freedoom-bev-completion-tiny")

NO_MODEL = "none"

STEP_COUNTS = (1, 3)

ANIMATION_STEPS = 10

GUESSES = 3

SHOWN = ("surround-test-000085", "surround-test-000143")  # much in view; picked by eye out of the shipped places

_FOLDER = "birds-eye-view"

_SENSORS = {"camera": "cameras", "lidar": "LiDAR"}

_GUESSED = (
    " Rows of guesses are about what nobody sees, the strong colors there: what is there, and three whole maps that a model holds "
    "possible, each drawn by noise that is smooth over the map and mended by two calls. They differ where nothing decides."
)

_FITTED = (
    "These small models are seldom half sure of anything but floor, so each layer is painted from the probability on at which it "
    "overlapped best on validation places: what they find is wider than it is, and what they cannot find is strewn about."
)
_HALF = "A layer is painted from a probability of 0.5 on, or from the one that the model's processor says."

logger = logging.getLogger(__name__)


@dataclass
class BevMaps:
    """One model and what it says of the shipped places.

    Attributes:
        name: As it was asked for.
        model: In evaluation mode.
        processor: Its processor.
        by_steps: Number of steps to a prediction for each place.
        trajectory: Steps of one denoising of the first place shown; empty without diffusion, and where no film is shown.
        whole: Place shown to its map of all cells, those too that nobody sees, with guesses; of a model that learnt to draw them.
    """

    name: str
    model: Any
    processor: Any
    by_steps: dict[int, list[BevPrediction]] = field(default_factory=dict)
    trajectory: list[Any] = field(default_factory=list)
    whole: dict[int, BevPrediction] = field(default_factory=dict)

    @property
    def draws(self) -> bool:
        """Whether further steps make one map that may be true, and not the likeliest one."""
        return bool(self.model.config.diffusion and self.model.config.matched_filter)

    @property
    def thresholds(self) -> float | list[float]:
        """Probability from which layers of a likely map are shown."""
        return shown_thresholds(self.model, self.processor)

    @property
    def sensors(self) -> str:
        """Sensors of the model, in words."""
        return " + ".join(_SENSORS[name] for name in self.model.config.sensors)


def open_bev_models(names: Sequence[str], device: str) -> list[BevMaps]:
    """Load the models of the section; none, and a warning, where this installation cannot show it.

    Args:
        names: Shipped names, folders or hub ids; ``("none",)`` for no such section.
        device: As in ``pick_device``.

    Raises:
        OSError: If a model is missing that does not come with the package.
        ValueError: If a model is for another task.
    """
    if list(names) == [NO_MODEL]:
        return []
    absent = sorted(set(names) & set(SHIPPED) - set(available()))
    if absent:
        logger.warning("bird's-eye view left out: %s is not in this installation", absent[0])
        return []
    if find_spec("shapely") is None or find_spec("cv2") is None:
        logger.warning('bird\'s-eye view left out: it needs shapely and OpenCV (the extra "bev")')
        return []
    where = pick_device(device)
    return [BevMaps(name, *load_model(name, where, torch.float32, ("noise2map-bev",))) for name in names]


class BevSection(DemoSection):
    """The shipped places from above, a row of maps for each model."""

    title = "Bird's-eye view"

    def __init__(self, models: Sequence[BevMaps], seed: int) -> None:
        """Take models from `open_bev_models`; with a place's token the seed fixes the noise."""
        self.models, self.seed = models, seed

    def show(self, page: Page, out: Path) -> list[str]:
        """Predict the shipped places; panels, animations and scores."""
        models = self.models
        samples: list[dict[str, Any]] = []
        for maps in models:
            samples = _predict(maps, self.seed, samples, film=maps is models[-1])
        shown = [index for token in SHOWN for index, sample in enumerate(samples) if sample["id"] == token]
        id2label, palette = _layers(models[0])
        page.section(
            self.title,
            "Six views around, and what the model makes of them from above, forward up, 25.6 m wide: overlapping layers of places "
            "on maps that were not trained on. Below the views a row for each model, so that what LiDAR adds can be seen. Grey "
            "cells are seen by no camera and do not count; `errors` are cells where any layer is wrong. "
            + (_FITTED if all(isinstance(maps.thresholds, list) for maps in models) else _HALF)
            + (_GUESSED if any(maps.whole for maps in models) else ""),
        )
        items = [_gallery_item(samples[index], index, models) for index in shown]
        page.gallery(items)
        last = models[-1]
        extent = map_extent(last.model.config)["size_m"]
        for index in shown:
            image = draw_prediction(
                samples[index], last.by_steps[max(last.by_steps)][index], id2label, palette, extent, last.thresholds
            )
            write_image(out / _FOLDER / f"{samples[index]['id']}.png", image)
        _show_denoising(page, last, samples[shown[0]], out)
        rows = bev_score_rows(models)
        heading = f"IoU of each layer as it is painted, in percent ({len(samples)} places)"
        page.table(rows, heading=heading)
        page.text(
            f"{len(samples)} places are few, chosen by eye for what is in view: the scores in the models' cards are on 270. "
            "`mIoU 0.5` paints every layer from a probability of 0.5 on, and `mIoU max` takes for each the best of seven "
            "thresholds on these very places, as published. "
            "`noise2map predict-bev 0 1 2 3 --model freedoom-bev-completion-tiny --cells all --guesses 4 --out bev` draws them all."
        )
        write_csv(out / "scores-birds-eye-view.csv", rows)
        return ["", f"Bird's-eye view: {heading}", text_table(rows, digits=3)]


def _predict(maps: BevMaps, seed: int, others: list[dict[str, Any]], *, film: bool) -> list[dict[str, Any]]:
    """Predict every place, with a film of the first one shown; samples come back with the points that only a later model reads."""
    dataset = open_bev_dataset("freedoom-surround", SURROUND_SAMPLES_ROOT, "test", maps.model, maps.processor)
    config = maps.model.config
    decoding = DecodingOptions(seed=seed).resolved(config)
    samples = [dataset[index] for index in range(len(dataset))]
    maps.by_steps = {steps: [] for steps in (STEP_COUNTS if config.diffusion and not maps.draws else (1,))}
    labelled = _all_cells(maps) if maps.draws else None
    for index, sample in enumerate(samples):
        features = encode_sample(maps.model, maps.processor, sample)
        if labelled is not None and sample["id"] in SHOWN:
            once = replace(decoding, num_inference_steps=1)
            maps.whole[index] = predict_map(maps.model, features, labelled[index], once)
            maps.whole[index].guesses = guess_maps(maps.model, features, sample, GUESSES, decoding)
        for steps, predictions in maps.by_steps.items():
            predictions.append(predict_map(maps.model, features, sample, replace(decoding, num_inference_steps=steps)))
        if film and config.diffusion and sample["id"] == SHOWN[0]:
            maps.trajectory = denoising_steps(maps.model, features, sample, ANIMATION_STEPS, decoding)
    return [{**before, **sample} for before, sample in zip(others, samples)] if others else samples


def _all_cells(maps: BevMaps) -> Any:
    return open_bev_dataset("freedoom-surround", SURROUND_SAMPLES_ROOT, "test", maps.model, maps.processor, "all")


def _layers(maps: BevMaps) -> tuple[dict[int, str], np.ndarray]:
    id2label = {int(index): str(name) for index, name in maps.model.config.id2label.items()}
    return id2label, bev_panels.layer_palette(id2label)


def _gallery_item(sample: dict[str, Any], index: int, models: Sequence[BevMaps]) -> GalleryItem:
    """Views in two rows beside truth and LiDAR, then the maps of each model."""
    id2label, palette = _layers(models[0])
    truth = models[0].by_steps[1][index].truth
    painted = bev_panels.map_cell("truth", bev_panels.paint_layers(truth, palette))
    views = bev_panels.view_cells([np.asarray(image.convert("RGB")) for image in sample["images"]], CAMERAS)
    beside: Cell | None = None
    if "points" in sample:
        extent = map_extent(models[-1].model.config)["size_m"]
        beside = bev_panels.map_cell("LiDAR from above", bev_panels.points_image(sample["points"], extent))
    rows: list[list[Cell | None]] = [[*views[:3], painted], [*views[3:], beside]]
    unsure = [maps.by_steps[max(maps.by_steps)][index].uncertainty.max(0) for maps in models]
    known = models[0].by_steps[1][index].known
    limit = uncertainty_limit(*(values[known] for values in unsure))
    rows += [_model_row(maps, index, palette, values, limit) for maps, values in zip(models, unsure)]
    drawn = [maps for maps in models if index in maps.whole]
    rows += [_guess_row(maps.whole[index], palette, f"{maps.sensors}, " if len(drawn) > 1 else "") for maps in drawn]
    thumbnail = bev_panels.map_cell("", bev_panels.paint_layers(truth, palette)).image
    place = str(sample["location"]).removeprefix("freedoom-")
    return GalleryItem(thumbnail, f"{place}  ·  {sample['id']}", rows, bev_panels.layer_legend(id2label, palette))


def _model_row(maps: BevMaps, index: int, palette: np.ndarray, unsure: np.ndarray, limit: float) -> list[Cell | None]:
    """Maps at every number of steps, then errors and uncertainty at the largest."""
    row: list[Cell | None] = []
    for steps, predictions in maps.by_steps.items():
        one = predictions[index]
        image = bev_panels.paint_layers(bev_panels.cut_layers(one.probabilities, maps.thresholds), palette, one.known)
        title = f"{maps.sensors}, {counted(steps, 'step')}"
        row.append(bev_panels.map_cell(title, image, f"mIoU {one.mean_iou(maps.thresholds):.0%}"))
    if index in maps.whole:
        layers = bev_panels.cut_layers(maps.whole[index].probabilities, maps.thresholds)
        row.append(bev_panels.map_cell("all cells", bev_panels.paint_layers(layers, palette)))
    last = maps.by_steps[max(maps.by_steps)][index]
    row.append(bev_panels.error_cell(bev_panels.cut_layers(last.probabilities, maps.thresholds), last.truth, "errors"))
    kind = last.uncertainty_kind.replace("_", " ")
    row.append(bev_panels.uncertainty_map_cell(unsure, last.known, limit, f"uncertainty ({kind})"))
    return row


def _guess_row(whole: BevPrediction, palette: np.ndarray, whose: str) -> list[Cell | None]:
    """What is there, and maps that may be: what is seen is pale."""
    seen = None if whole.unseen is None else ~whole.unseen
    truth = bev_panels.paint_layers(whole.truth, palette, faded=seen)
    return [bev_panels.map_cell("what is there", truth), *guess_cells(whole, palette, whose)]


def _show_denoising(page: Page, maps: BevMaps, sample: dict[str, Any], out: Path) -> None:
    if not maps.trajectory:
        return
    id2label, palette = _layers(maps)
    truth = np.asarray(sample["labels"], np.uint8)
    known = ~(truth == bev_panels.UNKNOWN).any(0)
    cuts = film_thresholds(maps.model, maps.thresholds)
    rows = bev_panels.denoising_cells(maps.trajectory, known, palette, cuts, truth)
    page.player(rows, f"The denoising of {sample['id']} from above, {maps.sensors}", bev_panels.layer_legend(id2label, palette))
    images = bev_panels.denoising_animation(maps.trajectory, known, palette, id2label, cuts)
    for suffix in (".webp", ".gif"):
        save_animation(out / f"denoising-birds-eye-view{suffix}", images)


def bev_score_rows(models: Sequence[BevMaps]) -> list[dict[str, Any]]:
    """One row per model and number of steps: IoU of each layer as painted over all places, in percent, means, published score.

    A layer that no place has has no IoU: None.
    """
    rows = []
    for maps in models:
        id2label, _ = _layers(maps)
        for steps, predictions in maps.by_steps.items():
            probabilities = torch.from_numpy(np.stack([one.probabilities for one in predictions]))
            truth = torch.from_numpy(np.stack([one.truth for one in predictions]))
            scores = bev_scores(bev_counts(probabilities, truth).sum(0))
            half, best = scores["IoU_50"], scores["IoU_max"]
            iou = bev_scores(bev_counts(probabilities, truth, (maps.thresholds,)).sum(0), (0.5,))["IoU"][0]
            here = (truth == 1).flatten(2).any(2).any(0)
            row: dict[str, Any] = {"sensors": maps.sensors, "steps": steps}
            row |= {f"{name} %": 100 * float(iou[k]) if bool(here[k]) else None for k, name in id2label.items()}
            for name, values in (("mIoU %", iou), ("mIoU 0.5 %", half), ("mIoU max %", best)):
                row[name] = 100 * float(values[here].mean())
            rows.append(row)
    return rows
