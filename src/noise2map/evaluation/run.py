"""One run of ``noise2map evaluate``: open models and data, score, compare, write."""

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from noise2map.data.checking import check_classes, warn_of_scale
from noise2map.data.folder import read_classes
from noise2map.data.opening import PUBLIC_DATASETS, evaluation_split, open_dataset
from noise2map.data.subsets import Redrawn, Subset
from noise2map.data.transforms import Hide
from noise2map.evaluation import report as tables
from noise2map.evaluation import screen
from noise2map.evaluation.bev import layer_table, named_protocols, protocol_label
from noise2map.evaluation.evaluate import Evaluation, evaluate_model
from noise2map.evaluation.official import TestProtocol, apply_crop, find_protocol, published_for, published_table
from noise2map.evaluation.seen import FolderPart, open_folder_part
from noise2map.evaluation.stored import MapFolder, evaluate_maps
from noise2map.evaluation.test_time import TestTimeAugmentation
from noise2map.inference.loading import load_model, pick_device, pick_dtype
from noise2map.models.decoding import DecodingOptions
from noise2map.models.denoising.ensembles import DecoderEnsemble
from noise2map.report.tables import write_csv
from noise2map.runs.data_split import DataSplit
from noise2map.runs.files import json_values, write_json
from noise2map.runs.provenance import provenance
from noise2map.tasks import TASKS, task_of
from noise2map.tasks.base import Task
from noise2map.tasks.bev import map_extent, open_bev_dataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Options of an evaluation; see ``noise2map evaluate --help``.

    Attributes:
        models: One model, or two to compare.
        members: Further decoders on the first model's encoder, which make an ensemble of it.
        dataset: Name of the dataset.
        root: Its folder.
        split: Its split; None for the one that scores are reported for.
        protocols: Settings of the dials.
        steps_chosen: Whether the user chose them: then a model without diffusion refuses several steps or samples.
        limit: Images to score, 0 for all.
        batch_size: Images at a time.
        device: Device by name.
        dtype: Floating-point type by name.
        seed: Seed of the start noise.
        resamples: Bootstrap resamples, 0 for no intervals.
        depth_range: Bounds of the scored depth, metres; None for the first model's.
        depth_scale: Metres per unit of a folder's depth maps.
        fit_temperature: Also fit the temperature of the logits.
        test_protocol: `"plain"`, `"official"` or `"multi-scale"`: how images are looked at, see `find_protocol`.
        window: Height and width of sliding windows, pixels.
        stride: Their distance, pixels.
        average_of_model: Average over steps as the model's configuration says, whatever `protocols` say.
        predictions: Folders of maps to score in place of models, one or two.
        task: What the maps of such a folder are; None for what the folder says.
        classes: File with the names of the classes of such maps: a list, or an object from id to name.
        hide: What of each image is covered, a kind of :class:`noise2map.data.transforms.Hide`; None for nothing.
        cells: ``"all"`` also scores cells that cannot be seen, apart (freedoom-surround).
        sample_scores: Also score single samples.
        cluster: What intervals resample: `"image"`, or `"map"` with all its images.
    """

    models: Sequence[str]
    dataset: str
    root: Path | None
    split: str | None
    protocols: Sequence[DecodingOptions]
    steps_chosen: bool = True
    limit: int = 0
    batch_size: int = 8
    device: str = "auto"
    dtype: str = "float32"
    seed: int = 0
    resamples: int = 1000
    depth_range: tuple[float | None, float | None] = (None, None)
    depth_scale: float = 0.001
    fit_temperature: bool = False
    test_protocol: str = "plain"
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    average_of_model: bool = False
    predictions: Sequence[Path] = ()
    task: str | None = None
    classes: Path | None = None
    hide: str | None = None
    cells: str = "visible"
    sample_scores: bool = False
    cluster: str = "image"
    members: Sequence[str] = ()

    def settings(self) -> dict[str, Any]:
        """Settings that decide the scores, for the record of an output folder; paths are made absolute."""
        chosen = {name: value for name, value in asdict(self).items() if name not in ("batch_size", "device")}
        for kind in ("models", "members"):
            chosen[kind] = [os.path.abspath(name) if Path(name).is_dir() else name for name in chosen[kind]]
        chosen["predictions"] = [os.path.abspath(path) for path in self.predictions]
        chosen |= {name: value and os.path.abspath(value) for name, value in (("root", self.root), ("classes", self.classes))}
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
        return [replace(one, average="last" if one.num_inference_steps == 1 else average) for one in chosen.protocols]
    only = DecodingOptions().resolved(model.config)
    fields = [one.resolved(model.config) for one in chosen.protocols if one.sampling == "field"]
    others = {one.name for one in chosen.protocols if one.sampling != "field"}
    if first and chosen.steps_chosen and others and others != {only.name}:
        raise ValueError(
            f"model {name!r} was trained without diffusion: its map takes 1 step of 1 sample; leave out --steps and --ensemble"
        )
    return ([only] if others else []) + fields


def _depth_range(chosen: EvaluationOptions, model: Any, test_protocol: TestProtocol) -> tuple[float, float]:
    low, high = chosen.depth_range
    default = test_protocol.depth_range_m or (model.config.min_depth, model.config.max_depth)
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
    loaded: list[tuple[str, Any, Any]] = [
        (name, *load_model(name, device, dtype, ("noise2map", "noise2map-bev"))) for name in chosen.models
    ]
    if chosen.members:
        decoders = [load_model(name, device, dtype)[0] for name in chosen.members]
        loaded[0] = (loaded[0][0], DecoderEnsemble([loaded[0][1], *decoders]), loaded[0][2])
    first = loaded[0][1]
    task = task_of(first)
    for name, model, _ in loaded[1:]:
        if task_of(model) is not task:
            raise ValueError(f"cannot compare {chosen.models[0]!r}, a model for {task}, with {name!r}, one for {task_of(model)}")
    test_protocol = _protocol(chosen, task)
    if chosen.cells != "visible" and chosen.dataset != "freedoom-surround":
        raise ValueError(f"cells is {chosen.cells!r}, which freedoom-surround can tell; {chosen.dataset} needs 'visible'")
    own = _own_folder(chosen, task, first) if chosen.dataset == "folder" and task.of_images else None
    if own is None:
        split = evaluation_split(chosen.dataset) if chosen.split is None else chosen.split
        data = _open(chosen, task, split, loaded)
    else:
        logger.info(own.text())
        split, data = own.split, [own.dataset] * len(loaded)
    for (name, model, _), one in zip(loaded, data):
        warning = check_classes(one, model.config.id2label, name) if task.has_classes else None
        if warning:
            logger.warning("warning: %s: %s", name, warning)
    scale = None
    if task.in_metres:  # of whole images: what a protocol counts may lie nearer
        whole = own.dataset if own else open_dataset(chosen.dataset, chosen.root, split, task.name, None, chosen.depth_scale)
        scale = warn_of_scale(whole, chosen.dataset)
    if scale:
        logger.warning("warning: %s", scale)
    if chosen.hide is not None:
        if not task.of_images:
            raise ValueError(f"hide is {chosen.hide!r}, but bird's-eye-view samples are evaluated as they are; expected no hide")
        data = [Redrawn(one, Hide(chosen.hide), chosen.seed) for one in data]
    grids = [_protocols(chosen, model, name, index == 0) for index, (name, model, _) in enumerate(loaded)]
    depth_range = _depth_range(chosen, first, test_protocol) if task.in_metres else None
    facts = {"dataset": chosen.dataset, "split": split, "test_protocol": test_protocol.name}
    facts |= {**provenance(device, dtype, chosen.seed), "batch_size": chosen.batch_size}
    if chosen.members:
        facts["members"] = 1 + len(chosen.members)
    if chosen.cells != "visible":
        facts["cells"] = chosen.cells
    if chosen.hide is not None:
        facts["hide"] = chosen.hide
    if own is not None and own.trained_on is not None:
        facts["images_trained_on"] = own.trained_on
    if depth_range is not None:
        facts |= {"min_depth": depth_range[0], "max_depth": depth_range[1]}
    report, evaluations = EvaluationReport(), []
    for (name, model, processor), grid, one in zip(loaded, grids, data):
        subset = Subset.evenly_spaced(one, chosen.limit or None)
        with tqdm(total=len(subset), desc=Path(name).name, unit="image", disable=None if progress else True) as bar:
            options = (chosen.batch_size, chosen.seed, depth_range, chosen.fit_temperature, bar.update, test_protocol)
            options += (chosen.sample_scores,)
            evaluation = evaluate_model(model, processor, subset, grid, *options)
        evaluations.append(evaluation)
        _add(report, evaluation, name, facts, chosen)
        if split == evaluation_split(chosen.dataset, chosen.root) and chosen.window is None:
            _add_published(report, evaluation, model, chosen)
        if not task.of_images:
            count = len(evaluation.results)
            for result, row, extra in zip(evaluation.results, report.rows[-count:], report.extras[-count:]):
                row["named"] = extra["named"] = protocol_label(result.protocol, model.config)
        model.to("cpu")
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if chosen.resamples:
        for name, evaluation in zip(chosen.models, evaluations):
            report.differences += tables.step_differences(evaluation, name, chosen.resamples, chosen.cluster)
        if len(evaluations) == 2:
            pair = (chosen.models[0], chosen.models[1])
            report.differences += tables.model_differences(*evaluations, pair, chosen.resamples, chosen.cluster)
    return report


def _score_folders(chosen: EvaluationOptions, progress: bool) -> EvaluationReport:
    """Score folders of maps: one, or two with paired differences."""
    folders = [MapFolder(path, chosen.task) for path in chosen.predictions]
    task = folders[0].task
    if any(folder.task is not task for folder in folders):
        raise ValueError(f"{folders[0].root} holds maps for {task}, {folders[1].root} for {folders[1].task}")
    test_protocol = find_protocol(chosen.dataset, task.name, chosen.test_protocol)
    names = read_classes(chosen.classes) if chosen.classes else folders[0].classes
    if chosen.dataset == "folder":
        part = open_folder_part(chosen.root or "", chosen.split, task.name, [], names, chosen.depth_scale)
        split, data = part.split, part.dataset
    else:
        split = evaluation_split(chosen.dataset) if chosen.split is None else chosen.split
        data = apply_crop(
            open_dataset(chosen.dataset, chosen.root, split, task.name, names, chosen.depth_scale),
            chosen.dataset,
            chosen.test_protocol,
        )
    low, high = chosen.depth_range
    default = test_protocol.depth_range_m or (1e-3, 80.0)
    depth_range = (default[0] if low is None else low, default[1] if high is None else high)
    facts = {"dataset": chosen.dataset, "split": split, "test_protocol": test_protocol.name.split(":")[0]}
    facts |= {**provenance(torch.device("cpu"), torch.float32, chosen.seed), "batch_size": 1}
    if task.in_metres:
        facts |= {"min_depth": depth_range[0], "max_depth": depth_range[1]}
    report, evaluations = EvaluationReport(), []
    subset = Subset.evenly_spaced(data, chosen.limit or None)
    for folder in folders:
        with tqdm(total=len(subset), desc=folder.root.name, unit="image", disable=None if progress else True) as bar:
            evaluations.append(evaluate_maps(folder, subset, depth_range, chosen.depth_scale, bar.update, chosen.sample_scores))
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
    if chosen.test_protocol == "multi-scale" or chosen.window is not None or chosen.stride is not None or chosen.fit_temperature:
        raise ValueError("bird's-eye-view maps are evaluated plain or official: no scales, no windows, no temperature")
    return TestProtocol(chosen.test_protocol, TestTimeAugmentation())


def _own_folder(chosen: EvaluationOptions, task: Task, model: Any) -> FolderPart:
    """The split of the user's own folder, by default what the models were not trained on."""
    if chosen.root is None:
        raise ValueError("dataset 'folder' needs the folder of the data (--root)")
    names = model.config.id2label if task.has_classes else None
    return open_folder_part(
        chosen.root, chosen.split, task.name, [DataSplit.read(name) for name in chosen.models], names, chosen.depth_scale
    )


