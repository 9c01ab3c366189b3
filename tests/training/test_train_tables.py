"""`benchmarks/train_tables.py`: which runs it starts, in which order, and what becomes of one that fails."""

import csv
import json

import decoder_tables
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
    completion = jobs(tmp_path, [2])[2].evaluations(tmp_path / "test", 9)
    words = " ".join(completion.pop("evaluation"))
    assert "--hide mixed --ensemble 8 --steps 1 3 10 --sampling diffusion,field" in words and not completion
    other = train_tables.make_jobs(["completion-ssn"], [0], [], tmp_path)[0].evaluations(tmp_path / "test", 9, "rectangle")
    assert "--hide rectangle --ensemble 8 --steps 1 --sampling field --out" in " ".join(
        other["evaluation"]
    )  # one call, whatever the steps
    above, plain_above = (train_tables.make_jobs([f"bev-{name}"], [0], [], tmp_path)[0] for name in ("pyramid", "nodiffusion"))
    words = " ".join(above.evaluations(tmp_path / "test", 0, "rectangle")["evaluation"])
    assert "--dataset freedoom-surround --root data/surround --limit 90" in words and "--hide" not in words
    assert "--cells all --ensemble 8 --steps 1 3 10 --sampling diffusion,field" in words
    assert "--steps 1 --sampling field --out" in " ".join(plain_above.evaluations(tmp_path / "test", 9)["evaluation"])
    train = jobs(tmp_path, [2])[0].train()
    assert train[:3] == ["noise2map", "train", "decoders/depth-laplace"]
    assert train[-3:] == [
        "train.iterations=3",
        "--set",
        "train.seed=2",
    ]


@pytest.mark.parametrize(
    "name, one, drawn",
    [
        ("depth-nodiffusion", "--steps 1", None),
        ("depth-laplace", "--steps 1", "--steps 1 --sampling field --field-smoothness 0,2,8,inf"),
        ("depth-crps", "--steps 1 --sampling one_pass", "--steps 1 3 10 --sampling diffusion"),
        ("depth-published", "--steps 1 3 10", "--steps 1 3 10 --sampling diffusion"),
        ("segmentation-nodiffusion", "--steps 1", "--steps 1 --sampling field --field-smoothness 0,2,8,inf"),
        ("segmentation-matched", "--steps 1", "--steps 1 3 10 --sampling diffusion"),
        ("segmentation-ssn", "--steps 1 --sampling one_pass", "--steps 1 --sampling field"),
        ("normals-nodiffusion", "--steps 1", None),
        ("normals-angular", "--steps 1", None),
    ],
)
def test_what_is_visible_is_scored_by_the_map_of_a_run_and_by_maps_that_are_drawn(tmp_path, name, one, drawn):
    job = train_tables.make_jobs([name], [1], [], tmp_path)[0]
    found = {folder: " ".join(words) for folder, words in job.evaluations(tmp_path / "test", 9).items()}
    assert f"--resamples 300 {one} --out {job.run}/one" in found["one"] and "--ensemble" not in found["one"]
    assert (f"--resamples 300 --ensemble 8 {drawn} --out {job.run}/drawn" in found["drawn"]) if drawn else "drawn" not in found
    assert not any(words.count("--hide") + words.count("--compare") for words in found.values())
    plain = tmp_path / f"{name.partition('-')[0]}-nodiffusion-seed1" / "final"
    plain.mkdir(parents=True)
    words = job.evaluations(tmp_path / "test", 9)["one"]
    assert ("--compare" in words) == (not name.endswith("-nodiffusion"))
    assert "--compare" not in words or words[words.index("--compare") + 1] == str(plain)


def scored(work, recipe, **cells):
    """The folder of an evaluation of a run that was trained."""
    run = work / f"{recipe}-seed1"
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text('{"command": "noise2map train"}')
    folder = run / "one"
    folder.mkdir(exist_ok=True)
    row = {"model": f"{run}/final", "command": f"noise2map evaluate --model {run}/final", "ensemble": 1, **cells}
    write_csv(folder / "evaluation.csv", [row])
    (folder / "evaluation.json").write_text('{"differences": []}')
    return folder


def test_evaluations_go_to_the_table_of_their_task(tmp_path):
    folders = [
        scored(tmp_path, "depth-laplace", task="depth", abs_rel=0.25),
        scored(tmp_path, "segmentation-ssn", task="segmentation", mIoU=0.5),
        scored(tmp_path, "completion-ssn", task="segmentation", hide="mixed", mIoU=0.25),
    ]
    decoder_tables.add(folders, tmp_path)
    decoder_tables.add(folders[:1], tmp_path)  # what is scored again takes the place of what was
    for name, recipe, score in (
        ("depth", "depth-laplace", "0.25"),
        ("segmentation", "segmentation-ssn", "0.5"),
        ("completion", "completion-ssn", "0.25"),
    ):
        rows = list(csv.DictReader((tmp_path / f"decoders_{name}.csv").open()))
        assert [(row["recipe"], row["train_seed"], row.get("abs_rel") or row["mIoU"]) for row in rows] == [(recipe, "1", score)]


def test_differences_of_other_protocols_stay(tmp_path):
    """A model is scored in two evaluations, which both compare protocols of it."""
    folder = scored(tmp_path, "depth-crps", task="depth")
    for protocol, values in (("3 steps", (1.0, 2.0)), ("field", (3.0,)), ("3 steps", (4.0, 5.0))):
        pair = {"model": "a", "other_model": "a", "protocol": protocol, "other_protocol": "1 step"}
        rows = [pair | {"score": f"s{index}", "difference": value} for index, value in enumerate(values)]
        (folder / "evaluation.json").write_text(json.dumps({"differences": rows}))
        decoder_tables.collect_differences([folder], tmp_path / "table.csv")
    found = {(row["protocol"], row["difference"]) for row in csv.DictReader((tmp_path / "table.csv").open())}
    assert found == {("3 steps", "4.0"), ("3 steps", "5.0"), ("field", "3.0")}


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
    decoder_tables.collect(folders, tmp_path / "table.csv")
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [(row["train_seed"], row["energy_hidden"]) for row in rows] == [("0", "0.5"), ("0, 3", "0.4")]
    decoder_tables.collect([evaluated(tmp_path / "again", two, members=2, energy_hidden=0.3)], tmp_path / "table.csv")
    assert [row["energy_hidden"] for row in csv.DictReader((tmp_path / "table.csv").open())] == ["0.5", "0.3"]


def test_decoders_are_compared_by_as_many_maps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "completion-nodiffusion-seed0"
    run.mkdir(parents=True)
    (run / "config.json").write_text('{"command": "noise2map train"}')
    command = f"noise2map evaluate --model {run.relative_to(tmp_path)}/final"
    folder = evaluated(tmp_path / "more", command, members=4, ensemble=8, energy_hidden=0.4)
    with pytest.raises(ValueError, match="drew 32 maps of each image; expected 8"):
        decoder_tables.collect([folder], tmp_path / "table.csv")
