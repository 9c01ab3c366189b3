"""Decoders of what is visible, side by side: ``results/decoders_{depth,segmentation,normals}.csv`` -> tables of docs/results.md."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import decoder_tables

from noise2map.report.tables import markdown_table, read_csv

NAMES = {
    "depth-nodiffusion": "no diffusion",
    "depth-laplace": "median and scale (Laplace)",
    "depth-crps": "samples by a proper score (CRPS)",
    "depth-published": "as published",
    "freedoom-depth-laplace-tiny": "shipped: median and scale, convex upsampling, 4,700 steps, calibrated",
    "segmentation-nodiffusion": "no diffusion",
    "segmentation-matched": "matched filter",
    "segmentation-published": "as published",
    "segmentation-ssn": "low-rank normal of logits (SSN)",
    "segmentation-energy": "energy score as loss",
    "normals-nodiffusion": "no diffusion",
    "normals-angular": "direction and expected error (angular)",
    "normals-published": "as published",
}
# title: columns, the first that a row has is taken; factor; digits
Column = tuple[Sequence[str], float, int]
ONE_MAP: dict[str, dict[str, Column]] = {
    "depth": {
        "AbsRel": (("abs_rel",), 1, 3),
        "δ1 %": (("delta1",), 100, 1),
        "error-AUROC": (("scale_auroc", "sample_variance_auroc"), 1, 3),
        "AUSE": (("scale_ause", "sample_variance_ause"), 1, 3),
        "in 50 %": (("scale_coverage_50",), 100, 1),
        "in 90 %": (("scale_coverage_90",), 100, 1),
        "CRPS": (("scale_crps", "crps"), 1, 4),
        "edges F1 %": (("boundary_f1",), 100, 1),
        "flying pixels %": (("flying_pixels",), 100, 1),
    },
    "segmentation": {
        "mIoU %": (("mIoU",), 100, 1),
        "pixels right %": (("aAcc",), 100, 1),
        "ECE %": (("ece",), 100, 1),
        "nats": (("nll",), 1, 3),
        "error-AUROC": (("least_confidence_auroc",), 1, 3),
        "AUSE": (("least_confidence_ause",), 1, 3),
        "step-flip AUROC": (("step_flip_auroc",), 1, 3),
        "edges F1 %": (("boundary_f1",), 100, 1),
    },
    "normals": {
        "mean error, °": (("mean_angle",), 1, 1),
        "median error, °": (("median_angle",), 1, 1),
        "within 11.25° %": (("within_11.25",), 100, 1),
        "within 30° %": (("within_30",), 100, 1),
        "error-AUROC": (("scale_auroc", "sample_variance_auroc"), 1, 3),
        "AUSE": (("scale_ause", "sample_variance_ause"), 1, 3),
        "in 50 %": (("scale_coverage_50",), 100, 1),
        "in 90 %": (("scale_coverage_90",), 100, 1),
    },
}
DRAWN_MAPS: dict[str, dict[str, Column]] = {
    "depth": {
        "CRPS": (("crps",), 1, 4),
        "CRPS of 8 x 8": (("crps_pool8",), 1, 4),
        "energy score": (("energy",), 1, 4),
        "spread / skill": (("spread_skill",), 1, 2),
        "in 50 %": (("coverage_50",), 100, 1),
        "in 90 %": (("coverage_90",), 100, 1),
        "AbsRel of one": (("abs_rel_sample",), 1, 3),
        "edges F1 %": (("boundary_f1",), 100, 1),
        "flying pixels %": (("flying_pixels",), 100, 1),
    },
    "segmentation": {
        "energy score": (("energy",), 1, 3),
        "pixel GED": (("ged_pixel",), 1, 3),
        "spread / skill": (("spread_skill",), 1, 2),
        "wrong in one, %": (("wrong_sample",), 100, 1),
        "best of eight, mIoU %": (("mIoU_best",), 100, 1),
        "edges F1 %": (("boundary_f1",), 100, 1),
        "edges, times the truth's": (("edge_ratio",), 1, 2),
    },
}


SCORES: dict[str, dict[str, tuple[str, float, int]]] = {  # of paired differences: title, column, factor, digits
    "depth": {"AbsRel": ("abs_rel", 1, 4), "δ1, points": ("delta1", 100, 1), "edges F1, points": ("boundary_f1", 100, 1)},
    "segmentation": {
        "mIoU, points": ("mIoU", 100, 1),
        "pixels right, points": ("aAcc", 100, 1),
        "edges F1, points": ("boundary_f1", 100, 1),
    },
    "normals": {"mean error, °": ("mean_angle", 1, 2), "within 11.25°, points": ("within_11.25", 100, 1)},
}


def one_map_table(path: Path) -> str:
    """The map that a run of each decoder gives, means over training seeds and their range, in the order of calls."""
    rows = [row for row in read_csv(path) if row["ensemble"] == 1 and row["recipe"] in NAMES]
    return _table(rows, ONE_MAP, lambda row: {"calls": row["steps"]})


def drawn_maps_table(path: Path) -> str:
    """Maps that each decoder draws, as above."""
    rows = [row for row in read_csv(path) if row["ensemble"] != 1 and row["recipe"] in NAMES]
    return _table(rows, DRAWN_MAPS, lambda row: {"maps drawn by": _drawn_by(row), "calls": row["steps"]})


def _table(
    rows: Sequence[dict[str, Any]], columns: dict[str, dict[str, Column]], describe: Callable[[dict[str, Any]], dict[str, Any]]
) -> str:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((_decoder(row), *describe(row).values()), []).append(row)
    order = {name: position for position, name in enumerate(NAMES)}
    found = sorted(groups.values(), key=lambda group: (order[group[0]["recipe"]], _decoder(group[0])))
    return markdown_table(
        [
            {"decoder": _decoder(group[0]), **describe(group[0]), "seeds": len({row["train_seed"] for row in group})}
            | {title: _over_seeds(group, column) for title, column in columns[group[0]["task"]].items()}
            for group in found
        ]
    )


def _decoder(row: dict[str, Any]) -> str:
    name = NAMES[row["recipe"]]
    seeds = str(row["train_seed"]).split(",")
    if len(seeds) > 1:
        return f"{name}, {len(seeds)} as an ensemble"
    mirrored = ", mean with the mirror image" * str(row.get("test_protocol")).startswith("flip")
    return name + mirrored + (", calibrated" if Path(str(row["model"])).name == "calibrated" else "")


def _drawn_by(row: dict[str, Any]) -> str:
    if row["sampling"] != "field":
        return "diffusion"
    if row["recipe"].endswith("-ssn"):  # draws logits: the width of a field has no part in it
        return "its own distribution"
    width = row["field_smoothness"]
    return "one luck for the whole map" if str(width) == "inf" else f"field over {width or 0:g} cells"


def _over_seeds(rows: Sequence[dict[str, Any]], column: Column) -> str:
    names, factor, digits = column
    cells = [next((row[name] for name in names if isinstance(row.get(name), int | float)), None) for row in rows]
    values = [factor * float(cell) for cell in cells if cell is not None]
    if not values:
        return "–"
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return f"{mean(values):.{digits}f}" + (f" ({low} to {high})" if low != high else "")


def differences_table(path: Path, task: str) -> str:
    """What a decoder's map has in score beyond the plain decoder's of the same seed, with intervals over maps."""
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in read_csv(path):
        (recipe, seed), (other, _) = (_run(str(row[name])) for name in ("model", "other_model"))
        if other != f"{task}-nodiffusion" or recipe not in NAMES or recipe == other or "samples" in str(row["protocol"]):
            continue
        calls = int(str(row["protocol"]).split()[0])
        key = (list(NAMES).index(recipe), calls, seed)
        line = lines.setdefault(key, {"decoder": NAMES[recipe], "calls": calls, "seed": seed})
        for title, (name, factor, digits) in SCORES[task].items():
            if row["score"] == name:
                low, high = (f"{factor * row[end]:.{digits}f}" for end in ("low", "high"))
                line[title] = f"{factor * row['difference']:+.{digits}f} [{low}, {high}]"
    return markdown_table([lines[key] for key in sorted(lines)])


def _run(model: str) -> tuple[str, int]:
    """The recipe and the seed of a trained model, by the folder of its run."""
    found = decoder_tables.RUN.fullmatch(Path(model).parent.name)
    return (found["recipe"], int(found["seed"])) if found else (model, 0)
