"""Test plans, evaluation under them, and the published scores beside."""

import csv
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_depth_model, tiny_segmenter
from torch.nn import functional

from noise2map.cli import main
from noise2map.data import open_public_dataset
from noise2map.data.evaluation_crops import EVALUATION_CROPS
from noise2map.diffusion import image_generator
from noise2map.evaluation.evaluate import evaluate_model
from noise2map.evaluation.official import (
    TestProtocol,
    apply_crop,
    backbone_name,
    find_protocol,
    published_for,
    published_scores,
    published_table,
)
from noise2map.evaluation.run import EvaluationReport, _add_published
from noise2map.evaluation.stored import MapFolder, evaluate_maps
from noise2map.evaluation.test_time import SCALES, TestTimeAugmentation
from noise2map.metrics import DEPTH_SCORES
from noise2map.models import Noise2MapImageProcessor
from noise2map.models.decoding import DecodingOptions, Protocol
from noise2map.rendering.export import export_frames
from noise2map.training.maps.dry_run import empty_model
from noise2map.training.maps.recipe import load_recipe

PROCESSOR = Noise2MapImageProcessor(size={"height": 96, "width": 128})


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    root = tmp_path_factory.mktemp("layouts")
    for layout in ("nyu", "ade20k"):
        export_frames(layout, "samples", root / layout, limit=2)
    return root


@pytest.mark.parametrize("dials", [[Protocol(2), Protocol(2, 2, "steps")]])
def test_one_window_around_everything_scores_as_the_plain_evaluation(rooms, dials):
    for name, model in (("nyu", tiny_depth_model()), ("ade20k", tiny_segmenter(num_labels=150))):
        data = open_public_dataset(name, rooms / name)
        plain = evaluate_model(model, PROCESSOR, data, dials, seed=2)
        plan = TestProtocol("", TestTimeAugmentation(window=(128, 128)))
        planned = evaluate_model(model, PROCESSOR, data, dials, test_protocol=plan, seed=2)
        assert planned.image_ids == plain.image_ids
        for one, other in zip(planned.results, plain.results):
            found, expected = one.scorer.scores(), other.scorer.scores()
            assert found == {key: pytest.approx(value, rel=1e-3, abs=1e-5, nan_ok=True) for key, value in expected.items()}
            assert one.mean_steps == other.mean_steps == 2
            assert set(one.scorer.uncertainties) == set(other.scorer.uncertainties)


def test_official_depth_scores_by_hand(rooms):
    model, seed = tiny_depth_model(min_depth=1e-3, max_depth=10.0), 3
    processor = Noise2MapImageProcessor(do_resize=False)
    data = apply_crop(open_public_dataset("nyu", rooms / "nyu"), "nyu", "official")
    plan = find_protocol("nyu", "depth", "official")
    evaluation = evaluate_model(model, processor, data, [Protocol(2)], test_protocol=plan, seed=seed)
    rows = []
    for index in range(len(data)):
        sample = data[index]
        pixels = processor(images=sample["image"], return_tensors="pt")["pixel_values"]
        maps = []
        for mirrored in (False, True):
            name = f"{sample['id']}|view 1" if mirrored else sample["id"]
            with torch.no_grad():
                output = model(
                    pixel_values=pixels.flip(-1) if mirrored else pixels,
                    num_inference_steps=2,
                    generator=[image_generator(seed, name)],
                )
            maps.append(output.predicted_depth[0].flip(-1) if mirrored else output.predicted_depth[0])
        depth = np.clip(((maps[0] + maps[1]) / 2).numpy().astype(np.float64), 1e-3, 10)
        inside = np.zeros(depth.shape, bool)
        inside[45:471, 41:601] = True
        truth = sample["depth_m"].astype(np.float64)
        inside &= (truth > 1e-3) & (truth < 10)
        ratio = depth[inside] / truth[inside]
        rows.append(
            {
                "delta1": np.mean(np.maximum(ratio, 1 / ratio) < 1.25),
                "abs_rel": np.mean(np.abs(ratio - 1)),
                "rmse": np.sqrt(np.mean((depth - truth)[inside] ** 2)),
                "silog": 100 * np.std(np.log(ratio)),
            }
        )
    scores = evaluation.results[0].scorer.scores()
    assert set(scores) == set(DEPTH_SCORES)
    for name in rows[0]:
        assert scores[name] == pytest.approx(np.mean([row[name] for row in rows]), rel=1e-4)


