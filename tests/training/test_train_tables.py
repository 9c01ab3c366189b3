"""`benchmarks/train_tables.py`: which runs it starts, in which order, and what becomes of one that fails."""

import csv

import hidden_tables
import pytest
import train_tables

from noise2map.report.tables import write_csv

NAMES = ["depth-laplace", "depth-nodiffusion", "completion-matched"]


def jobs(work, seeds=(0, 1)):
    return train_tables.make_jobs(NAMES, seeds, ["train.iterations=3"], work)


def test_the_first_run_of_a_cache_fills_it_before_others_read_it(tmp_path):
    first, second = train_tables.waves(jobs(tmp_path))
    assert [(job.recipe, job.seed) for job in first] == [("depth-laplace", 0), ("completion-matched", 0)]
    assert sorted((job.recipe, job.seed) for job in second) == sorted((n, s) for n in NAMES for s in (0, 1) if (n, s) not in [
        ("depth-laplace", 0), ("completion-matched", 0)])  # fmt: skip
    assert len({job.run for job in (*first, *second)}) == 6


def test_completions_are_scored_as_they_were_trained(tmp_path):
    laplace, plain, completion = (job.evaluate(tmp_path / "test", 9) for job in jobs(tmp_path, [2]))
    assert laplace[-2:] == ["--steps", "1"] == plain[-2:] and "--hide" not in laplace
    words = " ".join(completion)
    assert "--steps 1 3 10 --hide mixed --ensemble 8 --sample-scores" in words and words.endswith("--sampling diffusion,field")
    other = train_tables.make_jobs(["completion-ssn"], [0], [], tmp_path)[0].evaluate(tmp_path / "test", 9, "rectangle")
    assert " ".join(other[-11:]) == (
        "--hide rectangle --ensemble 8 --sample-scores --cluster map --resamples 300 --sampling field"
    )  # one call, whatever the steps
    above, plain_above = (train_tables.make_jobs([f"bev-{name}"], [0], [], tmp_path)[0] for name in ("pyramid", "nodiffusion"))
    words = " ".join(above.evaluate(tmp_path / "test", 0, "rectangle"))
    assert "--dataset freedoom-surround --root data/surround --limit 90" in words and "--hide" not in words
    assert "--steps 1 3 10 --cells all --ensemble 8" in words and words.endswith("--sampling diffusion,field")
    assert " ".join(plain_above.evaluate(tmp_path / "test", 9)).endswith("--sampling field")
    train = jobs(tmp_path, [2])[0].train()
    assert train[:3] == ["noise2map", "train", "decoders/depth-laplace"]
    assert train[-3:] == [
        "train.iterations=3",
        "--set",
        "train.seed=2",
    ]


def test_tables_hold_what_has_been_scored(tmp_path):
    done = jobs(tmp_path, [1])[0]
    (done.run / "evaluation").mkdir(parents=True)
    with (done.run / "evaluation" / "evaluation.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["task", "abs_rel"], ["depth", 0.25]])
    found = train_tables.collect(jobs(tmp_path))
    assert found == {"depth": [{"recipe": "depth-laplace", "train_seed": 1, "task": "depth", "abs_rel": 0.25}]}


def test_a_run_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match=r"noise2map train decoders/nothing: .*no recipe file"):
        train_tables.run(["noise2map", "train", "decoders/nothing"], tmp_path / "log.txt")


def evaluated(folder, command, **cells):
    folder.mkdir(parents=True)
    row = {
        "model": command.split()[3],
        "command": command,
        "members": 1,
        "ensemble": 8 // cells.get("members", 1),
        "steps": 1,
        "sampling": "field",
        "field_smoothness": 2.0,
        **cells,
    }
    write_csv(folder / "evaluation.csv", [row])
    return folder


def test_rows_of_one_decoder_and_of_ensembles_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [tmp_path / "runs" / f"completion-nodiffusion-seed{seed}" for seed in (0, 3)]
    for run in runs:
        run.mkdir(parents=True)
        (run / "config.json").write_text('{"command": "noise2map train"}')
    one = f"noise2map evaluate --model {runs[0].relative_to(tmp_path)}/final"
    two = f"{one} --member {runs[1].relative_to(tmp_path)}/final"
    folders = [
        evaluated(tmp_path / "alone", one, energy_hidden=0.5),
        evaluated(tmp_path / "both", two, members=2, energy_hidden=0.4),
    ]
    hidden_tables.collect(folders, tmp_path / "table.csv")
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [(row["train_seed"], row["energy_hidden"]) for row in rows] == [("0", "0.5"), ("0, 3", "0.4")]
    hidden_tables.collect([evaluated(tmp_path / "again", two, members=2, energy_hidden=0.3)], tmp_path / "table.csv")
    assert [row["energy_hidden"] for row in csv.DictReader((tmp_path / "table.csv").open())] == ["0.5", "0.3"]


def test_decoders_are_compared_by_as_many_maps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "completion-nodiffusion-seed0"
    run.mkdir(parents=True)
    (run / "config.json").write_text('{"command": "noise2map train"}')
    command = f"noise2map evaluate --model {run.relative_to(tmp_path)}/final"
    folder = evaluated(tmp_path / "more", command, members=4, ensemble=8, energy_hidden=0.4)
    with pytest.raises(ValueError, match="drew 32 maps of each image; expected 8"):
        hidden_tables.collect([folder], tmp_path / "table.csv")
