"""A plot of each ablation, in the form that its question has."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from noise2map.ablation.arms import Ablation
from noise2map.report.plots import Estimates, Series, comparison_plot, quality_plot

Row = dict[str, Any]


def ablation_figure(ablation: Ablation, rows: Sequence[Row]) -> Figure:
    """Plot of an ablation: mIoU in per cent, means over seeds with intervals over places.

    Args:
        ablation: what was asked.
        rows: of `AblationReport.rows`.

    Raises:
        ValueError: If there is no row.
    """
    means = [row for row in rows if isinstance(row["seed"], str)]
    seeds = max((row["seeds"] for row in means), default=0)
    title = f"{ablation.title} ({seeds} {'trainings' if seeds != 1 else 'training'} each)"
    if ablation.x:
        series: dict[str, list[Row]] = {}
        for row in means:
            name = row["label"] if ablation.curves == "arms" else f"{row['steps']} step{'s' * (row['steps'] > 1)}"
            series.setdefault(name, []).append(row)
        curves = {name: _series(part) for name, part in series.items()}
        return quality_plot(curves, ablation.x, "mIoU (%)", title=title, log_x=ablation.name == "scale")
    return _comparison(ablation, rows, title)


def _series(rows: Sequence[Row]) -> Series:
    ordered = sorted(rows, key=lambda row: row["x"])
    y, low, high = ([100 * row[name] for row in ordered] for name in ("mIoU", "mIoU_low", "mIoU_high"))
    return Series([row["x"] for row in ordered], y, low, high)


def _comparison(ablation: Ablation, rows: Sequence[Row], title: str) -> Figure:
    scores = {}
    names = [arm.label for arm in ablation.arms]
    for decoding in ablation.decodings:
        chosen = [row for row in rows if row["steps"] == decoding.steps]
        means = [next(row for row in chosen if row["label"] == name and isinstance(row["seed"], str)) for name in names]
        repeats = [[100 * row["mIoU"] for row in chosen if row["label"] == name and isinstance(row["seed"], int)] for name in names]
        ends = ([100 * row[name] for row in means] for name in ("mIoU", "mIoU_low", "mIoU_high"))
        scores[f"mIoU (%), {decoding.steps} step{'s' * (decoding.steps > 1)}"] = Estimates(*ends, repeats=repeats)
    return comparison_plot(names, scores, title=title)
