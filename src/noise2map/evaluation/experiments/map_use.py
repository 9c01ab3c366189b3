"""``noise2map experiment map-use``: does a map model read its noisy map, and do its steps bring anything?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from noise2map.data.subsets import Subset
from noise2map.evaluation import report as tables
from noise2map.evaluation.evaluate import ProtocolResult, evaluate, image_batches, sensor_batches
from noise2map.evaluation.experiments.runs import run_variants
from noise2map.evaluation.experiments.single_calls import LEVELS, SHOWN, LevelResult, SingleCalls, sample_batches
from noise2map.evaluation.opening import LoadedModel, ScoredData, open_labelled, same_place
from noise2map.inference.loading import load_model, pick_device, pick_dtype
from noise2map.metrics import nan_mean, paired_bootstrap_intervals
from noise2map.report.plots import Series, quality_plot, save_figure
from noise2map.report.tables import text_table, write_csv
from noise2map.runs.files import json_values, write_json
from noise2map.runs.provenance import provenance
from noise2map.tasks import task_of
from noise2map.tasks.scoring import ScoringOptions


@dataclass(frozen=True, kw_only=True)
class MapUseOptions(ScoredData):
    """Options of the experiment. Those of the data are of `ScoredData`; ``batch_size`` is at least 2: each image is also shown
    the map of another.

    Attributes:
        model: Shipped name, folder or hub id.
        counts: Numbers of decoder calls of the runs.
        levels: Times of the single calls.

    Raises:
        ValueError: If a value cannot work.
    """

    model: str
    counts: Sequence[int] = (3, 10)
    levels: Sequence[float] = LEVELS

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ValueError(f"batch_size is {self.batch_size}; expected at least 2: each image is also shown another's map")
        if not self.levels or not all(0 <= t <= 1 for t in self.levels):
            raise ValueError(f"levels are {list(self.levels)}; expected times from 1 (pure noise) to 0 (clean)")
        if self.resamples < 1:
            raise ValueError(f"resamples is {self.resamples}; expected at least 1")

    def settings(self) -> dict[str, Any]:
        """Settings that decide the result, for the record of an output folder; paths are made absolute."""
        chosen = self.chosen() | {"model": same_place(self.model), "counts": list(self.counts), "levels": list(self.levels)}
        return {"command": "experiment map-use", **chosen}


@dataclass
class MapUseReport:
    """What the experiment found.

    Attributes:
        levels: A row for each level and kind of map: loss, scores, and the gain over pure noise with an interval: over the better
            of noise at this level and at the first, what is known without a map.
        runs: A row for each run.
        differences: Runs against one call, and against as many first calls averaged.
        main_score: The score that runs are compared by.
    """

    levels: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    differences: list[dict[str, Any]] = field(default_factory=list)
    main_score: str = ""

    def text(self) -> list[str]:
        """Tables for the screen, and what they say in a sentence each."""
        first = self.runs[0]
        heading = f"{first['model']} on {first['images']} of {first['dataset']} {first['split']}, seed {first['seed']}"
        lines: dict[float, dict[str, Any]] = {}
        for row in self.levels:
            line = lines.setdefault(row["t"], {"t": row["t"]})
            line[row["shown"]] = f"{row['loss']:.4f}"
            if row["shown"] == "truth":
                line["sensitivity"] = f"{row['sensitivity']:.3g}"
        shown = [{"run": row["protocol"], self.main_score: row[self.main_score]} for row in self.runs]
        differences = [
            {name: row[name] for name in ("protocol", "other_protocol", "difference", "low", "high")}
            for row in self.differences
            if row["score"] == self.main_score
        ]
        parts = [heading, "Loss of one call that is shown:", text_table(list(lines.values())), text_table(shown)]
        if differences:
            parts += [f"Differences of {self.main_score}:", text_table(differences, digits=3)]
        return [*parts, self.verdict()]

    def verdict(self) -> str:
        """Whether the map is read: at which level showing the truth lowers the loss most, and with what certainty."""
        gains = [row for row in self.levels if row["shown"] == "truth" and row["t"] < 1]
        if not gains:
            return "The model has no diffusion: there is no map to read."
        certain = [row for row in gains if row["gain_low"] > 0]
        best = max(certain or gains, key=lambda row: row["gain"])
        extent = f"{best['gain']:.3g} [{best['gain_low']:.3g}, {best['gain_high']:.3g}] at level {best['t']:g}"
        extent += f", from {best['loss'] + best['gain']:.3g} without a map"
        if certain:
            return f"The map is read: shown the truth, the loss falls by up to {extent}."
        return f"The map is not read: shown the truth, the loss falls at no level with certainty; at most by {extent}."

    def write(self, out: Path) -> list[Path]:
        """Write `map_use.json`, `levels.csv`, `runs.csv`, `differences.csv` and `levels.png`.

        Raises:
            OSError: If a file cannot be written.
        """
        document = {"levels": self.levels, "runs": self.runs, "differences": self.differences, "verdict": self.verdict()}
        paths = [out / name for name in ("map_use.json", "levels.csv", "runs.csv", "differences.csv", "levels.png")]
        write_json(paths[0], json_values(document))
        for path, rows in zip(paths[1:4], (self.levels, self.runs, self.differences)):
            write_csv(path, json_values(rows))
        save_figure(paths[4], self.plot())
        return paths

    def plot(self) -> Any:
        """Loss of one call against the level, one curve for each kind of map, with intervals of the gain over pure noise."""
        series = {}
        for kind in SHOWN:
            rows = [row for row in self.levels if row["shown"] == kind]
            if rows:
                ends = {}
                if kind != SHOWN[0]:
                    base = [row["loss"] + row["gain"] for row in rows]
                    ends = {
                        "low": [b - row["gain_high"] for b, row in zip(base, rows)],
                        "high": [b - row["gain_low"] for b, row in zip(base, rows)],
                    }
                series[kind] = Series([1 - row["t"] for row in rows], [row["loss"] for row in rows], **ends)
        return quality_plot(series, "1 - t (0: pure noise, 1: clean map)", "loss of one call", title=str(self.runs[0]["model"]))


def run_map_use(chosen: MapUseOptions, progress: bool = True) -> MapUseReport:
    """Run the experiment.

    Args:
        chosen: What to ask of which model.
        progress: Show progress bars on standard error.

    Raises:
        OSError: If the model, a folder or a file is missing or cannot be read.
        ValueError: If models and data do not fit, or there are fewer than two samples.
    """
    device, dtype = pick_device(chosen.device), pick_dtype(chosen.dtype)
    model, processor = load_model(chosen.model, device, dtype, ("noise2map", "noise2map-bev"))
    task = task_of(model)
    opened = open_labelled(chosen, [LoadedModel(chosen.model, model, processor)])
    data = Subset.evenly_spaced(opened.datasets[0], chosen.limit or None)
    if len(data) < 2:
        raise ValueError(f"the dataset holds {len(data)} {task.things}; expected at least two, each is shown the map of another")
    facts = {"model": Path(chosen.model).name, "dataset": chosen.dataset, "split": opened.split, "images": len(data)}
    facts |= provenance(device, dtype, chosen.seed)
    if chosen.hide:
        facts["hide"] = chosen.hide
    hidden = None if progress else True

    def bar(what: str) -> Any:
        return tqdm(total=len(data), desc=what, unit="image", disable=hidden)

    calls = SingleCalls(model, tuple(chosen.levels), chosen.seed)
    with bar("single calls") as shown:
        for indices, batch in sample_batches(model, processor, data, chosen.batch_size):
            calls.update(indices, batch, processor)
            shown.update(len(indices))
    results = [
        ProtocolResult(variant, task.scorer(model, ScoringOptions()))
        for variant in run_variants(model.config, chosen.counts, chosen.seed)
    ]
    with bar("runs") as shown:
        batches = (image_batches if task.of_images else sensor_batches)(model, processor, data, chosen.batch_size)
        evaluation = evaluate(task, batches, results, device, shown.update)
    places = evaluation.places if chosen.cluster == "map" else None
    runs = tables.result_rows(evaluation, facts, chosen.resamples, chosen.cluster)
    differences = tables.step_differences(evaluation, facts["model"], chosen.resamples, chosen.cluster)
    differences += _against_first_calls(evaluation, facts["model"], chosen)
    return MapUseReport(_level_rows(calls, facts, chosen.resamples, places), runs, differences, task.main_score)


def _against_first_calls(evaluation: Any, model: str, chosen: MapUseOptions) -> list[dict[str, Any]]:
    """Every run against as many first calls averaged."""
    rows = []
    for control in evaluation.results:
        if control.protocol.variant == "first calls averaged":
            runs = [one for one in evaluation.results if one.protocol.num_inference_steps == control.protocol.ensemble_size]
            pair = replace(evaluation, results=[control, *runs])
            rows += tables.step_differences(pair, model, chosen.resamples, chosen.cluster)
    return rows


def _losses(found: LevelResult, order: Tensor) -> Tensor:
    return torch.tensor(found.losses, dtype=torch.float64)[order, None]


def _level_rows(calls: SingleCalls, facts: dict[str, Any], resamples: int, places: list[str] | None) -> list[dict[str, Any]]:
    rows = []
    order = torch.tensor(calls.order).argsort()
    for (t, kind), found in calls.results.items():
        alpha, sigma = (float(level) for level in calls.model.schedule.alpha_sigma(torch.tensor(t)))
        losses = _losses(found, order)
        # A model that reads its map takes noise for a map at low levels: what it knew without any is its first call.
        pure = min(
            (_losses(calls.results[level, SHOWN[0]], order) for level in (t, max(calls.levels))), key=lambda x: float(x.mean())
        )
        pure = pure.masked_fill(losses.isnan(), math.nan)  # a difference is one of the same images
        gain = paired_bootstrap_intervals(pure, losses, nan_mean, resamples, clusters=places)[0]
        scores = {name: float(value) for name, value in found.metric.compute().items() if value.ndim == 0}
        rows.append(
            {
                **facts,
                "t": t,
                "alpha_over_sigma": alpha / sigma,
                "shown": kind,
                "loss": float(losses.nanmean()),
                "gain": gain.estimate,
                "gain_low": gain.low,
                "gain_high": gain.high,
                "changed": float(torch.tensor(found.changed).nanmean()),
                "sensitivity": float(torch.tensor(found.sensitivity).mean()) if found.sensitivity else math.nan,
                **scores,
            }
        )
    return rows
