"""Curves: quality against steps or time, reliability, risk against coverage, training. Matplotlib without global state."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from noise2map.runs.files import write_bytes

# Distinct for color-blind readers (after Okabe and Ito), legible on white and on near-black.
SERIES_COLORS = ("#3b7dd8", "#e0703a", "#2a9d78", "#b0569f", "#c9a227", "#7a8290")
_INK = {"light": ("#22252b", "#d5d8de", "#ffffff"), "dark": ("#dfe3ea", "#3b404a", "#17191e")}


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        x: Abscissae.
        y: Ordinates, as many.
        low: Lower ends of a confidence band, or None.
        high: Upper ends, or None.
    """

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for name in ("y", "low", "high"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.x):
                raise ValueError(f"a series has {len(self.x)} x but {len(values)} {name} values")


def new_axes(
    x_label: str, y_label: str, title: str = "", theme: str = "light", size: tuple[float, float] = (5.2, 3.6)
) -> tuple[Figure, Axes]:
    """An empty plot in the style of the reports: no box, a faint grid, the title to the left."""
    figure = _new_figure(theme, size)
    axes = figure.add_subplot()
    _dress(axes, x_label, y_label, theme)
    if title:
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_INK[theme][0])
    return figure, axes


def _new_figure(theme: str, size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, layout="constrained", facecolor=_INK[theme][2])
    FigureCanvasAgg(figure)
    return figure


def _dress(axes: Axes, x_label: str, y_label: str, theme: str) -> None:
    ink, grid, paper = _INK[theme]
    axes.set_facecolor(paper)
    axes.set_xlabel(x_label, color=ink)
    axes.set_ylabel(y_label, color=ink)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(grid)
    axes.tick_params(colors=ink, labelsize=9)
    axes.grid(True, color=grid, linewidth=0.6, alpha=0.7)
    axes.set_axisbelow(True)


def _finish_legend(axes: Axes, theme: str, count: int) -> None:
    if count > 1:
        axes.legend(frameon=False, fontsize=9, labelcolor=_INK[theme][0])


def quality_plot(
    series: Mapping[str, Series],
    x_label: str,
    y_label: str,
    *,
    title: str = "",
    theme: str = "light",
    log_x: bool = False,
) -> Figure:
    """Quality against steps, milliseconds or operations: the compute budget as a curve per model or protocol.

    Args:
        series: Name to curve; bands are drawn where they are given.
        x_label: What x is, with its unit.
        y_label: What y is, with its unit.
        title: Above the plot.
        theme: ``"light"`` or ``"dark"``.
        log_x: Space x by its logarithm, with the given x as ticks.

    Raises:
        ValueError: If there is no series.
    """
    if not series:
        raise ValueError("a plot needs at least one series, got none")
    figure, axes = new_axes(x_label, y_label, title, theme)
    for (name, one), color in zip(series.items(), _cycle(len(series))):
        axes.plot(one.x, one.y, marker="o", markersize=4.5, linewidth=1.8, color=color, label=name)
        if one.low is not None and one.high is not None:
            axes.fill_between(one.x, one.low, one.high, color=color, alpha=0.16, linewidth=0)
    if log_x:
        axes.set_xscale("log")
        points = sorted({float(x) for one in series.values() for x in one.x})
        if len(points) <= 12:
            axes.set_xticks(points, [f"{x:.4g}" for x in points])
            axes.minorticks_off()
    _finish_legend(axes, theme, len(series))
    return figure


@dataclass(frozen=True)
class Estimates:
    """Scores of several things under comparison, each with its repeats.

    Attributes:
        values: The estimate of each thing.
        low: Lower ends of the intervals; NaN where there is none.
        high: Upper ends.
        repeats: The single measurements behind each estimate; may be empty.
    """

    values: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    repeats: Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        for name in ("low", "high", "repeats"):
            if len(getattr(self, name)) != len(self.values):
                raise ValueError(f"there are {len(self.values)} estimates but {len(getattr(self, name))} {name}")


