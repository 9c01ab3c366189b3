"""Rows of an evaluation for JSON and CSV: scores with intervals, paired differences."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from noise2map.evaluation.evaluate import Evaluation, ProtocolResult
from noise2map.evaluation.protocols import json_width
from noise2map.metrics import UNCERTAINTY_SCORES, Interval, bootstrap_intervals, paired_bootstrap_intervals
from noise2map.tasks.base import Task
from noise2map.tasks.scoring import Scorer

Row = dict[str, Any]

# Kinds of uncertainty that say how the map was made come first in tables.
KINDS = ("step_flip", "sample_variance", "mutual_information", "scale", "entropy", "least_confidence", "uncertainty")

# What a row says of each kind of uncertainty, besides its share of the per-image file.
_ROW_UNCERTAINTY = (
    *("auroc", "aupr", "aurc", "excess_aurc", "ause", "prr", "pearson", "spearman", "uce", "mean_uncertainty"),
    *("auroc_image", "ause_image", "pearson_image", "spearman_image"),
)

_IMAGE_UNCERTAINTY = ("auroc", "aupr", "aurc", "ause", "prr", "pearson", "spearman", "mean_uncertainty")


def _kinds(scorer: Scorer) -> list[str]:
    return sorted(scorer.uncertainties, key=lambda name: (KINDS.index(name) if name in KINDS else -1, name))


def _clusters(evaluation: Evaluation, cluster: str) -> list[str] | None:
    """What intervals resample: places, or None for images.

    Raises:
        ValueError: If places are asked for and the dataset does not say them.
    """
    if cluster == "image":
        return None
    if evaluation.places is None:
        raise ValueError(f"the {evaluation.task.things} do not say of which map they are; intervals can resample images alone")
    return evaluation.places


def _intervals(name: str, interval: Interval) -> Row:
    return {f"{name}_low": interval.low, f"{name}_high": interval.high}


def _scorer_columns(scorer: Scorer, task: Task, suffix: str, resamples: int, clusters: list[str] | None) -> Row:
    """Scores of a scorer with intervals; a region's name comes last, before that of the interval's end."""
    row: Row = {f"{name}{suffix}": value for name, value in scorer.scores().items()}
    if resamples:
        intervals = bootstrap_intervals(scorer.image_rows(), scorer.statistic(), resamples, clusters=clusters)
        for name, interval in zip(scorer.statistics, intervals):
            row |= _intervals(f"{name}{suffix}", interval)
    for prefix, metric in scorer.sums.items():
        row |= {f"{prefix}{name}{suffix}": float(value) for name, value in metric.compute().items()}
        if resamples:
            intervals = bootstrap_intervals(scorer.sums_rows(prefix), metric.statistic, resamples, clusters=clusters)
            for name, interval in zip(metric.names, intervals):
                row |= _intervals(f"{prefix}{name}{suffix}", interval)
    for kind in _kinds(scorer):
        scores = scorer.uncertainties[kind].compute()
        wanted = [name for name in _ROW_UNCERTAINTY if task.binary_errors or name != "uce"]
        row |= {f"{kind}_{name}{suffix}": float(scores[name]) for name in wanted}
        if resamples:
            image_rows = scorer.uncertainty_rows(kind)[:, [UNCERTAINTY_SCORES.index("auroc")]]
            row |= _intervals(f"{kind}_auroc_image{suffix}", bootstrap_intervals(image_rows, n=resamples, clusters=clusters)[0])
    return row


def _scorers(result: ProtocolResult) -> Iterator[tuple[str, Scorer]]:
    """Suffix of the names and scorer: of everything, and of each region."""
    yield "", result.scorer
    for region, scorer in result.regions.items():
        yield f"_{region}", scorer


def result_rows(evaluation: Evaluation, facts: Mapping[str, Any], resamples: int = 1000, cluster: str = "image") -> list[Row]:
    """One flat row for each protocol: facts, dials, scores with intervals, uncertainty scores, speed.

    Intervals are percentile-bootstrap intervals over images or maps: `<score>_low`, `<score>_high`. What is scored in a region
    alone bears its name at the end: `<score>_hidden`, `<score>_hidden_low`.

    Args:
        evaluation: The scores.
        facts: Columns that are the same in all rows: model, data, device, command.
        resamples: Bootstrap resamples; 0 for no intervals.
        cluster: What is resampled: `"image"`, or `"map"` with all its images.

    Raises:
        ValueError: If maps are to be resampled and the dataset does not say them.
    """
    clusters = _clusters(evaluation, cluster)
    rows = []
    for result in evaluation.results:
        protocol = result.protocol
        row: Row = {
            **facts,
            "task": evaluation.task.name,
            "images": len(evaluation.image_ids),
            "resampled": "images" if clusters is None else f"{len(set(clusters))} maps",
            "protocol": protocol.name,
            "steps": protocol.num_inference_steps,
            "ensemble": protocol.ensemble_size,
            "average": protocol.average,
            "sampler": protocol.sampler,
            "sampling": protocol.sampling or "",
            "field_smoothness": "" if protocol.field_smoothness is None else json_width(protocol.field_smoothness),
            "refine_share": "" if protocol.refine_share is None else protocol.refine_share,
            "refine_threshold": "" if protocol.refine_threshold is None else protocol.refine_threshold,
            "mean_steps": result.mean_steps,
        }
        for suffix, scorer in _scorers(result):
            row |= _scorer_columns(scorer, evaluation.task, suffix, resamples, clusters)
        row |= {
            "images_per_second": result.images_per_second,
            "encode_ms": 1000 * result.encode_seconds,
            "decode_ms": 1000 * result.decode_seconds,
        }
        rows.append(row)
    return rows


def _image_columns(scorer: Scorer, suffix: str) -> dict[str, Tensor]:
    columns = dict(scorer.image_scores())
    for prefix, metric in scorer.sums.items():
        scores = metric.scores_of(scorer.sums_rows(prefix))
        columns |= {f"{prefix}{name}": values for name, values in scores.items()}
    for kind in _kinds(scorer):
        values = scorer.uncertainty_rows(kind)
        columns |= {f"{kind}_{name}": values[:, UNCERTAINTY_SCORES.index(name)] for name in _IMAGE_UNCERTAINTY}
    return {f"{name}{suffix}": values for name, values in columns.items()}


def image_rows(evaluation: Evaluation, model: str) -> list[Row]:
    """One row for each image and protocol: scores of the image's map and of its uncertainties."""
    rows = []
    for result in evaluation.results:
        columns: dict[str, Tensor] = {}
        for suffix, scorer in _scorers(result):
            columns |= _image_columns(scorer, suffix)
        steps = torch.tensor(result.scorer.steps)[torch.tensor(result.scorer.order).argsort()]
        for index, image_id in enumerate(evaluation.image_ids):
            scores = {name: float(values[index]) for name, values in columns.items()}
            facts = {"id": image_id, "model": model, "protocol": result.protocol.name, "steps_taken": int(steps[index])}
            place = {} if evaluation.places is None else {"map": evaluation.places[index]}
            rows.append(facts | place | scores)
    return rows


