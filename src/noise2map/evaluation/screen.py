"""Tables of an evaluation as text for the screen."""

import math
from collections.abc import Mapping, Sequence

from noise2map.evaluation.regions import REGIONS
from noise2map.evaluation.report import KINDS, Row
from noise2map.report.tables import text_table
from noise2map.tasks import TASKS

_SCREEN_UNCERTAINTY = ("auroc", "auroc_image", "aupr", "ause", "prr", "aurc", "pearson", "spearman", "uce")

_SCREEN_SAMPLES = (
    *("crps", "crps_pool8", "energy", "ged_pixel", "ged_iou", "spread_skill", "coverage_50", "coverage_90"),
    *("abs_rel_sample", "abs_rel_best", "mIoU_sample", "mIoU_best", "wrong_sample", "wrong_best"),
    *("mean_angle_sample", "mean_angle_best", "boundary_f1", "edge_ratio", "flying_pixels"),
    *("scale_crps", "scale_nll", "scale_coverage_50", "scale_coverage_90"),
)

_SCREEN_DIFFERENCES = {"crps", "energy", "ged_iou"}


def _short(rows: Sequence[Row]) -> dict[str, str]:
    """Names of models for the screen: the last part of a path where that tells them apart; none for a single model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    last = {model: model.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] for model in models}
    if len(models) == 1:
        return {}
    return last if len(set(last.values())) == len(models) else {model: model for model in models}


def _dials(row: Row, names: Mapping[str, str]) -> Row:
    model = {"model": names[row["model"]]} if names else {}
    sampling = {"sampling": row["sampling"]} if row.get("sampling") else {}
    if row.get("field_smoothness", "") != "":
        sampling["smoothness"] = row["field_smoothness"]
    if row.get("refine_share", "") != "":
        sampling["refined"] = row["refine_share"]
    if row.get("refine_threshold", "") != "":
        sampling["refined from"] = row["refine_threshold"]
    return model | {name: row[name] for name in ("steps", "ensemble", "average")} | sampling


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
        for kind in KINDS:
            if f"{kind}_auroc" not in row:
                continue
            line = _dials(row, _short(rows)) | {"uncertainty": kind}
            for name in _SCREEN_UNCERTAINTY:
                if TASKS[row["task"]].binary_errors or name != "uce":
                    line[name] = row[f"{kind}_{name}"]
            shown.append(line)
    return text_table(shown, digits=3) if shown else "No uncertainty is defined for these protocols."


def sample_table(rows: Sequence[Row]) -> str:
    """Scores of single samples and of predicted scales by protocol and region as aligned text; empty where there are none."""
    shown = []
    for row in rows:
        for suffix in ("", *(f"_{region}" for region in REGIONS)):
            line = {
                name: row[f"{name}{suffix}"] for name in _SCREEN_SAMPLES if not math.isnan(row.get(f"{name}{suffix}", math.nan))
            }
            if line:
                shown.append(_dials(row, _short(rows)) | {"where": suffix[1:].replace("_", " ") or "all"} | line)
    return text_table(shown, digits=3) if shown else ""


def region_table(rows: Sequence[Row]) -> str:
    """Scores of the maps in each region as aligned text; empty where nothing says what is hidden."""
    shown = []
    for row in rows:
        task = TASKS[row["task"]]
        for region in REGIONS:
            if f"{task.main_score}_{region}" in row:
                names = [name for name in task.screen_scores if f"{name}_{region}" in row]
                line = {f"{name} %" if _percent(name) else name: _shown(name, row[f"{name}_{region}"]) for name in names}
                shown.append(_dials(row, _short(rows)) | {"where": region.replace("_", " ")} | line)
    return text_table(shown) if shown else ""


def difference_table(rows: list[Row]) -> str:
    """Paired differences of the main score (mIoU, AbsRel) and of some scores of samples as aligned text; mIoU in points."""
    names, shown = _short(rows + [{"model": row["other_model"]} for row in rows]), []
    for row in rows:
        score = row["score"]
        bare = next((score.removesuffix(f"_{region}") for region in REGIONS if score.endswith(f"_{region}")), score)
        if bare not in {task.main_score for task in TASKS.values()} | _SCREEN_DIFFERENCES:
            continue
        low, high = _shown(bare, row["low"]), _shown(bare, row["high"])
        this, minus = row["protocol"], row["other_protocol"]
        if names:
            this, minus = f"{names[row['model']]}: {this}", f"{names[row['other_model']]}: {minus}"
        shown.append(
            {
                "this": this,
                "minus": minus,
                "score": f"{score} %" if _percent(bare) else score,
                "difference": f"{_shown(bare, row['difference']):+.4g}",
                "95 % interval": f"{low:+.4g} .. {high:+.4g}",
                "excludes 0": "yes" if row["certain"] else "no",
            }
        )
    return text_table(shown)
