"""One run of ``noise2map evaluate``: open models and data, score, compare, write."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from noise2map.data.checking import check_classes
from noise2map.data.folder import read_classes
from noise2map.data.opening import PUBLIC_DATASETS, evaluation_split, open_dataset
from noise2map.data.subsets import Subset
from noise2map.evaluation import report as tables
from noise2map.evaluation import screen
from noise2map.evaluation.bev import layer_table, named_protocols, protocol_label
from noise2map.evaluation.evaluate import Evaluation, evaluate_model
from noise2map.evaluation.official import LOOKS, TestProtocol, apply_crop, find_protocol, published_for, published_table
from noise2map.evaluation.opening import LabelledData, LoadedModel, ScoredData, open_labelled, same_place
from noise2map.evaluation.protocols import json_width
from noise2map.evaluation.seen import open_folder_part
from noise2map.evaluation.stored import MapFolder, evaluate_maps
from noise2map.evaluation.test_time import TestTimeAugmentation
from noise2map.inference.loading import load_model, pick_device, pick_dtype
from noise2map.models import Noise2MapConfig
from noise2map.models.decoding import DecodingOptions
from noise2map.models.denoising.ensembles import DecoderEnsemble
from noise2map.report.tables import write_csv
from noise2map.runs.data_split import DataSplit
from noise2map.runs.files import json_values, write_json
from noise2map.runs.progress import progress_bar
from noise2map.runs.provenance import provenance
from noise2map.tasks import TASKS, task_of
from noise2map.tasks.base import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(ScoredData):
    """Options of an evaluation; see ``noise2map evaluate --help``. Those of the data are of `ScoredData`.

    Attributes:
        models: One model, or two to compare.
        members: Further decoders on the first model's encoder, which make an ensemble of it.
        protocols: Settings of the dials.
        steps_chosen: Whether the user chose them: then a model without diffusion refuses several steps or samples.
        depth_range: Bounds of the scored depth, metres; None for the first model's.
        fit_temperature: Also fit the temperature of the logits.
        test_protocol: `"plain"`, `"flip"`, `"official"` or `"multi-scale"`: how images are looked at, see `find_protocol`.
        window: Height and width of sliding windows, pixels.
        stride: Their distance, pixels.
        average_of_model: Average over steps as the model's configuration says, whatever `protocols` say.
        predictions: Folders of maps to score in place of models, one or two.
        task: What the maps of such a folder are; None for what the folder says.
        classes: File with the names of the classes of such maps: a list, or an object from id to name.
        sample_scores: Also score single samples.
    """

    models: Sequence[str]
    protocols: Sequence[DecodingOptions]
    steps_chosen: bool = True
    depth_range: tuple[float | None, float | None] = (None, None)
    fit_temperature: bool = False
    test_protocol: str = "plain"
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    average_of_model: bool = False
    predictions: Sequence[Path] = ()
    task: str | None = None
    classes: Path | None = None
    sample_scores: bool = False
    members: Sequence[str] = ()

    def settings(self) -> dict[str, Any]:
        """Settings that decide the scores, for the record of an output folder; paths are made absolute."""
        chosen = self.chosen()
        chosen |= {kind: [same_place(name) for name in chosen[kind]] for kind in ("models", "members")}
        chosen["predictions"] = [os.path.abspath(path) for path in self.predictions]
        chosen["classes"] = self.classes and os.path.abspath(self.classes)
        for protocol in chosen["protocols"]:
            protocol["field_smoothness"] = json_width(protocol["field_smoothness"])
        return {"command": "evaluate", **chosen}


@dataclass
class EvaluationReport:
    """Everything an evaluation found.

    Attributes:
        rows: One flat row for each model and protocol.
        differences: Paired differences: protocols against the first, and models against each other.
        image_rows: One row for each model, protocol and image.
        extras: Per model and protocol: classes, reliability diagram, pooled depth scores.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    differences: list[dict[str, Any]] = field(default_factory=list)
    image_rows: list[dict[str, Any]] = field(default_factory=list)
    extras: list[dict[str, Any]] = field(default_factory=list)

    def text(self) -> list[str]:
        """Tables for the screen."""
        first = self.rows[0]
        models = ", ".join(dict.fromkeys(row["model"] for row in self.rows))
        task = TASKS[first["task"]]
        data = f"{first['images']} {task.things} of {first['dataset']} {first['split']}"
        parts = [
            f"{models} on {data}, seed {first['seed']}, {first['device']}, protocol {first['test_protocol']}, "
            f"intervals over {first['resampled']}",
            screen.score_table(self.rows),
            screen.uncertainty_table(self.rows),
        ]
        published = published_table(self.rows)
        if published:
            parts.insert(2, published)
        if not task.of_images:
            parts.insert(2, layer_table(self.extras))
        parts += [table for table in (screen.region_table(self.rows), screen.sample_table(self.rows)) if table]
        if self.differences:
            parts.append(screen.difference_table(self.differences))
        return parts

    def write(self, out: Path, per_image: bool = False) -> list[Path]:
        """Write `evaluation.json` and `evaluation.csv`, and `per_image.csv` on request.

        Returns:
            The paths written.

        Raises:
            OSError: If a file cannot be written.
        """
        document = {"rows": self.rows, "differences": self.differences, "extras": self.extras}
        paths = [out / "evaluation.json", out / "evaluation.csv"]
        write_json(paths[0], json_values(document))
        write_csv(paths[1], json_values(self.rows))
        if per_image:
            paths.append(out / "per_image.csv")
            write_csv(paths[2], json_values(self.image_rows))
        return paths


