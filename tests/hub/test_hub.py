"""Round trips through a stand-in of the hub, as a user makes them: in a process of its own that knows no other hub."""

import os
import subprocess
import sys
from functools import partial

import pytest
import yaml
from hub_stand_in import TOKEN, Repository, card_problems, stand_in
from huggingface_hub import ModelCard, ModelCardData, hf_hub_download

import noise2map
from noise2map import zoo
from noise2map.hub.cards import Score, is_unwritten, model_index, plain_card, read_metadata, with_metadata
from noise2map.hub.push import complete_card, local_folder, write_whole
from noise2map.hub.upload import written_card
from noise2map.models import Noise2MapForDepthEstimation
from noise2map.tasks import TASKS
from noise2map.zoo import zoo_path


@pytest.fixture(scope="module")
def hub():
    with stand_in() as server:
        yield server


def run(hub, home, code, token=TOKEN, words=("-c",)):
    removed = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN")
    environment = {name: value for name, value in os.environ.items() if name not in removed}
    environment |= {"HF_ENDPOINT": hub.url if hasattr(hub, "url") else hub, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_TOKEN": token} if token else {}
    return subprocess.run([sys.executable, *words, *code], env=environment, capture_output=True, text=True, timeout=120)


MAPS = """
import torch
from transformers import AutoImageProcessor, AutoModelForDepthEstimation, pipeline
import noise2map
from noise2map.inference import Predictor
from noise2map.zoo import available

classes = {
    "freedoom-segmentation-tiny": noise2map.Noise2MapForSemanticSegmentation,
    "freedoom-normals-tiny": noise2map.Noise2MapForNormalEstimation,
    "freedoom-depth-laplace-tiny": noise2map.Noise2MapForDepthEstimation,
    "freedoom-bev-camera-completion-tiny": noise2map.Noise2MapForBevSegmentation,
}
for name, kind in classes.items():
    model = kind.from_pretrained(name)
    processor = (noise2map.Noise2MapBevProcessor if "bev" in name else noise2map.Noise2MapImageProcessor).from_pretrained(name)
    processor.push_to_hub(f"me/{name}")  # leaves the form of another library for a card
    model.push_to_hub(f"me/{name}", license="mit")
    again = kind.from_pretrained(f"me/{name}")
    assert again.config.to_diff_dict() == model.config.to_diff_dict()
    state = model.state_dict()
    assert state.keys() == again.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    assert type(processor).from_pretrained(f"me/{name}").to_dict() == processor.to_dict()
name = "me/freedoom-depth-laplace-tiny"
assert isinstance(AutoModelForDepthEstimation.from_pretrained(name), noise2map.Noise2MapForDepthEstimation)
assert isinstance(AutoImageProcessor.from_pretrained(name), noise2map.Noise2MapImageProcessor)
assert type(pipeline("depth-estimation", model=name).model) is noise2map.Noise2MapForDepthEstimation
assert Predictor.from_pretrained(name).model.config.model_type == "noise2map"
"""


@pytest.mark.slow
def test_every_map_model_comes_back_as_it_went(hub, tmp_path):
    done = run(hub, tmp_path, [MAPS])
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("segmentation", "normals", "depth-laplace", "bev-camera-completion"):
        files = hub.repositories[f"me/freedoom-{name}-tiny"].files
        assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"} == set(files)
        card = files["README.md"].decode()
        assert not card_problems(card) and read_metadata(card)["license"] == "mit" and "More Information Needed" not in card


GENERATOR = """
import shutil
import tempfile

import torch
from noise2map.guidance import DepthGuidedPipeline
from noise2map.tasks import TASKS
from noise2map.zoo import zoo_path

before = DepthGuidedPipeline.from_pretrained(zoo_path("freedoom-generator-64"))
after = DepthGuidedPipeline.from_pretrained("me/rooms")
assert type(after.depth_predictor) is type(before.depth_predictor) and after.depth_prior is not None
for name, part in before.components.items():
    if isinstance(part, torch.nn.Module):
        state = after.components[name].state_dict()
        assert all(torch.equal(value, state[key]) for key, value in part.state_dict().items())
assert dict(after.scheduler.config) == dict(before.scheduler.config)
from noise2map.generation.loading import camera_of, load_generator

from noise2map.hub.push import push

assert camera_of("me/rooms", 64) == camera_of("freedoom-generator-64", 64)
from diffusers import DDPMPipeline

DDPMPipeline(before.unet, before.scheduler).push_to_hub("me/plain", private=True)  # any generator of diffusers
plain = DepthGuidedPipeline.from_pretrained("me/plain", revision="main")
assert plain.depth_predictor is None and type(plain.unet) is type(before.unet)
with tempfile.TemporaryDirectory() as folder:
    DDPMPipeline(before.unet, before.scheduler).save_pretrained(folder)
    before.depth_predictor.save_pretrained(f"{folder}/depth_predictor")
    shutil.copy(zoo_path("freedoom-generator-64") / "camera.json", folder)
    push(folder, "me/beside")
found = load_generator("me/beside")  # a pipeline of diffusers with folders that only this library knows
assert found.depth_predictor is not None and found.depth_prior is None and camera_of("me/beside", 64).source == "camera.json"
assert camera_of("me/plain", 64).source == "assumed" and load_generator("me/plain").depth_predictor is None
"""


@pytest.mark.slow
def test_a_generator_is_pushed_by_the_command_and_comes_back(hub, tmp_path):
    done = run(hub, tmp_path, ["push", "freedoom-generator-64", "me/rooms"], words=("-m", "noise2map"))
    assert done.returncode == 0 and done.stdout.startswith("me/rooms: http"), done.stderr
    fields = read_metadata(hub.repositories["me/rooms"].files["README.md"].decode())
    assert fields["license"] == "apache-2.0" and fields["library_name"] == "diffusers"
    done = run(hub, tmp_path, [GENERATOR])
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_private_model_with_scores_and_a_branch(hub, tmp_path):
    table = tmp_path / "evaluation.csv"
    table.write_text(
        "model,dataset,split,task,steps,ensemble,abs_rel,rmse\nmine,rooms,test,depth,1,1,0.17,2.5\nother,rooms,test,depth,1,1,1,1\n"
    )
    command = ["push", "freedoom-depth-laplace-tiny", "me/mine", "--private", "--evaluation", str(table)]
    done = run(hub, tmp_path, command, words=("-m", "noise2map"))
    assert done.returncode == 0, done.stderr
    held = hub.repositories["me/mine"]
    assert held.private and "model.safetensors.index.json" not in held.files
    metrics = read_metadata(held.files["README.md"].decode())["model-index"][0]["results"][0]["metrics"]
    assert [(metric["type"], metric["value"]) for metric in metrics] == [("abs_rel", 0.17), ("rmse", 2.5)]
    before = held.sha
    hub.fail_commits = True
    try:
        done = run(hub, tmp_path, command, words=("-m", "noise2map"))
    finally:
        hub.fail_commits = False
    assert done.returncode == 2 and "nothing there has changed" in done.stderr and held.sha == before
    done = run(hub, tmp_path / "other", ["predict", "x.png", "--model", "me/mine"], token=None, words=("-m", "noise2map"))
    assert done.returncode == 2 and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "token", "said"),
    [
        (["freedoom-depth-laplace-tiny", "depth"], TOKEN, "has no owner"),
        (["freedoom-depth-laplace-tiny", "me/de pth"], TOKEN, "is no name for the hub"),
        (["freedoom-depth-laplace-tiny", "me/depth"], None, "nobody is signed in"),
        (["freedoom-depth-laplace-tiny", "me/depth"], "hf_wrong", "does not let this user write"),
        (["nothing-here", "me/depth"], TOKEN, "neither a folder, nor shipped"),
        (["you/there", "me/depth"], TOKEN, "there is no folder 'you/there' here"),
        (["freedoom-depth-laplace-tiny", "me/depth", "--evaluation", "none.csv"], TOKEN, "there is no table none.csv"),
    ],
)
def test_what_cannot_be_pushed_is_one_sentence(hub, tmp_path, words, token, said):
    done = run(hub, tmp_path, ["push", *words], token=token, words=("-m", "noise2map"))
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_hub_that_is_not_there(tmp_path):
    done = run("http://127.0.0.1:9", tmp_path, ["push", "freedoom-normals-tiny", "me/x"], words=("-m", "noise2map"))
    assert done.returncode == 2 and "cannot be reached" in done.stderr and "Traceback" not in done.stderr


