"""Tables of an evaluation: rows for JSON and CSV, text for the screen, intervals, paired differences."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from noise2map.evaluation.evaluate import Evaluation, ProtocolResult
from noise2map.metrics import UNCERTAINTY_SCORES, bootstrap_intervals, paired_bootstrap_intervals
from noise2map.report.tables import text_table
from noise2map.tasks import TASKS
from noise2map.tasks.base import Task

Row = dict[str, Any]

# Kinds of uncertainty that say how the map was made come first in tables.
_KINDS = ("step_flip", "sample_variance", "mutual_information", "entropy", "least_confidence", "uncertainty")

# What a row says of each kind of uncertainty, besides its share of the per-image file.
_ROW_UNCERTAINTY = (
    *("auroc", "aupr", "aurc", "excess_aurc", "ause", "prr", "pearson", "spearman", "uce", "mean_uncertainty"),
    *("auroc_image", "ause_image", "pearson_image", "spearman_image"),
)

_IMAGE_UNCERTAINTY = ("auroc", "aupr", "aurc", "ause", "prr", "pearson", "spearman", "mean_uncertainty")

_SCREEN_UNCERTAINTY = ("auroc", "auroc_image", "aupr", "ause", "prr", "aurc", "pearson", "spearman", "uce")


def _kinds(result: ProtocolResult) -> list[str]:
    return sorted(result.scorer.uncertainties, key=lambda name: (_KINDS.index(name) if name in _KINDS else -1, name))


def result_rows(evaluation: Evaluation, facts: Mapping[str, Any], resamples: int = 1000) -> list[Row]:
    """One flat row for each protocol: facts, dials, scores with intervals, uncertainty scores, speed.

    Intervals are percentile-bootstrap intervals over images: `<score>_low`, `<score>_high`.

    Args:
        evaluation: The scores.
        facts: Columns that are the same in all rows: model, data, device, command.
        resamples: Bootstrap resamples; 0 for no intervals.
    """
    rows = []
    for result in evaluation.results:
        protocol, scorer = result.protocol, result.scorer
        row: Row = {
            **facts,
            "task": evaluation.task.name,
            "images": len(evaluation.image_ids),
            "protocol": protocol.name,
            "steps": protocol.num_inference_steps,
            "ensemble": protocol.ensemble_size,
            "average": protocol.average,
            "sampler": protocol.sampler,
            "mean_steps": result.mean_steps,
            **scorer.scores(),
        }
        if resamples:
            intervals = bootstrap_intervals(scorer.image_rows(), scorer.statistic(), resamples)
            for name, interval in zip(scorer.statistics, intervals):
                row |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
        for kind in _kinds(result):
            scores = scorer.uncertainties[kind].compute()
            wanted = [name for name in _ROW_UNCERTAINTY if evaluation.task.binary_errors or name != "uce"]
            row |= {f"{kind}_{name}": float(scores[name]) for name in wanted}
            if resamples:
                image_rows = scorer.uncertainty_rows(kind)[:, [UNCERTAINTY_SCORES.index("auroc")]]
                interval = bootstrap_intervals(image_rows, n=resamples)[0]
                row |= {f"{kind}_auroc_image_low": interval.low, f"{kind}_auroc_image_high": interval.high}
        row |= {
            "images_per_second": result.images_per_second,
            "encode_ms": 1000 * result.encode_seconds,
            "decode_ms": 1000 * result.decode_seconds,
        }
        rows.append(row)
    return rows


def image_rows(evaluation: Evaluation, model: str) -> list[Row]:
    """One row for each image and protocol: scores of the image's map and of its uncertainties."""
    rows = []
    for result in evaluation.results:
        columns = dict(result.scorer.image_scores())
        for kind in _kinds(result):
            values = result.scorer.uncertainty_rows(kind)
            columns |= {f"{kind}_{name}": values[:, UNCERTAINTY_SCORES.index(name)] for name in _IMAGE_UNCERTAINTY}
        steps = torch.tensor(result.scorer.steps)[torch.tensor(result.scorer.order).argsort()]
        for index, image_id in enumerate(evaluation.image_ids):
            scores = {name: float(values[index]) for name, values in columns.items()}
            facts = {"id": image_id, "model": model, "protocol": result.protocol.name, "steps_taken": int(steps[index])}
            rows.append(facts | scores)
    return rows


def _difference_rows(a: ProtocolResult, b: ProtocolResult, task: Task, models: tuple[str, str], resamples: int) -> list[Row]:
    rows_a, rows_b = a.scorer.image_rows(), b.scorer.image_rows()
    intervals = paired_bootstrap_intervals(rows_a, rows_b, a.scorer.statistic(), resamples)
    found = dict(zip(a.scorer.statistics, intervals))
    return [
        {
            "model": models[0],
            "protocol": a.protocol.name,
            "other_model": models[1],
            "other_protocol": b.protocol.name,
            "score": score,
            "difference": found[score].estimate,
            "low": found[score].low,
            "high": found[score].high,
            "certain": found[score].excludes_zero(),
        }
        for score in task.compared_scores
    ]


