"""``noise2map predict --interval``: files of where the truth is, by task, and one sentence where a model does not say."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_config, tiny_depth_model, tiny_segmenter

from noise2map import Noise2MapForNormalEstimation
from noise2map.cli import main
from noise2map.inference.predictor import Predictor
from noise2map.models import Noise2MapImageProcessor

SETS = {"temperature": 2.0, "levels": [0.5, 0.9], "thresholds": [0.3, 0.15]}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    normals = Noise2MapForNormalEstimation(tiny_config(objective="angular", map_scale=0.1, time_input="time")).eval()
    made = {
        "classes": tiny_segmenter(calibration=SETS),
        "plain": tiny_segmenter(),
        "laplace": tiny_depth_model(objective="laplace"),
        "depth": tiny_depth_model(),
        "normals": normals,
    }
    for name, model in made.items():
        model.save_pretrained(root / name)
        Noise2MapImageProcessor(size={"shortest_edge": 32}).save_pretrained(root / name)
    return root


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "room.png")
    return tmp_path / "room.png"


def predict(capsys, image, model, out, *words):
    try:
        main(["predict", *map(str, (image, "--model", model, "--out", out, *words))])
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    return code, *capsys.readouterr()


def written(out):
    line = json.loads((out / "predictions.jsonl").read_text())
    return line, np.load(out / line["files"]["interval"])


def test_depth_lies_between_two_maps(models, image, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(capsys, image, models / "laplace", out, "--interval", "0.9")[0] == 0
    line, arrays = written(out)
    assert line["options"]["interval"] == 0.9 and arrays["lower_m"].shape == (50, 70)
    depth_m = np.asarray(Image.open(out / "depth" / "room.png")) / line["depth_png_units_per_m"]
    assert (arrays["lower_m"] < depth_m + 1e-3).all() and (depth_m < arrays["upper_m"] + 1e-3).all()
    for kind, name in (("lower", "lower_m"), ("upper", "upper_m")):
        shown = np.asarray(Image.open(out / kind / "room.png")) / line["depth_png_units_per_m"]
        np.testing.assert_allclose(shown, arrays[name].clip(max=65.535), atol=1e-3)
    # the same again is done; another level is another request
    assert "1 done before" in predict(capsys, image, models / "laplace", out, "--interval", "0.9")[1]
    assert (
        "results of other settings (interval 0.9 -> 0.5)" in predict(capsys, image, models / "laplace", out, "--interval", "0.5")[2]
    )


def test_sets_of_classes_at_the_size_of_the_image(models, image, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(capsys, image, models / "classes", out, "--interval", "0.9", "--no-panels")[0] == 0
    members = written(out)[1]["members"]
    labels = np.asarray(Image.open(out / "labels" / "room.png"))
    assert members.shape == (5, 50, 70) and members.dtype == bool
    assert np.take_along_axis(members, labels[None].astype(int), 0).all()  # the map's own class is always among them
    np.testing.assert_array_equal(np.asarray(Image.open(out / "set_size" / "room.png")), members.sum(0))
    without = tmp_path / "without"
    assert predict(capsys, image, models / "classes", without, "--interval", "0.9", "--no-arrays")[0] == 0
    assert (without / "set_size" / "room.png").is_file() and not (without / "interval").exists()


def test_cones_in_hundredths_of_a_degree(models, image, tmp_path, capsys):
    assert predict(capsys, image, models / "normals", tmp_path / "out", "--interval", "0.5")[0] == 0
    cone = written(tmp_path / "out")[1]["cone_degrees"]
    assert cone.shape == (50, 70) and (cone > 0).all() and (cone <= 180).all()
    np.testing.assert_allclose(np.asarray(Image.open(tmp_path / "out" / "cone" / "room.png")) / 100, cone, atol=0.006)


def test_without_an_interval_nothing_is_new(models, image, tmp_path, capsys):
    assert predict(capsys, image, models / "laplace", tmp_path / "out")[0] == 0
    assert "interval" not in json.loads((tmp_path / "out" / "settings.json").read_text())
    assert "interval" not in json.loads((tmp_path / "out" / "predictions.jsonl").read_text())["files"]


@pytest.mark.parametrize(
    ("model", "level", "message"),
    [
        ("plain", "0.9", "states no sets of classes: it is not calibrated; calibrate it first (noise2map calibrate)"),
        ("depth", "0.9", "states no interval of depth: it predicts no scale; calibrate it first"),
        ("classes", "0.95", "level is 0.95, for which no set of classes was fitted; expected at most 0.9"),
        ("laplace", "1", "expected a number between 0 and 1, such as 0.9, got '1'"),
        ("laplace", "x", "expected a number between 0 and 1, such as 0.9, got 'x'"),
    ],
)
def test_what_is_not_stated_is_refused(models, image, tmp_path, capsys, model, level, message):
    code, _, err = predict(capsys, image, models / model, tmp_path / "out", "--interval", level)
    assert code == 2 and message in err and not (tmp_path / "out" / "predictions.jsonl").exists()


def test_from_python(models):
    predictor = Predictor.from_pretrained(models / "laplace")
    found = predictor(Image.new("RGB", (64, 48)), interval=0.9)[0].interval
    wider = predictor(Image.new("RGB", (64, 48)), interval=0.99)[0].interval
    assert (wider["upper_m"] > found["upper_m"]).all() and (wider["lower_m"] < found["lower_m"]).all()
    with pytest.raises(ValueError, match="expected a probability between 0 and 1"):
        predictor(Image.new("RGB", (64, 48)), interval=1.0)


def test_an_interval_beyond_what_a_png_holds_is_told(models, image, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(capsys, image, models / "laplace", out, "--interval", "0.999", "--no-panels")[0] == 0
    line, arrays = written(out)
    assert line["upper_png_cut_share"] == pytest.approx((arrays["upper_m"] > 65.535).mean(), abs=1e-3)
    assert line["upper_png_cut_share"] > 0
