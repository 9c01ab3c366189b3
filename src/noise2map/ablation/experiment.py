"""The ablations: what is to be done and what it costs, trainings and scores as far as they are not there, and the report."""

import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from noise2map.ablation.arms import Ablation
from noise2map.ablation.cost import decoder_gflop, decoder_parameters, training_gflop
from noise2map.ablation.maps import draw_maps
from noise2map.ablation.options import AblationOptions, Run, make_runs
from noise2map.ablation.report import AblationReport, Scored
from noise2map.ablation.scoring import Frames, Scores, score
from noise2map.data.subsets import Subset
from noise2map.inference.loading import load_model, pick_device
from noise2map.report.tables import text_table
from noise2map.runs.files import settings_checksum
from noise2map.runs.provenance import provenance
from noise2map.runs.run_directory import FINAL_DIRECTORY, RunStart, find_start, read_config
from noise2map.tasks import get_task
from noise2map.training.maps.build import make_config, make_trainer
from noise2map.training.maps.data import class_names, make_data
from noise2map.training.maps.recipe import Recipe, make_recipe
from noise2map.training.running import run_training

logger = logging.getLogger(__name__)

_CELLS = (8, 8)  # of the features that operations are counted on before anything is read


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        ablations: what is asked.
        runs: all trainings.
        starts: how each begins, as found in its folder.
        gflop: operations of each training, in units of 1e9.
    """

    ablations: Sequence[Ablation]
    runs: Sequence[Run]
    starts: Sequence[RunStart]
    gflop: Sequence[float]

    def text(self) -> str:
        """Table of the trainings, and how much of their work is done."""
        arms: dict[str, dict[str, Any]] = {}
        for run, start, gflop in zip(self.runs, self.starts, self.gflop):
            line = arms.setdefault(run.arm.name, {"arm": run.arm.name, "trainings": 0, "finished": 0, "TFLOP each": gflop / 1000})
            line["trainings"] += 1
            line["finished"] += start.state == "finished"
        left = sum(gflop for start, gflop in zip(self.starts, self.gflop) if start.state != "finished")
        waiting = sum(start.state != "finished" for start in self.starts)
        # A core of a few years ago reaches some 30 GFLOP/s in layers of this size; told as an order of magnitude.
        hours = left / 30 / 3600
        work = f"{left / 1000:.0f} TFLOP, about {hours:.1f} hours of one CPU core, and features and scores beside"
        return f"{text_table(list(arms.values()), digits=3)}\n{waiting} of {len(self.runs)} trainings are left: {work}"


def make_plan(options: AblationOptions, overwrite: bool = False) -> Plan:
    """Everything that can be found out before heavy work: recipes, folders, what is there already, cost.

    Args:
        options: what is asked.
        overwrite: trainings of other settings are to be replaced.

    Raises:
        OSError: If the encoder or data is missing.
        ValueError: If a value cannot work, or a run folder holds a run of other settings.
    """
    ablations, runs = make_runs(options)
    starts = [_start_of(run, overwrite) for run in runs]
    costs = {run.arm.name: _training_gflop(run.recipe) for run in runs if run.seed == 0}
    return Plan(ablations, runs, starts, [costs[run.arm.name] for run in runs])


def _start_of(run: Run, overwrite: bool) -> RunStart:
    advice = "choose another --out, or --overwrite"
    try:
        return find_start(run.folder, run.recipe.to_dict(), advice=advice, complete=lambda tree: make_recipe(tree).to_dict())
    except ValueError:
        if overwrite and "recipe" in read_config(run.folder):
            return RunStart("new")
        raise


def _training_gflop(recipe: Recipe) -> float:
    """Operations of a training, counted on a small map: decoders are linear in its area, but for the attention of few kernels."""
    torch.manual_seed(0)
    kind: Any = get_task(recipe.model.task).model_class
    model = kind(make_config(recipe, class_names(recipe)))
    height, width = _CELLS
    features = torch.randn(1, model.decoder.feature_channels, height, width)
    step = training_gflop(model, features, torch.zeros(1, 4 * height, 4 * width, dtype=torch.long))
    size = recipe.train.window_size() or recipe.image_size() or (512, 512)
    area = size[0] * size[1] / (16 * height * width)
    return step * area * recipe.train.batch_size * recipe.train.iterations


class Experiment:
    """Trains and scores what a plan asks for.

    Args:
        options: of the ablations.
        plan: what is to be done.
    """

    def __init__(self, options: AblationOptions, plan: Plan) -> None:
        self.options, self.plan = options, plan
        self.device = pick_device("auto")
        self._frames: Frames | None = None
        self.facts: dict[str, Any] = {"encoder": Path(options.encoder).name, "dataset": options.dataset, "split": options.val}
        self.facts |= {"iterations": options.iterations, "batch_size": options.batch_size, "window": options.window}
        where = provenance(self.device, torch.float32, 0)
        self.facts |= {name: value for name, value in where.items() if name != "seed"}  # a column of the rows

    def run(self) -> AblationReport:
        """Do what is missing, training by training; what was done is kept whatever happens then.

        Raises:
            OSError: If something cannot be read or written.
            ValueError: If data and model do not fit.
        """
        scored = []
        for number, (run, start) in enumerate(zip(self.plan.runs, self.plan.starts), start=1):
            if start.state != "finished":
                if start.state == "new" and run.folder.exists():
                    shutil.rmtree(run.folder)  # of other settings, and to be overwritten
                print(f"[{number}/{len(self.plan.runs)}] {run.arm.name}, seed {run.seed}", file=sys.stderr, flush=True)
                run_training(make_trainer(run.recipe, run.folder), run.folder, start, run.recipe, f"decoders/{run.arm.recipe}")
            scored.append(self._scored(run))
        report = AblationReport(self.plan.ablations, scored, self.facts, self.options.resamples)
        return replace(report, images=self._drawn())

    def _drawn(self) -> dict[str, Image.Image]:
        """Maps of the first seed's decoders, where steps are asked about."""
        ablation = next((one for one in self.plan.ablations if one.name == "steps"), None)
        if ablation is None:
            return {}
        named, names = [], [arm.name for arm in ablation.arms]
        for run in self.plan.runs:
            if run.seed == 0 and run.arm.name in names:
                model, processor = self._load(run)
                frames = self._frames_of(model, processor, run.recipe)
                named.append((ablation.arms[names.index(run.arm.name)].label, model))
        return draw_maps(named, frames, [decoding.steps for decoding in ablation.decodings])

    def _load(self, run: Run) -> tuple[Any, Any]:
        return load_model(str(run.folder / FINAL_DIRECTORY), self.device, torch.float32, ("noise2map",))

    def _scored(self, run: Run) -> Scored:
        """Scores of a trained decoder, as far as they are not stored."""
        options = self.options
        settings = {"val": options.val, "limit": options.limit, "root": str(options.root), "dataset": options.dataset}
        scores = Scores(run.folder / "scores" / settings_checksum(settings), settings)
        missing = [one for one in run.decodings if scores.read(one) is None]
        if missing:
            model, processor = self._load(run)
            frames = self._frames_of(model, processor, run.recipe)
            sample = next(frames.batches(model))
            sample.encode()
            assert sample.features is not None
            features = sample.features[:1]
            size = {"parameters": decoder_parameters(model), "time_difference": model.config.time_difference}
            for one, (row, counts) in zip(missing, score(model, frames, missing)):
                scores.write(one, {**row, **size, "gflop": decoder_gflop(model, features, one.steps)}, counts)
        found = {}
        for one in run.decodings:
            stored = scores.read(one)
            assert stored is not None
            found[one] = stored
        return Scored(run.arm, run.seed, run.folder, found)

    def _frames_of(self, model: Any, processor: Any, recipe: Recipe) -> Frames:
        if self._frames is None:
            _, val = make_data(recipe)
            self._frames = Frames(model, processor, Subset.evenly_spaced(val, self.options.limit or None))
        return self._frames
