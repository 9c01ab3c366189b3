"""``noise2map predict``: what it writes, and what it says of bad input: one line, an exit code, nothing lost."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import run_command
from PIL import Image
from tiny_models import tiny_depth_model, tiny_segmenter

from noise2map.models import Noise2MapImageProcessor
from noise2map.runs import files


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    processor = Noise2MapImageProcessor(size={"shortest_edge": 32})
    for name, model in (("rooms", tiny_segmenter()), ("depth", tiny_depth_model())):
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    return root


@pytest.fixture
def images(tmp_path):
    source = tmp_path / "images"
    source.mkdir()
    for index, size in enumerate(((40, 32), (50, 70))):
        noise = np.random.default_rng(index).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(source / f"{index}.png")
    return source


def run(capsys, *words):
    return run_command(capsys, "predict", *words)


def error_line(err):
    lines = [line for line in err.splitlines() if line.startswith(("noise2map: error:", "Error: "))]
    assert len(lines) == 1 and err.rstrip().endswith(lines[0])
    return lines[0]


def whole_files(out):
    """Every file under a folder can be read; none is temporary."""
    for path in out.rglob("*"):
        if path.is_file():
            assert not path.name.startswith(".")
            if path.suffix == ".png":
                Image.open(path).load()
            if path.suffix == ".jsonl":
                assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_folder_and_a_single_image(models, images, tmp_path, capsys):
    out = tmp_path / "out"
    code, text, _ = run(capsys, images, "--model", models / "rooms", "--out", out, "--steps", "auto", "--ensemble", "2")
    assert code == 0 and "2 predicted" in text
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["0.png", "1.png"]
    assert all(line["options"]["num_inference_steps"] == "auto" and line["num_steps"] >= 2 for line in lines)
    whole_files(out)
    code, text, _ = run(capsys, images / "1.png", "--model", models / "depth", "--out", tmp_path / "one", "--no-panels")
    assert code == 0 and (tmp_path / "one" / "depth" / "1.npz").is_file() and not (tmp_path / "one" / "panels").exists()


def test_the_output_folder_has_a_default(models, images, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text, _ = run(capsys, images / "0.png", "--model", models / "rooms", "--steps", "1")
    assert code == 0 and text.startswith("maps: 1 predicted") and (tmp_path / "maps" / "labels" / "0.png").is_file()


def test_several_inputs_and_what_is_skipped(models, images, tmp_path, capsys):
    (images / "clip.mp4").touch()
    words = ["--model", models / "rooms", "--out", tmp_path / "out", "--no-panels"]
    code, text, _ = run(capsys, images / "1.png", images / "0.png", *words)
    assert code == 0 and "2 predicted" in text and "skipped" not in text
    code, text, _ = run(capsys, images, *words)
    assert code == 0 and "2 done before, 1 skipped" in text and "skipped: clip.mp4 (not an image)" in text


def test_a_second_equal_run_loads_no_model(models, images, tmp_path, capsys, monkeypatch):
    words = [images, "--model", models / "rooms", "--out", tmp_path / "out", "--no-panels", "--steps", "2"]
    assert run(capsys, *words)[0] == 0
    monkeypatch.setattr("noise2map.inference.loading.load_model", lambda *_: pytest.fail("the model was loaded"))
    code, text, _ = run(capsys, *words)
    assert code == 0 and "0 predicted, 2 done before" in text
    monkeypatch.undo()
    Image.new("RGB", (40, 40)).save(images / "2.png")
    code, text, _ = run(capsys, *words)
    assert code == 0 and "1 predicted, 2 done before" in text


def test_other_weights_of_the_same_name_are_noticed(models, images, tmp_path, capsys):
    shutil.copytree(models / "rooms", tmp_path / "model")
    words = [images, "--model", tmp_path / "model", "--out", tmp_path / "out", "--no-panels"]
    assert run(capsys, *words)[0] == 0
    tiny_segmenter(seed=5).save_pretrained(tmp_path / "model")
    code, _, err = run(capsys, *words)
    assert code == 2 and "other settings (weights" in error_line(err)


def test_one_walk_and_one_probe(models, images, tmp_path, capsys, monkeypatch):
    walked, made = [], []
    honest_walk, honest_open = os.walk, os.open
    monkeypatch.setattr(os, "walk", lambda top, **k: walked.append(top) or honest_walk(top, **k))
    lock = lambda path, *a, **k: (made.append(path) if str(path).endswith(".lock") else None) or honest_open(path, *a, **k)  # noqa: E731
    monkeypatch.setattr(os, "open", lock)
    assert run(capsys, images, "--model", models / "rooms", "--out", tmp_path / "out", "--no-panels")[0] == 0
    assert len([top for top in walked if str(top) == str(images)]) == 1 and len(made) == 1


def test_the_folder_of_the_images_is_not_the_one_to_write_to(models, images, capsys):
    code, _, err = run(capsys, images, "--model", models / "rooms", "--out", images)
    assert code == 2 and "is also the one to write to" in error_line(err)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("one.png", lambda path: Image.new("RGB", (1, 1)).save(path)),
        ("wide.png", lambda path: Image.new("RGB", (20000, 100)).save(path)),
        ("rgba.png", lambda path: Image.new("RGBA", (50, 40), (9, 9, 9, 100)).save(path)),
        ("grey.png", lambda path: Image.new("L", (50, 40)).save(path)),
        ("cmyk.jpg", lambda path: Image.new("CMYK", (50, 40)).save(path)),
        ("grey16.png", lambda path: Image.fromarray(np.full((40, 50), 40000, np.uint16)).save(path)),
        ("one-bit.png", lambda path: Image.new("1", (50, 40)).save(path)),
    ],
)
def test_odd_images_are_predicted_at_their_size(models, tmp_path, capsys, name, make):
    make(tmp_path / name)
    size = "64x64" if name == "wide.png" else "native"
    code, _, err = run(capsys, tmp_path / name, "--model", models / "rooms", "--out", tmp_path / "out", "--size", size)
    assert code == 0, err
    assert Image.open(tmp_path / "out" / "labels" / f"{Path(name).stem}.png").size == Image.open(tmp_path / name).size
    whole_files(tmp_path / "out")


def test_broken_images_get_a_line_each_and_the_others_are_done(models, images, tmp_path, capsys):
    (images / "cut.png").write_bytes((images / "0.png").read_bytes()[:400])
    (images / "fake.jpg").write_text("no image")
    (images / "empty.png").write_bytes(b"")
    code, text, err = run(capsys, images, "--model", models / "rooms", "--out", tmp_path / "out")
    assert code == 1 and "2 predicted, 3 failed" in text
    for name in ("cut.png", "fake.jpg", "empty.png"):
        assert sum(line.startswith(f"{name}: cannot read image") for line in err.splitlines()) == 1
    assert err.splitlines()[-1] == "noise2map: failed: cut.png, empty.png, fake.jpg"


def test_an_image_that_does_not_fit_in_memory_is_refused(models, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("noise2map.inference.memory.available_bytes", lambda device: 2**20)
    Image.new("RGB", (20000, 100)).save(tmp_path / "wide.png")
    code, _, err = run(capsys, tmp_path / "wide.png", "--model", models / "rooms", "--out", tmp_path / "out", "--size", "native")
    assert code == 1 and "20000x100" in err and "GiB are free" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "expected a whole number from 1 to 1000, or auto, got '0'"),
        (["--steps", "abc"], "got 'abc'"),
        (["--steps", "1.5"], "got '1.5'"),
        (["--steps", "1000000"], "expected a whole number from 1 to 1000, or auto, got '1000000'"),
        (["--ensemble", "0"], "'--ensemble'"),
        (["--ensemble", "100000000"], "ensemble_size is 100000000; expected an integer from 1 to 1000"),
        (["--average", "mean"], "'mean' is not one of 'last', 'steps'"),
        (["--sampler", "x"], "'x' is not one of 'ddim', 'ddpm'"),
        (["--batch-size", "0"], "'--batch-size'"),
        (["--size", "10x10"], "at least 32 pixels, got (10, 10)"),
        (["--size", "big"], "WIDTHxHEIGHT"),
        (["--dtype", "int8"], "'int8' is not one of 'float32', 'bfloat16', 'float16'"),
        (["--device", "tpu"], "expected auto, cpu, cuda, cuda:N or mps, got 'tpu'"),
        (["--model", "no-such-model"], "neither a folder, nor shipped, nor a hub id"),
        (["--model", "./no/such/folder"], "model folder './no/such/folder' does not exist"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(models, images, tmp_path, capsys, words, message):
    base = [] if "--model" in words else ["--model", models / "rooms"]
    code, out, err = run(capsys, images, *base, "--out", tmp_path / "out", *words)
    assert code == 2 and out == "" and message in error_line(err)
    assert not any((tmp_path / "out").rglob("*"))


def test_missing_and_empty_sources(models, tmp_path, capsys):
    code, _, err = run(capsys, tmp_path / "nothing", "--model", models / "rooms", "--out", tmp_path / "out")
    assert code == 2 and "there is no image or folder" in error_line(err)
    (tmp_path / "empty").mkdir()
    code, _, err = run(capsys, tmp_path / "empty", "--model", models / "rooms", "--out", tmp_path / "out")
    assert code == 2 and "holds no image" in error_line(err)
    code, _, err = run(capsys, tmp_path / "empty", "--out", tmp_path / "out")
    assert code == 2 and "--model" in err


def test_an_output_folder_that_cannot_be_written(models, images, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    code, _, err = run(capsys, images, "--model", models / "rooms", "--out", tmp_path / "file" / "out")
    assert code == 2 and str(tmp_path / "file") in error_line(err)
    assert (tmp_path / "file").read_text() == "mine"
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        code, _, err = run(capsys, images, "--model", models / "rooms", "--out", tmp_path / "locked")
        assert code == 2 and "cannot write" in error_line(err)


def test_a_full_disk_in_the_middle_loses_nothing(models, images, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    words = [images, "--model", models / "rooms", "--out", out, "--batch-size", "1"]
    budget = [30_000]

    def limited(path, data):
        budget[0] -= len(data)
        with files.writing(path) as file:
            file.write(data[: len(data) // (1 if budget[0] >= 0 else 2)])
            if budget[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("noise2map.runs.output_folder.write_bytes", limited)
    code, _, err = run(capsys, *words)
    monkeypatch.undo()
    assert code == 2 and "No space left on device" in error_line(err)
    whole_files(out)
    finished = len((out / "predictions.jsonl").read_text().splitlines())
    assert finished < 2
    code, text, _ = run(capsys, *words)
    assert code == 0 and f"{2 - finished} predicted" in text
    whole_files(out)


def change_config(folder, target, **fields):
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **fields}))
    return target


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoder_layer": 3}, "no field 'decoder_layer'; did you mean 'decoder_layers'?"),
        ({"map_scale": -1.0}, "map_scale is -1.0; expected a positive number"),
        ({"noise_schedule": "sigmoid"}, "noise_schedule is 'sigmoid'"),
        ({"model_type": "segformer"}, "type 'segformer'; expected 'noise2map'"),
        ({"architectures": ["Other"]}, "architecture 'Other'"),
        ({"decoder_layers": 5}, "missing weights"),
        ({"decoder_layers": 1}, "unexpected weights"),
        ({"hidden_size": 32}, "could not be loaded"),
    ],
)
def test_impossible_checkpoints_are_refused(models, images, tmp_path, capsys, fields, message):
    broken = change_config(models / "rooms", tmp_path / "broken", **fields)
    code, _, err = run(capsys, images, "--model", broken, "--out", tmp_path / "out")
    assert code == 2 and message in error_line(err)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json"])
def test_broken_checkpoint_files_are_refused(models, images, tmp_path, capsys, name):
    broken = change_config(models / "rooms", tmp_path / "broken")
    (broken / name).write_bytes((broken / name).read_bytes()[:60])
    code, _, err = run(capsys, images, "--model", broken, "--out", tmp_path / "out")
    assert code == 2 and "broken" in error_line(err)
    (broken / name).unlink()
    code, _, err = run(capsys, images, "--model", broken, "--out", tmp_path / "out")
    assert code == 2 and f"has no {name}" in error_line(err)
