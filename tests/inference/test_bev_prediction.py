"""``noise2map predict-bev``: what it writes is what the model says; bad input is one line."""

import json
import shutil

import numpy as np
import pytest
import torch
import toy_nuscenes as toy
from PIL import Image
from tiny_bev import tiny_bev

from noise2map.cli import main
from noise2map.data.nuscenes import NuScenesDataset
from noise2map.diffusion import image_generator
from noise2map.inference.bev import film_thresholds
from noise2map.models import Noise2MapBevProcessor
from noise2map.report import bev_panels

pytest.importorskip("shapely")
pytest.importorskip("cv2")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = toy.make(tmp_path_factory.mktemp("bev") / "set")
    (root / "v1.0-toy").rename(root / "v1.0-trainval")
    (root / "v1.0-trainval" / "splits.json").write_text('{"train": ["toy-0001"], "val": ["toy-0002"]}')
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bev-model")
    tiny_bev(("camera", "lidar"), num_cameras=6, seed=3).save_pretrained(folder)
    Noise2MapBevProcessor([32, 64], 0.8, sweeps=1).save_pretrained(folder)
    return folder


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main(["predict-bev", *map(str, words)])
    return stop.value.code


def test_writes_the_models_map_panel_and_film(root, checkpoint, tmp_path, capsys):
    data = ("--dataset", "nuscenes", "--root", root, "--model", checkpoint)
    assert run("sample-1-1", "0", *data, "--steps", 2, "--ensemble", 2, "--seed", 5, "--animation-steps", 3, "--out", tmp_path) == 0
    assert "sample-1-1: mIoU" in capsys.readouterr().out
    folders = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert folders == ["sample-1-0", "sample-1-1"]
    dataset = NuScenesDataset(root, "val", sweeps=1, size_m=(12.0, 12.0), canvas=(12, 16))
    sample = dataset[dataset.index_of("sample-1-1")]
    model = tiny_bev(("camera", "lidar"), num_cameras=6, seed=3)
    inputs = Noise2MapBevProcessor([32, 64], 0.8)([sample])
    inputs.pop("labels")
    with torch.no_grad():
        out = model(**inputs, num_inference_steps=2, ensemble_size=2, generator=image_generator(5, "sample-1-1"))
    arrays = np.load(tmp_path / "sample-1-1" / "map.npz")
    np.testing.assert_allclose(arrays["probabilities"], out.probabilities[0].numpy(), atol=2e-3)
    np.testing.assert_array_equal(arrays["truth"], sample["labels"])
    assert arrays["layers"].dtype == bool and arrays["uncertainty"].shape == (6, 12, 16)
    facts = json.loads((tmp_path / "sample-1-1" / "prediction.json").read_text())
    assert (facts["steps"], facts["ensemble"], facts["average"], facts["layers"]["1"]) == (2, 2, "steps", "ped_crossing")
    with Image.open(tmp_path / "sample-1-1" / "panel.png") as panel:
        assert panel.width > 900 and panel.height > 600
    with Image.open(tmp_path / "sample-1-1" / "denoising.gif") as film:
        assert film.n_frames == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nope",), "sample 'nope' is not in split 'val'"),
        (("7",), "sample 7 is not in the split: it has 2, numbered from 0"),
        (("0", "--split", "night"), "split is 'night'"),
        (("0", "--threshold", "1.5"), "threshold must be between 0 and 1, got 1.5"),
        (("0", "--animation", "mp4"), "'mp4' is not one of 'gif', 'webp', 'none'"),
        (("0", "--guesses", "65"), "--guesses"),
        (("0", "--cells", "hidden"), "'hidden' is not one of 'visible', 'all'"),
        (("0", "--cells", "all"), "cells is 'all'; nuscenes labels every cell, expected 'visible'"),
        (("0", "--steps", "0"), "expected a whole number from 1 to 1000, or auto, got '0'"),
        (("0", "--dataset", "kitti"), "cannot be used for bird's-eye-view maps, expected one of nuscenes, freedoom-surround"),
        (("0", "--model", "freedoom-depth-laplace-tiny"), "holds a model of type 'noise2map'; expected 'noise2map-bev'"),
    ],
)
def test_bad_input_is_one_line(root, checkpoint, words, message, tmp_path, capsys):
    options = {"--dataset": "nuscenes", "--root": root, "--model": checkpoint, "--out": tmp_path / "out"}
    rest = [word for name, value in options.items() if name not in words for word in (name, value)]
    assert run(*words, *rest) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert error.strip().count("\n") == (3 if error.startswith("Usage") else 0)
    assert not (tmp_path / "out").exists()


