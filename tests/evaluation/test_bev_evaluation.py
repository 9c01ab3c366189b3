"""Evaluation of bird's-eye-view models against IoU counted by hand on predictions made one by one."""

import json

import numpy as np
import pytest
import torch
import toy_nuscenes as toy
from tiny_bev import tiny_bev
from torchmetrics.functional.classification import binary_auroc, binary_calibration_error

from noise2map.cli import main
from noise2map.data.freedoom.shipped import SURROUND_SAMPLES_ROOT
from noise2map.data.nuscenes import NuScenesDataset
from noise2map.diffusion import image_generator
from noise2map.evaluation.bev import named_protocols, protocol_label
from noise2map.evaluation.evaluate import evaluate_model
from noise2map.evaluation.experiments.single_calls import SingleCalls, sample_batches
from noise2map.evaluation.official import published_for
from noise2map.evaluation.report import model_differences, result_rows
from noise2map.metrics.samples import LayerSampleScores
from noise2map.models import Noise2MapBevConfig, Noise2MapBevProcessor
from noise2map.models.decoding import Protocol

pytest.importorskip("shapely")
pytest.importorskip("cv2")

THRESHOLDS = (0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = toy.make(tmp_path_factory.mktemp("bev") / "set")
    (root / "v1.0-toy").rename(root / "v1.0-trainval")
    (root / "v1.0-trainval" / "splits.json").write_text('{"train": ["toy-0001"], "val": ["toy-0002"]}')
    return root


@pytest.fixture(scope="module")
def processor():
    return Noise2MapBevProcessor([32, 64], 0.8, sweeps=1)


@pytest.fixture(scope="module")
def model():
    return tiny_bev(num_cameras=6, seed=3)


class Partly:
    """The split with some cells that nobody knows."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        sample = self.dataset[index]
        labels = sample["labels"].copy()
        labels[:, :3, 2:9] = 255
        return {**sample, "labels": labels}


@pytest.fixture(scope="module")
def dataset(root):
    return Partly(NuScenesDataset(root, "val", sensors=("camera",), size_m=(12.0, 12.0), canvas=(12, 16)))


@pytest.fixture(scope="module")
def predictions(model, processor, dataset):
    """Probabilities of each sample through the public forward pass, and its labels."""
    found = []
    for index in range(len(dataset)):
        batch = processor([dataset[index]])
        labels = batch.pop("labels")[0].numpy()
        generator = image_generator(7, dataset[index]["id"])
        with torch.no_grad():
            out = model(**batch, num_inference_steps=3, ensemble_size=2, average="steps", generator=generator)
        found.append((out.probabilities[0].numpy(), labels, out.uncertainties["entropy"][0].numpy()))
    return found


def test_scores_are_those_of_single_predictions(model, processor, dataset, predictions):
    evaluation = evaluate_model(model, processor, dataset, [Protocol(3, 2, "steps")], batch_size=2, seed=7)
    scores = evaluation.results[0].scorer.scores()
    wide = (0.02, *(round(0.05 * k, 2) for k in range(1, 20)))
    table = np.zeros((len(wide), 6))
    for row, threshold in enumerate(wide):
        for layer in range(6):
            both = union = 0
            for probability, truth, _ in predictions:
                known = truth[layer] != 255
                guess, real = probability[layer][known] >= threshold, truth[layer][known] == 1
                both, union = both + (guess & real).sum(), union + (guess | real).sum()
            table[row, layer] = both / (union + 1e-7)
    layers = evaluation.results[0].scorer.extras()["layers"]
    assert scores["mIoU_wide"] == pytest.approx(table.max(0).mean(), abs=1e-6)
    assert [layers[name]["wide_threshold"] for name in layers] == [wide[place] for place in table.argmax(0)]
    table = table[[wide.index(threshold) for threshold in THRESHOLDS]]
    assert scores["mIoU_max"] == pytest.approx(table.max(0).mean(), abs=1e-6) and scores["mIoU_max"] <= scores["mIoU_wide"]
    assert scores["mIoU_50"] == pytest.approx(table[3].mean(), abs=1e-6)
    assert 0 < scores["mIoU_50"] < scores["mIoU_max"]
    assert [layers[name]["IoU_50"] for name in layers] == pytest.approx(list(table[3]), abs=1e-6)
    assert layers["drivable_area"]["threshold"] == THRESHOLDS[table[:, 0].argmax()]


def test_maps_are_also_scored_at_the_processors_thresholds(model, dataset, predictions):
    fitted = [0.3, 0.45, 0.5, 0.55, 0.6, 0.4]
    processor = Noise2MapBevProcessor([32, 64], 0.8, layer_thresholds=fitted)
    evaluation = evaluate_model(model, processor, dataset, [Protocol(3, 2, "steps")], batch_size=2, seed=7)
    expected = []
    for layer, threshold in enumerate(fitted):
        both = union = 0
        for probability, truth, _ in predictions:
            known = truth[layer] != 255
            guess, real = probability[layer][known] >= np.float32(threshold), truth[layer][known] == 1
            both, union = both + (guess & real).sum(), union + (guess | real).sum()
        expected.append(both / (union + 1e-7))
    row = result_rows(evaluation, {}, resamples=20)[0]
    assert row["mIoU_fitted"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert row["mIoU_fitted_gain"] == pytest.approx(row["mIoU_fitted"] - row["mIoU_50"], abs=1e-9)
    assert row["mIoU_fitted_low"] <= row["mIoU_fitted"] <= row["mIoU_fitted_high"]
    layers = evaluation.results[0].scorer.extras()["layers"]
    assert [layers[name]["IoU_fitted"] for name in layers] == pytest.approx(expected, abs=1e-6)
    plain = evaluate_model(model, Noise2MapBevProcessor([32, 64], 0.8), dataset, [Protocol(3, 2, "steps")], batch_size=2, seed=7)
    without = result_rows(plain, {}, resamples=0)[0]
    assert "mIoU_fitted" not in without and without["mIoU_50"] == row["mIoU_50"] and without["mIoU_max"] == row["mIoU_max"]
    for one, other in ((evaluation, plain), (plain, evaluation)):  # the two can be compared
        rows = model_differences(one, other, ("a", "b"), resamples=10)
        assert all(row["difference"] == 0 for row in rows)
    processor.layer_thresholds = fitted[:2]
    with pytest.raises(ValueError, match="layer_thresholds has 2 numbers; expected one for each of 6 layers"):
        evaluate_model(model, processor, dataset, [Protocol(1)])


def test_calibration_and_uncertainty_are_scored_cell_by_cell(model, processor, dataset, predictions):
    scorer = evaluate_model(model, processor, dataset, [Protocol(3, 2, "steps")], batch_size=1, seed=7).results[0].scorer
    flat = [np.concatenate([part[truth != 255] for part in (value,)]) for value, truth, _ in predictions]
    probability = np.concatenate(flat)
    truth = np.concatenate([labels[labels != 255] for _, labels, _ in predictions])
    entropy = np.concatenate([value[labels != 255] for _, labels, value in predictions])
    confidence, right = np.maximum(probability, 1 - probability), (probability >= 0.5) == (truth == 1)
    scores = scorer.scores()
    expected = binary_calibration_error(torch.tensor(confidence), torch.tensor(right).long(), n_bins=15, norm="l1")
    assert scores["ece"] == pytest.approx(float(expected), abs=2e-3)
    of_truth = np.where(truth == 1, probability, 1 - probability)
    assert scores["brier"] == pytest.approx(float(((1 - of_truth) ** 2).mean()), rel=1e-5)
    assert scores["nll"] == pytest.approx(float(-np.log(of_truth).mean()), rel=1e-5)
    auroc = binary_auroc(torch.tensor(entropy), torch.tensor(~right).long())
    assert float(scorer.uncertainties["entropy"].compute()["auroc"]) == pytest.approx(float(auroc), abs=2e-3)
    assert set(scorer.uncertainties) >= {"step_flip", "sample_variance", "mutual_information", "least_confidence"}


def test_scores_do_not_depend_on_the_batch(model, processor, dataset):
    grid = [Protocol(1), Protocol(2, 2, "steps")]
    one, two = (evaluate_model(model, processor, dataset, grid, size, seed=1) for size in (1, 2))
    for a, b in zip(one.results, two.results):
        assert torch.equal(a.scorer.image_rows(), b.scorer.image_rows())
        assert a.scorer.image_rows().shape == (2, 3, 21, 6)


def test_the_published_protocol_and_the_single_sample_have_names():
    camera, fusion = Noise2MapBevConfig(), Noise2MapBevConfig(sensors=["camera", "lidar"])
    assert named_protocols(camera) == [Protocol(3, 5, "steps"), Protocol(3, 1, "last")]
    assert named_protocols(fusion)[0] == Protocol(3, 4, "steps")
    assert [protocol_label(one, camera) for one in (*named_protocols(camera), Protocol(2))] == ["published", "single sample", ""]
    assert published_for(camera, "nuscenes", "official", 3, 5, "steps") == {"mIoU_max": 0.594}
    assert published_for(fusion, "nuscenes", "official", 3, 4, "steps") == {"mIoU_max": 0.706}
    assert published_for(camera, "nuscenes", "official", 3, 1, "last") == {}


def test_samples_without_labels_or_with_one_name_are_refused(model, processor, dataset):
    bare = [{key: value for key, value in dataset[0].items() if key != "labels"}]
    with pytest.raises(ValueError, match="has no 'labels', the map for bev"):
        evaluate_model(model, processor, bare, [Protocol(1)])
    with pytest.raises(ValueError, match="two samples of the dataset share an id"):
        evaluate_model(model, processor, [dataset[0], dataset[0]], [Protocol(1)])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, model, processor):
    folder = tmp_path_factory.mktemp("bev-model")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code


def test_the_command_scores_and_names_protocols(checkpoint, root, tmp_path, capsys):
    options = ("--dataset", "nuscenes", "--root", root, "--protocol", "official", "--resamples", 50, "--out", tmp_path / "out")
    assert run("evaluate", "--model", checkpoint, *options) == 0
    text = capsys.readouterr().out
    assert "published" in text and "single sample" in text and "mIoU_max" in text and "drivable_area" in text
    rows = json.loads((tmp_path / "out" / "evaluation.json").read_text())["rows"]
    assert [row["named"] for row in rows] == ["published", "single sample"]
    assert rows[0]["published_mIoU_max"] == 0.594 and rows[0]["mIoU_50_low"] <= rows[0]["mIoU_50"] <= rows[0]["mIoU_50_high"]
    assert [row["split"] for row in rows] == ["val", "val"] and rows[0]["steps"] == 3 and rows[0]["ensemble"] == 5


def test_cells_that_nobody_sees_are_scored_on_request(checkpoint, tmp_path):
    options = (
        "--dataset",
        "freedoom-surround",
        "--root",
        SURROUND_SAMPLES_ROOT,
        "--split",
        "test",
        "--steps",
        "1",
        "--resamples",
        0,
    )
    rows = []
    for cells in ("visible", "all"):
        assert run("evaluate", "--model", checkpoint, *options, "--cells", cells, "--out", tmp_path / cells) == 0
        rows.append(json.loads((tmp_path / cells / "evaluation.json").read_text())["rows"][0])
    seen, whole = rows
    assert whole["cells"] == "all" and "cells" not in seen
    assert whole["mIoU_50"] != seen["mIoU_50"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dataset", "nuscenes", "--root", "ROOT", "--cells", "all"), "cells is 'all', which freedoom-surround can tell"),
        (("--dataset", "nuscenes", "--root", "ROOT", "--hide", "mixed"), "hide is 'mixed', but bird's-eye-view samples"),
        (("--dataset", "samples"), "it cannot be used for bird's-eye-view maps, expected one of nuscenes, freedoom-surround"),
        (("--dataset", "cars", "--root", "."), "dataset must be one of nuscenes, freedoom-surround, got 'cars'"),
        (("--dataset", "nuscenes"), "needs the folder of the data"),
        (("--dataset", "nuscenes", "--root", "ROOT", "--protocol", "multi-scale"), "evaluated plain or official"),
        (("--dataset", "nuscenes", "--root", "ROOT", "--protocol", "flip"), "evaluated plain or official"),
        (("--dataset", "nuscenes", "--root", "ROOT", "--split", "trian"), "split is 'trian'"),
        (("--dataset", "nuscenes", "--root", "ROOT", "--split", "test"), "no nuScenes version v1.0-test"),
        (("--dataset", "freedoom-surround", "--root", "ROOT"), "is no Freedoom surround set"),
    ],
)
def test_bad_input_is_one_line(checkpoint, root, options, message, capsys):
    words = [root if word == "ROOT" else word for word in options]
    assert run("evaluate", "--model", checkpoint, *words) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and error.strip().count("\n") == 0


def test_image_models_and_bev_data_do_not_mix(root, capsys):
    assert run("evaluate", "--model", "freedoom-segmentation-tiny", "--dataset", "nuscenes", "--root", root) == 2
    assert "has bird's-eye-view maps; it cannot be used for segmentation" in capsys.readouterr().err


def test_samples_and_cells_that_nobody_sees(model, processor, dataset):
    """Every score again for seen and unseen cells, and single samples as maps of layers."""
    visibility = np.arange(12 * 16).reshape(12, 16).astype(np.uint8) % 3
    samples = [{**dataset[index], "visibility": visibility} for index in range(len(dataset))]
    options = Protocol(2, 3)
    evaluation = evaluate_model(model, processor, samples, [options], seed=7, sample_scores=True)
    row = result_rows(evaluation, {}, resamples=10)[0]
    maps, truths = [], []
    for sample in samples:
        batch = processor([sample])
        truths.append(batch.pop("labels")[0])
        with torch.no_grad():
            generator = image_generator(7, sample["id"])
            out = model(**batch, num_inference_steps=2, ensemble_size=3, average="last", generator=generator, output_samples=True)
        maps.append((out.samples[0].sigmoid() > 0.5).float())
    for number, region in enumerate(("visible", "hidden", "out_of_range")):
        metric = LayerSampleScores(len(model.config.id2label), 3)
        metric.update(torch.stack(maps), torch.stack(truths), torch.from_numpy(visibility == number).expand(len(samples), -1, -1))
        for name, value in metric.compute().items():
            assert row[f"{name}_{region}"] == pytest.approx(value.item(), rel=1e-4, nan_ok=True), (name, region)
        assert f"mIoU_50_{region}" in row and f"mIoU_50_{region}_low" in row


def test_the_map_that_layers_are_shown(model, processor, dataset):
    """Single calls of the experiment on maps of layers: a model with random weights hears its map, whatever it makes of it."""
    calls = SingleCalls(model, (1.0, 0.0), seed=7)
    for indices, batch in sample_batches(model, processor, dataset, 2):
        calls.update(indices, batch, processor)
    assert sorted(calls.order) == list(range(len(dataset)))
    for found in calls.results.values():
        assert len(found.losses) == len(dataset) and np.isfinite(found.losses).all()
    assert calls.results[1.0, "noise"].losses == pytest.approx(calls.results[1.0, "truth"].losses, rel=1e-3)
    assert min(calls.results[0.0, "truth"].sensitivity) > 0
