"""Report of an evaluation of a generator: text, CSV, JSON, plots and one HTML page."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from noise2map.generation.evaluation.measurements import images_checksum
from noise2map.generation.evaluation.memorization import short_memorization
from noise2map.generation.evaluation.scores import DISTANCES, SettingScores
from noise2map.generation.evaluation.study import GeneratorStudy
from noise2map.generation.loading import prior_name, sampler_of
from noise2map.guidance import GuidanceConfig
from noise2map.report.plots import Series, quality_plot, save_figure
from noise2map.report.tables import text_table, write_csv
from noise2map.runs.files import json_values, write_json
from noise2map.runs.provenance import provenance
from noise2map.zoo import label_of

Row = dict[str, Any]

_PLAUSIBILITY = {
    "disagreement": "strong-weak",
    "planarity_residual": "off plane",
    "planar_share": "planar",
    "edge_alignment": "edges",
}

_ROOMS = {
    "floor_at_eye": "floor fits",
    "horizon_deg": "horizon °",
    "upright_share": "upright",
    "order_share": "order",
}

_FRECHET = tuple(name for name, (kind, _) in DISTANCES.items() if kind == "frechet")


def study_facts(study: GeneratorStudy) -> Row:
    """Columns that are the same in all rows: what was measured, with what, against what, and where that ran."""
    options, models, pipe = study.options, study.feature_models, study.pipe
    return {
        "model": label_of(options.model),
        "references": label_of(options.references),
        "reference_images": len(study.references),
        "reference_hash": images_checksum(study.references),
        "extractor": models.extractor.name,
        "estimator": models.depth_model.name,
        "rendering": options.rendering,
        "scheduler": sampler_of(pipe),
        "steps": options.sampling.num_inference_steps,
        "convention": options.guidance.convention or pipe.config.convention,
        "reduction": options.guidance.reduction or pipe.config.reduction,
        "drawn_in": options.sampling.dtype,
        **provenance(pipe.device, pipe.unet.dtype, options.first_seed),
    }


def study_rows(study: GeneratorStudy, facts: Row) -> list[Row]:
    """One flat row for each table and setting, and one for the references of each table."""
    rows = []
    for table, scores in study.tables.items():
        for row in scores.rows():
            setting = study.settings[table].get(row["setting"])
            own = {"steps": setting.steps, "placebo": setting.guidance.placebo} if setting else {"steps": None, "placebo": None}
            scales = _scales(setting and setting.guidance)
            rows.append({"table": table, "setting": row["setting"], **scales, **row, **facts, **own})
    return rows


def _scales(guidance: GuidanceConfig | None) -> Row:
    """Scales of a row and the prior that judges; None where there is no guidance to tell of, as in the references' row."""
    found: Row = {"consistency_scale": None, "prior_scale": None, "prior": None}
    if guidance is None:
        return found
    losses = {loss.name: loss for loss in guidance.active}
    found |= {f"{name}_scale": losses[name].scale if name in losses else 0.0 for name in ("consistency", "prior")}
    prior = losses["prior"].prior if "prior" in losses else None
    return found | {"prior": None if prior is None else prior_name(prior)}


def difference_rows(study: GeneratorStudy, facts: Row) -> list[Row]:
    """Paired differences of the main table."""
    return [row | facts for row in study.tables["guidance"].differences()]


def study_text(study: GeneratorStudy, facts: Row) -> list[str]:
    """Tables for the screen; the features are named, because a distance means nothing without them."""
    parts = [
        f"{facts['model']}: {facts['steps']} {facts['scheduler']} steps, convention {facts['convention']}, {facts['reduction']} of "
        f"pixels; {facts['reference_images']} references from {facts['references']}\n"
        f"features: {facts['extractor']}\ndepth: {facts['estimator']}, painted as {facts['rendering']}"
    ]
    for table, scores in study.tables.items():
        parts.append(text_table([short_row(row) for row in scores.rows()], digits=4))
        if table == "guidance":
            differences = short_differences(scores)
            if differences:
                parts.append(text_table(differences))
    if study.memorization is not None:
        parts.append(f"nearest of the training images ({label_of(study.memorization.training)}), unseen real images = 1")
        parts.append(text_table(short_memorization(study.memorization), digits=3))
    return parts


