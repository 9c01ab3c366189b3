"""Shipped models of maps whose decoders stand on one encoder: its weights are kept once, each folder loads as ever."""

import json
import shutil

import pytest
import ship_checkpoint
import torch
from tiny_training import tiny_model, tiny_processor

from noise2map import zoo
from noise2map.inference.loading import load_model


@pytest.fixture
def room(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "_ROOM", tmp_path / "zoo")
    return tmp_path / "zoo"


def trained(folder, task, encoder=None):
    model = tiny_model(task)
    if encoder is not None:
        model.encoder.load_state_dict(encoder.state_dict())
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return model


def test_two_models_keep_one_encoder(tmp_path, room):
    first = trained(tmp_path / "classes", "segmentation")
    second = trained(tmp_path / "depth", "depth", first.encoder)
    shared = room / "encoders" / "tiny.safetensors"
    for name, model in (("classes", first), ("depth", second)):
        ship_checkpoint.ship(tmp_path / name, room / name, shared)
        loaded = type(model).from_pretrained(room / name)
        state = model.state_dict()
        assert {value.dtype for value in loaded.state_dict().values() if value.is_floating_point()} == {torch.float32}
        assert all(torch.equal(value, state[key].to(torch.half).to(value)) for key, value in loaded.state_dict().items())
        assert load_model(name)[0].config.architectures == [type(model).__name__]
    own = sum(value.numel() for key, value in second.state_dict().items() if not key.startswith("encoder."))
    assert (room / "depth" / "model-own.safetensors").stat().st_size < 2 * own + 8000
    assert zoo.available() == ["classes", "depth"]
    described = {one.name: one for one in zoo.shipped_models()}
    assert described["depth"].parameters == sum(value.numel() for value in second.state_dict().values())


def test_a_shipped_model_gives_its_encoder_away(tmp_path, room):
    first = trained(tmp_path / "classes", "segmentation")
    ship_checkpoint.ship(tmp_path / "classes", room / "classes")
    (room / "classes" / "README.md").write_text("card")
    before = type(first).from_pretrained(room / "classes").state_dict()
    for _ in range(2):  # a second time changes nothing
        ship_checkpoint.ship(room / "classes", room / "classes", room / "encoders" / "tiny.safetensors")
        assert sorted(path.name for path in (room / "classes").iterdir()) == [
            "README.md", "config.json", "model-own.safetensors", "model.safetensors.index.json", "preprocessor_config.json",
        ]  # fmt: skip
        after = type(first).from_pretrained(room / "classes").state_dict()
        assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())


def test_another_encoder_is_refused_and_nothing_changes(tmp_path, room):
    first = trained(tmp_path / "classes", "segmentation")
    shared = room / "encoders" / "tiny.safetensors"
    ship_checkpoint.ship(tmp_path / "classes", room / "classes", shared)
    with torch.no_grad():
        first.encoder.merge.conv.weight.add_(0.1)
    trained(tmp_path / "depth", "depth", first.encoder)
    with pytest.raises(ValueError, match=r"tiny\.safetensors holds another encoder: 1 weights differ"):
        ship_checkpoint.ship(tmp_path / "depth", room / "depth", shared)
    assert not (room / "depth").exists()


def test_a_folder_without_its_encoder_says_so(tmp_path, room):
    trained(tmp_path / "classes", "segmentation")
    ship_checkpoint.ship(tmp_path / "classes", room / "classes", room / "encoders" / "tiny.safetensors")
    shutil.copytree(room / "classes", tmp_path / "elsewhere" / "copy")
    with pytest.raises(FileNotFoundError, match=r"encoders.tiny\.safetensors, which .* names"):
        zoo.resolve_model(tmp_path / "elsewhere" / "copy")
    index = json.loads((room / "classes" / "model.safetensors.index.json").read_text())
    assert len(index["metadata"]["shared_sha256"]) == 64