def test_official_segmentation_scores_by_hand(rooms):
    """Fitted into 2048x512 whole, mean over steps, logits brought to the picture's size, intersection over union by counting."""
    model, seed = tiny_segmenter(num_labels=150), 3
    data = open_public_dataset("ade20k", rooms / "ade20k")
    plan = find_protocol("ade20k", "segmentation", "official")
    evaluation = evaluate_model(model, PROCESSOR, data, [Protocol(2, 1, "steps")], test_protocol=plan, seed=seed)
    both, either = np.zeros(150), np.zeros(150)
    for index in range(len(data)):
        sample = data[index]
        pixels = torch.from_numpy(np.array(sample["image"])).permute(2, 0, 1)[None].float()
        pixels = functional.interpolate(pixels, size=(512, 683), mode="bilinear").round() / 255  # 120 x 160 pixels, times 4.27
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        generator = [image_generator(seed, sample["id"])]
        with torch.no_grad():
            features = model.encode_image((pixels - mean[:, None, None]) / std[:, None, None])
            output = model.decode_map(features, num_inference_steps=2, generator=generator, output_steps=True)
        chances = torch.stack([step.readout.softmax(1) for step in output.steps]).mean(0)
        chances = functional.interpolate(chances, size=(512, 683), mode="bilinear")
        found = functional.interpolate(chances, size=(120, 160), mode="bilinear")[0].argmax(0).numpy()
        known = sample["labels"] != 255
        for label in range(150):
            guessed, true = (found == label) & known, sample["labels"] == label
            both[label] += (guessed & true).sum()
            either[label] += (guessed | true).sum()
    expected = np.mean(both[either > 0] / either[either > 0])
    assert evaluation.results[0].scorer.scores()["mIoU"] == pytest.approx(expected, rel=0.02, abs=1e-4)
    assert expected > 0


def test_sun_rgbd_predictions_end_at_eight_metres():
    model = tiny_depth_model(max_depth=10.0)
    model.head.regressor.bias.data.fill_(50)  # every prediction is at the far end
    depth = np.full((64, 96), 9.0, np.float32)
    picture = PROCESSOR  # any size will do: the picture is made below

    class Far:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            from PIL import Image

            return EVALUATION_CROPS["sun-rgbd"]({"id": "a", "image": Image.new("RGB", (96, 64)), "depth_m": depth})

    for name, error in (("sun-rgbd", 0.0), ("nyu", 0.25)):
        found = evaluate_model(model, picture, Far(), [Protocol(1)], test_protocol=find_protocol(name, "depth", "official"))
        assert found.results[0].scorer.scores()["abs_rel"] == pytest.approx(error, abs=1e-6)  # the truth ends at 8 m too


