"""What the benchmark counts and writes is right; how long things take is not tested."""

import csv

import pytest
import torch
from tiny_bench import TINY
from torch.utils.flop_counter import FlopCounterMode

from noise2map.bench import model as bench
from noise2map.bench.model import MODEL_IDENTITY, ModelBenchOptions, build_model, run_bench, step_products, with_grid_sample
from noise2map.bench.timing import time_calls
from noise2map.cli import main
from noise2map.models import Noise2MapForDepthEstimation, Noise2MapForSemanticSegmentation
from noise2map.report.tables import merge_rows


@pytest.fixture(autouse=True)
def tiny_presets(monkeypatch):
    monkeypatch.setitem(bench.PRESETS, "tiny", (Noise2MapForSemanticSegmentation, TINY | {"num_labels": 5}))
    monkeypatch.setitem(bench.PRESETS, "tiny-depth", (Noise2MapForDepthEstimation, TINY))


def chosen(**changes):
    fields = {
        "model": "tiny",
        "width": 64,
        "height": 32,
        "steps": (1, 2),
        "dtypes": (torch.float32,),
        "modes": ("eager",),
        "device": torch.device("cpu"),
        "rounds": 2,
        "memory": False,
    }
    return ModelBenchOptions(**(fields | changes))


@pytest.mark.parametrize("name", ["tiny", "tiny-depth"])
def test_floor_has_all_products_of_a_step(name):
    """Against PyTorch's own count of the operations of one decoder call."""
    model = build_model(name, torch.device("cpu"), torch.float32, 0)
    features = torch.randn(1, 16, 8, 16)
    x_t = torch.randn(1, model.codec.channels, 8, 16)
    context, modulations = model.decoder.prepare(features), model.decoder.modulations(torch.zeros(1))
    with FlopCounterMode(display=False) as counter:
        model.head(model.decoder(context, x_t, modulations), context.size)
    assert counter.get_total_flops() == sum(2 * m * k * n for m, k, n in step_products(model, 8 * 16))


def test_grid_sample_twin_shares_weights_and_says_the_same():
    model = build_model("tiny", torch.device("cpu"), torch.float32, 0)
    twin = with_grid_sample(model)
    assert all(a is b for a, b in zip(model.parameters(), twin.parameters()))
    assert {layer.attention.formulation for layer in twin.decoder.layers} == {"grid_sample"}
    assert {layer.attention.formulation for layer in model.decoder.layers} == {"auto"}
    features, noise = torch.randn(1, 16, 8, 16), torch.randn(1, 1, 16, 8, 16)
    with torch.no_grad():
        ours, theirs = (one.decode_map(features, num_inference_steps=2, noise=noise).logits for one in (model, twin))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("clock", ["wall", "cpu"])
def test_rows_of_a_run(clock):
    rows = run_bench(chosen(clock=clock, dtypes=(torch.float32, torch.bfloat16)))
    stages = ["encode", "step", "decode 1", "decode 2", "all 2"]
    assert [(row["dtype"], row["stage"]) for row in rows] == [(d, s) for d in ("float32", "bfloat16") for s in stages]
    assert all(row["ms"] > 0 and row["clock"] == clock and row["seed"] == 0 and row["command"] for row in rows)
    assert rows[0]["parameters"] == sum(p.numel() for p in build_model("tiny", torch.device("cpu"), torch.float32, 0).parameters())
    step = rows[1]
    assert step["step_over_floor"] >= 0 and step["grid_sample_over_step"] > 0 and step["grid_sample_mode"] == "eager"
    assert step["instructions"].startswith(torch.backends.cpu.get_cpu_capability()) and step["memory_kept"] in (True, False)
    assert "step_over_floor" not in rows[0]


def test_sparse_steps_and_exports_stand_beside_the_model(monkeypatch):
    twin = build_model("tiny", torch.device("cpu"), torch.float32, 0)
    monkeypatch.setattr(bench, "load_model", lambda *_, **__: (twin, None))
    with pytest.raises(ValueError, match="'folder' is a checkpoint; expected the folder of an export"):
        run_bench(chosen(exports=("folder",)))
    with pytest.raises(ValueError, match="exports are folder and dtypes bfloat16; exports compute in float32"):
        chosen(exports=("folder",), dtypes=(torch.bfloat16,))
    monkeypatch.setattr(bench, "MapDecoder", ())  # from here on nothing counts as a checkpoint
    rows = run_bench(chosen(exports=("folder",), refine_shares=(0.5,), steps=(1,)))
    stages = ["encode", "step", "step 0.5", "decode 1", "all 1"]
    whole = [one for one in stages if one != "step 0.5"]
    assert [(row["mode"], row["stage"]) for row in rows] == [*(("eager", s) for s in stages), *(("folder", s) for s in whole)]
    assert rows[2]["refined_over_step"] > 0 and all(row["over_eager"] > 0 for row in rows[5:])
    other = build_model("tiny-depth", torch.device("cpu"), torch.float32, 0)
    with pytest.raises(ValueError, match="features, map channels and classes, the model"):
        bench.open_export("folder", other)