def _protocols(chosen: EvaluationOptions, model: Any, name: str, first: bool) -> list[DecodingOptions]:
    """The chosen protocols, or the only one there is for a model without diffusion."""
    if model.config.diffusion:
        if not task_of(model).of_images and chosen.test_protocol == "official" and not chosen.steps_chosen:
            return named_protocols(model.config)
        if not chosen.average_of_model:
            return list(chosen.protocols)
        average = model.config.average
        own = (None, "diffusion")  # the others have no steps to average
        several = [one.num_inference_steps != 1 and one.sampling in own for one in chosen.protocols]
        return [replace(one, average=average if more else "last") for one, more in zip(chosen.protocols, several)]
    plain = [one for one in chosen.protocols if one.sampling != "field"]
    asked = any(one.sampling is not None for one in plain)  # or the model's own way, which may be a field
    only = DecodingOptions(sampling="diffusion" if asked else None).resolved(model.config)
    drawn = [replace(one, num_inference_steps=1) for one in chosen.protocols if one.sampling == "field"]
    fields = list(dict.fromkeys(one.resolved(model.config) for one in drawn))
    others = {one.name for one in chosen.protocols if one.sampling not in ("field", "one_pass")}
    if first and chosen.steps_chosen and others and others != {only.name}:
        raise ValueError(
            f"model {name!r} was trained without diffusion: its map takes 1 step of 1 sample; leave out --steps, --ensemble "
            "and --refine"
        )
    return ([only] if plain else []) + fields


def _depth_range(chosen: EvaluationOptions, default: tuple[float, float]) -> tuple[float, float]:
    low, high = chosen.depth_range
    bounds = (default[0] if low is None else low, default[1] if high is None else high)
    if not 0 < bounds[0] < bounds[1]:
        raise ValueError(f"need 0 < min_depth < max_depth (metres), got {bounds[0]} and {bounds[1]}")
    return float(bounds[0]), float(bounds[1])


def run_evaluation(chosen: EvaluationOptions, progress: bool = True) -> EvaluationReport:
    """Evaluate one model, or two on the same images.

    Args:
        chosen: What to evaluate.
        progress: Show a progress bar on standard error.

    Returns:
        Rows, differences and per-image rows.

    Raises:
        OSError: If a model, a folder or a file is missing or cannot be read.
        ValueError: If a value cannot work, models and data do not fit, or an output is not finite.
    """
    if chosen.predictions:
        return _score_folders(chosen, progress)
    device, dtype = pick_device(chosen.device), pick_dtype(chosen.dtype)
    models = _load(chosen, device, dtype)
    first, task = models[0].model, task_of(models[0].model)
    test_protocol = _protocol(chosen, task)
    data = open_labelled(chosen, models, chosen.test_protocol)
    grids = [_protocols(chosen, one.model, one.name, index == 0) for index, one in enumerate(models)]
    default = test_protocol.depth_range_m or (first.config.min_depth, first.config.max_depth)
    depth_range = _depth_range(chosen, default) if task.in_metres else None
    facts = {"dataset": chosen.dataset, "split": data.split, "test_protocol": test_protocol.name}
    facts |= {**provenance(device, dtype, chosen.seed), "batch_size": chosen.batch_size}
    facts |= _further_facts(chosen, data, depth_range)
    report, evaluations = EvaluationReport(), []
    for one, grid, dataset in zip(models, grids, data.datasets):
        subset = Subset.evenly_spaced(dataset, chosen.limit or None)
        with progress_bar(total=len(subset), desc=Path(one.name).name, unit="image", shown=progress) as bar:
            options = (chosen.batch_size, chosen.seed, depth_range, chosen.fit_temperature, bar.update, test_protocol)
            options += (chosen.sample_scores,)
            evaluation = evaluate_model(one.model, one.processor, subset, grid, *options)
        evaluations.append(evaluation)
        _add(report, evaluation, one.name, facts, chosen)
        if data.split == evaluation_split(chosen.dataset, chosen.root) and chosen.window is None:
            _add_published(report, evaluation, one.model, chosen)
        if not task.of_images:
            _add_labels(report, evaluation, one.model)
        one.model.to("cpu")
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if chosen.resamples:
        for name, evaluation in zip(chosen.models, evaluations):
            report.differences += tables.step_differences(evaluation, name, chosen.resamples, chosen.cluster)
        if len(evaluations) == 2:
            pair = (chosen.models[0], chosen.models[1])
            report.differences += tables.model_differences(*evaluations, pair, chosen.resamples, chosen.cluster)
    return report


