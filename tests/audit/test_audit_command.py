"""``noise2map audit`` from folder to files: what was planted comes first, nothing is looked at twice, bad input is one line."""

import csv
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from tiny_models import tiny_depth_model, tiny_segmenter

from noise2map.audit.components import mask_of
from noise2map.audit.ranking import rank, regions_in
from noise2map.audit.regions import AREA_POWER, log_frequencies
from noise2map.cli import main
from noise2map.diffusion import image_generator
from noise2map.inference.predictor import Predictor
from noise2map.models import Noise2MapImageProcessor
from noise2map.runs.data_split import DataSplit
from noise2map.runs.output_folder import OutputFolder

NAMES = {0: "floor", 1: "wall", 2: "sky"}
SIZES = [(64, 48), (48, 48), (64, 48), (64, 48), (48, 64)]
BOX = (10, 8, 34, 24)  # left, top, right, bottom of what is planted


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of three classes that tells the colors of its images apart."""
    path = tmp_path_factory.mktemp("models") / "three"
    one = tiny_segmenter(num_labels=3, id2label=NAMES, label2id={name: index for index, name in NAMES.items()})
    torch.manual_seed(3)
    for parameter in one.parameters():
        parameter.data += 0.3 * parameter.data.std().nan_to_num() * torch.randn_like(parameter)
    one.save_pretrained(path)
    Noise2MapImageProcessor(size={"shortest_edge": 48}).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def labels(model):
    """Images, and labels that are what the model says."""
    predictor, found = Predictor.from_pretrained(model, "cpu"), {}
    for index, (width, height) in enumerate(SIZES):
        coarse = np.random.default_rng(index).integers(0, 256, (height // 16, width // 16, 3), np.uint8)
        image = Image.fromarray(coarse.repeat(16, 0).repeat(16, 1))
        (prediction,) = predictor(image, [f"{index:02}"])
        found[f"{index:02}"] = image, prediction.map.copy()
    assert len(np.unique(np.concatenate([one.ravel() for _, one in found.values()]))) > 1
    return found


DECIMALS = re.compile(r"\d+\.\d+")


def write(root, pairs):
    for name, (image, values) in pairs.items():
        for folder, content in (("images", image), ("maps", Image.fromarray(values.astype(np.uint8)))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            content.save(root / folder / f"{name}.png")
    (root / "classes.json").write_text(json.dumps(NAMES))
    return root


def plant(pairs, names=("01", "03")):
    """The labels in a box are moved to the next class; a strip is not labelled at all."""
    planted = {name: (image, values.copy()) for name, (image, values) in pairs.items()}
    left, top, right, bottom = BOX
    for name in names:
        part = planted[name][1][top:bottom, left:right]
        part[:] = (part + 1) % 3
    planted["02"][1][:, :5] = 255
    return planted


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main(["audit", *map(str, words)])
    return stop.value.code or 0


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def audited(model, labels, tmp_path_factory):
    root = tmp_path_factory.mktemp("audit")
    data = write(root / "data", plant(labels))
    assert run(data, "--model", model, "--out", root / "out", "--device", "cpu") == 0
    return root


def test_what_was_planted_and_nothing_else_is_suspicious(audited, labels, model):
    """The expectation: forward passes one by one, components of scipy, means over pixels."""
    planted, expected = plant(labels), []
    network, processor = Predictor.from_pretrained(model, "cpu").model, Noise2MapImageProcessor.from_pretrained(model)
    every = np.concatenate([values.ravel() for _, values in planted.values()])
    frequency = log_frequencies(np.bincount(every[every != 255], minlength=3))
    for name, (image, values) in planted.items():
        pixels = processor(images=image, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            logits = network(pixel_values=pixels, generator=[image_generator(0, name)]).logits
        size = (
            logits if logits.shape[-2:] == values.shape else torch.nn.functional.interpolate(logits, values.shape, mode="bilinear")
        )
        log_p = size[0].double().log_softmax(0).numpy()
        denied = (values != 255) & (log_p.argmax(0) != values)
        for one in range(3):
            numbers, count = ndimage.label(denied & (log_p.argmax(0) == one))
            for number in range(1, count + 1):
                region = numbers == number
                rows, columns = np.nonzero(region)
                terms = [
                    log_p[one, y, x] - log_p[values[y, x], y, x] + frequency[values[y, x]] - frequency[one]
                    for y, x in zip(rows, columns)
                ]
                score = np.mean(terms) * region.mean() ** AREA_POWER
                if score > 0 and ndimage.binary_erosion(region, np.ones((3, 3))).any():
                    expected.append((score, name, columns.min(), rows.min(), columns.max() + 1, rows.max() + 1, region.sum()))
    expected.sort(key=lambda row: -row[0])
    found = rows_of(audited / "out" / "suspects.csv")
    assert len(found) == len(expected) > 1
    for row, (score, *rest) in zip(found, expected):
        assert float(row["score"]) == pytest.approx(score, abs=2e-3)
        assert [row["image"], *(int(row[key]) for key in ("left", "top", "right", "bottom", "area"))] == rest
    assert {row["image"] for row in found} == {"01", "03"}
    left, top, right, bottom = BOX
    assert all(int(row["left"]) >= left and int(row["right"]) <= right for row in found)
    assert all(int(row["top"]) >= top and int(row["bottom"]) <= bottom for row in found)


def test_images_and_what_to_label_next(audited, labels, model):
    images = rows_of(audited / "out" / "images.csv")
    assert [row["image"] for row in images][2:] == ["00", "02", "04"] and len(images) == 5
    assert {row["image"]: float(row["unlabelled"]) for row in images}["02"] == pytest.approx(5 / 64, abs=1e-4)
    area = (BOX[2] - BOX[0]) * (BOX[3] - BOX[1])
    assert {float(row["denied"]) for row in images} == {0.0, round(area / 48**2, 4), round(area / (64 * 48), 4)}
    predictor = Predictor.from_pretrained(model, "cpu")
    unsure = {
        name: predictor(image, [name], every_uncertainty=True)[0].uncertainties["entropy"] for name, (image, _) in labels.items()
    }
    following = rows_of(audited / "out" / "label_next.csv")
    assert [row["image"] for row in following] == sorted(unsure, key=lambda name: -unsure[name].mean())
    for row in following:
        values = unsure[row["image"]]
        height, width = values.shape[0] // 4, values.shape[1] // 4
        means = [
            values[y : y + height, x : x + width].mean()
            for y in range(len(values) - height + 1)
            for x in range(values.shape[1] - width + 1)
        ]
        assert float(row["window_uncertainty"]) == pytest.approx(max(means), abs=1e-5)
        left, top, right, bottom = (int(row[key]) for key in ("left", "top", "right", "bottom"))
        assert values[top:bottom, left:right].mean() == pytest.approx(max(means), abs=1e-5)


def test_the_page_shows_every_region_and_asks_nobody(audited):
    page = (audited / "out" / "report.html").read_text()
    suspects = rows_of(audited / "out" / "suspects.csv")
    for row in suspects:
        assert f"{row['rank']}. {row['image']}: labelled {row['label']}, the model says {row['model']}" in page
    assert page.count("data:image/webp") == 4 * len(suspects) + 3 * 5
    assert "http" not in page
    assert np.isin(np.asarray(Image.open(audited / "out" / "maps" / "01.png")), [0, 1, 2]).all()


def test_neither_batches_nor_order_change_the_ranking(audited, model, tmp_path):
    assert run(audited / "data", "--model", model, "--out", tmp_path / "one", "--device", "cpu", "--batch-size", 1) == 0
    for name in ("suspects.csv", "images.csv"):
        for row, other in zip(rows_of(audited / "out" / name), rows_of(tmp_path / "one" / name), strict=True):
            assert row.pop("image") == other.pop("image")
            for key, value in row.items():
                assert (
                    value == other[key]
                    if not value.replace(".", "").isdigit()
                    else math.isclose(float(value), float(other[key]), abs_tol=2e-3)
                )
    lines = [json.loads(line) for line in (audited / "out" / "predictions.jsonl").read_text().splitlines()]
    frequency = np.log(np.full(3, 1 / 3))
    orders = [
        rank(audited / "out", [lines[place] for place in order], frequency, 1) for order in ((0, 1, 2, 3, 4), (3, 1, 4, 0, 2))
    ]
    assert orders[0] == orders[1] and len(orders[0].suspects) == 1 < orders[0].regions
    areas = [one.area for line in lines for one in regions_in(audited / "out" / line["files"]["regions"])]
    assert all(mask_of(one.runs, (48, 64)).sum() in areas for one in regions_in(audited / "out" / "regions" / "03.json"))


def test_a_stopped_run_goes_on_and_mended_labels_are_looked_at_again(audited, labels, model, tmp_path, monkeypatch, capsys):
    words = ["--model", model, "--out", tmp_path / "out", "--device", "cpu", "--batch-size", 2]
    data, count, original = write(tmp_path / "data", plant(labels)), [], OutputFolder.write

    def stopping(folder, line, files):
        if len(count) == 3:
            raise KeyboardInterrupt
        count.append(line["id"])
        original(folder, line, files)

    monkeypatch.setattr(OutputFolder, "write", stopping)
    assert run(data, *words) == 130
    assert not (tmp_path / "out" / "suspects.csv").exists()
    monkeypatch.setattr(OutputFolder, "write", original)
    capsys.readouterr()
    assert run(data, *words) == 0
    assert "2 images looked at" in capsys.readouterr().out
    for name in ("suspects.csv", "images.csv", "label_next.csv", "report.html"):
        found, expected = ((folder / "out" / name).read_text(encoding="utf-8") for folder in (tmp_path, audited))
        assert DECIMALS.sub("", found) == DECIMALS.sub("", expected), name
        # The batches are others after a stop, and some processors round a batch of one otherwise.
        assert [*map(float, DECIMALS.findall(found))] == pytest.approx([*map(float, DECIMALS.findall(expected))], abs=2e-6), name
    write(data, plant(labels, names=("01",)))
    assert run(data, *words) == 0
    assert "1 images looked at" in capsys.readouterr().out
    assert {row["image"] for row in rows_of(tmp_path / "out" / "suspects.csv")} == {"01"}
    assert run(data, *words, "--min-share", 0.01) == 2
    assert "other settings (min_share" in capsys.readouterr().err


def test_what_the_model_was_trained_on_is_said(audited, model, tmp_path, capsys):
    mine = shutil.copytree(model, tmp_path / "mine")
    files = {path.stem: path for path in sorted((audited / "data" / "images").iterdir())}
    DataSplit.of({"00": files["00"], "01": files["01"]}, {"02": files["02"]}).write(mine)
    assert run(audited / "data", "--model", mine, "--out", tmp_path / "out", "--device", "cpu", "--limit", 3) == 0
    captured = capsys.readouterr()
    assert "trained on 2 images of these; it may have learnt their errors" in captured.err
    assert len(rows_of(tmp_path / "out" / "images.csv")) == 3


def test_bad_input_is_one_line_and_leaves_nothing(labels, model, tmp_path, capsys):
    def error(data, *words, model=model):
        assert run(data, "--model", model, "--out", tmp_path / "out", "--device", "cpu", *words) == 2
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if line.startswith(("noise2map: error: ", "Error: "))]
        assert len(lines) == 1 and "suspicious" not in captured.out and "Traceback" not in captured.err
        assert not (tmp_path / "out").exists()
        return lines[0]

    good = write(tmp_path / "good", labels)
    tiny_depth_model().save_pretrained(tmp_path / "depth")
    Noise2MapImageProcessor(size={"shortest_edge": 48}).save_pretrained(tmp_path / "depth")
    assert "is one for depth" in error(good, model=tmp_path / "depth")
    assert "unknown class ids 3, 4, 5" in error(write(tmp_path / "outside", {"00": (labels["00"][0], labels["00"][1] + 3)}))
    assert "no pixel of the labels is known" in error(write(tmp_path / "none", {"00": (labels["00"][0], np.full((48, 64), 255))}))
    assert "all labels are of the class 'wall'" in error(write(tmp_path / "one", {"00": (labels["00"][0], np.ones((48, 64)))}))
    (tmp_path / "empty" / "images").mkdir(parents=True)
    (tmp_path / "empty" / "maps").mkdir()
    assert "holds no image" in error(tmp_path / "empty")
    assert "does not exist" in error(tmp_path / "nowhere")
    assert "which a run of 1 step" in error(good, "--uncertainty", "mutual_information", "--steps", 1)
    assert "min_share is 0.0" in error(good, "--min-share", 0)
    assert "dataset must be" in error(good, "--dataset", "coco")
    (good / "maps" / "03.png").write_bytes(b"broken")
    assert "03.png" in error(good)


def test_suspects_of_another_calibration_are_not_taken_over(audited, model, tmp_path, capsys):
    changed = tmp_path / "changed"
    shutil.copytree(model, changed)
    out = tmp_path / "out"
    command = (audited / "data", "--model", changed, "--out", out, "--device", "cpu")
    assert run(*command) == 0
    before = (out / "suspects.csv").read_text()
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | {"temperature": 4.0}))
    capsys.readouterr()
    assert run(*command) == 2
    assert "results of other settings (config" in capsys.readouterr().err
    assert (out / "suspects.csv").read_text() == before
