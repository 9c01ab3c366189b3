"""The two ways to pool give the same map; the bench's rows are what they say."""

import csv

import pytest
import torch

from noise2map.bench.bev import BevBenchOptions, make_scene, ring, run_bev_bench, scatter
from noise2map.cli import main
from noise2map.models.bev.camera import pool

OPTIONS = BevBenchOptions(
    cameras=2,
    width=64,
    height=32,
    channels=4,
    cells=16,
    dtypes=(torch.float32,),
    device=torch.device("cpu"),
    rounds=2,
    memory=False,
)


def test_both_ways_give_the_same_map():
    scene = make_scene(OPTIONS, torch.float32)
    ours = pool(scene.plan, scene.depth, scene.context)
    plain = scatter(scene.points, scene.depth, scene.context, scene.grid)
    assert float((ours - plain).abs().max() / plain.abs().max()) < 1e-5


def test_the_ring_looks_around():
    rig = ring(4, 64, 32)
    forward = rig.camera_to_lidar[0, :, :3, 2]
    expected = torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, -1, 0], [1, 0, 0]])
    torch.testing.assert_close(forward, expected, atol=1e-6, rtol=0)
    centre = rig.unproject(torch.tensor([[32.0, 19.2, 10.0]]))[0, 0, 0]
    torch.testing.assert_close(centre, torch.tensor([0.0, 10.0, -0.34]), atol=1e-4, rtol=0)


def test_rows_of_a_small_bench():
    rows = run_bev_bench(OPTIONS)
    assert [(row["method"], row["stage"]) for row in rows] == [
        ("segment sum", "plan"),
        ("segment sum", "forward"),
        ("segment sum", "forward and backward"),
        ("scatter", "forward"),
        ("scatter", "forward and backward"),
    ]
    assert all(row["ms"] > 0 and row["points"] == 2 * 118 * 4 * 8 for row in rows)
    assert rows[0]["scatter_over_this"] is None and rows[3]["scatter_over_this"] == 1


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "bev", *map(str, words)])
    return stop.value.code


def test_the_command_writes_a_table(tmp_path, capsys):
    out = tmp_path / "bench.csv"
    options = ("--cameras", 2, "--size", "64x32", "--channels", 4, "--cells", 16, "--rounds", 1, "--no-memory", "--out", out)
    assert run(*options) == 0
    assert "scatter takes times" in capsys.readouterr().out
    with out.open() as file:
        assert len(list(csv.DictReader(file))) == 5
    assert run(*options) == 0
    with out.open() as file:
        assert len(list(csv.DictReader(file))) == 5  # the same measurement, made again, replaces the old one


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--cells", "3", "'--cells'"),
        ("--cells", "18", "expected multiples of 4"),
        ("--size", "60x32", "multiples of 32"),
        ("--cameras", "0", "'--cameras'"),
    ],
)
def test_impossible_rigs_are_refused(option, value, message, tmp_path, capsys):
    options = {"--size": "64x32", "--cameras": 2, "--channels": 4, "--no-memory": None, option: value, "--out": tmp_path / "x.csv"}
    assert run(*(word for pair in options.items() for word in pair if word is not None)) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
