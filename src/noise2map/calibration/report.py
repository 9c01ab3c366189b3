"""Tables, plots and the card's section of a calibration."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from noise2map.report.plots import Series, quality_plot
from noise2map.report.tables import markdown_table, text_table

Row = Mapping[str, Any]

TITLES = {
    "images": "images",
    "shift": "shift",
    "strength": "strength",
    "variant": "variant",
    "miou": "mIoU %",
    "error": "error",
    "ece": "ECE %",
    "nll": "NLL",
    "brier": "Brier",
    "coverage_50": "in 50 %",
    "coverage_90": "in 90 %",
    "size_90": "classes in 90 %",
    "coverage_95": "in 95 %",
    "size_95": "classes in 95 %",
    "width_90": "width of 90 %",
    "auroc": "error-AUROC",
}
"""Score to its title; scores in percent have a per cent sign or a level in it."""
_PERCENT = ("miou", "ece", "coverage_50", "coverage_90", "coverage_95")


def shown_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows under titles, shares in percent; scores that no row has are left out."""

    def known(name: str) -> bool:
        return any(isinstance(row.get(name), str | int) or not math.isnan(row.get(name, math.nan)) for row in rows)

    names = [name for name in TITLES if known(name)]
    return [
        {TITLES[name]: 100 * row[name] if name in _PERCENT and name in row else row.get(name) for name in names} for row in rows
    ]


def calibration_table(rows: Sequence[Row]) -> str:
    """The scores as text for the screen."""
    return text_table(shown_rows(rows), digits=3)


def said_thresholds(thresholds: Mapping[str, float]) -> str:
    """``"walkable 0.32, door 0.04"``."""
    return ", ".join(f"{name} {one:g}" for name, one in thresholds.items())


def card_section(facts: Row, rows: Sequence[Row], thresholds: Mapping[str, float] | None = None) -> str:
    """What the card says of a calibration, in Markdown.

    Args:
        facts: Model, data and provenance.
        rows: Scores by part of the images and variant.
        thresholds: Layer to the probability from which it is shown.
    """
    parts = []
    if facts["method"] != "thresholds":
        parts.append(
            "What the model states is corrected by the field `calibration` of its configuration, whoever loads it; other decoding "
            "or other\ndata than these is not calibrated."
        )
    if thresholds is not None:
        parts.append(
            "Likely maps show each layer from a probability of its own on, the field `layer_thresholds` of the processor: "
            f"{said_thresholds(thresholds)}.\nThe mean IoU `before` is that of maps cut at 0.5."
        )
    said = "\n\n".join(parts)
    data = f"{facts['calibrating']} of {facts['dataset']} {facts['split']}"
    return f"""Calibrated on {data} ({facts["decoding"]}, seed {facts["seed"]}); {facts["held_out"]} held out.

{said}

{markdown_table(shown_rows(rows), digits=3)}
"""


def reliability_plot(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str) -> Any:
    """What was promised against what came true, before and after, with the diagonal.

    Args:
        curves: Name to promised and true shares, 0 to 1.
        title: Above the plot.
    """
    series = {"as promised": Series([0.0, 1.0], [0.0, 1.0])}
    series |= {name: Series(x, y) for name, (x, y) in curves.items() if len(x)}
    return quality_plot(series, "promised: confidence, or level of the interval", "came true", title=title)
