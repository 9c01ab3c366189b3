"""Scores of single samples, of regions and of predicted scales in an evaluation, against outputs scored one by one."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import ConvNextConfig

from noise2map.cli import main
from noise2map.data import load_samples
from noise2map.data.subsets import Subset
from noise2map.evaluation import report as tables
from noise2map.evaluation import screen
from noise2map.evaluation.evaluate import evaluate_model
from noise2map.evaluation.protocols import protocol_grid
from noise2map.evaluation.regions import regions_of
from noise2map.metrics import DepthScores, SegmentationScores, bootstrap_intervals, mean_iou
from noise2map.metrics.samples import DepthSampleScores, LabelSampleScores, NormalsSampleScores, ScaleScores
from noise2map.models import (
    Noise2MapConfig,
    Noise2MapForDepthEstimation,
    Noise2MapForNormalEstimation,
    Noise2MapForSemanticSegmentation,
    Noise2MapImageProcessor,
)
from noise2map.models.decoding import DecodingOptions

NAMES = load_samples("test", classes=8).id2label
SIZE = (120, 160)


class Covered:
    """Frames of which the left part counts as hidden; all of the first."""

    def __init__(self, dataset):
        self.dataset, self.id2label = dataset, dataset.id2label

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        hidden = np.zeros(SIZE, bool)
        hidden[:, : 160 if index == 0 else 70] = True
        return self.dataset[index] | {"hidden": hidden}


def tiny(kind, **fields):
    backbone = ConvNextConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    sizes = {"hidden_size": 16, "group_norm_groups": 4, "decoder_layers": 1, "decoder_attention_heads": 4}
    sizes |= {"decoder_ffn_dim": 16, "time_embed_dim": 16, "use_auxiliary_head": False, "map_scale": 1.0}
    torch.manual_seed(0)
    return kind(Noise2MapConfig(backbone_config=backbone, **sizes, **fields)).eval()


@pytest.fixture(scope="module")
def segmenter():
    return tiny(Noise2MapForSemanticSegmentation, id2label=NAMES, label2id={v: k for k, v in NAMES.items()}, auto_max_steps=3)


@pytest.fixture(scope="module")
def processor():
    return Noise2MapImageProcessor(size={"height": SIZE[0], "width": SIZE[1]})


def frames(task, count=3):
    return Covered(Subset.evenly_spaced(load_samples("test", task, **({"classes": 8} if task == "segmentation" else {})), count))


def decoded(model, processor, data, options):
    """Samples of every image (N, R, K, H, W) through the public decoding, one by one."""
    outs = []
    for index in range(len(data)):
        pixels = processor(images=data[index]["image"], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            out = options.decode(model, model.encode_image(pixels), [data[index]["id"]], output_samples=True)
        outs.append(out)
    return outs


def resized(maps):
    return torch.nn.functional.interpolate(maps, size=SIZE, mode="bilinear", align_corners=False)


def masks(data):
    return torch.stack([torch.from_numpy(data[index]["hidden"]) for index in range(len(data))])


def assert_equal(found, expected):
    for name, value in expected.items():
        if value.ndim == 0:
            assert found[name] == pytest.approx(value.item(), rel=1e-4, nan_ok=True), name


def test_class_samples_are_scored_everywhere_and_in_each_region(segmenter, processor):
    data, options = frames("segmentation"), DecodingOptions(num_inference_steps=2, ensemble_size=3, average="last", sampler="ddim")
    evaluation = evaluate_model(segmenter, processor, data, [options], batch_size=2, sample_scores=True)
    row = tables.result_rows(evaluation, {"model": "tiny"}, resamples=20)[0]
    outs = decoded(segmenter, processor, data, options)
    samples = torch.stack([torch.stack([resized(one[None]).argmax(1)[0] for one in out.samples[0]]) for out in outs])
    truth = torch.stack([torch.from_numpy(data[i]["labels"].astype(np.int64)) for i in range(3)])
    for suffix, mask in (("", torch.ones_like(masks(data))), ("_hidden", masks(data)), ("_visible", ~masks(data))):
        metric, maps = LabelSampleScores(8, 3), SegmentationScores(8)
        metric.update(samples, truth, mask)
        assert_equal({name: row[f"{name}{suffix}"] for name in metric.names}, metric.compute())
        mean = torch.stack([resized(out.logits).argmax(1)[0] for out in outs])
        maps.update(mean, torch.where(mask, truth, 255))
        assert row[f"mIoU{suffix}"] == pytest.approx(mean_iou(maps.per_image()).item(), abs=1e-4)
    assert row["energy_hidden_low"] <= row["energy_hidden"] <= row["energy_hidden_high"]
    assert "entropy_auroc_hidden" in row and row["resampled"] == "images"
    assert "hidden" in screen.sample_table([row]) and "visible" in screen.region_table([row])
    image_rows = tables.image_rows(evaluation, "tiny")
    assert math.isnan(image_rows[0]["ged_pixel_visible"]) and image_rows[1]["map"] == data[1]["location"]


def test_depth_samples_and_the_predicted_scale(processor):
    model = tiny(
        Noise2MapForDepthEstimation,
        min_depth=0.5,
        max_depth=40.0,
        depth_representation="log",
        objective="laplace",
        time_input="time",
    )
    data, options = frames("depth"), DecodingOptions(num_inference_steps=2, ensemble_size=3, average="last", sampler="ddim")
    evaluation = evaluate_model(model, processor, data, [options], sample_scores=True)
    outs = decoded(model, processor, data, options)
    samples = torch.stack([resized(out.samples[0].clamp(0.5, 40))[:, 0] for out in outs])
    mean = torch.cat([resized(out.predicted_depth[:, None].clamp(0.5, 40)) for out in outs])
    scale = torch.cat([resized(out.predicted_scale[:, None]) for out in outs])
    truth = torch.stack([torch.from_numpy(np.where(data[i]["valid"], data[i]["depth_m"], 0)) for i in range(3)])
    hidden = torch.where(masks(data), truth, 0)
    known = (hidden > 0.5) & (hidden < 40)
    expected, of_scale, maps = DepthSampleScores(3, 0.5, 40), ScaleScores(), DepthScores(0.5, 40)
    expected.update(samples, hidden)
    of_scale.update(hidden.clamp_min(0.5).log(), torch.ones_like(scale), mean.log(), scale, known)
    maps.update(mean[:, 0], hidden)
    scorer = evaluation.results[0].regions["hidden"]
    assert_equal({name: value.item() for name, value in scorer.sums[""].compute().items()}, expected.compute())
    assert_equal({name: value.item() for name, value in scorer.sums["scale_"].compute().items()}, of_scale.compute())
    assert_equal(scorer.scores(), maps.compute())
    ranks = (samples < hidden[:, None]).sum(1)[known].bincount(minlength=4) / known.sum()
    assert scorer.extras()["rank_histogram"] == pytest.approx(ranks.tolist(), abs=1e-3)
    row = tables.result_rows(evaluation, {}, resamples=0)[0]
    assert row["scale_coverage_90_hidden"] == pytest.approx(of_scale.compute()["coverage_90"].item())


def test_normals_samples(processor):
    model = tiny(Noise2MapForNormalEstimation)
    normals = torch.nn.functional.normalize(torch.randn(*SIZE, 3, generator=torch.Generator().manual_seed(0)), dim=-1).numpy()
    data = [load_samples("test", "depth")[index] | {"normals": normals} for index in range(2)]
    options = DecodingOptions(num_inference_steps=1, ensemble_size=2, average="last", sampler="ddim")
    evaluation = evaluate_model(model, processor, data, [options], sample_scores=True)
    metric = NormalsSampleScores(2)
    for index, out in enumerate(decoded(model, processor, data, options)):
        unit = torch.nn.functional.normalize(resized(out.samples[0]), dim=1)
        metric.update(unit[None], torch.from_numpy(data[index]["normals"].transpose(2, 0, 1).copy())[None])
    assert_equal({name: value.item() for name, value in evaluation.results[0].scorer.sums[""].compute().items()}, metric.compute())


def test_cones_of_normals(processor):
    model = tiny(Noise2MapForNormalEstimation, objective="angular")
    normals = torch.nn.functional.normalize(torch.randn(*SIZE, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    data = [load_samples("test", "depth")[index] | {"normals": normals.numpy()} for index in range(2)]
    options = DecodingOptions(num_inference_steps=1, ensemble_size=1, average="last", sampler="ddim")
    scorer = evaluate_model(model, processor, data, [options]).results[0].scorer
    inside = {0.5: [], 0.9: []}
    for out in decoded(model, processor, data, options):
        whole = torch.nn.functional.normalize(resized(out.predicted_normals), dim=1)
        angle = torch.rad2deg(torch.acos((whole[0] * normals.movedim(-1, 0)).sum(0).clamp(-1, 1)))
        out.spread, out.predicted_normals = resized(out.spread[:, None])[:, 0], whole
        for level, shares in inside.items():
            shares.append((angle <= out.cone(level)[0]).double().mean().item())
    for level, shares in inside.items():
        found = scorer.sums["scale_"].compute()[f"coverage_{round(100 * level)}"].item()
        assert found == pytest.approx(np.mean(shares), abs=1e-3)


def test_intervals_over_maps(segmenter, processor):
    data = frames("segmentation", 6)
    evaluation = evaluate_model(segmenter, processor, data, protocol_grid([1, 3, "auto"], [1], ["last"]))
    places = [data[index]["location"] for index in range(6)]
    assert evaluation.places == places and len(set(places)) > 1
    row = tables.result_rows(evaluation, {}, 50, cluster="map")[0]
    scorer = evaluation.results[0].scorer
    expected = bootstrap_intervals(scorer.image_rows(), scorer.statistic(), 50, clusters=places)[0]
    assert (row["mIoU_low"], row["mIoU_high"]) == pytest.approx((expected.low, expected.high))
    assert row["resampled"] == f"{len(set(places))} maps"
    differences = [
        (one["protocol"], one["other_protocol"])
        for one in tables.step_differences(evaluation, "tiny", 20, cluster="map")
        if one["score"] == "mIoU"
    ]
    first, second, auto = ("1 step, last, ddim", "3 steps, last, ddim", "auto steps, last, ddim")
    assert differences == [(second, first), (auto, first), (auto, second)]  # auto meets every fixed number of steps
    evaluation.places = None
    with pytest.raises(ValueError, match="do not say of which map"):
        tables.result_rows(evaluation, {}, 50, cluster="map")


def test_regions_of_a_visibility():
    found = regions_of({"visibility": np.array([[0, 1, 2, 1]], np.uint8)})
    assert {name: mask.tolist() for name, mask in found.items()} == {
        "visible": [[True, False, False, False]],
        "hidden": [[False, True, False, True]],
        "out_of_range": [[False, False, True, False]],
    }
    assert regions_of({"image": None}) == {}
    with pytest.raises(ValueError, match="visibility 3; expected 0 to 2"):
        regions_of({"id": "a", "visibility": np.array([[3]], np.uint8)})


def test_some_samples_without_a_region_are_refused(segmenter, processor):
    data = frames("segmentation")
    samples = [data[0], data[1], data.dataset[2]]
    with pytest.raises(ValueError, match="others not"):
        evaluate_model(segmenter, processor, samples, protocol_grid([1], [1], ["last"]), batch_size=1)


def test_a_grid_with_fields():
    grid = protocol_grid([1, 3], [4], ["steps"], samplings=["diffusion", "field", "one_pass"])
    found = [(one.num_inference_steps, one.ensemble_size, one.average, one.sampling) for one in grid]
    assert found == [
        (1, 4, "last", "diffusion"),
        (3, 4, "steps", "diffusion"),
        (1, 4, "last", "field"),
        (3, 4, "last", "field"),
        (1, 1, "last", "one_pass"),
    ]


def test_the_command_scores_samples_and_resamples_maps(segmenter, processor, tmp_path, capsys):
    segmenter.save_pretrained(tmp_path / "tiny")
    processor.save_pretrained(tmp_path / "tiny")
    command = ["evaluate", "--model", str(tmp_path / "tiny"), "--limit", "4", "--resamples", "20"]
    options = ["--steps", "1,2", "--ensemble", "2", "--sampling", "diffusion,field", "--sample-scores", "--cluster", "map"]
    with pytest.raises(SystemExit) as done:
        main([*command, *options, "--out", str(tmp_path / "out")])
    assert done.value.code == 0
    rows = json.loads((tmp_path / "out" / "evaluation.json").read_text())["rows"]
    assert [(row["sampling"], row["steps"]) for row in rows] == [("diffusion", 1), ("diffusion", 2), ("field", 1), ("field", 2)]
    assert [row["mean_steps"] for row in rows] == [1, 2, 1, 2]
    assert all(row["ged_iou_low"] <= row["ged_iou"] <= row["ged_iou_high"] and "maps" in row["resampled"] for row in rows)
    assert "spread_skill" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*command, "--window", "64x64", "--sample-scores"])
    assert "plain protocol" in capsys.readouterr().err


def test_the_best_of_more_is_not_compared_with_the_best_of_fewer(segmenter, processor):
    data = frames("segmentation", 3)
    evaluation = evaluate_model(segmenter, processor, data, protocol_grid([1], [1, 4], ["last"]), sample_scores=True)
    unequal = {row["score"] for row in tables.step_differences(evaluation, "tiny", 20)}
    assert not [name for name in unequal if name.endswith("_best")] and any("energy" in name for name in unequal)
    equal = tables.model_differences(evaluation, evaluation, ("a", "b"), 20)
    assert any(row["score"].endswith("_best") for row in equal)