def _paired(a: Scorer, b: Scorer, task: Task, suffix: str, resamples: int, clusters: list[str] | None) -> dict[str, Interval]:
    """Differences of the compared scores of two scorers, and of all that both have of samples and predicted scales."""
    intervals = paired_bootstrap_intervals(a.image_rows(), b.image_rows(), a.statistic(), resamples, clusters=clusters)
    found = dict(zip(a.statistics, intervals))
    paired = {f"{name}{suffix}": found[name] for name in task.compared_scores}
    for prefix in a.sums:
        if prefix in b.sums and a.sums[prefix].names == b.sums[prefix].names:
            this, other = a.sums[prefix], b.sums[prefix]
            rows = a.sums_rows(prefix), b.sums_rows(prefix)
            options = {"n": resamples, "clusters": clusters, "other_statistic": other.statistic}
            unequal = getattr(this, "num_samples", None) != getattr(other, "num_samples", None)
            for name, interval in zip(this.names, paired_bootstrap_intervals(*rows, this.statistic, **options)):
                if unequal and name.endswith("_best"):  # the best of more is better, whatever they are
                    continue
                paired[f"{prefix}{name}{suffix}"] = interval
    return paired


def _difference_rows(
    a: ProtocolResult, b: ProtocolResult, task: Task, models: tuple[str, str], resamples: int, clusters: list[str] | None
) -> list[Row]:
    paired: dict[str, Interval] = {}
    others = dict(_scorers(b))
    for suffix, scorer in _scorers(a):
        if suffix in others:
            paired |= _paired(scorer, others[suffix], task, suffix, resamples, clusters)
    return [
        {
            "model": models[0],
            "protocol": a.protocol.name,
            "other_model": models[1],
            "other_protocol": b.protocol.name,
            "score": score,
            "difference": interval.estimate,
            "low": interval.low,
            "high": interval.high,
            "certain": interval.excludes_zero(),
        }
        for score, interval in paired.items()
        if not math.isnan(interval.estimate)
    ]


def step_differences(evaluation: Evaluation, model: str, resamples: int = 1000, cluster: str = "image") -> list[Row]:
    """Every protocol of a model against its first one, on the same images: what the dials bring.

    Where images choose their number of steps (`auto`), also against every fixed number.
    """
    clusters, results = _clusters(evaluation, cluster), evaluation.results
    pairs = [(other, results[0]) for other in results[1:]]
    for auto in (one for one in results if one.protocol.num_inference_steps == "auto"):
        for fixed in results:
            same = replace(fixed.protocol, num_inference_steps="auto", average=auto.protocol.average) == auto.protocol
            if fixed is not auto and same and (auto, fixed) not in pairs:
                pairs.append((auto, fixed))
    rows = []
    for this, other in pairs:
        rows += _difference_rows(this, other, evaluation.task, (model, model), resamples, clusters)
    return rows


def model_differences(
    a: Evaluation, b: Evaluation, names: tuple[str, str], resamples: int = 1000, cluster: str = "image"
) -> list[Row]:
    """Two models on the same images, protocol by protocol; a model without diffusion has one, met by all of the other's.

    Raises:
        ValueError: If the tasks or the images differ.
    """
    if a.task is not b.task:
        raise ValueError(f"cannot compare a model for {a.task} with one for {b.task}")
    if a.image_ids != b.image_ids:
        raise ValueError("cannot compare models on different images")
    rows, clusters = [], _clusters(a, cluster)
    for result in a.results:
        same = [other for other in b.results if other.protocol.name == result.protocol.name]
        # The one protocol of a model without diffusion meets all of the other's, whichever of the two it is.
        for other in b.results if 1 in (len(a.results), len(b.results)) else same:
            rows += _difference_rows(result, other, a.task, names, resamples, clusters)
    return rows
