"""Experiment on depth estimators trained on generated images with predicted depth, beside real ones: DAG's application."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noise2map.data.opening import open_dataset
from noise2map.generation.depth_reading import depth_probe, probe_name
from noise2map.generation.experiments.depth_learner import learn_depth, learner_recipe
from noise2map.generation.experiments.training_sets import (
    ARMS,
    FILTERED,
    UNGUIDED_ARMS,
    ExperimentOptions,
    guidance_of,
    real_images,
    training_set,
)
from noise2map.generation.loading import load_generator
from noise2map.generation.sampling import UNGUIDED, image_settings
from noise2map.guidance import DepthGuidedPipeline
from noise2map.metrics import seed_interval
from noise2map.report.plots import Estimates, comparison_plot, save_figure
from noise2map.report.tables import text_table, write_csv
from noise2map.runs.files import settings_checksum, write_json
from noise2map.runs.progress import progress_bar
from noise2map.runs.provenance import provenance

logger = logging.getLogger(__name__)

Row = dict[str, Any]

_COMPARED = (
    ("guided", "unguided"),
    ("filtered-unguided", "unguided"),
    ("filtered", "guided"),
    ("filtered", "filtered-unguided"),
    ("unguided", "real-predicted"),
    ("guided", "real"),
)

_SCORES = ("delta1", "abs_rel", "rmse")

_PLOTTED = {"delta1": "δ1 (higher is better)", "abs_rel": "AbsRel (lower is better)"}


@dataclass
class ExperimentReport:
    """Findings of the experiment.

    Attributes:
        runs: A row for each arm and training seed.
        summary: A row for each arm: means and intervals over seeds.
        differences: Paired by training seed.
        facts: Columns that are the same in all rows.
    """

    runs: list[Row]
    summary: list[Row]
    differences: list[Row]
    facts: Row

    def text(self) -> list[str]:
        """Tables for the screen."""
        lines = []
        for row in self.summary:
            line = {"training set": row["what"], "images": row["images"], "seeds": row["seeds"]}
            lines.append(line | {score: _interval_text(row, score) for score in _SCORES})
        shown = [
            {"this": row["this"], "minus": row["minus"], "score": row["score"], "difference": _interval_text(row, "difference")}
            for row in self.differences
        ]
        return [text_table(lines), *([text_table(shown)] if shown else [])]

    def write(self, out: Path) -> list[Path]:
        """Write `runs.csv`, `summary.csv`, `differences.csv` and the plot `summary.png`.

        Raises:
            OSError: If a file cannot be written.
        """
        paths = []
        for name, rows in (("runs", self.runs), ("summary", self.summary), ("differences", self.differences)):
            if rows:
                paths.append(out / f"{name}.csv")
                write_csv(paths[-1], [row | self.facts for row in rows])
        paths.append(out / "summary.png")
        save_figure(paths[-1], self.figure())
        return paths

    def figure(self, theme: str = "light") -> Any:
        """A figure of δ1 and AbsRel of each training set: mean and interval over trainings, and every training."""
        scores = {}
        for score, label in _PLOTTED.items():
            scores[label] = Estimates(
                *([row[name] for row in self.summary] for name in (score, f"{score}_low", f"{score}_high")),
                repeats=[[run[score] for run in self.runs if run["arm"] == row["arm"]] for row in self.summary],
            )
        seeds = max(row["seeds"] for row in self.summary)
        means = f"mean, 95 % interval and each of {seeds} trainings" if seeds > 1 else "one training"
        title = f"Depth learnt from {self.summary[0]['images']} images: {means}"
        return comparison_plot([row["arm"] for row in self.summary], scores, title=title, theme=theme)


def _interval_text(row: Row, name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.4g}" + ("" if low != low else f" [{low:.4g}, {high:.4g}]")


def run_experiment(options: ExperimentOptions) -> ExperimentReport:
    """Draw, label, train and score; run again, it goes on with what is missing.

    Raises:
        OSError: If something is missing or cannot be written.
        ValueError: If a value cannot work or the parts do not belong together, before anything is drawn.
    """
    _check(options)
    pipe = load_generator(
        options.model,
        options.depth_predictor,
        options.depth_prior,
        sampler=options.sampler,
        timestep_spacing=options.timestep_spacing,
        device=options.device,
    )
    predictor = pipe.depth_predictor
    if predictor is None:
        raise ValueError("labelling generated images needs a depth predictor; expected one in its folder, or --depth-predictor")
    if not predictor.depth_range.metric:
        raise ValueError(f"the depth predictor gives {predictor.depth_range}; expected metres, which real depth is scored in")
    depth_probe(pipe, options.probe_timestep)  # refuses a noise at which features carry no depth, before anything is drawn
    if pipe.depth_prior is None:
        logger.warning("no depth prior: guided means DCG alone")
    size = predictor.image_size[0]
    recipes = [
        learner_recipe(options.recipe, predictor.depth_range, size, options.iterations, seed) for seed in range(options.trainings)
    ]
    batch = recipes[0].train.batch_size
    if options.images < batch:
        raise ValueError(f"--images is {options.images}; recipe {options.recipe} trains with batches of {batch}, expected as many")
    test = real_images(open_dataset(options.test, task="depth"), options.limit, size)
    real = open_dataset(options.real, task="depth") if {"real", "real-predicted"} & set(options.arms) else None
    if real is not None and len(real) < options.images:
        raise ValueError(f"{options.real} holds {len(real)} images; expected at least --images {options.images}")
    runs = []
    total = len(options.arms) * options.trainings * options.iterations
    with progress_bar(total=total, desc="trainings") as bar:
        for arm in options.arms:
            records = [_Record.of(options, arm, seed, pipe, recipe.to_dict()) for seed, recipe in enumerate(recipes)]
            data = None
            for record, recipe in zip(records, recipes):
                scores = record.read()
                if scores is None:
                    data = data or training_set(options, arm, pipe, real, size)
                    bar.set_description(f"{arm}, seed {record.seed}")
                    scores = learn_depth(data, test, recipe, record.directory, bar.update, use_cpu=pipe.device.type == "cpu")
                    record.write(scores)
                else:
                    bar.update(options.iterations)
                runs.append({"arm": arm, "what": ARMS[arm], "images": options.images, "seed": record.seed, **scores})
    return ExperimentReport(runs, summarise(runs), paired(runs), _facts(options, pipe, len(test)))


def _facts(options: ExperimentOptions, pipe: DepthGuidedPipeline, test_images: int) -> Row:
    guidance = guidance_of(options, pipe).bound(convention=pipe.config.convention, reduction=pipe.config.reduction)
    scales = {"consistency_scale": 0.0, "prior_scale": 0.0} | {f"{loss.name}_scale": loss.scale for loss in guidance.losses}
    facts = {
        "model": options.model,
        "real": options.real,
        "test": options.test,
        "test_images": test_images,
        "recipe": options.recipe,
        "iterations": options.iterations,
        "keep": options.keep,
        **scales,
        "num_inference_steps": options.sampling.num_inference_steps,
        "convention": guidance.convention,
        "reduction": guidance.reduction,
        "bf16": options.sampling.dtype == "bfloat16",
    }
    where = provenance(pipe.device, torch.float32, 0)
    return facts | {name: value for name, value in where.items() if name != "seed"}  # a column of runs


def _check(options: ExperimentOptions) -> None:
    for name, least in (("images", 1), ("trainings", 1), ("iterations", 1)):
        if getattr(options, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(options, name)}")
    if not 0 < options.keep <= 1:
        raise ValueError(f"keep must be in (0, 1], got {options.keep}")
    unknown = [arm for arm in options.arms if arm not in ARMS]
    if unknown or not options.arms:
        raise ValueError(f"arms must be of {', '.join(ARMS)}, got {', '.join(unknown) or 'none'}")


@dataclass(frozen=True)
class _Record:
    """The file of one training, named by all that decides its scores: what is there need not be done again."""

    path: Path
    settings: Row
    seed: int

    @classmethod
    def of(cls, options: ExperimentOptions, arm: str, seed: int, pipe: DepthGuidedPipeline, recipe: Row) -> "_Record":
        names = ("real", "test", "images", "iterations", "limit")
        settings: Row = {"arm": arm, "seed": seed, "recipe": recipe, **{name: getattr(options, name) for name in names}}
        settings["depth_range"] = str(pipe.depth_predictor.depth_range)
        if arm != "real":
            settings["labels"] = probe_name(pipe, options.probe_timestep)
        if not arm.startswith("real"):
            guidance = UNGUIDED if arm in UNGUIDED_ARMS else guidance_of(options, pipe)
            settings |= image_settings(pipe, options.sampling, guidance)
        if arm in FILTERED:
            settings["keep"] = options.keep
        return cls(options.out / "runs" / f"{arm}-seed{seed}-{settings_checksum(settings)}.json", settings, seed)

    @property
    def directory(self) -> Path:
        """Run directory of the training."""
        return self.path.parent.parent / "trainings" / self.path.stem

    def read(self) -> dict[str, float] | None:
        return json.loads(self.path.read_text(encoding="utf-8"))["scores"] if self.path.is_file() else None

    def write(self, scores: dict[str, float]) -> None:
        write_json(self.path, {**self.settings, "scores": scores})


def summarise(runs: list[Row]) -> list[Row]:
    """A row for each arm: means over training seeds with Student's 95 % intervals."""
    rows = []
    for arm in dict.fromkeys(run["arm"] for run in runs):
        mine = [run for run in runs if run["arm"] == arm]
        row: Row = {"arm": arm, "what": mine[0]["what"], "images": mine[0]["images"], "seeds": len(mine)}
        for score in _SCORES:
            row |= _cells(score, torch.tensor([run[score] for run in mine], dtype=torch.float64))
        rows.append(row)
    return rows


def paired(runs: list[Row]) -> list[Row]:
    """Differences of arms whose trainings started from equal weights, with intervals over training seeds."""
    by_arm: dict[str, dict[int, Row]] = {}
    for run in runs:
        by_arm.setdefault(run["arm"], {})[run["seed"]] = run
    rows = []
    for this, minus in _COMPARED:
        for score in _SCORES if this in by_arm and minus in by_arm else ():
            seeds = sorted(by_arm[this].keys() & by_arm[minus].keys())
            values = [by_arm[this][seed][score] - by_arm[minus][seed][score] for seed in seeds]
            cells = _cells("difference", torch.tensor(values, dtype=torch.float64))
            rows.append({"this": this, "minus": minus, "score": score, "seeds": len(seeds), **cells})
    return rows


def _cells(name: str, values: Tensor) -> Row:
    interval = seed_interval(values)
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