def short_row(row: Row) -> Row:
    """A row for readers: intervals as text, KID times a thousand, plausibility by short names."""
    line: Row = {"setting": row["setting"], "images": row["images"]}
    for metric, (kind, _) in DISTANCES.items():
        title, factor = (f"{metric} x1000", 1000) if kind == "kernel" else (metric, 1)
        line[title] = _with_interval(row, metric, factor) if metric in row else None
        if f"{metric}_inf" in row:
            line[f"{metric} inf"] = f"{row[f'{metric}_inf']:.3f}"
    line |= {title: row.get(name) for name, title in _PLAUSIBILITY.items()}
    line |= {title: row[name] for name, title in _ROOMS.items() if name in row}
    line["s/image"] = row.get("seconds_per_image")
    return line


def _with_interval(row: Row, name: str, factor: float) -> str:
    value = factor * row[name]
    decimals = min(max(2 - math.floor(math.log10(abs(value))), 0), 3) if value else 3  # the ends get the digits of the estimate
    if f"{name}_low" not in row:
        return f"{value:.{decimals}f}"
    low, high = factor * row[f"{name}_low"], factor * row[f"{name}_high"]
    return f"{value:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"


def geometry_columns(rows: Sequence[Row]) -> list[str]:
    """Of `short_row`s, those that say how plausible the geometry is, and the time; the others are distances."""
    rooms = [title for title in _ROOMS.values() if any(title in row for row in rows)]
    return ["setting", "images", *_PLAUSIBILITY.values(), *rooms, "s/image"]


def short_differences(scores: SettingScores) -> list[Row]:
    """Rows for readers: paired differences of both Fréchet distances and of what guidance minimises."""
    return [_short_difference(row) for row in scores.differences() if row["score"] in (*_FRECHET, "disagreement")]


def _short_difference(row: Row) -> Row:
    return {
        "this": row["this"],
        "minus": row["minus"],
        "score": row["score"],
        "difference": f"{row['difference']:+.4g}",
        "95 % interval": f"{row['low']:+.4g} .. {row['high']:+.4g}",
        "excludes 0": row["certain"],
    }


def sweep_figures(study: GeneratorStudy, theme: str = "light") -> dict[str, Any]:
    """Plots of the sweeps: file name without suffix to figure; empty without sweeps."""
    figures = {}
    for table, label in (("scales", "guidance scale"), ("priors", "resolution of the prior, px")):
        if table not in study.tables:
            continue
        scores, losses = study.tables[table], [one.guidance.losses for one in study.settings[table].values()]
        x = [one[0].scale if table == "scales" else float(one[-1].prior.image_size[0]) for one in losses]
        order = sorted(range(len(x)), key=x.__getitem__)
        for metric in _FRECHET:
            found = [scores.distances[metric][place] for place in order]
            known = not math.isnan(found[0].low)
            series = Series(
                [x[place] for place in order],
                [one.estimate for one in found],
                [one.low for one in found] if known else None,
                [one.high for one in found] if known else None,
            )
            title = f"{metric} of {scores.samples} images"
            figures[f"{table}_{metric}"] = quality_plot({metric: series}, label, metric, title=title, theme=theme)
    return figures


def write_study(study: GeneratorStudy, facts: Row, out: Path) -> list[Path]:
    """Write `generator.csv`, `differences.csv`, `generator.json`, `nearest.csv` and the plots.

    Args:
        study: What was found.
        facts: Of `study_facts`.
        out: The folder.

    Returns:
        The paths written.

    Raises:
        OSError: If a file cannot be written.
    """
    rows, differences = study_rows(study, facts), difference_rows(study, facts)
    paths = [out / "generator.csv", out / "generator.json"]
    write_csv(paths[0], rows)
    write_json(paths[1], json_values({"rows": rows, "differences": differences}))
    if differences:
        paths.append(out / "differences.csv")
        write_csv(paths[-1], differences)
    if study.memorization is not None:
        paths.append(out / "nearest.csv")
        own = {"training": label_of(study.memorization.training)}
        write_csv(paths[-1], [row | own | facts for row in study.memorization.table()])
    for name, figure in sweep_figures(study).items():
        paths.append(out / f"{name}.svg")
        save_figure(paths[-1], figure)
    return paths