def test_table_file_keeps_other_rows_and_replaces_the_same(tmp_path):
    path = tmp_path / "deep" / "bench.csv"
    base = {"model": "m", "size": "64x32", "batch_size": 1, "device": "cpu", "threads": 2, "dtype": "float32", "mode": "eager"}
    old = [base | {"stage": stage, "clock": "wall", "ms": 1.0} for stage in ("encode", "step")]
    merge_rows(path, old, MODEL_IDENTITY)
    merge_rows(path, [base | {"stage": "step", "clock": "wall", "ms": 2.5, "step_over_floor": 1.25}], MODEL_IDENTITY)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["stage"], row["ms"], row["step_over_floor"]) for row in rows] == [
        ("encode", "1.000", ""),
        ("step", "2.500", "1.250"),
    ]
    assert [entry.name for entry in path.parent.iterdir()] == ["bench.csv"]


def test_a_foreign_file_is_refused_before_the_work(tmp_path, capsys):
    path = tmp_path / "notes.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit) as stop:
        main(["bench", "model", "--model", "tiny", "--out", str(path)])
    assert stop.value.code == 2
    assert "not a table of such rows" in capsys.readouterr().err
    assert path.read_text() == "a,b\n1,2\n"


def test_command_writes_its_table(tmp_path, capsys):
    out = tmp_path / "bench.csv"
    words = f"bench model --model tiny --size 64x32 --steps 1 --dtype float32 --no-compile --rounds 1 --no-memory --out {out}"
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == 0
    assert "x floor" in capsys.readouterr().out
    assert out.read_text().count("\n") == 5  # titles, encode, step, decode 1, all 1


def test_attention_command_compares_formulations(tmp_path, capsys):
    out = tmp_path / "attention.csv"
    words = f"bench attention --size 6x5 --heads 2 --channels 4 --points 2 --dtype float32 --no-compile --rounds 2 --out {out}"
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == 0
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["formulation"], row["stage"]) for row in rows} == {
        (formulation, stage) for formulation in ("embedding_bag", "grid_sample") for stage in ("inference", "forward and backward")
    }
    assert all(float(row["grid_sample_over_this"]) == 1 for row in rows if row["formulation"] == "grid_sample")
    captured = capsys.readouterr()
    assert "faster than grid_sample by" in captured.out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--size 500", "expected WIDTHxHEIGHT"),
        ("--size 66x64", "multiples of 4"),
        ("--size 16x64", "at least 32"),
        ("--dtype int8", "'int8'"),
        ("--steps 0", "'0'"),
        ("--rounds 0", "'--rounds'"),
        ("--clock moon", "'moon'"),
        ("--no-eager --no-compile", "nothing to measure"),
        ("--model nowhere", "nowhere"),
    ],
)
def test_bad_input_is_one_line(words, named, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "model", "--out", str(tmp_path / "x.csv"), "--no-memory", *words.split()])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert named in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_calls_take_turns_and_the_first_round_does_not_count(capsys, caplog):
    order = []
    calls = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    with caplog.at_level("INFO", "noise2map"):
        times = time_calls(calls, chosen(rounds=3), "float32")
    assert order == ["a", "b"] * 4
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}
    assert "8/8" in capsys.readouterr().err  # the progress bar ends full
    assert "first calls" in caplog.text and "took" in caplog.text


def test_compiling_is_announced(monkeypatch, caplog):
    monkeypatch.setattr(bench, "compiled", lambda model: model)
    with caplog.at_level("INFO", "noise2map"):
        run_bench(chosen(modes=("compiled",), steps=(1,), rounds=1))
    assert "--no-compile" in caplog.text


@pytest.mark.slow
def test_compiled_rows_and_memory(tmp_path):
    build_model("tiny", torch.device("cpu"), torch.float32, 0)
    torch.manual_seed(0)
    from noise2map.models import Noise2MapConfig, Noise2MapImageProcessor

    folder = tmp_path / "model"  # the measuring processes do not see this test's preset
    Noise2MapForSemanticSegmentation(Noise2MapConfig(**TINY | {"decoder_layers": 1}, num_labels=5)).save_pretrained(folder)
    Noise2MapImageProcessor().save_pretrained(folder)
    rows = run_bench(chosen(model=str(folder), modes=("compiled",), memory=True, steps=(1,), rounds=1))
    assert [row["stage"] for row in rows] == ["encode", "step", "decode 1", "all 1"]
    for row in rows:
        if row["stage"] != "decode 1":
            assert row["peak_mb"] > row["working_mb"] >= 0
