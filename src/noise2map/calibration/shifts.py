"""``noise2map experiment shifts``: what is left of a model's statements, calibrated or not, where images are not as in training."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from noise2map.calibration.drawing import draw_images, open_images
from noise2map.calibration.report import shown_rows
from noise2map.calibration.run import read_report
from noise2map.data.subsets import Redrawn
from noise2map.data.transforms import Ambiguity
from noise2map.inference.loading import load_model, pick_device
from noise2map.models.decoding import DecodingOptions
from noise2map.models.distributions.calibration import Calibration
from noise2map.report.plots import Series, quality_plot, save_figure
from noise2map.report.tables import text_table, write_csv
from noise2map.runs.files import json_values, weights_checksum, write_json
from noise2map.runs.progress import progress_bar
from noise2map.runs.provenance import provenance
from noise2map.tasks import task_of
from noise2map.zoo import label_of, resolve_model

SHIFTS: dict[str, tuple[float, ...]] = {
    "darkness": (0.3, 0.6, 0.8, 0.9),
    "noise": (0.02, 0.05, 0.1, 0.2),
    "blur": (0.5, 1.0, 2.0, 4.0),
    "zoom": (1.25, 1.5, 2.0, 3.0),
    "hide_share": (0.1, 0.25, 0.5, 0.75),
}
"""Knob of `Ambiguity` to its strengths."""

_OF_IMAGES = ("zoom", "hide_share")

NONE = "none"

FINISHED = "finished.json"
"""Scores of the shifts of a run that is not done, in its folder."""

KINDS = ("noise2map", "noise2map-bev")

# Fields of a configuration that may differ between a model and its calibrated copy.
_OTHERWISE = {"calibration", "transformers_version", "dtype", "torch_dtype", "_name_or_path", "backbone_config"}


@dataclass(frozen=True, kw_only=True)
class ShiftOptions:
    """Options of the experiment.

    Attributes:
        model: Shipped name, folder or hub id.
        calibrated: Folders of its calibrated checkpoints; with none the model's own calibration.
        dataset: Name of the dataset.
        root: Its folder.
        split: Its split; None for the one that scores are published for.
        limit: Images, 0 for all.
        shifts: Which of `SHIFTS`; all that the task can have if none is named.
        decoding: How maps are decoded; the checkpoint's way where nothing is chosen.
        pixels: Most pixels of an image.
        batch_size: Images at a time.
        device: Device by name.

    Raises:
        ValueError: If there is no such shift.
    """

    model: str
    calibrated: Sequence[str] = ()
    dataset: str = "samples"
    root: Path | None = None
    split: str | None = None
    limit: int = 0
    shifts: Sequence[str] = ()
    decoding: DecodingOptions = field(default_factory=DecodingOptions)
    pixels: int = 2000
    batch_size: int = 8
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in self.shifts:
            if name not in SHIFTS:
                raise ValueError(f"shift is {name!r}; expected {', '.join(SHIFTS)}")

    def settings(self) -> dict[str, Any]:
        """Settings that decide the result, for the record of an output folder; paths are made absolute."""
        chosen = {name: value for name, value in asdict(self).items() if name not in ("batch_size", "device")}
        chosen |= {"calibrated": [os.path.abspath(one) for one in self.calibrated]}
        chosen["model"] = os.path.abspath(self.model) if Path(self.model).is_dir() else self.model
        chosen["shifts"] = list(self.shifts or SHIFTS)
        return {"command": "experiment shifts", **chosen, "root": self.root and os.path.abspath(self.root)}


@dataclass
class ShiftReport:
    """What the experiment found.

    Attributes:
        rows: A row for each shift, strength and variant of what is stated.
    """

    rows: list[dict[str, Any]]

    def text(self) -> list[str]:
        """Tables for the screen."""
        first = self.rows[0]
        heading = f"{first['model']} on {first['images_scored']} of {first['dataset']} {first['split']}, {first['decoding']}"
        return [heading, text_table(shown_rows(self.rows), digits=3)]

    def write(self, out: Path) -> list[Path]:
        """Writes ``shifts.csv``, ``shifts.json`` and a plot of the calibration error for each shift.

        Raises:
            OSError: If a file cannot be written.
        """
        paths = [out / "shifts.csv", out / "shifts.json"]
        write_csv(paths[0], json_values(self.rows))
        write_json(paths[1], json_values({"rows": self.rows}))
        for shift in dict.fromkeys(row["shift"] for row in self.rows if row["shift"] != NONE):
            paths.append(out / f"{shift}.png")
            save_figure(paths[-1], self.plot(shift))
        (out / FINISHED).unlink(missing_ok=True)
        return paths

    def plot(self, shift: str) -> Any:
        """Calibration error in percent by strength, one curve for each variant; the first point is without a shift."""
        rows = [row for row in self.rows if row["shift"] in (NONE, shift)]
        series = {}
        for variant in dict.fromkeys(row["variant"] for row in rows):
            own = [row for row in rows if row["variant"] == variant]
            series[variant] = Series([row["strength"] or _nothing(shift) for row in own], [100 * row["ece"] for row in own])
        return quality_plot(series, shift.replace("_", " "), "calibration error, %", title=str(rows[0]["model"]))


def _nothing(shift: str) -> float:
    """The strength of a shift that changes nothing."""
    return float(getattr(Ambiguity(), shift))


def find_variants(chosen: ShiftOptions, model: Any) -> dict[str, Calibration | None]:
    """What is compared, by name: the model as it is, baselines, calibrations.

    Raises:
        OSError: If a folder holds no checkpoint.
        ValueError: If one is of another model or not calibrated, or there is none.
    """
    variants: dict[str, Calibration | None] = {"before": None}
    own = model.config.to_dict()
    labels = [label_of(folder) for folder in chosen.calibrated]
    if len(set(labels)) < len(labels):  # of runs/a/final and runs/b/final nothing but the paths tells which is which
        labels = [str(folder) for folder in chosen.calibrated]
    if len(set(labels)) < len(labels):
        raise ValueError(f"calibrated names a folder twice: {', '.join(labels)}; expected each once")
    for folder, label in zip(chosen.calibrated, labels):
        found, baselines = read_report(resolve_model(folder))
        config = json.loads((Path(resolve_model(folder)) / "config.json").read_text(encoding="utf-8"))
        differing = sorted(name for name in {*own} & {*config} - _OTHERWISE if config[name] != json_values(own[name]))
        if differing:
            raise ValueError(f"{folder} holds another model than {chosen.model}: they differ in {', '.join(differing[:3])}")
        if weights_checksum(load_model(folder, model.device, "float32", KINDS)[0]) != weights_checksum(model):
            raise ValueError(f"{folder} holds another model than {chosen.model}: they differ in their weights")
        if found is None:
            raise ValueError(f"{folder} is not calibrated; expected what noise2map calibrate wrote")
        only = len(chosen.calibrated) == 1
        variants |= {name if only else f"{label}: {name}": one for name, one in baselines.items()}
        variants["after" if only else label] = found
    if not chosen.calibrated:
        if model.calibration is None:
            raise ValueError(f"model {chosen.model!r} is not calibrated; expected --calibrated DIR, from noise2map calibrate")
        variants |= {"temperature": Calibration(temperature=model.calibration.temperature), "after": model.calibration}
    return variants


class FinishedShifts:
    """Rows of the shifts that are done, kept in a file as they come, so that a run that was interrupted goes on.

    Args:
        path: The file; None keeps nothing.
        key: All that decides the rows: those of another key are not taken.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self.path, self.key = path, key
        self.rows: dict[str, list[dict[str, Any]]] = {}
        if path is not None and path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            self.rows = {name: list(map(_numbers, rows)) for name, rows in found["rows"].items()} if found["key"] == key else {}

    def keep(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Add the rows of one shift.

        Raises:
            OSError: If the file cannot be written.
        """
        self.rows[name] = rows
        if self.path is not None:
            write_json(self.path, {"key": self.key, "rows": json_values(self.rows)})


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a file with NaN where a score was none: JSON has no NaN."""
    return {name: math.nan if value is None else value for name, value in row.items()}


def _shifted(name: str, strength: float) -> Ambiguity:
    changed: dict[str, Any] = {name: strength}
    return replace(Ambiguity(), **changed)


def run_shifts(chosen: ShiftOptions, progress: bool = True, out: Path | None = None) -> ShiftReport:
    """Runs the experiment: the same images under every shift, one pass each, all variants scored on the same pixels.

    Args:
        chosen: What to ask of which model.
        progress: Show progress bars on standard error.
        out: Folder in which the scores of finished shifts are kept until the report is written; run again, it goes on.

    Raises:
        OSError: If the model, a folder or a file is missing or cannot be read.
        ValueError: If models and data do not fit.
    """
    device = pick_device(chosen.device)
    model, processor = load_model(chosen.model, device, "float32", KINDS)
    task, variants = task_of(model), find_variants(chosen, model)
    of_images_alone = [] if task.of_images else [name for name in chosen.shifts if name in _OF_IMAGES]
    if of_images_alone:
        raise ValueError(f"shift is {of_images_alone[0]!r}, which {task.name} samples cannot have; expected others")
    data, split = open_images(task, model, processor, chosen.model, chosen.dataset, chosen.root, chosen.split, chosen.limit)
    decoding, calibrator = chosen.decoding.resolved(model.config), task.calibrator(model)
    facts = {"model": label_of(chosen.model), "dataset": chosen.dataset, "split": split, "images_scored": len(data)}
    facts |= {"decoding": decoding.name, **provenance(device, model.dtype, decoding.seed)}
    kinds = [name for name in chosen.shifts or SHIFTS if task.of_images or name not in _OF_IMAGES]
    steps = [(NONE, 0.0, Ambiguity())]
    steps += [(name, strength, _shifted(name, strength)) for name in kinds for strength in SHIFTS[name]]
    decides = {"weights": weights_checksum(model), "images": len(data), "variants": repr(variants)}
    key = json.dumps(json_values(chosen.settings() | decides), sort_keys=True)
    finished = FinishedShifts(out and out / FINISHED, key)
    names = [f"{name} {strength:g}" for name, strength, _ in steps]
    with progress_bar(total=len(steps) * len(data), unit="image", shown=progress) as bar:
        for place, (name, strength, shift) in zip(names, steps):
            if place in finished.rows:
                bar.update(len(data))
                continue
            seen = Redrawn(data, shift, decoding.seed)
            drawn = draw_images(model, processor, task, calibrator, seen, decoding, chosen.pixels, chosen.batch_size, bar.update)
            where = {"shift": name, "strength": strength}
            finished.keep(place, scored_variants(calibrator, drawn.pixels, variants, facts | where))
    return ShiftReport([row for place in names for row in finished.rows[place]])


def scored_variants(
    calibrator: Any, pixels: Any, variants: Mapping[str, Calibration | None], facts: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """A row of scores for each variant of what is stated at the same pixels."""
    return [{**facts, "variant": name, **calibrator.scores(pixels, one)} for name, one in variants.items()]