def test_plans_of_the_data_sets():
    assert find_protocol("ade20k", "segmentation", "official").views == TestTimeAugmentation(frame=(2048, 512))
    cityscapes = find_protocol("cityscapes", "segmentation", "multi-scale", (512, 512))
    assert cityscapes.views == TestTimeAugmentation(frame=(2048, 1024), scales=SCALES, flip=True, window=(512, 512))
    assert cityscapes.name == "multi-scale: fitted into 2048x1024, 6 scales, flip, windows 512x512"
    kitti = find_protocol("kitti", "depth", "official")
    assert kitti.depth_range_m == (1e-3, 80.0) and kitti.views.flip and "Garg" in kitti.name
    assert find_protocol("folder", "depth").views == TestTimeAugmentation()
    both = find_protocol("cityscapes", "depth", "flip")
    assert both.views == TestTimeAugmentation(flip=True) and both.name == "flip: flip, whole"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("folder", "depth", "official"), "no official protocol for 'folder'"),
        (("nyu", "depth", "multi-scale"), "another focal length"),
        (("nyu", "depth", "offical"), "protocol must be one of"),
        (("nyu", "depth", "plain", None, (32, 32)), "needs a window"),
    ],
)
def test_impossible_plans_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        find_protocol(*arguments)


def test_published_scores_are_found_by_model_data_and_dials():
    def config(name):
        return empty_model(load_recipe(f"official/{name}")).config

    swin = config("ade20k-swin-t")
    assert backbone_name(swin) == "swin-t" and backbone_name(config("cityscapes-convnext-s")) == "convnext-s"
    assert published_for(swin, "ade20k", "official", 3, 1, "steps") == {"mIoU": 0.47}
    assert published_for(swin, "ade20k", "multi-scale", 3, 1, "steps") == {"mIoU": pytest.approx(0.478)}
    assert published_for(swin, "ade20k", "official", 3, 1, "last") == {}
    assert published_for(swin, "ade20k", "official", 3, 4, "steps") == {}
    assert published_for(swin, "ade20k", "plain", 3, 1, "steps") == {}
    aligned = config("cityscapes-convnext-t-aligned")
    assert published_for(aligned, "cityscapes", "official", 10, 1, "last") == {"mIoU": pytest.approx(0.826)}
    convnext = config("cityscapes-convnext-t")
    assert published_for(convnext, "cityscapes", "official", 1, 1, "last") == {"mIoU": pytest.approx(0.8233)}
    assert published_for(config("kitti-swin-l"), "kitti", "official", 3, 1, "last") == {"abs_rel": 0.05, "rmse": 2.072}
    other = SimpleNamespace(backbone_config=SimpleNamespace(model_type="resnet"), self_aligned=False)
    assert backbone_name(other) is None and published_for(other, "ade20k", "official", 3, 1, "steps") == {}


def test_published_scores_name_recipes_that_exist():
    from noise2map.training.recipe_files import recipe_names

    names = {
        f"official/{row['dataset']}-{row['backbone']}" + "-aligned" * (row["self_aligned"] == "yes")
        for row in published_scores()
        if row["dataset"] != "nuscenes"  # its training resamples by boxes, which the map task has no other use for
    }
    assert names <= set(recipe_names())


def test_the_published_score_stands_beside_the_measured_one():
    scored = {"protocol": "3 steps, steps, ddim", "images": 2000, "released_images": 2000, "mIoU": 0.4712, "published_mIoU": 0.47}
    table = published_table([scored, {"protocol": "1", "mIoU": 0.1}])
    assert [word for word in ("47.12", "47", "+0.12", "all 2000") if word not in table] == [] and len(table.splitlines()) <= 3
    assert "8, published: 2000" in published_table([scored | {"images": 8}])
    assert published_table([{"protocol": "1", "mIoU": 0.1}]) == ""