def test_a_written_card_stays(hub, tmp_path):
    hub.repositories["me/kept"] = Repository(files={"README.md": b"# By hand\n"})
    code = (
        "import noise2map; noise2map.Noise2MapForNormalEstimation.from_pretrained('freedoom-normals-tiny').push_to_hub('me/kept')"
    )
    done = run(hub, tmp_path, [code])
    assert done.returncode == 0, done.stderr[-1500:]
    assert hub.repositories["me/kept"].files["README.md"] == b"# By hand\n"


FORM = str(
    ModelCard.from_template(
        ModelCardData(license="cc-by-4.0", tags=[]),
        model_description="This is the model card of a model on the Hub. This model card has been automatically generated.",
    )
)


def test_only_an_empty_form_is_no_card():
    assert FORM.count("[More Information Needed]") > 20 and is_unwritten(FORM)
    assert is_unwritten(str(ModelCard.from_template(ModelCardData(), model_id="rooms")))  # with a title of its own
    for name in ("developers", "license", "direct_use", "model_description", "results", "citation_bibtex", "get_started_code"):
        begun = str(ModelCard.from_template(ModelCardData(), **{name: "words of mine"}))
        assert "[More Information Needed]" in begun and not is_unwritten(begun), name
    trained = "<!-- You should probably proofread and complete it -->\n# rooms\nloss: 0.5\n## Uses\n[More Information Needed]\n"
    assert not is_unwritten(trained) and not is_unwritten("# By hand\n") and not is_unwritten("")


