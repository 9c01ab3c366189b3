"""What `benchmarks/ship_generator.py` writes loads by name, in float32, and is written whole or not at all."""

import json
import shutil
from pathlib import Path

import pytest
import ship_generator
import torch
from diffusers import DDPMPipeline, UNet2DModel
from tiny_generator import save_generator

from noise2map import zoo
from noise2map.generation.loading import camera_of, load_generator
from noise2map.guidance import DepthGuidedPipeline, DepthPredictor, DepthPrior
from noise2map.zoo import label_of, resolve_generator

CAMERA = {"intrinsics_px": [10.0, 12.0, 8.0, 8.0], "size_px": [16, 16]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    paths = save_generator(tmp_path_factory.mktemp("trained"))
    (paths["generator"] / "camera.json").write_text(json.dumps(CAMERA))
    return paths


@pytest.fixture
def room(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "_ROOM", tmp_path / "zoo")
    return tmp_path / "zoo"


def ship(trained, room, **changes):
    paths = {**trained, **changes}
    parts = (paths["generator"], paths["predictor"], paths["prior"])
    return ship_generator.ship(*parts, room / "rooms-16", "plain", "mean", seeds=2, steps=2)


def test_a_shipped_generator_loads_by_name_in_float32_with_its_parts(trained, room):
    (room / "rooms-16").mkdir(parents=True)
    (room / "rooms-16" / "README.md").write_text("card")
    told = ship(trained, room)
    assert (room / "rooms-16" / "README.md").read_text() == "card"
    assert [path.name for path in room.iterdir()] == ["rooms-16"]
    assert any("half precision" in line and "guided" in line for line in told)
    for name in ("rooms-16", "zoo/rooms-16"):
        pipe = load_generator(name)
        assert (pipe.config.convention, pipe.config.reduction) == ("plain", "mean")
        parts = (pipe.unet, pipe.depth_predictor, pipe.depth_prior)
        assert {one.dtype for part in parts for one in part.state_dict().values()} == {torch.float32}
        assert camera_of(name, 16) == (CAMERA["intrinsics_px"], "camera.json")
        assert zoo.zoo_path(name) == room / "rooms-16" == Path(resolve_generator(name)) and label_of(name) == "rooms-16"
    # the classes themselves, too: half precision is how the file is written, not how the model computes
    folder = room / "rooms-16"
    exact = UNet2DModel.from_pretrained(trained["generator"], subfolder="unet").state_dict()
    stored = UNet2DModel.from_pretrained(folder, subfolder="unet").state_dict()
    assert all((stored[key] == value.half().float()).all() for key, value in exact.items())
    for kind, part in ((DepthPredictor, "depth_predictor"), (DepthPrior, "depth_prior")):
        assert kind.from_pretrained(folder / part).dtype == torch.float32
    whole = DepthGuidedPipeline.from_pretrained(folder)
    assert whole.depth_predictor is not None and whole.depth_prior is not None
    assert DDPMPipeline.from_pretrained(folder).unet.dtype == torch.float32
    assert not any("_name_or_path" in path.read_text() for path in folder.rglob("*.json"))


def test_what_cannot_be_shipped_leaves_what_was_there(trained, room, tmp_path, monkeypatch):
    ship(trained, room)
    before = {path: path.read_bytes() for path in room.rglob("*") if path.is_file()}
    monkeypatch.setitem(ship_generator.BUDGETS_MB, ("depth_predictor", "depth_prior"), 0.001)
    with pytest.raises(ValueError, match=r"depth_predictor and depth_prior take .* less than 0.001"):
        ship(trained, room)
    shutil.copytree(trained["generator"], tmp_path / "no-camera", ignore=shutil.ignore_patterns("camera.json"))
    with pytest.raises(FileNotFoundError, match=r"no camera\.json"):
        ship(trained, room, generator=tmp_path / "no-camera")
    assert {path: path.read_bytes() for path in room.rglob("*") if path.is_file()} == before


def test_names_under_zoo_are_nobodys_repository(trained, room):
    ship(trained, room)
    with pytest.raises(FileNotFoundError, match=r"'zoo/nothing' is neither .* shipped: rooms-16"):
        resolve_generator("zoo/nothing")
    with pytest.raises(ValueError, match="'zoo/nothing' is not shipped"):
        zoo.resolve_model("zoo/nothing")
    with pytest.raises(ValueError, match="'zoo/rooms-16' is an image generator"):
        zoo.resolve_model("zoo/rooms-16")
    assert zoo.available() == [] and zoo.available_generators() == ["rooms-16"]


def test_the_final_model_of_a_run_is_called_as_the_run(tmp_path, monkeypatch):
    (tmp_path / "mine" / "final").mkdir(parents=True)
    (tmp_path / "mine" / "checkpoint-4").mkdir()
    assert label_of(str(tmp_path / "mine" / "final")) == "mine"
    assert label_of(str(tmp_path / "mine")) == "mine" and label_of(str(tmp_path / "mine" / "checkpoint-4")) == "checkpoint-4"
    monkeypatch.chdir(tmp_path / "mine")
    assert label_of("final") == "mine" and label_of("zoo/freedoom-segmentation-tiny") == "freedoom-segmentation-tiny"
