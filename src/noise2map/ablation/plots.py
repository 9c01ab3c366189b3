"""A plot of each ablation, in the form that its question has."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from noise2map.ablation.arms import Ablation
from noise2map.report.plots import Estimates, Series, comparison_plot, quality_plot

Row = dict[str, Any]


def ablation_figure(ablation: Ablation, rows: Sequence[Row]) -> Figure:
    """Plot of an ablation: mIoU in per cent, means over seeds, with the range of trainings or intervals over places.

    Args:
        ablation: what was asked.
        rows: of `AblationReport.rows`.

    Raises:
        ValueError: If there is no row.
    """
    means = [row for row in rows if isinstance(row["seed"], str)]
    seeds = max((row["seeds"] for row in means), default=0)
    trainings = f"{seeds} training{'s' * (seeds != 1)}"
    if not ablation.x:
        return _comparison(ablation, rows, f"{ablation.title}: {trainings} each")
    series: dict[str, list[Row]] = {}
    for row in rows:
        name = row["label"] if ablation.curves == "arms" else f"{row['steps']} step{'s' * (row['steps'] > 1)}"
        series.setdefault(name, []).append(row)
    curves = {name: _series(part) for name, part in series.items()}
    title = f"{ablation.title}: mean and range of {trainings}" if seeds > 1 else f"{ablation.title}: one training each"
    return quality_plot(curves, ablation.x, "mIoU (%)", title=title, log_x=ablation.name == "scale")


def _series(rows: Sequence[Row]) -> Series:
    """A curve of means; its band holds all trainings: intervals over places are common to all arms and would hide them."""
    places = sorted({row["x"] for row in rows})
    mean = [100 * next(row["mIoU"] for row in rows if row["x"] == x and isinstance(row["seed"], str)) for x in places]
    single = [[100 * row["mIoU"] for row in rows if row["x"] == x and not isinstance(row["seed"], str)] for x in places]
    return Series(places, mean, [min(values) for values in single], [max(values) for values in single])


def _comparison(ablation: Ablation, rows: Sequence[Row], title: str) -> Figure:
    scores = {}
    names = [arm.label for arm in ablation.arms]
    for decoding in ablation.decodings:
        chosen = [row for row in rows if row["steps"] == decoding.steps]
        means = [next(row for row in chosen if row["label"] == name and isinstance(row["seed"], str)) for name in names]
        repeats = [[100 * row["mIoU"] for row in chosen if row["label"] == name and isinstance(row["seed"], int)] for name in names]
        value, low, high = ([100 * row[name] for row in means] for name in ("mIoU", "mIoU_low", "mIoU_high"))
        scores[f"mIoU (%), {decoding.steps} step{'s' * (decoding.steps > 1)}"] = Estimates(value, low, high, repeats)
    return comparison_plot(names, scores, title=title)