def step_differences(evaluation: Evaluation, model: str, resamples: int = 1000) -> list[Row]:
    """Every protocol of a model against its first one, on the same images: what the dials bring."""
    first, *others = evaluation.results
    rows = []
    for other in others:
        rows += _difference_rows(other, first, evaluation.task, (model, model), resamples)
    return rows


def model_differences(a: Evaluation, b: Evaluation, names: tuple[str, str], resamples: int = 1000) -> list[Row]:
    """Two models on the same images, protocol by protocol; a model without diffusion has one, met by all of the other's.

    Raises:
        ValueError: If the tasks or the images differ.
    """
    if a.task is not b.task:
        raise ValueError(f"cannot compare a model for {a.task} with one for {b.task}")
    if a.image_ids != b.image_ids:
        raise ValueError("cannot compare models on different images")
    rows = []
    for result in a.results:
        same = [other for other in b.results if other.protocol.name == result.protocol.name]
        for other in same or (b.results if len(b.results) == 1 else []):
            rows += _difference_rows(result, other, a.task, names, resamples)
    return rows


def _short(rows: Sequence[Row]) -> dict[str, str]:
    """Names of models for the screen: the last part of a path where that tells them apart; none for a single model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    last = {model: model.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] for model in models}
    if len(models) == 1:
        return {}
    return last if len(set(last.values())) == len(models) else {model: model for model in models}


def _dials(row: Row, names: Mapping[str, str]) -> Row:
    model = {"model": names[row["model"]]} if names else {}
    return model | {name: row[name] for name in ("steps", "ensemble", "average")}


def _percent(name: str) -> bool:
    return any(name in task.percent_scores for task in TASKS.values())


def _shown(name: str, value: float) -> float:
    return 100 * value if _percent(name) else value


def score_table(rows: Sequence[Row]) -> str:
    """Scores by protocol as aligned text; accuracies in percent, half-widths of intervals after a plus-minus sign."""
    shown = []
    for row in rows:
        line = _dials(row, _short(rows))
        if any(one.get("named") for one in rows):
            line["protocol"] = row.get("named", "")
        for name in (name for name in TASKS[row["task"]].screen_scores if name in row):
            label = f"{name} %" if _percent(name) else name
            line[label] = _shown(name, row[name])
            low, high = row.get(f"{name}_low", math.nan), row.get(f"{name}_high", math.nan)
            if name == TASKS[row["task"]].main_score and not math.isnan(low):
                line["95 % interval"] = f"{_shown(name, low):.4g}..{_shown(name, high):.4g}"
        line |= {"mean steps": round(row["mean_steps"], 2), "images/s": row["images_per_second"]}
        shown.append(line)
    return text_table(shown)


def uncertainty_table(rows: Sequence[Row]) -> str:
    """Uncertainty scores by protocol and kind as aligned text."""
    shown = []
    for row in rows:
        for kind in _KINDS:
            if f"{kind}_auroc" not in row:
                continue
            line = _dials(row, _short(rows)) | {"uncertainty": kind}
            for name in _SCREEN_UNCERTAINTY:
                if TASKS[row["task"]].binary_errors or name != "uce":
                    line[name] = row[f"{kind}_{name}"]
            shown.append(line)
    return text_table(shown, digits=3) if shown else "No uncertainty is defined for these protocols."


def difference_table(rows: list[Row]) -> str:
    """Paired differences of the main score (mIoU, AbsRel) as aligned text; mIoU in percentage points."""
    names, shown = _short(rows + [{"model": row["other_model"]} for row in rows]), []
    for row in rows:
        score = row["score"]
        if score not in {task.main_score for task in TASKS.values()}:
            continue
        low, high = _shown(score, row["low"]), _shown(score, row["high"])
        this, minus = row["protocol"], row["other_protocol"]
        if names:
            this, minus = f"{names[row['model']]}: {this}", f"{names[row['other_model']]}: {minus}"
        shown.append(
            {
                "this": this,
                "minus": minus,
                "score": f"{score} %" if _percent(score) else score,
                "difference": f"{_shown(score, row['difference']):+.4g}",
                "95 % interval": f"{low:+.4g} .. {high:+.4g}",
                "excludes 0": "yes" if row["certain"] else "no",
            }
        )
    return text_table(shown)


__all__ = [
    "difference_table",
    "image_rows",
    "model_differences",
    "result_rows",
    "score_table",
    "step_differences",
    "uncertainty_table",
]
