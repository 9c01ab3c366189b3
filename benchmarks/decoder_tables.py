"""Trained decoders side by side: evaluations -> ``results/decoders_*.csv`` and ``differences_decoders_*.csv``.

``benchmarks/train_tables.py`` trains and scores them; ``update_tables.py --collect-decoders FOLDER ...`` takes evaluations over.
"""

import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from noise2map.report.tables import read_csv, write_csv
from noise2map.zoo import available

RUN = re.compile(r"(?P<recipe>.+)-seed(?P<seed>\d+)")
# Two rows that agree in these are of one setting.
SAME = ("model", "members", "steps", "ensemble", "sampling", "field_smoothness", "test_protocol")
MAPS = 8  # drawn of each image: the best of more maps is better, whatever drew them


def add(folders: Iterable[Path], results: Path) -> None:
    """Adds evaluations, each to the tables of its task in the folder of results."""
    tables: dict[str, list[Path]] = {}
    for folder in folders:
        tables.setdefault(table_of(folder), []).append(folder)
    for name, members in tables.items():
        collect(members, results / f"decoders_{name}.csv")
        collect_differences(members, results / f"differences_decoders_{name}.csv")


def collect(folders: Iterable[Path], table: Path) -> None:
    """Adds evaluations of ``runs/.../RECIPE-seedN/final``, or of a shipped model, in place of earlier ones of the same setting.

    Raises:
        ValueError: if an evaluated model does not stand in a folder of that name, or another number of maps was drawn.
    """
    fresh = [_with_training(row) for folder in folders for row in read_csv(folder / "evaluation.csv")]
    old = read_csv(table) if table.is_file() else []
    # A plain decoder has a row in each evaluation that compares another with it.
    rows = list({_setting(row): row for row in (*old, *fresh)}.values())
    rows.sort(key=lambda row: (str(row["recipe"]), str(row["train_seed"])))
    columns = list(dict.fromkeys(column for row in rows for column in row))
    write_csv(table, [{column: row.get(column) for column in columns} for row in rows])


def collect_differences(folders: Iterable[Path], table: Path) -> None:
    """Paired differences of ``noise2map evaluate --compare``, in place of earlier ones of the same two models and protocols."""
    fresh = [
        row for folder in folders for row in json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["differences"]
    ]
    old = read_csv(table) if table.is_file() else []
    pairs = {_pair(row) for row in fresh}
    write_csv(table, fresh + [row for row in old if _pair(row) not in pairs])


def _with_training(row: dict[str, Any]) -> dict[str, Any]:
    """The recipe, seeds and command of the run that made the evaluated decoder, in front; a shipped model goes by its name."""
    if row["model"] in available():
        return {"recipe": row["model"], "train_seed": "shipped", "train_command": None, **row}
    words = shlex.split(str(row["command"]))
    members = [words[i + 1] for i, word in enumerate(words) if word == "--member"]
    runs = [Path(path).parent for path in dict.fromkeys([row["model"], *members])]
    found = [RUN.fullmatch(run.name) for run in runs]
    if None in found:
        raise ValueError(f"evaluated model: {row['model']} is not in a folder named RECIPE-seedN, so its training cannot be told")
    drawn = int(row.get("members") or 1) * int(row.get("ensemble") or 1)
    if row.get("energy_hidden") not in (None, "") and drawn != MAPS:
        raise ValueError(f"{row['model']} drew {drawn} maps of each image; expected {MAPS}, --ensemble times the number of members")
    seeds = [int(match["seed"]) for match in found if match]
    return {
        "recipe": found[0]["recipe"] if found[0] else None,
        "train_seed": seeds[0] if len(seeds) == 1 else ", ".join(map(str, seeds)),
        "train_command": json.loads((runs[0] / "config.json").read_text(encoding="utf-8"))["command"],
        **row,
    }


def _pair(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in ("model", "protocol", "other_model", "other_protocol"))


def _setting(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple("" if row.get(name) is None else str(row.get(name)) for name in SAME)


def table_of(folder: Path) -> str:
    """The table that an evaluation belongs to: its task, and apart what was hidden."""
    row = read_csv(folder / "evaluation.csv")[0]
    task, hidden = str(row["task"]), row.get("hide") not in (None, "")
    return {"segmentation": "completion", "depth": "completion_depth"}[task] if hidden else task
