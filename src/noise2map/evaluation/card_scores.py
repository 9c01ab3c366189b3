"""Rows of ``evaluation.csv`` -> scores for the metadata of a model card."""

import math
from pathlib import Path

from noise2map.hub.cards import Score
from noise2map.report.tables import read_csv
from noise2map.tasks import get_task


def scores_for_card(table: Path, model: str | None = None) -> list[Score]:
    """The scores that a card of the task has, of every row of a table.

    Args:
        table: An ``evaluation.csv``.
        model: Only rows of this model; None: of the first that is named, so that a model of ``--compare`` is left out.

    Raises:
        FileNotFoundError: If there is no such table.
        ValueError: If it has no scores of a model.
    """
    if not table.is_file():
        raise FileNotFoundError(f"there is no table {table}; expected the evaluation.csv of noise2map evaluate")
    rows = [row for row in read_csv(table) if row.get("task") and row.get("model")]
    rows = [row for row in rows if row["model"] == (model or rows[0]["model"])]
    found = [
        Score(name, float(row[name]), str(row["dataset"]), str(row.get("split") or "test"), row.get("steps") or "default")
        for row in rows
        if row.get("ensemble", 1) in (1, "1", None, "")
        for name in get_task(str(row["task"])).card_scores
        if row.get(name) not in (None, "") and math.isfinite(float(row[name]))
    ]
    if not found:
        raise ValueError(f"{table} holds no scores of a model; expected the evaluation.csv of noise2map evaluate")
    return found
