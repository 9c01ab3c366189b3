"""``noise2map convert ddp``: from an official file, here or on the hub, to a folder that everything else reads."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from official_checkpoints import CONVNEXT, DEPTH, SEGMENTATION, small_weights
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForDepthEstimation, AutoModelForSemanticSegmentation, pipeline

from noise2map.cli import main
from noise2map.convert.checkpoint import find_checkpoint
from noise2map.convert.ddp import settings_from_meta
from noise2map.data.cityscapes import CLASSES as CITYSCAPES
from noise2map.inference.predictor import Predictor

REPOSITORY, COMMIT = "yfji/DDP-Weight", "0123456789abcdef0123456789abcdef01234567"
CONFIG_TEXT = """model = dict(
    type='{type}',
    timesteps={steps},
    bit_scale={scale},
    accumulation={accumulation},
    decode_head=dict(type='DeformableHeadWithTime', num_classes=19))
"""


def run(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main(["convert", "ddp", *map(str, words)])
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err


def official_file(path, name=CONVNEXT, **meta):
    torch.save({"meta": meta, "state_dict": small_weights(name), "optimizer": {"state": {}}}, path)
    return path


def hub_cache(folder, name, content):
    """A folder as huggingface_hub keeps it: a blob, a snapshot that links to it, a reference to the snapshot."""
    home = folder / "models--yfji--DDP-Weight"
    for part in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (home / part).mkdir(parents=True)
    (home / "blobs" / "cafe").write_bytes(content)
    (home / "snapshots" / COMMIT / name).symlink_to("../../blobs/cafe")
    (home / "refs" / "main").write_text(COMMIT)


def test_converted_segmentation_has_names_colors_size_and_normalisation(tmp_path, capsys):
    code, text, _ = run(capsys, official_file(tmp_path / "model.pth"), "--out", tmp_path / "out")
    assert code == 0 and "19 classes (road, sidewalk, building, ...); 3 steps" in text
    model, processor = (kind.from_pretrained(tmp_path / "out") for kind in (AutoModelForSemanticSegmentation, AutoImageProcessor))
    assert model.config.id2label == {index: name for index, (name, _, _) in enumerate(CITYSCAPES)}
    assert dict(processor.size) == {"shortest_edge": 1024, "longest_edge": 2048}
    assert np.allclose(np.array(processor.image_mean) * 255, [123.675, 116.28, 103.53])
    assert np.allclose(np.array(processor.image_std) * 255, [58.395, 57.12, 57.375])
    assert np.array_equal(Predictor(model, processor).palette, [color for _, _, color in CITYSCAPES])
    processor.size = {"height": 64, "width": 96}
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    found = pipeline("image-segmentation", model=model, image_processor=processor)(Image.fromarray(picture))
    assert {one["label"] for one in found} <= set(model.config.label2id)
    assert sum((np.asarray(one["mask"]) > 0).astype(int) for one in found).tolist() == np.ones((40, 60), int).tolist()
    report = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert report["settings"] == {} and "decode_head.conv_seg.weight" in report["used"]


def test_ade20k_keeps_the_ratio_up_to_2048_and_512(tmp_path, capsys):
    assert run(capsys, official_file(tmp_path / "model.pth", SEGMENTATION), "--out", tmp_path / "out")[0] == 0
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert dict(processor.size) == {"shortest_edge": 512, "longest_edge": 2048} and processor.do_reduce_labels
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"]["149"] == "flag" and config["average"] == "steps" and config["palette"][0] == "#787878"


def test_what_the_meta_data_say_is_taken_and_options_come_first(tmp_path, capsys):
    text = CONFIG_TEXT.format(type="SelfAlignedDDP", steps=10, scale=0.02, accumulation=True)
    names, colors = [f"thing {index} " for index in range(19)], [[index, 2 * index, 255] for index in range(19)]
    file = official_file(tmp_path / "model.pth", config=text, CLASSES=names, PALETTE=colors)
    assert run(capsys, file, "--out", tmp_path / "out")[0] == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    expected = {"self_aligned": True, "num_inference_steps": 10, "map_scale": 0.02, "average": "steps"}
    assert {name: config[name] for name in expected} == expected
    assert config["id2label"]["3"] == "thing 3" and config["palette"][3] == "#0306ff"
    report = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert report["settings"].items() >= expected.items()
    assert run(capsys, file, "--out", tmp_path / "other", "--steps", 2, "--not-self-aligned")[0] == 0
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    assert (config["num_inference_steps"], config["self_aligned"]) == (2, False)


def test_self_aligned_weights_have_ten_steps_unless_somebody_says_otherwise(tmp_path, capsys):
    aligned = "model = dict(type='SelfAlignedDDP', bit_scale=0.01)"
    cases = [
        (aligned, [], 10),
        (aligned.replace("bit", "timesteps=4, bit"), [], 4),
        ("model = dict(type='DDP', timesteps=4)", ["--self-aligned"], 4),
        ("model = dict(type='DDP')", ["--self-aligned"], 10),
        (aligned, ["--not-self-aligned"], 3),
    ]
    for number, (text, words, steps) in enumerate(cases):
        file, out = official_file(tmp_path / f"{number}.pth", config=text), tmp_path / f"out{number}"
        assert run(capsys, file, "--out", out, *words)[0] == 0
        assert json.loads((out / "config.json").read_text())["num_inference_steps"] == steps, (text, words)


def test_a_depth_range_is_refused_where_there_is_no_depth(tmp_path, capsys):
    code, _, error = run(capsys, official_file(tmp_path / "model.pth"), "--out", tmp_path / "out", "--max-depth", 10)
    assert code == 2 and "max_depth is 10" in error and "segmentation" in error and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model = dict(max_depth=10, decode_head=dict(min_depth=0.001, max_depth=10))", {"max_depth": 10.0, "min_depth": 0.001}),
        ("model = dict(max_depth=80, decode_head=dict(min_depth=1e-3, max_depth=10))", {"min_depth": 0.001}),
        ("timesteps = 5", {}),
    ],
)
def test_a_depth_range_is_taken_where_all_agree(text, expected):
    assert settings_from_meta({"meta": {"config": text}}, "depth") == expected


def test_a_process_that_is_not_the_published_one_is_taken():
    text = "model = dict(timesteps=4, randsteps=3, time_difference=0, noise_schedule='linear', diffusion=\"ddpm\", bit_scale=0.1)"
    expected = {"num_inference_steps": 4, "ensemble_size": 3, "time_difference": 0, "noise_schedule": "linear", "sampler": "ddpm"}
    assert settings_from_meta({"meta": {"config": text}}, "segmentation") == {**expected, "map_scale": 0.1}


@pytest.mark.parametrize("meta", [None, [], {"config": 3, "CLASSES": "abc", "PALETTE": [[1, 2]]}, {"CLASSES": ("a", "b")}])
def test_meta_data_of_other_forms_tell_nothing(meta):
    assert settings_from_meta({"meta": meta}, "segmentation", 3) == {}


def test_nyu_depth_ends_at_ten_metres(tmp_path, capsys):
    code, text, _ = run(capsys, official_file(tmp_path / "model.pth", DEPTH), "--out", tmp_path / "out", "--max-depth", 10)
    assert code == 0 and "depth from 0.001 to 10 m" in text
    processor, model = (kind.from_pretrained(tmp_path / "out") for kind in (AutoImageProcessor, AutoModelForDepthEstimation))
    assert processor.do_resize is False
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    depth = pipeline("depth-estimation", model=model, image_processor=processor)(picture)["predicted_depth"]
    assert depth.shape[-2:] == (64, 96) and float(depth.min()) >= 0.001 and float(depth.max()) <= 10


# ---- the hub ---------------------------------------------------------------------------------------------------------------


def test_a_file_of_the_hub_comes_from_its_cache(tmp_path, monkeypatch):
    hub_cache(tmp_path, "a.pth", b"weights")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_checkpoint(f"{REPOSITORY}:a.pth").read_bytes() == b"weights"
    with pytest.raises(
        FileNotFoundError, match=r"yfji/DDP-Weight:b\.pth is not in the cache .*HF_HUB_OFFLINE is set; get https://hugg"
    ):
        find_checkpoint(f"{REPOSITORY}:b.pth")


def test_paths_come_first_and_a_repository_needs_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "yfji").mkdir()
    (tmp_path / "yfji" / "DDP-Weight:a.pth").write_bytes(b"here")
    assert find_checkpoint(f"{REPOSITORY}:a.pth").read_bytes() == b"here"
    assert str(find_checkpoint("runs/none.pth")) == "runs/none.pth"  # the reader says that it is not there
    with pytest.raises(ValueError, match="name the file as well: OWNER/NAME:FILE"):
        find_checkpoint(REPOSITORY)


def test_without_a_network_the_message_says_what_to_do(tmp_path, monkeypatch, capsys):
    import noise2map.convert.checkpoint as hub

    def no_network(*_):
        raise ConnectionError("[Errno 101] Network is unreachable\nmore")

    monkeypatch.setattr(hub, "hf_hub_download", no_network)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    code, out, error = run(capsys, f"{REPOSITORY}:a.pth", "--out", tmp_path / "out")
    assert code == 2 and out == "" and len(error.splitlines()) == 1
    assert "the hub cannot be reached" in error and "resolve/main/a.pth" in error and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_converts_from_a_cache_and_says_what_is_not_there(tmp_path):
    """In a process of its own: HF_HOME and HF_HUB_OFFLINE are read when huggingface_hub is imported."""
    file = official_file(tmp_path / "model.pth")
    hub_cache(tmp_path / "home" / "hub", "ddp.pth", file.read_bytes())
    kept_out = {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"}
    environment = {key: value for key, value in os.environ.items() if key not in kept_out}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}

    def convert(name, out):
        code = "import sys; from noise2map.cli import main; main(sys.argv[1:])"
        words = [sys.executable, "-c", code, "convert", "ddp", f"{REPOSITORY}:{name}", "--out", str(tmp_path / out)]
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)

    done = convert("ddp.pth", "out")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "conversion.json").read_text())["source"] == f"{REPOSITORY}:ddp.pth"
    failed = convert("none.pth", "other")
    assert failed.returncode == 2 and "none.pth is not in the cache" in failed.stderr and "Traceback" not in failed.stderr
