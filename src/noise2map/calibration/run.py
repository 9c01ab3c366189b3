"""One run of ``noise2map calibrate``: open model and data, draw pixels, fit on some images, score on the others."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from noise2map.calibration.checkpoint import CalibratedCheckpoint
from noise2map.calibration.drawing import DrawnImages, draw_images, group_numbers, open_images
from noise2map.calibration.report import calibration_table, card_section, reliability_plot, said_thresholds
from noise2map.inference.loading import load_model, pick_device
from noise2map.models.decoding import DecodingOptions
from noise2map.models.distributions.calibration import Calibration, check_level
from noise2map.report.plots import save_figure
from noise2map.report.tables import write_csv
from noise2map.runs.files import json_values, write_json
from noise2map.runs.progress import progress_bar
from noise2map.runs.provenance import provenance
from noise2map.tasks import task_of
from noise2map.tasks.calibrating import LEVELS, Calibrator, DrawnPixels
from noise2map.zoo import label_of

CLUSTERS = ("image", "map")
UNITS = ("pixel", "image", "map")
REPORT = "calibration.json"


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """Options of a calibration; see ``noise2map calibrate --help``.

    Attributes:
        model: Shipped name, folder or hub id.
        out: Folder of the calibrated checkpoint.
        dataset: Name of the dataset.
        root: Its folder.
        split: Its split; None for the one that scores are published for.
        limit: Images, 0 for all.
        decoding: How maps are decoded; the checkpoint's way where nothing is chosen.
        method: How what the model states is corrected: ``"temperature"``, or ``"isotonic"`` for classes, or not at all:
            ``"thresholds"`` fits from which probability each layer of a bird's-eye view is shown, which is else done along with it.
        levels: Levels of coverage to fit.
        held_out: Share of the images that are not calibrated on and scored.
        cluster: What is held out as a whole, ``"image"`` or ``"map"``; None for maps where the data tells them.
        cells: ``"all"`` also takes cells that cannot be seen (freedoom-surround).
        unit: What is exchangeable: ``"pixel"``, ``"image"`` or ``"map"``, see `conformal_threshold`.
        pixels: Most pixels of an image.
        batch_size: Images at a time.
        device: Device by name.

    Raises:
        ValueError: If a value cannot work.
    """

    model: str
    out: Path
    dataset: str = "samples"
    root: Path | None = None
    split: str | None = None
    limit: int = 0
    decoding: DecodingOptions = field(default_factory=DecodingOptions)
    method: str = "temperature"
    levels: Sequence[float] = LEVELS
    held_out: float = 0.5
    cluster: str | None = None
    cells: str = "visible"
    unit: str = "image"
    pixels: int = 2000
    batch_size: int = 8
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError("levels are empty; expected at least one, such as 0.9")
        for level in self.levels:
            check_level(level)
        object.__setattr__(self, "levels", tuple(sorted(set(self.levels))))
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out!r}; expected a share of at least 0 and below 1")
        for name, value, choices in (("cluster", self.cluster, (None, *CLUSTERS)), ("unit", self.unit, UNITS)):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}")
        for name, number, least in (("pixels", self.pixels, 1), ("batch_size", self.batch_size, 1), ("limit", self.limit, 0)):
            if number < least:
                raise ValueError(f"{name} is {number}; expected at least {least}")


@dataclass
class CalibrationReport:
    """What a calibration found.

    Attributes:
        facts: Model, data and provenance.
        calibration: What was fitted.
        baselines: What it is compared with, by name.
        rows: Scores: a row for each part of the images (``calibrated on``, ``held out``) and each variant.
        curves: Reliability of the last part before and after.
        left_out: Levels that so few groups cannot reach.
        thresholds: Layer to the probability from which it is shown; None where maps have no overlapping layers.
    """

    facts: dict[str, Any]
    calibration: Calibration
    baselines: dict[str, Calibration]
    rows: list[dict[str, Any]]
    curves: dict[str, tuple[list[float], list[float]]]
    left_out: list[float]
    thresholds: dict[str, float] | None = None

    def text(self) -> list[str]:
        """Tables and sentences for the screen."""
        facts = self.facts
        parts = [
            f"{facts['model']} on {facts['dataset']} {facts['split']}: {facts['calibrating']} to calibrate on, "
            f"{facts['held_out']} held out; {facts['decoding']}, seed {facts['seed']}",
            calibration_table(self.rows),
        ]
        if self.thresholds:
            parts.append(f"Layers are shown from a probability of: {said_thresholds(self.thresholds)}.")
        if self.left_out:
            levels = ", ".join(f"{level:g}" for level in self.left_out)
            parts.append(f"Left out, as so few {facts['unit']}s cannot reach them: {levels}. More data or a smaller --unit does.")
        return parts

    def write(self, out: Path) -> list[str]:
        """Writes ``calibration.json``, ``calibration.csv`` and ``reliability.png`` into a folder and returns their names."""
        document = {
            "facts": self.facts,
            "calibration": self.calibration.as_field(),
            "baselines": {name: one.as_field() for name, one in self.baselines.items()},
            "scores": self.rows,
        }
        if self.thresholds:
            document["layer_thresholds"] = self.thresholds
        write_json(out / REPORT, json_values(document))
        write_csv(out / "calibration.csv", json_values([{**self.facts, **row} for row in self.rows]))
        save_figure(out / "reliability.png", reliability_plot(self.curves, str(self.facts["model"])))
        return [REPORT, "calibration.csv", "reliability.png"]


def run_calibration(chosen: CalibrationOptions, overwrite: bool = False, progress: bool = True) -> CalibrationReport:
    """Calibrates a model and writes the calibrated checkpoint, whole or not at all.

    Args:
        chosen: What to calibrate on what.
        overwrite: Replace an earlier calibration in ``out``.
        progress: Show a progress bar on standard error.

    Raises:
        OSError: If the model, a folder or a file is missing or cannot be read or written.
        ValueError: If a value cannot work, or there is nothing to calibrate on.
    """
    checkpoint = CalibratedCheckpoint(chosen.model, chosen.out, overwrite)
    device = pick_device(chosen.device)
    model, processor = load_model(chosen.model, device, "float32", ("noise2map", "noise2map-bev"))
    task = task_of(model)
    where = chosen.dataset, chosen.root, chosen.split, chosen.limit, chosen.cells
    data, split = open_images(task, model, processor, chosen.model, *where)
    decoding, calibrator = chosen.decoding.resolved(model.config), task.calibrator(model).by(chosen.method)
    with progress_bar(total=len(data), desc="images", unit="image", shown=progress) as bar:
        drawn = draw_images(model, processor, task, calibrator, data, decoding, chosen.pixels, chosen.batch_size, bar.update)
    parts = split_images(drawn, chosen)
    facts: dict[str, Any] = {"model": label_of(chosen.model), "dataset": chosen.dataset, "split": split, "decoding": decoding.name}
    facts |= {"calibrating": said(drawn, parts["calibrated on"]), "held_out": said(drawn, parts.get("held out", []))}
    facts |= {
        "method": chosen.method,
        "unit": chosen.unit,
        "pixels": chosen.pixels,
        **({"cells": chosen.cells} if chosen.cells != "visible" else {}),
        **provenance(device, model.dtype, decoding.seed),
    }
    report = fit_and_score(calibrator, drawn, parts, chosen, facts)
    thresholds = None
    if report.thresholds is not None:
        thresholds = list(report.thresholds.values())
        report.thresholds = dict(zip(model.config.id2label.values(), thresholds))
    corrected = None if chosen.method == "thresholds" else report.calibration
    with checkpoint.writing(model, processor, corrected, thresholds) as folder:
        report.write(folder)
        checkpoint.add_to_card(folder, card_section(report.facts, report.rows, report.thresholds))
    return report


def fit_and_score(
    calibrator: Calibrator,
    drawn: DrawnImages,
    parts: Mapping[str, Sequence[int]],
    chosen: CalibrationOptions,
    facts: dict[str, Any],
) -> CalibrationReport:
    """Fits on the pixels of the first part and scores all parts before and after.

    Raises:
        ValueError: If there is nothing to fit.
    """
    pixels = drawn.pixels.of_images(parts["calibrated on"])
    groups = None if chosen.unit == "pixel" else group_numbers(drawn.clusters(chosen.unit), pixels)
    fitted = calibrator.fit(pixels, chosen.levels, groups)
    record = {name: facts[name] for name in ("dataset", "split", "decoding", "calibrating", "unit", "pixels", "seed")}
    as_it_is = fitted if chosen.method == "thresholds" else None
    if as_it_is is None:
        fitted = replace(fitted, fitted_on=record | {"method": chosen.method})
    thresholds = calibrator.thresholds(pixels, fitted)
    baselines = calibrator.baselines(pixels, fitted, groups)
    variants: dict[str, Calibration | None] = {"before": as_it_is, **baselines, "after": fitted}
    rows, curves = [], {}
    for part, images in parts.items():
        own: DrawnPixels = drawn.pixels.of_images(images)
        if not len(own.stated):
            continue
        for name, one in variants.items():
            shown = calibrator.shown_scores(own, one, thresholds if name == "after" else None)
            rows.append({"images": part, "variant": name, **calibrator.scores(own, one), **shown})
        curves = {name: calibrator.reliability(own, variants[name]) for name in ("before", "after")}
    reaches = bool(fitted.radii or fitted.thresholds)
    left_out = [level for level in sorted(chosen.levels) if reaches and level not in fitted.levels]
    named = None if thresholds is None else {str(layer): one for layer, one in enumerate(thresholds)}
    return CalibrationReport(facts, fitted, baselines, rows, curves, left_out, named)


def split_images(drawn: DrawnImages, chosen: CalibrationOptions) -> dict[str, list[int]]:
    """Numbers of the images to calibrate on and, unless none are wanted, of those that are held out, whole maps or images.

    Raises:
        ValueError: If there is nothing left for one of the two.
    """
    everything = list(range(len(drawn.ids)))
    if not chosen.held_out:
        return {"calibrated on": everything}
    told = all(place is not None for place in drawn.places) and len(set(drawn.places)) > 1
    cluster = chosen.cluster or ("map" if told else "image")
    names = drawn.clusters(cluster)
    known = list(dict.fromkeys(names))
    if len(known) < 2:
        raise ValueError(f"the data holds {len(known)} {cluster}; expected at least 2, or a held_out of 0 to hold nothing out")
    order = np.random.default_rng(chosen.decoding.seed).permutation(len(known))
    count = min(max(1, round(chosen.held_out * len(known))), len(known) - 1)
    held = {known[index] for index in order[:count]}
    return {
        "calibrated on": [index for index in everything if names[index] not in held],
        "held out": [index for index in everything if names[index] in held],
    }


def said(drawn: DrawnImages, images: Sequence[int]) -> str:
    """E.g. ``"450 images of 5 maps"``."""
    places = {drawn.places[index] for index in images} - {None}
    count = f"{len(images)} image{'s' * (len(images) != 1)}"
    return f"{count} of {len(places)} map{'s' * (len(places) != 1)}" if places else count


def read_report(folder: str | os.PathLike[str]) -> tuple[Calibration | None, dict[str, Calibration]]:
    """The calibration of a checkpoint's folder and the baselines that were fitted with it, if its report is there.

    Raises:
        OSError: If there is no such checkpoint.
        ValueError: If a file is not what this command writes.
    """
    config = Path(folder) / "config.json"
    if not config.is_file():
        raise FileNotFoundError(f"{folder} holds no config.json; expected the folder of a calibrated checkpoint")
    calibration = Calibration.read(json.loads(config.read_text(encoding="utf-8")).get("calibration"))
    report = Path(folder) / REPORT
    if not report.is_file():
        return calibration, {}
    found = json.loads(report.read_text(encoding="utf-8")).get("baselines", {})
    return calibration, {name: one for name, value in found.items() if (one := Calibration.read(value)) is not None}