def comparison_plot(names: Sequence[str], scores: Mapping[str, Estimates], *, title: str = "", theme: str = "light") -> Figure:
    """Things under comparison as rows, scores as panels side by side: estimate, interval and the single measurements.

    Args:
        names: Of the things, from top to bottom.
        scores: Label of a score to its estimates, as many as names.
        title: Above the plot.
        theme: ``"light"`` or ``"dark"``.

    Raises:
        ValueError: If there is nothing to draw, or numbers of names and estimates differ.
    """
    if not names or not scores:
        raise ValueError(f"a comparison needs names and scores, got {len(names)} names and {len(scores)} scores")
    for label, one in scores.items():
        if len(one.values) != len(names):
            raise ValueError(f"{label} has {len(one.values)} estimates for {len(names)} names")
    ink = _INK[theme][0]
    figure = _new_figure(theme, (3.2 * len(scores) + 1.2, 0.42 * len(names) + 1.2))
    panels = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
    rows = range(len(names))
    for axes, (label, one) in zip(panels, scores.items()):
        _dress(axes, label, "", theme)
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=5)  # more would run into each other
        for row, color in zip(rows, _cycle(len(names))):
            axes.plot([one.low[row], one.high[row]], [row, row], linewidth=2.2, color=color, alpha=0.75, solid_capstyle="round")
            repeats = one.repeats[row]
            axes.plot(repeats, [row] * len(repeats), "|", markersize=9, markeredgewidth=1.2, color=ink, alpha=0.55)
            axes.plot([one.values[row]], [row], "o", markersize=6.5, color=color)
    panels[0].set_yticks(rows, names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", color=ink)
    return figure


def risk_coverage_plot(
    series: Mapping[str, Series], oracle: Series | None = None, *, title: str = "", theme: str = "light"
) -> Figure:
    """Error of the pixels kept when the most uncertain are left out, against the share kept.

    Args:
        series: Kind of uncertainty to curve: x the coverage in (0, 1], y the error.
        oracle: The curve of an uncertainty that ranks pixels by their true error.
        title: Above the plot.
        theme: ``"light"`` or ``"dark"``.
    """
    if not series:
        raise ValueError("a plot needs at least one series, got none")
    figure, axes = new_axes("share of pixels kept (coverage)", "error of the kept (risk)", title, theme)
    for (name, one), color in zip(series.items(), _cycle(len(series))):
        axes.plot(one.x, one.y, linewidth=1.8, color=color, label=name)
    if oracle is not None:
        axes.plot(oracle.x, oracle.y, color=_INK[theme][0], linestyle=(0, (4, 3)), linewidth=1, label="oracle")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    _finish_legend(axes, theme, len(series) + (oracle is not None))
    return figure


def training_plot(
    records: Sequence[Mapping[str, float]],
    names: Sequence[str],
    *,
    x_name: str = "step",
    title: str = "",
    theme: str = "light",
) -> Figure:
    """Curves from the lines of a ``metrics.jsonl``; records that lack a name are passed over.

    Args:
        records: One mapping per line.
        names: Which values to draw.
        x_name: The key of the abscissa.
        title: Above the plot.
        theme: ``"light"`` or ``"dark"``.

    Raises:
        ValueError: If no record has any of the names.
    """
    found = {}
    for name in names:
        points = [(record[x_name], record[name]) for record in records if name in record and x_name in record]
        if points:
            found[name] = Series(*zip(*points))
    if not found:
        raise ValueError(f"no record has {x_name!r} and one of {list(names)}")
    figure, axes = new_axes(x_name, ", ".join(found) if len(found) == 1 else "", title, theme)
    for (name, one), color in zip(found.items(), _cycle(len(found))):
        axes.plot(one.x, one.y, linewidth=1.5, color=color, label=name, marker="o" if len(one.x) < 30 else None)
    _finish_legend(axes, theme, len(found))
    return figure


def _cycle(count: int) -> list[str]:
    return [SERIES_COLORS[index % len(SERIES_COLORS)] for index in range(count)]


def figure_bytes(figure: Figure, suffix: str = ".svg", dpi: int = 150) -> bytes:
    """A figure as the bytes of a file: the same bytes for the same figure, without date or software version.

    Args:
        figure: What to draw.
        suffix: ``.svg``, ``.png`` or ``.pdf``.
        dpi: Pixels per inch, for ``.png``.
    """
    kind = suffix.lstrip(".").lower()
    if kind not in ("svg", "png", "pdf"):
        raise ValueError(f"a figure is written as .svg, .png or .pdf, got {suffix!r}")
    metadata = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}.get(
        kind, {"CreationDate": None, "Creator": None, "Producer": None}
    )
    buffer = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "noise2map"}):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def save_figure(path: str | os.PathLike[str], figure: Figure, dpi: int = 150) -> None:
    """Write a figure at once, in the format of the suffix: ``.svg``, ``.png`` or ``.pdf``."""
    write_bytes(path, figure_bytes(figure, Path(path).suffix, dpi))
