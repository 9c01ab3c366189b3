"""The demo's bird's-eye view on tiny untrained models, and ``noise2map predict-bev`` on the shipped places."""

import csv
import re

import numpy as np
import pytest
from PIL import Image
from tiny_bev import ROOM_LAYERS, save_room_bev

from noise2map.cli import main
from noise2map.demo import bev as demo_bev
from noise2map.report import bev_panels
from noise2map.report.html import Page

pytest.importorskip("shapely")
pytest.importorskip("cv2")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("bev-models")
    save_room_bev(root / "cameras", ("camera",))
    save_room_bev(root / "both", ("camera", "lidar"))
    return root


@pytest.fixture(scope="module")
def made(models, tmp_path_factory):
    out, page = tmp_path_factory.mktemp("demo"), Page("demo")
    opened = demo_bev.open_bev_models([str(models / "cameras"), str(models / "both")], "cpu")
    lines = demo_bev.BevSection(opened, 0).show(page, out)
    page.write(out / "index.html")
    return out, opened, lines


def test_the_page_shows_both_models_beside_the_truth(made):
    out, _, lines = made
    page = (out / "index.html").read_text()
    for word in ("Bird&#x27;s-eye view", "front left", "back right", "LiDAR from above", "truth", "errors", "cannot be seen"):
        assert word in page
    for sensors in ("cameras", "cameras + LiDAR"):
        for steps in ("1 step", "3 steps"):
            assert page.count(f"<b>{sensors}, {steps}</b>") == len(demo_bev.SHOWN)
    assert "walkable %" in lines[-1] and "4 places" in lines[1]
    panels = {path.stem for path in (out / "birds-eye-view").iterdir()}
    assert panels == set(demo_bev.SHOWN)


