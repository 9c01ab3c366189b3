"""Surface normals as a user meets them: train on a folder, predict, evaluate the model and the maps that it wrote."""

import json

import numpy as np
import pytest
from PIL import Image

from noise2map.cli import main
from noise2map.data.maps.normals import encode_normals, open_normals_map
from noise2map.inference import Predictor
from noise2map.tasks import TASKS, task_of

SMALL = {
    "model.config.backbone_config.hidden_sizes": "[8,16,24,32]",
    "model.config.backbone_config.depths": "[1,1,1,1]",
    "model.config.hidden_size": "16",
    "model.config.group_norm_groups": "4",
    "model.config.decoder_attention_heads": "2",
    "model.config.decoder_layers": "1",
    "train.iterations": "4",
    "train.save_every": "2",
    "train.log_every": "1",
    "train.eval_every": "4",
    "train.eval_steps": "[1,2]",
    "train.batch_size": "2",
}


def run(*words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert not ended.value.code


def rooms(root, count=6):
    """Floors below, walls above, seen in the colors of their normals: ``images/`` and ``maps/``."""
    for part in ("images", "maps"):
        (root / part).mkdir(parents=True)
    for index in range(count):
        normals = np.zeros((64, 64, 3), np.float32)
        horizon = 20 + 4 * index
        normals[:horizon] = (0, 0, 1)
        normals[horizon:] = (0, 1, 0)
        Image.fromarray(encode_normals(normals)).save(root / "maps" / f"room{index}.png")
        Image.fromarray(encode_normals(normals)).save(root / "images" / f"room{index}.png")
    return root


@pytest.mark.slow
def test_train_predict_evaluate(tmp_path):
    data, out = rooms(tmp_path / "data"), tmp_path / "run"
    changes = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    run("train", "folder", "--root", data, "--task", "normals", "--out", out, *changes)
    predictor = Predictor.from_pretrained(out / "final", "cpu")
    assert predictor.task == "normals" and task_of(predictor.model) is TASKS["normals"]
    prediction = predictor(Image.open(data / "images" / "room0.png"), num_inference_steps=2)[0]
    assert prediction.normals.shape == (64, 64, 3) and prediction.labels is None and prediction.depth_m is None
    np.testing.assert_allclose(np.linalg.norm(prediction.normals, axis=-1), 1, atol=1e-5)
    assert prediction.plot().mode == "RGB"

    run("predict", data / "images", "--model", out / "final", "--out", tmp_path / "maps", "--device", "cpu", "--steps", "2")
    stored = open_normals_map(tmp_path / "maps" / "normals" / "room0.png")
    assert stored.shape == (64, 64, 3)
    record = json.loads((tmp_path / "maps" / "predictions.jsonl").read_text().splitlines()[0])
    assert set(record["facing_shares"]) == {"up", "down", "upright"} and (tmp_path / "maps" / record["files"]["panel"]).is_file()

    common = ["--dataset", "folder", "--root", data, "--split", "all", "--resamples", "10"]
    run("evaluate", "--model", out / "final", *common, "--steps", "2", "--device", "cpu", "--out", tmp_path / "of-model")
    run("evaluate", "--predictions", tmp_path / "maps", *common, "--out", tmp_path / "of-maps")
    rows = [json.loads((tmp_path / folder / "evaluation.json").read_text())["rows"][0] for folder in ("of-model", "of-maps")]
    assert [row["task"] for row in rows] == ["normals", "normals"]
    assert all(0 < row["mean_angle"] < 180 and 0 <= row["within_30"] <= 1 for row in rows)
    # The same images in the same sizes, from other noise: names of files are ids with a suffix there.
    assert abs(rows[0]["mean_angle"] - rows[1]["mean_angle"]) < 5
