"""Rows of the experiment on shifts: scores that a model does not have are told apart from numbers, in memory and in files."""

import json
import math

from noise2map.calibration.shifts import FinishedShifts, ShiftReport

FACTS = {"model": "m", "images_scored": 2, "dataset": "samples", "split": "val", "decoding": "1 step"}


def rows(shift, strength):
    """Of a model that states no scale before it is calibrated."""
    scores = {"before": {"ece": math.nan, "error": 0.5, "auroc": math.nan}, "after": {"ece": 0.25, "error": 0.5, "auroc": math.nan}}
    return [{**FACTS, "shift": shift, "strength": strength, "variant": name, **one} for name, one in scores.items()]


def report_of(found, out):
    """What is told of rows, and the scores and plots that are written."""
    report = ShiftReport(found)
    report.write(out)
    written = json.loads((out / "shifts.json").read_text())["rows"]
    return "\n".join(report.text()), [row["ece"] for row in written], {path.name for path in out.glob("*.png")}


def test_a_model_that_states_no_scale_is_reported(tmp_path):
    for kept in (None, tmp_path / "finished.json"):
        finished = FinishedShifts(kept, "key")
        finished.keep("none 0", rows("none", 0.0))
        finished.keep("blur 2", rows("blur", 2.0))
        text, eces, plots = report_of([*finished.rows["none 0"], *finished.rows["blur 2"]], tmp_path)
        assert "25.0" in text and "–" in text and "error-AUROC" not in text  # which no row has
        assert eces == [None, 0.25, None, 0.25] and "blur.png" in plots


def test_rows_of_an_interrupted_run_are_as_they_were(tmp_path):
    FinishedShifts(tmp_path / "rows", "key").keep("none 0", rows("none", 0.0) + rows("blur", 2.0))
    again = FinishedShifts(tmp_path / "rows", "key")
    assert math.isnan(again.rows["none 0"][0]["ece"]) and again.rows["none 0"][1]["ece"] == 0.25
    assert report_of(again.rows["none 0"], tmp_path)[1] == [None, 0.25, None, 0.25]
    assert FinishedShifts(tmp_path / "rows", "other").rows == {}
