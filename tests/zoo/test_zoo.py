import pytest

from noise2map import zoo


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


def test_shipped_checkpoints_are_found_by_name(room):
    assert zoo.available() == ["broken-tiny", "freedoom-depth-tiny"]
    assert zoo.zoo_path("freedoom-depth-tiny") == room / "zoo" / "freedoom-depth-tiny"
    assert zoo.resolve_model("freedoom-depth-tiny") == str(room / "zoo" / "freedoom-depth-tiny")
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
    (folder / "model.safetensors").rename(folder / "model.safetensors.index.json")  # in shards
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