def test_a_wrong_scale_of_depth_is_said_before_scores(rooms, tmp_path, capsys):
    """Depth files in fifths of a millimetre, read as millimetres."""
    shutil.copytree(rooms / "nyu", tmp_path / "nyu")
    for path in (tmp_path / "nyu").rglob("sync_depth_*.png"):
        depth = np.asarray(Image.open(path)).astype(np.int64) * 5
        Image.fromarray(np.minimum(depth, 65535).astype(np.uint16)).save(path)
    tiny_depth_model().save_pretrained(tmp_path / "model")
    PROCESSOR.save_pretrained(tmp_path / "model")
    said = []
    for root in (rooms / "nyu", tmp_path / "nyu"):
        words = ["--model", tmp_path / "model", "--dataset", "nyu", "--root", root, "--steps", "1", "--resamples", 0, "--limit", 1]
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", *map(str, words)])
        assert not stop.value.code
        said.append([line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: NYU-Depth V2: the median")])
    assert said[0] == [] and len(said[1]) == 1 and "the files may hold 1/5000 m" in said[1][0]


def test_official_protocol_from_the_command_line(rooms, tmp_path, capsys, monkeypatch):
    from noise2map.evaluation import official as published

    row = {"dataset": "nyu", "backbone": None, "self_aligned": "no", "protocol": "official", "steps": "1"}
    monkeypatch.setattr(published, "published_scores", lambda: [{**row, "average": "last", "score": "abs_rel", "value": "0.094"}])
    model = tmp_path / "model"
    tiny_depth_model(average="steps").save_pretrained(model)
    PROCESSOR.save_pretrained(model)
    words = ["--model", model, "--dataset", "nyu", "--root", rooms / "nyu", "--protocol", "official", "--resamples", 0]
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *map(str, words), "--steps", "1", "2", "--device", "cpu", "--out", str(tmp_path / "out")])
    assert not stop.value.code
    rows = json.loads((tmp_path / "out" / "evaluation.json").read_text())["rows"]
    assert [row["average"] for row in rows] == ["last", "steps"]  # as the model says
    assert rows[0]["published_abs_rel"] == 0.094 and "published_abs_rel" not in rows[1]
    assert (rows[0]["images"], rows[0]["released_images"]) == (2, 654)
    assert rows[0]["test_protocol"] == "official, Eigen crop: own size, flip, whole" and rows[0]["split"] == "test"
    assert (rows[0]["min_depth"], rows[0]["max_depth"]) == (1e-3, 10.0)
    assert "published" in capsys.readouterr().out
    with open(tmp_path / "out" / "evaluation.csv", newline="") as file:
        assert next(csv.DictReader(file))["test_protocol"] == rows[0]["test_protocol"]


def test_stored_depth_ends_where_the_protocol_says(tmp_path):
    (tmp_path / "depth").mkdir()
    np.save(tmp_path / "depth" / "a.npy", np.full((64, 96), 9.5, np.float32))

    class Far:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            depth = np.full((64, 96), 9.0, np.float32)
            return EVALUATION_CROPS["sun-rgbd"]({"id": "a", "image": Image.new("RGB", (96, 64)), "depth_m": depth})

    farthest = find_protocol("sun-rgbd", "depth", "official").farthest_m
    found = [evaluate_maps(MapFolder(tmp_path, "depth"), Far(), (1e-3, 10.0), farthest_m=end) for end in (None, farthest)]
    assert [one.results[0].scorer.scores()["abs_rel"] for one in found] == pytest.approx([0.1875, 0.0], abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "stands"),
    [
        ({}, True),
        ({"protocol": {"sampling": "field"}}, False),
        ({"protocol": {"refine": "uncertain", "refine_share": 0.3}}, False),
        ({"hide": "window"}, False),
        ({"members": ("b",)}, False),
    ],
)
def test_published_scores_stand_beside_runs_under_their_conditions_alone(changes, stands):
    model = empty_model(load_recipe("official/ade20k-swin-t"))
    dials = {"num_inference_steps": 3, "ensemble_size": 1, "average": "steps", "sampler": "ddim"}
    result = SimpleNamespace(protocol=DecodingOptions(**dials | changes.get("protocol", {})))
    report = EvaluationReport()
    report.rows = [{"split": "val"}]
    chosen = SimpleNamespace(
        dataset="ade20k", test_protocol="official", hide=changes.get("hide"), members=changes.get("members", ())
    )
    _add_published(report, SimpleNamespace(results=[result]), model, chosen)
    assert ("published_mIoU" in report.rows[0]) == stands
