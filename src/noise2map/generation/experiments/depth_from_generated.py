"""What generated images with predicted depth teach a depth estimator, beside real ones: DAG's application as an experiment."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from noise2map.generation.depth_reading import probe_name
from noise2map.generation.evaluation.references import open_references
from noise2map.generation.experiments.small_depth import fit_small_depth, score_small_depth
from noise2map.generation.experiments.training_sets import ARMS, ExperimentJob, prior_scale_of, real_images, training_set
from noise2map.generation.loading import load_generator
from noise2map.inference.loading import pick_device
from noise2map.metrics import seed_interval
from noise2map.report.plots import Estimates, comparison_plot, save_figure
from noise2map.report.tables import text_table, write_csv
from noise2map.runs.files import check_writable, weights_checksum, write_json
from noise2map.runs.provenance import provenance

Row = dict[str, Any]

_COMPARED = (("guided", "unguided"), ("filtered", "guided"), ("unguided", "real-predicted"), ("guided", "real"))

_SCORES = ("delta1", "abs_rel", "rmse")

_PLOTTED = {"delta1": "δ1 (higher is better)", "abs_rel": "AbsRel (lower is better)"}


@dataclass
class ExperimentReport:
    """What was found.

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


def run_experiment(job: ExperimentJob, say: Callable[[str], object] = lambda text: None, progress: bool = True) -> ExperimentReport:
    """Draw, label, train and score; run again, it goes on with what is missing.

    Args:
        job: What to do.
        say: Called with remarks for the user.
        progress: Show progress bars.

    Raises:
        OSError: If something is missing or cannot be written.
        ValueError: If a value cannot work or the parts do not belong together, before anything is drawn.
    """
    _check(job)
    device = pick_device(job.device)
    check_writable(job.out)
    pipe = load_generator(job.model, job.predictor, job.prior, sampler=job.scheduler, device=device)
    job = replace(job, plan=job.plan.of(pipe))
    predictor = pipe.depth_predictor
    if predictor is None:
        raise ValueError("labelling generated images needs a depth predictor; expected one in its folder, or --predictor")
    if not predictor.depth_range.metric:
        raise ValueError(f"the depth predictor gives {predictor.depth_range}; expected metres, which real depth is scored in")
    if pipe.depth_prior is None:
        say("no depth prior: guided means DCG alone")
    size = predictor.image_size[0]
    test_images, test_depth = real_images(open_references(job.test, "depth"), job.test_limit, size)
    real = open_references(job.real, "depth") if {"real", "real-predicted"} & set(job.arms) else None
    if real is not None and len(real) < job.images:
        raise ValueError(f"{job.real} holds {len(real)} images; expected at least --images {job.images}")
    parts = f"{probe_name(pipe, job.probe_timestep)} {weights_checksum(pipe.depth_prior) if pipe.depth_prior is not None else ''}"
    runs = []
    with tqdm(total=len(job.arms) * job.seeds * job.iterations, desc="trainings", disable=None if progress else True) as bar:
        for arm in job.arms:
            records = [_Record.of(job, arm, seed, parts) for seed in range(job.seeds)]
            data = None
            for record in records:
                scores = record.read()
                if scores is None:
                    data = data or training_set(job, arm, pipe, real, size, progress)
                    bar.set_description(f"{arm}, seed {record.seed}")
                    model = fit_small_depth(
                        data.images,
                        data.signal,
                        data.mask,
                        num_steps=job.iterations,
                        seed=record.seed,
                        device=device,
                        on_step=bar.update,
                    )
                    scores = score_small_depth(model, test_images, test_depth, predictor.depth_range)
                    record.write(scores)
                else:
                    bar.update(job.iterations)
                runs.append({"arm": arm, "what": ARMS[arm], "images": job.images, "seed": record.seed, **scores})
    facts = {
        "model": job.model,
        "real": job.real,
        "test": job.test,
        "test_images": len(test_images),
        "iterations": job.iterations,
        "keep": job.keep,
        "consistency_scale": job.consistency_scale,
        "prior_scale": prior_scale_of(job, pipe),
        **{name: getattr(job.plan, name) for name in ("num_inference_steps", "convention", "reduction", "bf16")},
        **{name: value for name, value in provenance(device, torch.float32, 0).items() if name != "seed"},  # a column of runs
    }
    return ExperimentReport(runs, summarise(runs), paired(runs), facts)


def _check(job: ExperimentJob) -> None:
    for name, least in (("images", 1), ("seeds", 1), ("iterations", 1)):
        if getattr(job, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(job, name)}")
    if not 0 < job.keep <= 1:
        raise ValueError(f"keep must be in (0, 1], got {job.keep}")
    unknown = [arm for arm in job.arms if arm not in ARMS]
    if unknown or not job.arms:
        raise ValueError(f"arms must be of {', '.join(ARMS)}, got {', '.join(unknown) or 'none'}")


@dataclass(frozen=True)
class _Record:
    """The file of one training, named by all that decides its scores: what is there need not be done again."""

    path: Path
    settings: Row
    seed: int

    @classmethod
    def of(cls, job: ExperimentJob, arm: str, seed: int, parts: str) -> "_Record":
        names = ("real", "test", "images", "iterations", "probe_timestep", "test_limit", "scheduler")
        settings: Row = {"arm": arm, "seed": seed, "parts": parts, **{name: getattr(job, name) for name in names}}
        if not arm.startswith("real"):
            settings |= {"consistency_scale": job.consistency_scale, "prior_scale": job.prior_scale, **asdict(job.plan)}
        if arm == "filtered":
            settings["keep"] = job.keep
        digits = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        return cls(job.out / "runs" / f"{arm}-seed{seed}-{digits}.json", settings, seed)

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