def _load(chosen: EvaluationOptions, device: torch.device, dtype: torch.dtype) -> list[LoadedModel]:
    """The models, the first one with its further decoders; all of one task."""
    kinds = ("noise2map", "noise2map-bev")
    models = [LoadedModel(name, *load_model(name, device, dtype, kinds)) for name in chosen.models]
    if chosen.members:
        decoders = [load_model(name, device, dtype, kinds)[0] for name in chosen.members]
        models[0] = replace(models[0], model=DecoderEnsemble([models[0].model, *decoders]))
    task = task_of(models[0].model)
    for one in models[1:]:
        other = task_of(one.model)
        if other is not task:
            raise ValueError(f"cannot compare {chosen.models[0]!r}, a model for {task}, with {one.name!r}, one for {other}")
    return models


def _further_facts(
    chosen: EvaluationOptions, data: LabelledData, depth_range: tuple[float, float] | None
) -> dict[str, str | int | float]:
    """What a row says where it is not as usual."""
    facts: dict[str, str | int | float] = {}
    if chosen.members:
        facts["members"] = 1 + len(chosen.members)
    if chosen.cells != "visible":
        facts["cells"] = chosen.cells
    if chosen.hide is not None:
        facts["hide"] = chosen.hide
    if data.trained_on is not None:
        facts["images_trained_on"] = data.trained_on
    if depth_range is not None:
        facts |= {"min_depth": depth_range[0], "max_depth": depth_range[1]}
    return facts


def _stored_depth_range(chosen: EvaluationOptions, folder: MapFolder, test_protocol: TestProtocol) -> tuple[float, float]:
    """Where depth of stored maps is scored: that of the model that made them, if it is known."""
    known = test_protocol.depth_range_m or folder.depth_range
    found = _depth_range(chosen, known or (Noise2MapConfig.min_depth, Noise2MapConfig.max_depth))
    if folder.task.in_metres and known is None and None in chosen.depth_range:
        logger.warning(
            f"{folder.root} does not say which model made it, or that is not here: depth is scored from {found[0]:g} to "
            f"{found[1]:g} m; choose with --min-depth and --max-depth"
        )
    return found


