"""The suite of a device measures everything, loses nothing, and says what failed; how long things take is not tested."""

from dataclasses import replace

import pytest
import torch
from tiny_bench import TINY

from noise2map.bench import model as bench
from noise2map.bench.suite import Job, SuiteOptions, make_jobs, run_suite
from noise2map.cli import main
from noise2map.models import Noise2MapForSemanticSegmentation
from noise2map.report.tables import read_csv

TOY = SuiteOptions(
    model="tiny", sizes=((64, 32),), steps=(1, 2), batch_sizes=(1, 2), training_batch=2, guided=((32, 32),), points=500,
    compile=False, rounds=1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch):
    monkeypatch.setitem(bench.PRESETS, "tiny", (Noise2MapForSemanticSegmentation, TINY | {"num_labels": 5}))


def test_every_job_gives_rows_and_a_device_that_is_the_cpu_agrees(tmp_path):
    rows = run_suite(TOY, tmp_path)
    assert {row["job"] for row in rows} == {job.name for job in make_jobs(TOY)}
    assert not any(row.get("error") for row in rows), [row["error"] for row in rows]
    same = [row for row in rows if row["job"] == "agreement float32"]
    assert [row["stage"] for row in same] == ["1 steps", "2 steps"]
    assert all(float(row["max_difference"]) == 0 and float(row["label_flips"]) == 0 for row in same)
    assert all(0 < float(row["max_difference"]) < 0.2 for row in rows if row["job"] == "agreement bfloat16")
    assert all(float(row["ms"]) > 0 for row in rows if not row["job"].startswith("agreement"))
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert all(job.name in page for job in make_jobs(TOY))


@pytest.mark.parametrize("model", ["freedoom-depth-laplace-tiny", "freedoom-normals-tiny"])
def test_models_of_one_call_are_measured_in_one_call(model, tmp_path):
    """The defaults ask for three steps, and class labels have no place in directions."""
    options = replace(TOY, model=model, steps=(1, 3), guided=((32, 32),))
    jobs = [job for job in make_jobs(options) if "guided" not in job.name and "pooling" not in job.name]
    rows = run_suite(options, tmp_path, jobs)
    assert not any(row.get("error") for row in rows), [row["error"] for row in rows]
    assert not any("3" in row["stage"] or row.get("label_flips") for row in rows)


def test_rows_of_a_toy_are_not_those_of_a_real_run(tmp_path):
    job = [Job("pooling of cameras and LiDAR", lambda: iter([{"stage": "only", "ms": 1.0}]))]
    assert len(run_suite(TOY, tmp_path, job)) == 1
    calls = []
    other = [Job(job[0].name, lambda: iter(calls.append(1) or [{"stage": "only", "ms": 2.0}]))]
    run_suite(TOY, tmp_path, other)
    assert not calls
    assert [float(row["ms"]) for row in run_suite(replace(TOY, points=900), tmp_path, other)] == [2.0] and calls == [1]
    assert len(read_csv(tmp_path / "suite.csv")) == 2


def test_a_failure_is_a_row_and_is_tried_again(tmp_path, caplog):
    calls = []

    def works(name):
        calls.append(name)
        yield {"stage": "only", "ms": 1.0}

    def breaks():
        yield {"stage": "before", "ms": 2.0}
        raise RuntimeError("out of memory\nand more")

    jobs = [Job("a", lambda: works("a")), Job("b", breaks), Job("c", lambda: works("c"))]
    rows = run_suite(TOY, tmp_path, jobs)
    assert [(row["job"], row["stage"]) for row in rows] == [("a", "only"), ("b", "before"), ("b", "failed"), ("c", "only")]
    assert rows[2]["error"] == "RuntimeError: out of memory" and "b failed" in caplog.text
    jobs[1] = Job("b", lambda: works("b"))
    rows = run_suite(TOY, tmp_path, jobs)
    assert calls == ["a", "c", "b"]  # what is done is not measured again
    assert sorted((row["job"], row["stage"]) for row in rows) == [("a", "only"), ("b", "only"), ("c", "only")]


def test_what_does_not_fit_is_left_and_said(tmp_path, caplog):
    options = SuiteOptions(model="tiny", minutes=1e-9, rounds=1)
    assert run_suite(options, tmp_path, [Job("late", lambda: iter([{"stage": "only", "ms": 1.0}]))]) == []
    assert "run again to go on): late" in caplog.text


@pytest.mark.parametrize(("changes", "message"), [({"steps": ()}, "steps is empty"), ({"rounds": 0}, "rounds is 0")])
def test_impossible_options(changes, message):
    with pytest.raises(ValueError, match=message):
        SuiteOptions(**changes)


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(
            [
                *["bench", "gpu", "--model", "tiny", "--toy", "--no-compile", "--device", "cpu", "--rounds", "1", "--out"],
                str(tmp_path),
            ]
        )
    assert stop.value.code == 0
    assert "agreement float32" in capsys.readouterr().out
    assert len(read_csv(tmp_path / "suite.csv")) > 20 and torch.get_num_threads() >= 1


def test_rows_name_their_precision_and_the_page_what_was_measured_when(tmp_path):
    names = {job.name: job.dtype for job in make_jobs(replace(TOY, compile=True))}
    assert names["agreement bfloat16"] == names["model 64x32 bfloat16, compiled"] == torch.bfloat16
    assert all((dtype == torch.bfloat16) == ("bfloat16" in name) for name, dtype in names.items())
    half = Job("agreement bfloat16", lambda: iter([{"stage": "1 steps"}]), torch.bfloat16)
    assert [row["dtype"] for row in run_suite(TOY, tmp_path, [half])] == ["bfloat16"]
    table = tmp_path / "suite.csv"
    commit = read_csv(table)[0]["commit"]
    table.write_text(table.read_text().replace(commit, "aaaaaaaaaa"))
    run_suite(TOY, tmp_path, [half])
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "commit aaaaaaaaaa," in page and commit not in page