def test_a_form_gives_its_metadata_to_the_card_in_its_place(tmp_path):
    write_whole(local_folder("freedoom-depth-laplace-tiny"), tmp_path / "model")
    (tmp_path / "model/README.md").write_text(FORM)
    card = complete_card(tmp_path / "model", "me/rooms", None, [])
    assert "Noise2MapForDepthEstimation" in card and "More Information Needed" not in card
    assert read_metadata(card) == {
        "license": "cc-by-4.0", "library_name": "transformers", "pipeline_tag": "depth-estimation", "tags": ["noise2map", "depth"],
    }  # fmt: skip


def test_a_hub_that_does_not_answer_is_no_hub_without_a_card(monkeypatch, tmp_path):
    monkeypatch.setattr("noise2map.hub.upload.hf_hub_download", partial(hf_hub_download, cache_dir=tmp_path, etag_timeout=1))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}"
    )
    with pytest.raises(ConnectionError, match="did not say whether me/rooms has a card"):
        written_card("me/rooms")


@pytest.mark.parametrize("name", [*zoo.available(), *zoo.available_generators()])
def test_shipped_cards_are_what_the_hub_takes(name):
    card = (zoo_path(name) / "README.md").read_text()
    assert card_problems(card) == [] and {"license", "library_name", "pipeline_tag", "tags"} <= read_metadata(card).keys()
    scored = ("freedoom-depth-laplace-tiny", "freedoom-segmentation-tiny", "freedoom-bev-camera-completion-tiny")
    assert name not in scored or "model-index" in read_metadata(card)


def test_cards_name_tasks_as_the_tasks_do():
    assert {name: zoo.TASK_TAGS[name] for name in TASKS} == {name: task.pipeline_tag for name, task in TASKS.items()}


def test_the_copy_needs_no_file_beside_it(tmp_path):
    source = local_folder("freedoom-depth-laplace-tiny")
    write_whole(source, tmp_path / "copy")
    assert sum(path.suffix == ".safetensors" for path in (tmp_path / "copy").iterdir()) == 1
    first, second = (Noise2MapForDepthEstimation.from_pretrained(folder).state_dict() for folder in (source, tmp_path / "copy"))
    assert first.keys() == second.keys() and all(value.equal(second[key]) for key, value in first.items())


def test_blocks_with_comments_and_blank_lines_are_replaced_whole():
    card = "---\ntags:\n- one\n\n  # a comment\n- two\n\n# of the licence\nlicense: mit\n---\nText\n"
    assert read_metadata(card) == {"tags": ["one", "two"], "license": "mit"}
    new = with_metadata(card, {"tags": ["three"]}, replace=True)
    assert read_metadata(new) == {"license": "mit", "tags": ["three"]} and "# of the licence\nlicense: mit\n" in new
    gap = "\n" * 200  # of which a careless pattern would try every way to cut it up
    assert with_metadata(f"---\ntags: [one]{gap}license: mit\n---\n", {"tags": ["two"]}, replace=True).count("tags") == 1


