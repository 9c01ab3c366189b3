import re

import numpy as np
import pytest
import torch

from noise2map import zoo
from noise2map.data.freedoom import load_samples
from noise2map.demo.completion import complete
from noise2map.inference import Predictor
from noise2map.models import Noise2MapForDepthEstimation


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A zoo with one complete and one incomplete checkpoint."""
    for name, files in (("freedoom-depth-tiny", zoo._NEEDED), ("broken-tiny", ("config.json",))):
        (tmp_path / "zoo" / name).mkdir(parents=True)
        for file in files:
            (tmp_path / "zoo" / name / file).write_text("{}")
    monkeypatch.setattr(zoo, "_ROOM", tmp_path / "zoo")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_shipped_checkpoints_are_found_by_name(room, monkeypatch):
    monkeypatch.chdir(room.parent)  # where no folder is called like this
    assert zoo.available() == ["broken-tiny", "freedoom-depth-tiny"]
    assert zoo.zoo_path("freedoom-depth-tiny") == room / "zoo" / "freedoom-depth-tiny"
    assert zoo.resolve_model("freedoom-depth-tiny") == str(room / "zoo" / "freedoom-depth-tiny")
    assert zoo.resolve_model("zoo/freedoom-depth-tiny") == zoo.resolve_model("freedoom-depth-tiny")
    assert zoo.zoo_path("zoo/freedoom-depth-tiny") == zoo.zoo_path("freedoom-depth-tiny")
    with pytest.raises(ValueError, match="did you mean 'freedoom-depth-tiny'"):
        zoo.zoo_path("freedom-depth-tiny")


def test_folders_come_before_names_and_must_be_complete(room):
    folder = room / "freedoom-depth-tiny"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        zoo.resolve_model("freedoom-depth-tiny")
    for file in zoo._NEEDED:
        (folder / file).write_text("{}")
    assert zoo.resolve_model(folder) == str(folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")  # in shards
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
    assert zoo.resolve_model(folder) == str(folder)
    with pytest.raises(FileNotFoundError, match=r"broken-tiny.* has no model\.safetensors"):
        zoo.resolve_model("broken-tiny")


def test_hub_ids_are_left_to_the_hub_and_the_rest_is_refused(room):
    assert zoo.resolve_model("someone/some-model_1.0") == "someone/some-model_1.0"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        zoo.resolve_model("./nothing/here")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        zoo.resolve_model("/nothing")
    (room / "model.pth").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        zoo.resolve_model("model.pth")
    with pytest.raises(ValueError, match="shipped: broken-tiny, freedoom-depth-tiny"):
        zoo.resolve_model("resnet")


@pytest.mark.parametrize("name", zoo.available())
def test_shipped_checkpoints_are_small_and_documented(name):
    files = {path.name: path.stat().st_size for path in zoo.zoo_path(name).iterdir()}
    weights = {"model.safetensors"} if "model.safetensors" in files else {"model.safetensors.index.json", "model-own.safetensors"}
    assert {"config.json", "preprocessor_config.json", "README.md", *weights} <= set(files)
    assert sum(files.values()) < 10e6


def test_depth_with_a_scale_covers_the_truth_and_knows_where_it_is_wrong():
    samples = load_samples("test", "depth")
    chosen = [samples[index] for index in range(0, len(samples), 3)]
    predictor = Predictor.from_pretrained("freedoom-depth-laplace-tiny", "cpu")
    pixels = predictor.processor(images=[one["image"] for one in chosen], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        out = predictor.model(pixel_values=pixels)
    valid = torch.from_numpy(np.stack([one["valid"] for one in chosen]))
    truth = torch.from_numpy(np.stack([one["depth_m"] for one in chosen]))
    low, high = out.interval(0.9)
    assert 0.8 < ((low <= truth) & (truth <= high))[valid].float().mean() < 0.97
    error, scale = (out.predicted_depth / truth.clamp(min=0.1)).log().abs()[valid], out.predicted_scale[valid]
    halves = scale > scale.median()
    assert error[halves].mean() > 1.25 * error[~halves].mean()


def test_the_shipped_normals_face_where_the_rooms_do():
    predictor, one = Predictor.from_pretrained("freedoom-normals-tiny", "cpu"), load_samples("test", "depth")[0]
    found = predictor([one["image"]], [one["id"]])[0].map  # x right, y up, z to the viewer
    height = found.shape[0]
    assert found[int(0.95 * height) :, :, 1].mean() > 0.5  # the floor faces up
    assert np.allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-3)


def test_guesses_behind_a_cover_differ_where_one_call_doubts_and_agree_where_it_is_sure():
    predictor = Predictor.from_pretrained("freedoom-completion-tiny", "cpu")
    for one in (complete(predictor, load_samples("test")[index], "", seed=0) for index in (0, 36)):
        differ = (one.samples[:1] != one.samples[1:]).mean(0)
        sure = one.doubt < np.median(one.doubt)
        assert differ[~sure].mean() > 5 * differ[sure].mean() and differ[one.hidden].mean() > 0.1
        assert one.doubt[one.hidden].mean() > one.doubt[~one.hidden].mean()


def test_the_shipped_segmentation_model_sees_rooms():
    samples = load_samples("test")
    chosen = [samples[index] for index in range(0, len(samples), 12)]
    predictor = Predictor.from_pretrained("freedoom-segmentation-tiny", "cpu")
    assert predictor.id2label == samples.id2label and (predictor.palette == samples.palette).all()
    found = predictor([one["image"] for one in chosen], [one["id"] for one in chosen], num_inference_steps=3)
    right = [(p.labels == one["labels"])[one["labels"] != 255] for p, one in zip(found, chosen)]
    assert np.concatenate(right).mean() > 0.7  # 0.44 is "everything is a wall"


def test_the_shipped_depth_model_measures_rooms():
    samples = load_samples("test", "depth")
    chosen = [samples[index] for index in range(0, len(samples), 6)]
    predictor = Predictor.from_pretrained("freedoom-depth-laplace-tiny", "cpu")
    found = predictor([one["image"] for one in chosen], [one["id"] for one in chosen])
    pairs = [(p.depth_m[one["valid"]], one["depth_m"][one["valid"]]) for p, one in zip(found, chosen)]
    predicted, truth = (np.concatenate(part) for part in zip(*pairs))
    assert np.median(np.abs(predicted / truth - 1)) < 0.25  # the best constant is off by 0.56
    assert np.corrcoef(np.log(predicted), np.log(truth))[0, 1] > 0.8


def test_shipped_models_are_described_by_files_and_cards():
    found = {one.name: one for one in zoo.shipped_models()}
    assert sorted(found) == sorted([*zoo.available(), *zoo.available_generators()])
    depth = found["freedoom-depth-laplace-tiny"]
    assert depth.task == "depth" and found["freedoom-generator-64"].task == "generation"
    assert found["freedoom-bev-camera-completion-tiny"].task == "bev"
    model = Noise2MapForDepthEstimation.from_pretrained(zoo.zoo_path("freedoom-depth-laplace-tiny"))
    assert depth.parameters == pytest.approx(sum(tensor.numel() for tensor in model.state_dict().values()), rel=0.01)


@pytest.mark.parametrize("one", zoo.shipped_models(), ids=lambda one: one.name)
def test_the_score_of_a_shipped_model_stands_in_the_tables_of_its_card(one):
    number = re.search(r"\d+\.\d+", one.score)[0]
    rows = [line for line in one.card.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert any(number in row for row in rows) and one.limit != "see the card"


def test_a_name_of_the_other_kind_is_told_which_command_takes_it():
    with pytest.raises(ValueError, match=r"is an image generator, which noise2map sample draws from.*freedoom-depth-laplace-tiny"):
        zoo.resolve_model("freedoom-generator-64")
    with pytest.raises(ValueError, match=r"is a model of maps, which noise2map predict runs.*freedoom-generator-64"):
        zoo.resolve_generator("freedoom-depth-laplace-tiny")
    with pytest.raises(ValueError, match="holds a model of maps"):
        zoo.resolve_generator(zoo.zoo_path("freedoom-depth-laplace-tiny"))
    with pytest.raises(ValueError, match="holds an image generator"):
        zoo.resolve_model(zoo.zoo_path("freedoom-generator-64"))
    with pytest.raises(FileNotFoundError, match="did you mean 'freedoom-generator-64'"):
        zoo.resolve_generator("freedom-generator")


def test_a_run_directory_points_to_its_model(room):
    final = room / "runs" / "rooms" / "final"
    final.mkdir(parents=True)
    (final / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"the run's model is in '.*runs/rooms/final'"):
        zoo.resolve_model(room / "runs" / "rooms")


def test_the_shipped_generators_parts_belong_together_and_read_the_depth_of_real_frames():
    """Its predictor, asked about frames that it never saw, does better than the best constant; weak and strong differ."""
    from noise2map.data.center_crop import center_crop_image, center_crop_map
    from noise2map.generation.depth_reading import depth_probe
    from noise2map.generation.loading import load_generator

    pipe = load_generator("freedoom-generator-64")
    assert pipe.depth_predictor.depth_range == pipe.depth_prior.depth_range and pipe.depth_predictor.depth_range.metric
    assert (pipe.depth_predictor.strong_blocks, pipe.depth_predictor.weak_blocks) == ((1, 2, 3, 4, 5), (4,))
    frames = [load_samples("test", "depth")[index] for index in range(0, 24, 3)]
    images = torch.stack([torch.from_numpy(np.array(center_crop_image(one["image"], 64))).permute(2, 0, 1) for one in frames])
    truth = torch.from_numpy(np.stack([center_crop_map(np.where(one["valid"], one["depth_m"], 0), 64) for one in frames])).float()
    strong, weak = depth_probe(pipe)(images, [str(index) for index in range(len(frames))])
    known = truth > 0
    errors = [(pipe.depth_predictor.decode_depth(one)[known].log() - truth[known].log()).abs().mean() for one in (strong, weak)]
    constant = (truth[known].log() - truth[known].log().median()).abs().mean()
    assert errors[0] < errors[1] < 0.8 * constant


@pytest.mark.parametrize("content", ["{", "[1]", "{}", '{"weight_map": 3}', '{"weight_map": {}}'])
def test_a_broken_index_is_named(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json is no index of weights"):
        zoo.named_files(tmp_path)