def _score_folders(chosen: EvaluationOptions, progress: bool) -> EvaluationReport:
    """Score folders of maps: one, or two with paired differences."""
    if chosen.test_protocol in LOOKS:
        raise ValueError(f"protocol is {chosen.test_protocol!r}, but maps that are stored already see no further image")
    folders = [MapFolder(path, chosen.task) for path in chosen.predictions]
    task = folders[0].task
    if any(folder.task is not task for folder in folders):
        raise ValueError(f"{folders[0].root} holds maps for {task}, {folders[1].root} for {folders[1].task}")
    test_protocol = find_protocol(chosen.dataset, task.name, chosen.test_protocol)
    names = read_classes(chosen.classes) if chosen.classes else folders[0].classes
    seen: dict[str, Any] = {}
    if chosen.dataset == "folder":
        records = [None if folder.model is None else DataSplit.read(folder.model) for folder in folders]
        part = open_folder_part(chosen.root, chosen.split, task.name, records, names, chosen.depth_scale)
        split, data = part.split, part.dataset
        if part.trained_on is not None:
            logger.info(part.text())
            seen = {"images_trained_on": part.trained_on}
    else:
        split = evaluation_split(chosen.dataset) if chosen.split is None else chosen.split
        data = apply_crop(
            open_dataset(chosen.dataset, chosen.root, split, task.name, names, chosen.depth_scale),
            chosen.dataset,
            chosen.test_protocol,
        )
    for folder in folders if task.has_classes else ():
        if folder.classes is not None and (warning := check_classes(data, folder.classes, str(folder.root))):
            logger.warning("warning: %s: %s", folder.root, warning)
    depth_range = _stored_depth_range(chosen, folders[0], test_protocol)
    facts = {"dataset": chosen.dataset, "split": split, "test_protocol": test_protocol.name.split(":")[0], **seen}
    facts |= {**provenance(torch.device("cpu"), torch.float32, chosen.seed), "batch_size": 1}
    if task.in_metres:
        facts |= {"min_depth": depth_range[0], "max_depth": depth_range[1]}
    report, evaluations = EvaluationReport(), []
    subset = Subset.evenly_spaced(data, chosen.limit or None)
    for folder in folders:
        with progress_bar(total=len(subset), desc=folder.root.name, unit="image", shown=progress) as bar:
            options = (depth_range, chosen.depth_scale, bar.update, chosen.sample_scores, test_protocol.farthest_m)
            evaluations.append(evaluate_maps(folder, subset, *options))
        _add(report, evaluations[-1], str(folder.root), facts, chosen)
    if chosen.resamples and len(evaluations) == 2:
        pair = (str(folders[0].root), str(folders[1].root))
        report.differences += tables.model_differences(*evaluations, pair, chosen.resamples, chosen.cluster)
    return report


def _protocol(chosen: EvaluationOptions, task: Task) -> TestProtocol:
    """Test protocol of the samples; there is one way for bird's-eye-view maps.

    Raises:
        ValueError: If an option is not for this task.
    """
    if task.of_images:
        return find_protocol(chosen.dataset, task.name, chosen.test_protocol, chosen.window, chosen.stride)
    if chosen.test_protocol in LOOKS or chosen.window is not None or chosen.stride is not None or chosen.fit_temperature:
        raise ValueError("bird's-eye-view maps are evaluated plain or official: no scales, no windows, no temperature")
    return TestProtocol(chosen.test_protocol, TestTimeAugmentation())


def _add_published(report: EvaluationReport, evaluation: Evaluation, model: Any, chosen: EvaluationOptions) -> None:
    """Published scores, beside runs under the conditions that they were taken in: whole images, one model, plain diffusion."""
    if chosen.hide or chosen.members:
        return
    for result, row in zip(evaluation.results, report.rows[-len(evaluation.results) :]):
        options = result.protocol
        plain = options.resolved(model.config) if model.config.diffusion else None
        usual = plain is None or (plain.sampling == "diffusion" and not plain.is_sparse)
        if options.sampler == "ddim" and usual:
            setting = (options.num_inference_steps, options.ensemble_size, options.average)
            found = published_for(model.config, chosen.dataset, chosen.test_protocol, *setting)
            row |= {f"published_{score}": value for score, value in found.items()}
            if found and chosen.dataset in PUBLIC_DATASETS:  # a published score is of the whole split, the measured one perhaps not
                row["released_images"] = PUBLIC_DATASETS[chosen.dataset].released.get(row["split"])


def _add_labels(report: EvaluationReport, evaluation: Evaluation, model: Any) -> None:
    """What the settings are called in the papers on bird's-eye-view maps."""
    count = len(evaluation.results)
    for result, row, extra in zip(evaluation.results, report.rows[-count:], report.extras[-count:]):
        row["named"] = extra["named"] = protocol_label(result.protocol, model.config)


def _add(report: EvaluationReport, evaluation: Evaluation, name: str, facts: dict[str, Any], chosen: EvaluationOptions) -> None:
    report.rows += tables.result_rows(evaluation, {"model": name, **facts}, chosen.resamples, chosen.cluster)
    report.image_rows += tables.image_rows(evaluation, name)
    for result in evaluation.results:
        extras = result.scorer.extras()
        if result.regions:
            extras["regions"] = {region: scorer.extras() for region, scorer in result.regions.items()}
        report.extras.append({"model": name, "protocol": result.protocol.name, **extras})