def test_a_model_that_draws_whole_maps_shows_guesses_of_what_nobody_sees(tmp_path):
    fields = {"map_encoding": "one_hot", "map_scale": 1.0, "matched_filter": True, "feedback": "mean", "time_difference": 0}
    save_room_bev(tmp_path / "draws", ("camera",), **fields, time_input="time")
    page, (maps,) = Page("demo"), demo_bev.open_bev_models([str(tmp_path / "draws")], "cpu")
    demo_bev.BevSection([maps], 0).show(page, tmp_path)
    page.write(tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text()
    for word in ("cameras, 1 step", "all cells", "what is there", "guess 1", "guess 3"):
        assert text.count(f"<b>{word}</b>") == len(demo_bev.SHOWN)
    assert text.count("pale: seen") == 3 * len(demo_bev.SHOWN) and "cannot be seen" in text
    assert "guess 4" not in text and "what nobody sees" in text and list(maps.by_steps) == [1]
    for whole in maps.whole.values():
        assert whole.known.all() and whole.unseen.any() and whole.guesses.shape == (3, 6, 16, 16)
        assert any((whole.guesses[0] != other).any() for other in whole.guesses[1:])


def test_guesses_of_two_models_say_whose_they_are(tmp_path):
    fields = {"map_encoding": "one_hot", "map_scale": 1.0, "matched_filter": True, "feedback": "mean", "time_difference": 0}
    for name, sensors in (("cameras", ("camera",)), ("both", ("camera", "lidar"))):
        save_room_bev(tmp_path / name, sensors, **fields, time_input="time")
    page = Page("demo")
    demo_bev.BevSection(demo_bev.open_bev_models([str(tmp_path / "cameras"), str(tmp_path / "both")], "cpu"), 0).show(
        page, tmp_path
    )
    page.write(tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text()
    for words in ("cameras, guess 2", "cameras + LiDAR, guess 2"):
        assert text.count(f"<b>{words}</b>") == len(demo_bev.SHOWN)


def test_the_animation_has_a_frame_for_each_step(made):
    out, opened, _ = made
    assert len(opened[-1].trajectory) == demo_bev.ANIMATION_STEPS
    for suffix in (".gif", ".webp"):
        with Image.open(out / f"denoising-birds-eye-view{suffix}") as animation:
            assert animation.n_frames == demo_bev.ANIMATION_STEPS
    page = (out / "index.html").read_text()
    assert re.search(r'type="range" min="0" max="9"', page)


def test_scores_are_the_overlap_of_prediction_and_truth(made):
    out, opened, _ = made
    rows = list(csv.DictReader((out / "scores-birds-eye-view.csv").open()))
    assert [(row["sensors"], row["steps"]) for row in rows] == [
        ("cameras", "1"), ("cameras", "3"), ("cameras + LiDAR", "1"), ("cameras + LiDAR", "3"),
    ]  # fmt: skip
    predictions = opened[1].by_steps[3]
    assert len(predictions) == 4
    for layer, name in enumerate(ROOM_LAYERS):
        both = either = 0
        for one in predictions:
            guess, truth = one.probabilities[layer] >= 0.5, one.truth[layer]
            both += (guess & (truth == 1)).sum()
            either += ((guess & (truth != 255)) | (truth == 1)).sum()
        assert float(rows[3][f"{name} %"]) == pytest.approx(100 * both / either, abs=0.01)


@pytest.mark.parametrize("missing", ["model", "shapely"])
def test_the_section_is_left_out_with_a_warning(monkeypatch, caplog, missing):
    if missing == "model":
        monkeypatch.setattr(demo_bev, "available", lambda: ["freedoom-bev-camera-completion-tiny"])
    else:
        monkeypatch.setattr(demo_bev, "find_spec", lambda name: None)
    assert demo_bev.open_bev_models(demo_bev.SHIPPED, "cpu") == []
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "left out" in record.getMessage()
    assert ("bev-completion-tiny" if missing == "model" else "shapely") in record.getMessage()
    assert demo_bev.open_bev_models(("none",), "cpu") == [] and len(caplog.records) == 1


def test_a_model_of_another_task_is_refused():
    with pytest.raises(ValueError, match="noise2map-bev"):
        demo_bev.open_bev_models(["freedoom-depth-laplace-tiny"], "cpu")


def test_predict_bev_opens_the_shipped_places_by_default(models, tmp_path, capsys):
    words = ["predict-bev", "0", "surround-test-000184", "--model", models / "both", "--out", tmp_path, "--animation-steps", 2]
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["surround-test-000085", "surround-test-000184"]
    truth = np.load(tmp_path / "surround-test-000184" / "map.npz")["truth"]
    assert truth.shape == (6, 16, 16) and set(np.unique(truth)) == {0, 1, 255}


def test_guesses_cover_what_nobody_sees_and_are_as_often_there_as_the_map_says(models, tmp_path):
    words = ["predict-bev", "0", "--model", models / "both", "--cells", "all", "--guesses", "64", "--animation", "none"]
    words += ["--steps", 1, "--ensemble", 1, "--out", tmp_path]
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 0
    (path,) = tmp_path.glob("*/map.npz")
    arrays = np.load(path)
    guesses, unseen, truth, likely = (arrays[name] for name in ("guesses", "unseen", "truth", "probabilities"))
    assert guesses.shape == (64, 6, 16, 16) and guesses.dtype == bool
    assert unseen.any() and not unseen.all() and (truth[:, unseen] != 255).all()
    assert np.abs(guesses.mean(0) - likely.astype(float)).max() < 5 * np.sqrt(0.25 / 64)
    assert len({guess.tobytes() for guess in guesses}) > 32


def test_pale_cells_keep_their_hue():
    palette = np.array([[200, 0, 0], [0, 100, 0]], np.uint8)
    layers = np.zeros((2, 4, 3), bool)
    layers[0, :2], layers[1, 2:] = True, True
    faded = np.zeros((4, 3), bool)
    faded[:2] = True
    plain, pale = (np.rot90(bev_panels.paint_layers(layers, palette, faded=one), -1) for one in (None, faded))
    changed = (plain != pale).any(-1)
    assert changed.sum() == faded.sum()
    red, green = pale[changed].astype(int), pale[~changed]
    assert (red[:, 0] > red[:, 1]).all() and (red.min() >= 150) and (green == plain[~changed]).all()


def test_scores_are_of_what_is_painted(made):
    """IoU by hand, at 0.5 and at the thresholds of a processor that has some."""
    _, (maps, _), _ = made
    fitted = [0.35, 0.4, 0.45, 0.55, 0.6, 0.5]
    for thresholds in (None, fitted):
        maps.processor.layer_thresholds = thresholds
        try:
            row = demo_bev.bev_score_rows([maps])[0]
        finally:
            maps.processor.layer_thresholds = None
        p, truth = (np.stack([getattr(one, name) for one in maps.by_steps[1]]) for name in ("probabilities", "truth"))
        found = {}
        for layer, name in enumerate(ROOM_LAYERS):
            known, real = truth[:, layer] != 255, truth[:, layer] == 1
            guess = (p[:, layer] >= np.float32((thresholds or [0.5] * 6)[layer])) & known
            found[name] = 100 * (guess & real).sum() / (guess | real).sum() if real.any() else None
        assert {name: row[f"{name} %"] for name in ROOM_LAYERS} == pytest.approx(found, abs=1e-3)
        assert row["mIoU %"] == pytest.approx(np.mean([one for one in found.values() if one is not None]), abs=1e-3)
        assert (row["mIoU %"] == row["mIoU 0.5 %"]) == (thresholds is None)