def _open(chosen: EvaluationOptions, task: Task, split: str, loaded: Sequence[tuple[str, Any, Any]]) -> list[Any]:
    """The dataset for each model; models for bird's-eye-view maps may need other sensors, but the same map."""
    if not task.of_images:
        extents = [map_extent(model.config) for _, model, _ in loaded]
        if any(extent != extents[0] for extent in extents):
            raise ValueError(f"the models map areas of {extents}; expected the same area and cells to compare them")
        options = (chosen.dataset, chosen.root, split)
        return [open_bev_dataset(*options, model, processor, chosen.cells) for _, model, processor in loaded]
    data = task.open_dataset(chosen.dataset, chosen.root, split, *loaded[0][1:], chosen.depth_scale)
    return [apply_crop(data, chosen.dataset, chosen.test_protocol)] * len(loaded)


def _add_published(report: EvaluationReport, evaluation: Evaluation, model: Any, chosen: EvaluationOptions) -> None:
    for result, row in zip(evaluation.results, report.rows[-len(evaluation.results) :]):
        options = result.protocol
        if options.sampler == "ddim":
            setting = (options.num_inference_steps, options.ensemble_size, options.average)
            found = published_for(model.config, chosen.dataset, chosen.test_protocol, *setting)
            row |= {f"published_{score}": value for score, value in found.items()}
            if found and chosen.dataset in PUBLIC_DATASETS:  # a published score is of the whole split, the measured one perhaps not
                row["released_images"] = PUBLIC_DATASETS[chosen.dataset].released.get(row["split"])


def _add(report: EvaluationReport, evaluation: Evaluation, name: str, facts: dict[str, Any], chosen: EvaluationOptions) -> None:
    report.rows += tables.result_rows(evaluation, {"model": name, **facts}, chosen.resamples, chosen.cluster)
    report.image_rows += tables.image_rows(evaluation, name)
    for result in evaluation.results:
        report.extras.append({"model": name, "protocol": result.protocol.name, **result.scorer.extras()})
