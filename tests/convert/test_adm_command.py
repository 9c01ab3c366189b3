"""``noise2map convert adm``: from an official file to the folder of a pipeline; and what folders are told."""

import json

import adm_golden as golden
import pytest
import torch
from diffusers import DDPMPipeline

from noise2map.cli import main
from noise2map.convert import load_adm_unet


def run(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main(["convert", *map(str, words)])
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("official") / "tiny.pt"
    torch.save(golden.weights("adm_tiny"), path)
    return path


def flags():
    return [word for name, value in golden.flags("adm_tiny").items() for word in ("--flag", f"{name}={value}")]


def test_the_folder_holds_the_same_network_and_its_process(file, tmp_path, capsys):
    code, text, error = run(capsys, "adm", file, "--preset", "none", *flags(), "--out", tmp_path / "out")
    assert code == 0, error
    assert "keys used" in text
    pipe = DDPMPipeline.from_pretrained(tmp_path / "out")
    expected = load_adm_unet(golden.weights("adm_tiny"), **golden.flags("adm_tiny"))
    assert all(torch.equal(a, b) for a, b in zip(expected.state_dict().values(), pipe.unet.state_dict().values()))
    learns = golden.flags("adm_tiny").get("learn_sigma")
    assert pipe.scheduler.config.variance_type == ("learned_range" if learns else "fixed_large")
    report = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert set(report["used"]) | set(report["dropped"]) == set(golden.weights("adm_tiny"))
    assert report["flags"]["image_size"] == golden.flags("adm_tiny")["image_size"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--flag", "chanels=3"], "did you mean"),
        (["--flag", "num_channels"], "NAME=VALUE"),
        (["--flag", "num_channels=many"], "of type int"),
        (["--flag", "learn_sigma=perhaps"], "True or False"),
        ([], "num_channels"),  # the flags of LSUN do not describe this file
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(file, tmp_path, capsys, words, message):
    code, _, error = run(capsys, "adm", file, *words, "--out", tmp_path / "out")
    assert code == 2 and message in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_a_folder_is_told_what_lies_in_it(tmp_path, capsys):
    folder = tmp_path / "downloads"
    folder.mkdir()
    (folder / "ddp_swin_t.pth").write_bytes(b"x")
    (folder / "notes.txt").write_text("x")
    code, _, error = run(capsys, "ddp", folder, "--out", tmp_path / "out")
    assert code == 2 and "is a folder" in error and "it holds ddp_swin_t.pth" in error and "notes" not in error
    (folder / "ddp_swin_t.pth").unlink()
    assert "it holds no checkpoint" in run(capsys, "adm", folder, "--out", tmp_path / "out")[2]
    (folder / "config.json").write_text("{}")
    assert "converted already" in run(capsys, "ddp", folder, "--out", tmp_path / "out")[2]
