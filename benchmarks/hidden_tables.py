"""Decoders asked what cannot be seen: ``results/decoders_{completion,bev}.csv`` -> tables of docs/results.md."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from noise2map.report.tables import markdown_table, read_csv

NAMES = {
    "freedoom-completion-tiny": "shipped: scale 0.2, means beside, fresh covers",
    "completion-matched": "matched filter",
    "completion-matched-scale02": "matched filter, scale 0.2",
    "completion-pyramid": "matched filter, scale 0.2, means beside",
    "completion-pyramid-large": "matched filter, scale 0.2, means beside, 5 layers of 512 in place of 2 of 256",
    "completion-energy": "energy score as loss",
    "completion-ssn": "low-rank normal of logits (SSN)",
    "completion-flow": "flow from a learnt start (Flow-SSN), 20 steps",
    "completion-nodiffusion": "cross entropy, no diffusion",
    "freedoom-bev-completion-tiny": "shipped: matched filter, trained with its encoder",
    "bev-pyramid": "matched filter",
    "bev-ssn": "low-rank normal of logits (SSN)",
    "bev-nodiffusion": "cross entropy, no diffusion",
    **{f"completion-flow-steps-{count}": f"flow from a learnt start (Flow-SSN), {count} steps" for count in (5, 80)},
    **{f"completion-pyramid-tempered-{t}": f"matched filter, scale 0.2, means beside, temperature {t}" for t in ("0.8", "0.6")},
    **{f"completion-nodiffusion-tempered-{t}": f"cross entropy, no diffusion, temperature {t}" for t in ("0.8", "0.6")},
}
SHOWN_DRAWS = ("whole maps", *(f"field over {width} cells" for width in (0, 2, 8)))
OWN_DRAWS = (
    "completion-ssn",
    "completion-flow",
    "completion-flow-steps-5",
    "completion-flow-steps-80",
    "bev-ssn",
)  # draw logits: the width of a field has no part in it
SCORES = {  # title, factor, digits
    "energy_hidden": ("energy score", 1, 3),
    "ged_pixel_hidden": ("pixel GED", 1, 3),
    "wrong_sample_hidden": ("wrong in one map, %", 100, 1),
    "mIoU_best_hidden": ("best of eight, mIoU %", 100, 1),
    "spread_skill_hidden": ("spread / skill", 1, 2),
}


def table(paths: Sequence[Path], task: str = "segmentation") -> str:
    """A line for each decoder and way of drawing, means over training seeds, the best energy score first."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in (row for path in paths for row in read_csv(path)):
        known = str(row.get("recipe") or row["model"]) in NAMES  # tables of evaluations also hold what a model was compared with
        if known and row.get("task") == task and row.get("energy_hidden") not in (None, ""):
            groups.setdefault(_line_of(row), []).append(row)
    lines = [_line(*key, rows) for key, rows in groups.items()]
    return markdown_table(sorted(lines, key=lambda line: line["energy score"]))


def _line_of(row: dict[str, Any]) -> tuple[Any, ...]:
    name = str(row.get("recipe") or row["model"])
    several = isinstance(row.get("train_seed"), str) and "," in row["train_seed"]
    decoder = NAMES.get(name, name) + (f", {len(row['train_seed'].split(','))} as an ensemble" if several else "")
    if name in OWN_DRAWS:
        return decoder, "its own distribution", row["steps"]
    drawn = "diffusion" if row["sampling"] != "field" else f"field over {row['field_smoothness'] or 0:g} cells"
    if row["sampling"] == "field" and row["steps"] > 1:
        drawn += ", denoised"
    return decoder, drawn, row["steps"]


def _line(decoder: str, drawn: str, steps: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    by_seed = list({str(row.get("train_seed")): row for row in rows}.values())
    line: dict[str, Any] = {"decoder": decoder, "maps drawn by": drawn, "calls": steps, "seeds": len(by_seed)}
    for name, (title, factor, digits) in SCORES.items():
        values = [factor * row[name] for row in by_seed]
        line[title] = f"{mean(values):.{digits}f}"
        if name == "energy_hidden" and len(values) > 1:
            line[title] += f" ({min(values):.{digits}f} to {max(values):.{digits}f})"
    return line


def population_table(path: Path) -> str:
    """Where all that may be there is known: whole true maps and smooth draws of what is likely in each cell."""
    lines = []
    for row in read_csv(path):
        if row["drawn"] not in SHOWN_DRAWS:
            continue
        alike = f"{row['alike']}, of as many maps" if str(row["one_of_each_map"]) == "True" else str(row["alike"])
        line = {"frames alike": alike, "maps drawn": row["drawn"], "energy score": f"{row['energy']:.3f}"}
        line["wrong in one map, %"] = f"{100 * row['wrong_sample']:.1f}"
        line["best of eight, wrong %"] = f"{100 * row['wrong_best']:.1f}"
        for name, title in (("energy", "whole maps' energy score is lower by"), ("wrong_best", "their best of eight by")):
            values = [row.get(f"{name}_above{end}") for end in ("", "_low", "_high")]
            known = [f"{100 * value:.1f}" for value in values if isinstance(value, int | float)]
            line[title] = f"{known[0]} % [{known[1]}, {known[2]}]" if known else "\u2013"
        lines.append(line)
    return markdown_table(lines)
