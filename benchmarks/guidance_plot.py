"""Guided minus unguided at equal cost, for each generator: the laws of rooms that it gains, and what it costs.

    python benchmarks/guidance_plot.py

Reads `results/guidance_by_geometry_differences.csv` and `results/guidance_windows_differences.csv`, which
`update_tables.py --collect-guidance-geometry` and `--collect-guidance-windows` write; writes
`results/guidance_differences.png`.
"""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from update_tables import BY_GEOMETRY, WINDOWS, generator_of

from noise2map.report.plots import save_figure
from noise2map.report.tables import read_csv

RESULTS = Path(__file__).parent.parent / "results"
PANELS = {  # score: title, factor, side on which the guided images are better
    "floor_at_eye": ("floors that fit\nthe eye height, points", 100, 1),
    "horizon_deg": ("horizon off by,\ndegrees", 1, -1),
    "KID": ("distance of images,\nKID x1000", 1000, -1),
    "dKID": ("distance of depth,\ndKID x1000", 1000, -1),
}
BETTER, WORSE, OPEN = "#2a9d78", "#d1495b", "#8a919c"
# From generators whose layouts are broken to those whose rooms are like real ones.
ORDER = ("rows", "short", "weak", "weak2", "weak3", "128px", "thirds", "first", "shipped")

Row = dict[str, dict[str, Any]]
"""Score -> its difference."""


def read_differences() -> dict[str, dict[str, Row]]:
    """Group of settings -> generator -> score -> guided minus unguided at equal cost; of equal generators the most images."""
    groups: dict[str, dict[str, Row]] = {
        "every step guided,\n25 steps": {},
        "little noise alone,\n25 steps": {},
        "little noise alone,\n100 steps": {},
    }
    every, few, many = groups
    for source in (BY_GEOMETRY[1], WINDOWS[1]):
        found: dict[str, Row] = {}
        for row in read_csv(RESULTS / f"{source}.csv"):
            if (row["this"], row["minus"]) == ("DCG", "none, equal cost"):
                found.setdefault(str(row["run"]), {}).setdefault(str(row["score"]), row)
        for run, scores in found.items():
            name, *numbers = generator_of(run).split(", ")
            group = every if source == BY_GEOMETRY[1] else many if "100 steps" in numbers else few
            if name not in groups[group] or _images(run) > _images(str(groups[group][name]["KID"]["run"])):
                groups[group][name] = scores
    return groups


def _images(run: str) -> int:
    """How many images a run has, as far as its name tells."""
    return max((int(word) for word in run.split("-") if word.isdigit()), default=0)


def draw_differences(groups: dict[str, dict[str, Row]]) -> Figure:
    """A column for each score, a line for each generator, groups one above the other."""
    lines = [(group, name) for group, found in groups.items() for name in ORDER if name in found]
    starts = {group: [one for one, _ in lines].index(group) for group, found in groups.items() if found}
    gap = 0.9
    heights, y = {}, 0.0
    for index, line in enumerate(lines):
        y += 1 + (gap if index in starts.values() and index else 0)
        heights[line] = y
    figure = Figure(figsize=(11, 0.27 * y + 1.6), layout="constrained")
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for panel, (score, (title, factor, side)) in zip(panels, PANELS.items(), strict=True):
        for (group, name), height in heights.items():
            row = groups[group][name].get(score)
            if row is None or row["low"] is None:
                continue
            low, value, high = (factor * row[key] for key in ("low", "difference", "high"))
            color = OPEN if low <= 0 <= high else BETTER if side * value > 0 else WORSE
            panel.plot((low, high), (height, height), color=color, linewidth=2.4, solid_capstyle="butt")
            panel.plot(value, height, "o", color=color, markersize=5)
        panel.axvline(0, color="#22252b", linewidth=0.9)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("better →" if side > 0 else "← better", fontsize=9, color=BETTER)
        panel.tick_params(labelsize=9, length=0)
        panel.grid(axis="x", alpha=0.3)
        panel.spines[["top", "right", "left"]].set_visible(False)
    panels[0].set_yticks(list(heights.values()), [name for _, name in heights])
    panels[0].set_ylim(max(heights.values()) + 0.8, 0.2)
    for group, start in starts.items():
        panels[0].annotate(
            group,
            (-0.36, heights[lines[start]] - 0.4),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="top",
            fontsize=9,
            fontweight="bold",
            annotation_clip=False,
        )
    kinds = {"certainly better": BETTER, "certainly worse": WORSE, "undecided": OPEN}
    handles = [Line2D([], [], color=color, marker="o", linewidth=2.4, label=kind) for kind, color in kinds.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False)
    return figure


if __name__ == "__main__":
    save_figure(RESULTS / "guidance_differences.png", draw_differences(read_differences()))
