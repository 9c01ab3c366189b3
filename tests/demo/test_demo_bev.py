"""The demo's bird's-eye view on tiny untrained models, and ``noise2map predict-bev`` on the shipped places."""

import csv
import re

import numpy as np
import pytest
from PIL import Image
from tiny_bev import ROOM_LAYERS, save_room_bev

from noise2map.cli import main
from noise2map.demo import bev as showcase_bev
from noise2map.report.html import Page

pytest.importorskip("shapely")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("bev-models")
    save_room_bev(root / "cameras", ("camera",))
    save_room_bev(root / "both", ("camera", "lidar"))
    return root


@pytest.fixture(scope="module")
def made(models, tmp_path_factory):
    out, said, page = tmp_path_factory.mktemp("demo"), [], Page("demo")
    acts = showcase_bev.open_bev_models([str(models / "cameras"), str(models / "both")], "cpu", said.append)
    lines = showcase_bev.show_bev(page, acts, out, 0, said.append)
    page.write(out / "index.html")
    return out, acts, lines


def test_the_page_shows_both_models_beside_the_truth(made):
    out, _, lines = made
    page = (out / "index.html").read_text()
    for word in ("Bird&#x27;s-eye view", "front left", "back right", "LiDAR from above", "truth", "errors", "cannot be seen"):
        assert word in page
    for sensors in ("cameras", "cameras + LiDAR"):
        for steps in ("1 step", "3 steps"):
            assert page.count(f"<b>{sensors}, {steps}</b>") == len(showcase_bev.SHOWN)
    assert "walkable %" in lines[-1] and "4 places" in lines[1]
    panels = {path.stem for path in (out / "birds-eye-view").iterdir()}
    assert panels == set(showcase_bev.SHOWN)


def test_the_film_has_a_frame_for_each_step(made):
    out, acts, _ = made
    assert len(acts[-1].film) == showcase_bev.FILM_STEPS
    for suffix in (".gif", ".webp"):
        with Image.open(out / f"denoising-birds-eye-view{suffix}") as film:
            assert film.n_frames == showcase_bev.FILM_STEPS
    page = (out / "index.html").read_text()
    assert re.search(r'type="range" min="0" max="9"', page)


def test_scores_are_the_overlap_of_prediction_and_truth(made):
    out, acts, _ = made
    rows = list(csv.DictReader((out / "scores-birds-eye-view.csv").open()))
    assert [(row["sensors"], row["steps"]) for row in rows] == [
        ("cameras", "1"), ("cameras", "3"), ("cameras + LiDAR", "1"), ("cameras + LiDAR", "3"),
    ]  # fmt: skip
    predictions = acts[1].by_steps[3]
    assert len(predictions) == 4
    for layer, name in enumerate(ROOM_LAYERS):
        both = either = 0
        for one in predictions:
            guess, truth = one.probabilities[layer] >= 0.5, one.truth[layer]
            both += (guess & (truth == 1)).sum()
            either += ((guess & (truth != 255)) | (truth == 1)).sum()
        assert float(rows[3][f"{name} %"]) == pytest.approx(100 * both / either, abs=0.01)


@pytest.mark.parametrize("missing", ["model", "shapely"])
def test_the_section_is_left_out_with_a_line(monkeypatch, tmp_path, missing):
    if missing == "model":
        monkeypatch.setattr(showcase_bev, "available", lambda: ["freedoom-bev-camera-tiny"])
    else:
        monkeypatch.setattr(showcase_bev, "find_spec", lambda name: None)
    said, page = [], Page("demo")
    acts = showcase_bev.open_bev_models(showcase_bev.SHIPPED, "cpu", said.append)
    assert showcase_bev.show_bev(page, acts, tmp_path, 0, said.append) == []
    assert len(said) == 1 and "left out" in said[0] and ("fusion-tiny" if missing == "model" else "shapely") in said[0]
    assert "<h2" not in page.render() and not list(tmp_path.iterdir())
    assert showcase_bev.open_bev_models(("none",), "cpu", said.append) == [] and len(said) == 1


def test_a_model_of_another_task_is_refused():
    with pytest.raises(ValueError, match="noise2map-bev"):
        showcase_bev.open_bev_models(["freedoom-depth-tiny"], "cpu", print)


def test_predict_bev_opens_the_shipped_places_by_default(models, tmp_path, capsys):
    words = ["predict-bev", "0", "surround-test-000184", "--model", models / "both", "--out", tmp_path, "--animation-steps", 2]
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["surround-test-000085", "surround-test-000184"]
    truth = np.load(tmp_path / "surround-test-000184" / "map.npz")["truth"]
    assert truth.shape == (6, 16, 16) and set(np.unique(truth)) == {0, 1, 255}
