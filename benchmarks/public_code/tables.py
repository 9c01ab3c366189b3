"""Tables of docs/speed.md from results/bench_public_code.csv: seconds by round, and ratios within rounds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noise2map.report.tables import markdown_table, read_csv

SECONDS = {
    "encode_s": "encode, s",
    "one_step_s": "one step, s",
    "three_steps_s": "three steps, s",
    "further_step_s": "a further step, s",
}
NAMES = {("public code", "bfloat16"): "bfloat16 by autocast"}
# What is divided by what: title, size, and (dtype, mode, freed memory kept) of either side.
RATIOS = [
    ("float32", "512x512", ("float32", "eager", False), ("float32", "eager", False)),
    ("float32, ours compiled", "512x512", ("float32", "eager", False), ("float32", "compiled", False)),
    ("bfloat16 (public: autocast)", "512x512", ("bfloat16", "eager", False), ("bfloat16", "eager", False)),
    ("bfloat16, ours compiled", "512x512", ("bfloat16", "eager", False), ("bfloat16", "compiled", False)),
    ("public float32, ours bfloat16", "512x512", ("float32", "eager", False), ("bfloat16", "eager", False)),
    ("public float32, ours bfloat16 compiled", "512x512", ("float32", "eager", False), ("bfloat16", "compiled", False)),
    ("float32, freed memory kept by both", "512x512", ("float32", "eager", True), ("float32", "eager", True)),
    ("bfloat16, freed memory kept by both", "512x512", ("bfloat16", "eager", True), ("bfloat16", "eager", True)),
    ("float32", "1024x2048", ("float32", "eager", False), ("float32", "eager", False)),
    ("public float32, ours bfloat16", "1024x2048", ("float32", "eager", False), ("bfloat16", "eager", False)),
]

Row = Mapping[str, Any]


def timed_rows(path: Path) -> list[Row]:
    """Rows with times of the clock: of machines that did nothing else."""
    return [row for row in read_csv(path) if row["three_steps_s"] not in (None, "")]


def seconds_table(path: Path) -> str:
    """A line for each variant, with the values of its rounds in turn."""
    lines: dict[tuple[str, ...], list[Row]] = {}
    for row in timed_rows(path):
        key = (row["size"], row["variant"], row["dtype"], row["mode"], str(row["memory_kept"]))
        lines.setdefault(key, []).append(row)
    found = []
    for (size, variant, dtype, mode, kept), rows in sorted(lines.items(), key=lambda item: len(item[0][0])):
        what = ", ".join([variant, NAMES.get((variant, dtype), dtype), *["compiled"] * (mode == "compiled")])
        line = {"size": size, "what": what + ", freed memory kept" * (kept == "True")}
        line |= {title: " / ".join(f"{row[column]:.2f}" for row in rows) for column, title in SECONDS.items()}
        found.append(line | {"peak, MiB": " / ".join(f"{row['peak_mib']:,.0f}" for row in rows)})
    return markdown_table(found)


def ratio_table(path: Path) -> str:
    """How many times as long the public code takes, in each round."""
    rows = timed_rows(path)

    def by_round(variant: str, size: str, way: tuple[str, str, bool]) -> dict[Any, Row]:
        kept = [row for row in rows if (row["variant"], row["size"]) == (variant, size)]
        return {row["round"]: row for row in kept if (row["dtype"], row["mode"], str(row["memory_kept"]) == "True") == way}

    found = []
    for title, size, public, ours in RATIOS:
        theirs, own = by_round("public code", size, public), by_round("this library", size, ours)
        both = sorted(theirs.keys() & own.keys())
        line = {"the public code over this library": title, "size": size}
        for column in ("three_steps_s", "further_step_s"):
            line[SECONDS[column].removesuffix(", s")] = " / ".join(f"{theirs[n][column] / own[n][column]:.2f}" for n in both)
        found.append(line)
    return markdown_table(found)
