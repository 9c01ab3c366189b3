"""The demo's section of surface normals on a tiny untrained model."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_config, tiny_depth_model

from noise2map.data.freedoom import load_samples
from noise2map.demo.maps import varied_frames
from noise2map.demo.normals import NormalsSection, true_normals
from noise2map.demo.section import open_model
from noise2map.models import Noise2MapForNormalEstimation, Noise2MapImageProcessor
from noise2map.report.html import Page

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    normals = Noise2MapForNormalEstimation(tiny_config(map_scale=0.1))
    for name, model in (("normals", normals), ("depth", tiny_depth_model())):
        model.save_pretrained(root / name)
        Noise2MapImageProcessor(size={"height": 48, "width": 64}).save_pretrained(root / name)
    return root


def test_frames_are_shown_with_what_the_truth_is(models, tmp_path):
    page = Page("demo")
    predictor = open_model(str(models / "normals"), "normals", CPU)
    lines = NormalsSection(predictor, (1, 2), 2, 0, scored=3).show(page, tmp_path)
    page.write(tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text()
    for word in ("Surface normals", "of the true depth", "1 step", "2 steps", "noisy map", "step 2 of 2", "degrees of this step"):
        assert word in text
    files = sorted((tmp_path / "normals").iterdir())
    assert len(files) == 2
    for path in [*files, tmp_path / "denoising-normals.gif"]:
        Image.open(path).load()
    assert Image.open(tmp_path / "denoising-normals.gif").n_frames == 2
    with open(tmp_path / "scores-normals.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["steps"] for row in rows] == ["1", "2"] and "mean angle" in lines[-1]
    # An untrained model looks anywhere: the mean angle over frames, by hand.
    dataset = load_samples("test", "depth")
    indices = varied_frames(dataset, 3)
    angles = []
    for index in indices:
        sample = dataset[index]
        truth = true_normals(sample["depth_m"], sample["intrinsics"])
        found = predictor([sample["image"]], [sample["id"]], num_inference_steps=2, average="last")[0].normals
        known = np.linalg.norm(truth, axis=-1) > 0.5
        angles.append(np.degrees(np.arccos(np.clip((truth * found).sum(-1)[known], -1, 1))).mean())
    assert float(rows[1]["mean angle °"]) == pytest.approx(np.mean(angles), abs=0.05)
    assert all(0 <= float(row[name]) <= 100 for row in rows for name in ("< 11.25° %", "< 22.5° %", "< 30° %"))


def test_truth_has_the_axes_of_the_task():
    """A floor 1.5 m below the camera faces up, a wall in front faces the viewer; y is up and z towards the viewer."""
    camera = np.array([40.0, 50.0, 31.5, -10.0], np.float32)  # the horizon is above the image
    rows = (np.arange(48) + 0.5)[:, None].repeat(64, 1)  # centers of pixels
    floor = (1.5 * camera[1] / (rows - camera[3])).astype(np.float32)
    np.testing.assert_allclose(true_normals(floor, camera), np.broadcast_to([0, 1, 0], (48, 64, 3)), atol=1e-3)
    wall = np.full((48, 64), 3.0, np.float32)
    wall[:4] = 0
    found = true_normals(wall, camera)
    np.testing.assert_allclose(found[6:], np.broadcast_to([0, 0, 1], (42, 64, 3)), atol=1e-4)
    assert not found[:4].any()


def test_models_of_other_tasks_are_refused(models):
    with pytest.raises(ValueError, match="is for depth; expected one for normals"):
        open_model(str(models / "depth"), "normals", CPU)
    assert open_model("none", "normals", CPU) is None