def test_what_training_leaves_behind_is_not_uploaded(tmp_path):
    source = tmp_path / "run"
    write_whole(local_folder("freedoom-normals-tiny"), source)
    for name in ("optimizer.pt", "trainer_state.json", "checkpoint-10/model.safetensors", "rng_state.pth"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(b"x")
    write_whole(local_folder(str(source)), tmp_path / "copy")
    assert {"config.json", "preprocessor_config.json"} <= {path.name for path in (tmp_path / "copy").iterdir()}
    assert not [path for path in (tmp_path / "copy").rglob("*") if path.is_file() and path.read_bytes() == b"x"]


def test_metadata_is_added_and_replaced_without_touching_the_rest():
    card = '---\nscore: "a: b"\ntags:\n- one\n- two\nlicense: mit\n---\n\n# Title\n---\ntags: no\n'
    same = with_metadata(card, {"license": "other", "tags": None})
    assert same == card
    index = model_index("m", "depth", [Score("rmse", 1.25, "rooms", "test", 1), Score("rmse", 1.5, "rooms", "test", 3)])
    once = with_metadata(card, {"model-index": index, "tags": ["three"]}, replace=True)
    assert once.endswith("---\n\n# Title\n---\ntags: no\n") and 'score: "a: b"\n' in once
    assert read_metadata(once) == {"score": "a: b", "license": "mit", "tags": ["three"], "model-index": index}
    assert with_metadata(once, {"model-index": index, "tags": ["three"]}, replace=True) == once
    assert [result["metrics"][0]["value"] for result in index[0]["results"]] == [1.25, 1.5]
    assert card_problems(once) == [] and yaml.safe_load(once.split("---\n")[1])
    assert with_metadata("# Bare\n", {"license": "mit"}) == "---\nlicense: mit\n---\n\n# Bare\n"
    with pytest.raises(ValueError, match="no YAML"):
        read_metadata("---\na: [\n---\n")


@pytest.mark.parametrize(
    "card",
    [
        "---\nlicense: cc\ntags: [mine]\n---",
        "---\nlicense: cc\ntags: [mine]\n--- \nbody\n",
        "\ufeff---\nlicense: cc\ntags: [mine]\n---\n",
    ],
)
def test_metadata_are_read_however_their_last_line_ends(card):
    assert read_metadata(card) == {"license": "cc", "tags": ["mine"]}
    new = with_metadata(card, {"license": "mit", "pipeline_tag": "depth-estimation"})
    assert read_metadata(new) == {"license": "cc", "tags": ["mine"], "pipeline_tag": "depth-estimation"}
    assert new.count("license") == 1


def test_an_empty_field_states_nothing():
    assert with_metadata("---\nlicense:\ntags: [x]\n---\nbody", {"license": "mit"}) == "---\ntags: [x]\nlicense: mit\n---\nbody"


def test_what_is_no_model_of_the_library_is_not_pushed(tmp_path):
    for name in ("model.safetensors", "preprocessor_config.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}')
    with pytest.raises(ValueError, match="holds a model of type 'ViTForImageClassification'; expected one of segmentation"):
        local_folder(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a model of type"):
        local_folder(str(tmp_path))
    (tmp_path / "config.json").write_text('{"architectures": ["Noise2MapForDepthEstimation"]}')
    assert local_folder(str(tmp_path)) == tmp_path
    (tmp_path / zoo.EXPORT_FILE).write_text('{"format": "torch"}')
    for name in ("encoder.pt2", "step.pt2"):
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match="is an export, which from_pretrained does not read"):
        local_folder(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "processor"),
    [("Noise2MapForBevSegmentation", "Noise2MapBevProcessor"), ("Noise2MapForDepthEstimation", "Noise2MapImageProcessor")],
)
def test_a_plain_card_loads_the_processor_of_its_model(name, processor):
    card = plain_card("me/x", getattr(noise2map, name).task, name)
    assert f"from noise2map import {name}, {processor}\n" in card and f"{processor}.from_pretrained(" in card
