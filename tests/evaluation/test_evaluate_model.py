"""Evaluation against predictions made one by one through the public forward pass, and torchmetrics."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.classification import binary_auroc, multiclass_calibration_error, multiclass_jaccard_index
from transformers import ConvNextConfig

from noise2map.data import load_samples
from noise2map.data.subsets import Subset
from noise2map.diffusion import image_generator
from noise2map.evaluation import report as tables
from noise2map.evaluation import screen as screens
from noise2map.evaluation.evaluate import evaluate_model, image_batches
from noise2map.evaluation.protocols import protocol_grid
from noise2map.inference.batches import WAITING_BATCHES
from noise2map.metrics import DEPTH_SCORES
from noise2map.models import (
    Noise2MapConfig,
    Noise2MapForDepthEstimation,
    Noise2MapForSemanticSegmentation,
    Noise2MapImageProcessor,
)
from noise2map.models.decoding import Protocol
from noise2map.models.distributions.calibration import Calibration
from noise2map.models.segmentation import MapSegmenterOutput
from noise2map.runs.files import json_values

NAMES = load_samples("test", classes=8).id2label


def tiny_model(task: str, **fields):
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=stages)
    sizes = {"hidden_size": 16, "group_norm_groups": 4, "decoder_layers": 1, "decoder_attention_heads": 4}
    sizes |= {"decoder_ffn_dim": 16, "time_embed_dim": 16, "use_auxiliary_head": False, "map_scale": 0.1}
    torch.manual_seed(0)
    if task == "segmentation":
        labels = {"id2label": NAMES, "label2id": {v: k for k, v in NAMES.items()}}
        return Noise2MapForSemanticSegmentation(Noise2MapConfig(backbone_config=backbone, **sizes, **labels, **fields)).eval()
    depth = {"min_depth": 0.5, "max_depth": 40.0, "time_input": "time", "depth_representation": "log"}
    return Noise2MapForDepthEstimation(Noise2MapConfig(backbone_config=backbone, **sizes, **depth, **fields)).eval()


@pytest.fixture(scope="module")
def segmenter():
    return tiny_model("segmentation", auto_max_steps=4, auto_threshold=0.2)


@pytest.fixture(scope="module")
def estimator():
    return tiny_model("depth")


@pytest.fixture(scope="module")
def processor():
    return Noise2MapImageProcessor(size={"height": 120, "width": 160})


def _data(task: str, count: int = 5, **options) -> Subset:
    options = options or ({"classes": 8} if task == "segmentation" else {})
    return Subset.evenly_spaced(load_samples("test", task, **options), count)


def _forward(model, processor, sample, protocol, seed=0):
    pixels = processor(images=sample["image"], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return model(
            pixel_values=pixels,
            num_inference_steps=protocol.num_inference_steps,
            ensemble_size=protocol.ensemble_size,
            average=protocol.average,
            sampler=protocol.sampler,
            generator=[image_generator(seed, sample["id"])],
        )


def test_segmentation_scores_equal_the_ones_of_single_forward_passes(segmenter, processor):
    data, grid = _data("segmentation"), protocol_grid([2, "auto"], [2], ["last", "steps"])
    evaluation = evaluate_model(segmenter, processor, data, grid, batch_size=2, seed=3)
    samples = [data[i] for i in range(len(data))]
    truth = torch.stack([torch.from_numpy(s["labels"].astype(np.int64)) for s in samples])
    for result in evaluation.results:
        outputs = [_forward(segmenter, processor, s, result.protocol, seed=3) for s in samples]
        probabilities = torch.cat([out.logits for out in outputs]).softmax(1)
        scores = result.scorer.scores()
        miou = multiclass_jaccard_index(probabilities.argmax(1), truth, 8, ignore_index=255)
        ece = multiclass_calibration_error(probabilities, truth, 8, 15, ignore_index=255)
        assert scores["mIoU"] == pytest.approx(miou.item(), abs=1e-4)
        assert scores["ece"] == pytest.approx(ece.item(), abs=1e-4)
        assert result.mean_steps == pytest.approx(np.mean([int(out.num_steps) for out in outputs]))
        wrong = (probabilities.argmax(1) != truth)[truth != 255]
        for kind in ("step_flip", "entropy", "sample_variance", "mutual_information"):
            values = torch.cat([out.uncertainties[kind] for out in outputs])[truth != 255].double().clamp(0, 1)
            found = result.scorer.uncertainties[kind].compute()["auroc"].item()
            assert found == pytest.approx(binary_auroc(values, wrong.long()).item(), abs=2e-3), kind
        confidence = probabilities.max(1).values[truth != 255].double()
        found = result.scorer.uncertainties["least_confidence"].compute()["auroc"].item()
        assert found == pytest.approx(binary_auroc(1 - confidence, wrong.long()).item(), abs=2e-3)


def test_depth_scores_equal_the_ones_of_single_forward_passes(estimator, processor):
    data, protocol = _data("depth"), Protocol(3, 2)
    evaluation = evaluate_model(estimator, processor, data, [protocol], batch_size=2)
    rows, values, wrongs = [], [], []
    for i in range(len(data)):
        sample = data[i]
        out = _forward(estimator, processor, sample, protocol)
        predicted, true = out.predicted_depth[0].double().numpy(), sample["depth_m"].astype(np.float64)
        keep = (true > 0.5) & (true < 40) & sample["valid"]
        ratio = np.maximum(predicted / true.clip(0.1), true.clip(0.1) / predicted)[keep]
        rows.append([np.mean(np.abs(predicted - true)[keep] / true[keep]), np.mean(ratio < 1.25)])
        values.append(out.uncertainties["sample_variance"][0][torch.from_numpy(keep)])
        wrongs.append(torch.from_numpy(ratio >= 1.25))
    scores = evaluation.results[0].scorer.scores()
    abs_rel, delta1 = np.mean(rows, axis=0)
    assert scores["abs_rel"] == pytest.approx(abs_rel, rel=1e-4)
    assert scores["delta1"] == pytest.approx(delta1, abs=1e-4)
    auroc = binary_auroc(torch.cat(values).double().clamp(0, 1), torch.cat(wrongs).long()).item()
    assert evaluation.results[0].scorer.uncertainties["sample_variance"].compute()["auroc"].item() == pytest.approx(auroc, abs=2e-3)
    assert list(scores) == list(DEPTH_SCORES)


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_scores_do_not_depend_on_the_batch_size(task, segmenter, estimator, processor):
    model, data = segmenter if task == "segmentation" else estimator, _data(task)
    grid = [Protocol(3, 2, "steps"), Protocol(2, 1, "last", "ddpm")]
    one, many = (evaluate_model(model, processor, data, grid, batch_size=size) for size in (1, 4))
    assert one.image_ids == many.image_ids == [data[i]["id"] for i in range(5)]
    for a, b in zip(one.results, many.results):
        for name, values in a.scorer.image_scores().items():
            assert torch.allclose(values, b.scorer.image_scores()[name], atol=2e-3, equal_nan=True), name
    other = evaluate_model(model, processor, data, grid, seed=1)
    name = "mIoU" if task == "segmentation" else "abs_rel"
    assert other.results[0].scorer.scores()[name] != one.results[0].scorer.scores()[name]


def test_each_image_is_encoded_once(segmenter, processor, monkeypatch):
    calls = {"encode_image": 0, "decode_map": 0}
    for name in calls:
        original = getattr(segmenter, name)

        def counted(*args, original=original, name=name, **keywords):
            calls[name] += 1
            return original(*args, **keywords)

        monkeypatch.setattr(segmenter, name, counted)
    grid = protocol_grid([1, 2, "auto"], [1, 2], ["last"])
    done = []
    evaluate_model(segmenter, processor, _data("segmentation", 4), grid, batch_size=2, progress=done.append)
    assert calls == {"encode_image": 2, "decode_map": 2 * len(grid)}
    assert done == [2, 2]


class _Echo(torch.nn.Module):
    """A stand-in whose prediction is in the image: the class is the red channel; the green one is the uncertainty."""

    task = "segmentation"

    def __init__(self, num_labels=3):
        super().__init__()
        names = {i: str(i) for i in range(num_labels)}
        self.config = SimpleNamespace(id2label=names, semantic_loss_ignore_index=255, diffusion=True, temperature=1.0)
        self.device = torch.device("cpu")

    def encode_image(self, pixel_values):
        return pixel_values

    def decode_map(self, features, num_inference_steps, **_):
        labels = (features[:, 0] * 255).round().long()
        logits = 10.0 * torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2)
        steps = torch.full((len(labels),), num_inference_steps)
        return MapSegmenterOutput(logits=logits, uncertainties={"step_flip": features[:, 1]}, num_steps=steps)


def _echo_processor(images, return_tensors):
    pixels = torch.from_numpy(np.asarray(images).copy()).permute(2, 0, 1) / 255
    return {"pixel_values": pixels[None]}


def _echo_sample(index: int, size: tuple[int, int], wrong: float) -> dict:
    generator = np.random.default_rng(index)
    labels = generator.integers(0, 3, size).astype(np.uint8)
    mistaken = generator.random(size) < wrong
    shown = np.where(mistaken, (labels + 1) % 3, labels)
    pixels = np.stack([shown, 255 * mistaken, 0 * shown], -1).astype(np.uint8)
    return {"image": Image.fromarray(pixels), "labels": labels, "id": f"image-{index}"}


def test_mixed_sizes_keep_the_order_of_the_data_set():
    sizes = [(20, 30), (24, 24), (20, 30), (20, 30), (24, 24)]
    data = [_echo_sample(i, size, wrong=0.1 * i) for i, size in enumerate(sizes)]
    evaluation = evaluate_model(_Echo(), _echo_processor, data, [Protocol(1)], batch_size=2)
    assert evaluation.image_ids == [f"image-{i}" for i in range(5)]
    scorer = evaluation.results[0].scorer
    expected = [float((np.asarray(s["image"])[..., 0] == s["labels"]).mean()) for s in data]
    assert scorer.image_scores()["aAcc"].tolist() == pytest.approx(expected)
    pooled = sum((np.asarray(s["image"])[..., 0] == s["labels"]).sum() for s in data) / sum(h * w for h, w in sizes)
    assert scorer.scores()["aAcc"] == pytest.approx(pooled)
    # The uncertainty is the error itself: nothing beats it, and the rows are in the order of the data set too.
    assert scorer.uncertainties["step_flip"].compute()["auroc"].item() == 1
    error_rates = scorer.uncertainty_rows("step_flip")[:, -1].tolist()
    assert error_rates == pytest.approx([1 - value for value in expected])
    rows = tables.image_rows(evaluation, "echo")
    assert [row["id"] for row in rows] == evaluation.image_ids
    assert [row["aAcc"] for row in rows] == pytest.approx(expected)


def test_images_of_many_sizes_do_not_all_wait_in_memory(segmenter):
    sample, batch_size = load_samples("test", "segmentation", classes=8)[0], 2
    processor = Noise2MapImageProcessor(do_resize=False)
    taken, given = [], []

    class Cropped:
        def __len__(self):
            return 30

        def __getitem__(self, index):
            taken.append(index)
            box = (0, 0, 64, 32 + index)
            return sample | {"image": sample["image"].crop(box), "labels": np.asarray(sample["labels"])[: 32 + index, :64]}

    for batch in image_batches(segmenter, processor, Cropped(), batch_size):
        assert len(taken) - len(given) <= WAITING_BATCHES * batch_size
        given += batch.indices
    assert sorted(given) == list(range(30))


def test_bad_data_is_refused(segmenter, processor):
    sample = _echo_sample(0, (8, 8), 0.1)
    for data, message in [
        ([], "no images"),
        ([{k: v for k, v in sample.items() if k != "labels"}], "has no 'labels'"),
        ([sample, sample], "share an id"),
        ([sample | {"labels": np.full((8, 8), 7, np.uint8)}], r"1 step, last, ddim, image 'image-0'.*label 7"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluate_model(_Echo(), _echo_processor, data, [Protocol(1)])
    with pytest.raises(ValueError, match="protocol"):
        evaluate_model(_Echo(), _echo_processor, [sample], [])
    with pytest.raises(ValueError, match="batch_size"):
        evaluate_model(_Echo(), _echo_processor, [sample], [Protocol(1)], batch_size=0)


def test_a_model_that_gives_nan_is_refused(estimator, processor, monkeypatch):
    original = estimator.decode_map

    def broken(*args, **keywords):
        out = original(*args, **keywords)
        out.predicted_depth = out.predicted_depth * torch.nan
        return out

    monkeypatch.setattr(estimator, "decode_map", broken)
    with pytest.raises(ValueError, match=r"2 steps, last, ddim.*NaN or infinite"):
        evaluate_model(estimator, processor, _data("depth", 2), [Protocol(2)])


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_fitted_temperature_has_its_closed_form(temperature):
    """Logits 10 for the guess and 0 for the two others, right with frequency a: e^(10/T) / (e^(10/T) + 2) = a."""
    data = [_echo_sample(i, (40, 40), wrong=0.2) for i in range(3)]
    right = np.mean([(np.asarray(s["image"])[..., 0] == s["labels"]).mean() for s in data])
    model = _Echo()
    model.config.temperature = temperature  # already in the logits
    grid = [Protocol(1), Protocol(2, 1, "steps")]
    evaluation = evaluate_model(model, _echo_processor, data, grid, fit_temperature=True)
    found = evaluation.results[0].scorer.scores()["fitted_temperature"]
    assert found == pytest.approx(temperature * 10 / math.log(2 * right / (1 - right)), rel=1e-4)
    assert "fitted_temperature" not in evaluation.results[1].scorer.scores()


def test_a_temperature_is_not_fitted_to_corrected_confidences():
    model = _Echo()
    model.calibration = Calibration(temperature=2.0, confidences=((0.2, 0.3), (0.9, 0.8)))
    with pytest.raises(ValueError, match="calibrated by a curve"):
        evaluate_model(model, _echo_processor, [_echo_sample(0, (40, 40), wrong=0.2)], [Protocol(1)], fit_temperature=True)


def test_rows_differences_and_tables(segmenter, processor):
    data = _data("segmentation")
    grid = protocol_grid([1, 3], [1], ["last"])
    evaluation = evaluate_model(segmenter, processor, data, grid)
    rows = tables.result_rows(evaluation, {"model": "here/tiny", "seed": 0}, resamples=50)
    assert [row["protocol"] for row in rows] == ["1 step, last, ddim", "3 steps, last, ddim"]
    assert all(row["mIoU_low"] <= row["mIoU"] <= row["mIoU_high"] for row in rows)
    assert "step_flip_auroc" in rows[1] and "step_flip_auroc" not in rows[0]
    assert rows[0]["images"] == 5 and rows[0]["images_per_second"] > 0
    screen = screens.score_table(rows)
    assert f"{100 * rows[1]['mIoU']:.3f}" in screen and "images/s" in screen
    assert "step_flip" in screens.uncertainty_table(rows)

    steps = tables.step_differences(evaluation, "here/tiny", resamples=50)
    gain = next(row for row in steps if row["score"] == "mIoU")
    assert gain["difference"] == pytest.approx(rows[1]["mIoU"] - rows[0]["mIoU"])
    same = tables.model_differences(evaluation, evaluation, ("a", "b"), resamples=50)
    assert len(same) == 2 * 3 and all(row["difference"] == row["low"] == row["high"] == 0 for row in same)
    assert "a: 1 step, last, ddim" in screens.difference_table(same)
    assert "here/tiny" not in screens.difference_table(steps)


def test_a_baseline_with_one_protocol_meets_every_protocol(segmenter, processor):
    data = _data("segmentation")
    several = evaluate_model(segmenter, processor, data, protocol_grid([1, 2], [1], ["last"]))
    plain = evaluate_model(tiny_model("segmentation", diffusion=False), processor, data, [Protocol(1)])
    rows = tables.model_differences(several, plain, ("full", "plain"), resamples=20)
    assert [row["protocol"] for row in rows if row["score"] == "mIoU"] == ["1 step, last, ddim", "2 steps, last, ddim"]
    assert {row["other_protocol"] for row in rows} == {"1 step, last, ddim"}
    fewer = evaluate_model(segmenter, processor, _data("segmentation", 3), [Protocol(1)])
    with pytest.raises(ValueError, match="different images"):
        tables.model_differences(several, fewer, ("a", "b"))


def test_nan_becomes_null():
    assert json_values({"a": [1.0, math.nan], "b": (math.inf, "x", 2)}) == {"a": [1.0, None], "b": [None, "x", 2]}


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_a_baseline_meets_every_protocol_also_as_the_first_of_two(segmenter, processor, sampler):
    data = _data("segmentation")
    several = evaluate_model(segmenter, processor, data, [Protocol(1, sampler=sampler), Protocol(2, sampler=sampler)])
    plain = evaluate_model(tiny_model("segmentation", diffusion=False), processor, data, [Protocol(1)])
    there = tables.model_differences(several, plain, ("full", "plain"), resamples=20)
    back = tables.model_differences(plain, several, ("plain", "full"), resamples=20)
    named = {(row["protocol"], row["score"]): row["difference"] for row in there}
    assert len({name for name, _ in named}) == 2
    assert {(row["other_protocol"], row["score"]): -row["difference"] for row in back} == pytest.approx(named)