def test_maps_are_cut_at_the_checkpoints_thresholds_unless_told_otherwise(root, checkpoint, tmp_path, capsys):
    fitted = [0.3, 0.45, 0.5, 0.55, 0.6, 0.4]
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    Noise2MapBevProcessor([32, 64], 0.8, sweeps=1, layer_thresholds=fitted).save_pretrained(folder)
    words = ("0", "--dataset", "nuscenes", "--root", root, "--animation", "none")
    made = {}
    for name, model, more in (("own", folder, ()), ("half", folder, ("--threshold", 0.5)), ("plain", checkpoint, ())):
        assert run(*words, "--model", model, "--out", tmp_path / name, *more) == 0
        arrays = np.load(tmp_path / name / "sample-1-0" / "map.npz")
        facts = json.loads((tmp_path / name / "sample-1-0" / "prediction.json").read_text())
        with Image.open(tmp_path / name / "sample-1-0" / "panel.png") as panel:
            made[name] = arrays["probabilities"].astype(float), arrays["layers"], facts["threshold"], np.asarray(panel)
    p, layers, said, panel = made["own"]
    least = np.array(fitted)[:, None, None]
    assert said == fitted and (layers == (p >= least))[np.abs(p - least) > 1e-3].all()
    assert made["half"][2] == 0.5 and np.array_equal(made["half"][1], made["plain"][1])
    assert not np.array_equal(layers, made["half"][1]) and not np.array_equal(panel, made["half"][3])
    # the same, but for other thresholds, is not taken for done
    Noise2MapBevProcessor([32, 64], 0.8, sweeps=1, layer_thresholds=fitted[:5]).save_pretrained(folder)
    assert run(*words, "--model", folder, "--out", tmp_path / "own") == 2
    assert "layer_thresholds has shape (5,)" in capsys.readouterr().err
    Noise2MapBevProcessor([32, 64], 0.8, sweeps=1).save_pretrained(folder)
    assert run(*words, "--model", folder, "--out", tmp_path / "own") == 2
    assert "other settings (threshold" in capsys.readouterr().err


def test_films_of_whole_maps_that_may_be_true_are_cut_at_half():
    drawing = {"map_encoding": "one_hot", "map_scale": 1.0, "matched_filter": True, "feedback": "mean", "time_difference": 0}
    likely, whole = tiny_bev(("camera",)), tiny_bev(("camera",), **drawing, time_input="time")
    assert film_thresholds(likely, [0.2] * 6) == [0.2] * 6 and film_thresholds(whole, [0.2] * 6) == 0.5
    assert film_thresholds(whole, 0.3) == 0.3


def test_done_samples_are_kept_and_results_of_other_settings_are_not_replaced(root, checkpoint, tmp_path, capsys):
    words = ("0", "--dataset", "nuscenes", "--root", root, "--model", checkpoint, "--out", tmp_path / "out", "--animation", "none")
    assert run(*words) == 0
    before = (tmp_path / "out" / "sample-1-0" / "map.npz").read_bytes()
    capsys.readouterr()
    assert run(*words) == 0 and "sample-1-0: done before" in capsys.readouterr().out
    assert run(*words, "--steps", 4) == 2
    assert "other settings (num_inference_steps" in capsys.readouterr().err
    assert (tmp_path / "out" / "sample-1-0" / "map.npz").read_bytes() == before
    assert run(*words, "--steps", 1, "--overwrite") == 0
    assert (tmp_path / "out" / "sample-1-0" / "map.npz").read_bytes() != before


