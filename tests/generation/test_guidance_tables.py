"""Tables of guided images: what is collected, and what runs are called."""

import pytest
import update_tables

from noise2map.report.tables import read_csv, write_csv


@pytest.mark.parametrize(
    ("run", "title"),
    [
        ("weak", "weak"),
        ("weak-window-low", "weak"),
        ("weak2-1024-window-low", "weak2, 1,024 images"),
        ("shipped-100steps-1024-window-low", "shipped, 100 steps, 1,024 images"),
    ],
)
def test_a_run_is_called_by_its_generator_and_by_what_others_have_not(run, title):
    assert update_tables.generator_of(run) == title


def test_a_collected_run_takes_the_place_of_its_forerunner_and_others_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(update_tables, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        for name in ("generator", "differences"):
            write_csv(tmp_path / run / f"{name}.csv", [{"setting": "none", "KID": 2.0}, {"setting": "DCG", "KID": 3.0}])
    for name in ("scores", "differences"):
        write_csv(tmp_path / "results" / f"{name}.csv", [{"run": run, "setting": "none", "FID": 1.0} for run in ("zero", "one")])
    update_tables.collect_guidance([tmp_path / "two", tmp_path / "one"], ("scores", "differences"))
    for name in ("scores", "differences"):
        rows = read_csv(tmp_path / "results" / f"{name}.csv")
        assert [(row["run"], row["setting"], row["KID"], row["FID"]) for row in rows] == [
            ("two", "none", 2, None),
            ("two", "DCG", 3, None),
            ("one", "none", 2, None),
            ("one", "DCG", 3, None),
            ("zero", "none", None, 1),
        ]
