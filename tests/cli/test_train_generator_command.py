import json

import pytest
import yaml
from tiny_denoising import recipe_dict, write_depths, write_pictures

from noise2map.cli import main
from noise2map.training import read_metrics


def run(*arguments):
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return exit_.value.code


def write_recipe(path, root, target="image", **train):
    path.write_text(yaml.safe_dump(recipe_dict(root, target, **train)))
    return path


def test_generator_from_a_folder_is_trained_and_resumed(tmp_path, capsys):
    from diffusers import DDPMPipeline

    pictures = write_pictures(tmp_path / "pictures", 5)
    recipe = write_recipe(tmp_path / "tiny.yaml", "elsewhere")
    command = ("train", "generator", recipe, "--root", pictures, "--out", tmp_path / "run")
    assert run(*command, "--set", "train.iterations=2") == 0
    assert "3 training and 2 validation samples" in capsys.readouterr().out
    assert run(*command) == 2
    assert "train.iterations" in capsys.readouterr().err
    assert run(*command, "--resume", "--set", "train.iterations=3") == 0
    assert [record["step"] for record in read_metrics(tmp_path / "run") if "loss" in record] == [1, 2, 3]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]["data"]["train"] == str(pictures)
    assert DDPMPipeline.from_pretrained(tmp_path / "run" / "final").unet.config.sample_size == 16


def test_a_path_is_a_path_and_other_images_are_not_gone_on_with(tmp_path, capsys):
    write_pictures(tmp_path / "imgs", 8)
    pictures = write_pictures(tmp_path / "imgs #2", 5)
    command = (
        "train",
        "generator",
        write_recipe(tmp_path / "tiny.yaml", "elsewhere"),
        "--root",
        pictures,
        "--out",
        tmp_path / "run",
    )
    assert run(*command, "--set", "train.iterations=2") == 0
    assert "3 training and 2 validation samples" in capsys.readouterr().out
    (tmp_path / "imgs #2" / sorted(path.name for path in pictures.iterdir())[0]).rename(pictures / "zzz.png")
    assert run(*command, "--resume", "--set", "train.iterations=3") == 2
    assert "began with 3 training samples and finds 3, or others" in capsys.readouterr().err


def test_prior_of_another_resolution(tmp_path, capsys):
    from noise2map.guidance import DepthPrior

    depths = write_depths(tmp_path / "depths", 4)
    recipe = write_recipe(tmp_path / "tiny.yaml", depths, "depth", iterations=1, save_every=1)
    assert run("train", "depth-prior", recipe, "--resolution", 8, "--depth-scale", 0.002, "--out", tmp_path / "run") == 0
    assert DepthPrior.from_pretrained(tmp_path / "run" / "final").image_size == (8, 8)
    assert run("train", "depth-prior", recipe, "--relative", "--out", tmp_path / "relative") == 0
    assert not DepthPrior.from_pretrained(tmp_path / "relative" / "final").depth_range.metric


def test_look_without_data_and_names(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("train", "generator", "--dry-run") == 0
    assert "1.89M parameters (3.8 MB in fp16), 8 decoder blocks" in capsys.readouterr().out
    assert run("train", "depth-prior", "--dry-run", "--resolution", 128) == 0
    assert "size: 128" in capsys.readouterr().out and not list(tmp_path.iterdir())
    assert run("train", "generator", "--list") == 0
    assert capsys.readouterr().out.split() == ["freedoom-generator-128", "freedoom-generator-64"]
    assert run("train", "--list") == 0
    assert "generator freedoom-generator-64" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["generator", "freedoom-depth-prior"], "noise2map train depth-prior"),
        (["freedoom-generator-64"], "noise2map train generator freedoom-generator-64"),
        (["generator", "--root", "nowhere", "--dataset", "folder"], "nowhere"),
        (["generator", "--root", "nowhere", "--dataset", "lsun"], "nowhere"),
        (["generator", "--set", "train.iteration=3"], "did you mean train.iterations"),
        (["depth-prior", "--set", "data.size=0"], "data.size is 0"),
    ],
)
def test_mistakes_are_one_line_without_traceback(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run("train", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and error.strip().count("\n") == 0


def test_generator_from_lsun(tmp_path, capsys):
    import io

    import lmdb
    from PIL import Image

    for split, count in (("train", 4), ("val", 2)):
        folder = tmp_path / f"church_outdoor_{split}_lmdb"
        with lmdb.open(str(folder), map_size=2**24) as database, database.begin(write=True) as transaction:
            for index in range(count):
                stored = io.BytesIO()
                Image.new("RGB", (24, 18), (40 * index, 90, 20)).save(stored, "WEBP")
                transaction.put(f"{split}{index}".encode(), stored.getvalue())
    recipe = write_recipe(tmp_path / "tiny.yaml", "elsewhere", iterations=1, save_every=1)
    arguments = ["--dataset", "lsun", "--root", tmp_path, "--category", "church_outdoor", "--out", tmp_path / "run"]
    assert run("train", "generator", recipe, *arguments) == 0
    assert "4 training and 2 validation samples" in capsys.readouterr().out