def test_one_pass_has_a_film_and_is_not_taken_for_another_sampling(root, checkpoint, tmp_path, capsys):
    data = ("0", "--dataset", "nuscenes", "--root", root, "--model", checkpoint, "--steps", 1, "--ensemble", 1)
    out = tmp_path / "out"
    assert run(*data, "--sampling", "one_pass", "--animation-steps", 3, "--out", out) == 0
    with Image.open(out / "sample-1-0" / "denoising.gif") as film:
        assert film.n_frames == 3
    assert run(*data, "--animation-steps", 3, "--out", out) == 2
    assert "other settings (sampling 'one_pass' -> None)" in capsys.readouterr().err
    # what the checkpoint does anyway is what it did before sampling was in the settings
    assert run(*data, "--animation", "none", "--out", tmp_path / "old") == 0
    assert "sampling" not in json.loads((tmp_path / "old" / "settings.json").read_text())
    assert run(*data, "--animation", "none", "--sampling", "diffusion", "--out", tmp_path / "old") == 0


def test_maps_of_another_configuration_are_not_taken_for_done(root, checkpoint, tmp_path, capsys):
    words = ("0", "--dataset", "nuscenes", "--root", root, "--out", tmp_path / "out", "--animation", "none")
    model = shutil.copytree(checkpoint, tmp_path / "model")
    assert run(*words, "--model", model) == 0
    fields = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**fields, "temperature": 3.0}))
    assert run(*words, "--model", model) == 2
    assert "other settings (config " in capsys.readouterr().err


def test_a_sample_without_any_layer_is_written_and_done_before(root, checkpoint, tmp_path, capsys, monkeypatch):
    whole = NuScenesDataset.__getitem__

    def empty(self, index):
        sample = whole(self, index)
        return {**sample, "labels": np.zeros_like(sample["labels"])}

    monkeypatch.setattr(NuScenesDataset, "__getitem__", empty)
    words = ("0", "--dataset", "nuscenes", "--root", root, "--model", checkpoint, "--out", tmp_path, "--animation", "none")
    assert run(*words) == 0
    text = (tmp_path / "sample-1-0" / "prediction.json").read_text()
    assert "NaN" not in text and json.loads(text)["mIoU_50"] is None
    capsys.readouterr()
    assert run(*words) == 0 and "sample-1-0: done before" in capsys.readouterr().out


def test_a_bev_model_is_not_for_single_images(checkpoint, tmp_path, capsys):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(tmp_path / "a.png"), "--model", str(checkpoint), "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert "noise2map predict-bev" in capsys.readouterr().err


def test_layers_are_painted_with_forward_up():
    palette = bev_panels.layer_palette(dict(enumerate(["walkable", "door", "step", "ledge", "liquid", "wall"])))
    layers = np.zeros((6, 4, 3), np.uint8)
    layers[0] = 1
    layers[5, 3, 2] = 1  # right-most, farthest forward
    layers[:, 0, 0] = 255
    picture = bev_panels.paint_layers(layers, palette)
    assert picture.shape == (3, 4, 3)  # rows are y, columns x
    assert tuple(picture[0, 3]) == bev_panels.LAYER_COLORS["wall"]  # top right
    assert tuple(picture[0, 0]) == bev_panels.LAYER_COLORS["walkable"]
    assert (picture[2, 0] != picture[0, 0]).any() and (picture[2, 0] != picture[2, 1]).any()  # bottom left is not known


def test_points_are_drawn_where_they_are():
    points = np.array([[5.05, 8.95, 1.0], [50.0, 0.0, 0.0]])
    picture = bev_panels.points_image(points, (20.0, 20.0), 100)
    rows, columns = np.nonzero((picture != picture[50, 50]).any(-1))
    assert set(rows) == {5, 6} and set(columns) == {75, 76}  # to the right, near the top; the other is outside


def test_views_are_shown_as_one_turns_the_head():
    names = ["CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT"]
    images = [np.full((2, 2, 3), index, np.uint8) for index in range(6)]
    cells = bev_panels.view_cells(images, names)
    assert [cell.title for cell in cells] == ["front left", "front", "front right", "back left", "back", "back right"]
    assert [int(cell.image[0, 0, 0]) for cell in cells] == [2, 0, 1, 4, 3, 5]
