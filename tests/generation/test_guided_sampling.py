import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler
from PIL import Image
from tiny_guidance import tiny_predictor, tiny_prior, tiny_unet
from typer import BadParameter

from noise2map.cli import main
from noise2map.cli.sample import parse_seeds
from noise2map.generation.image_files import DrawnImage, pair_sheet, seed_name, write_seed
from noise2map.generation.loading import Camera, camera_of, load_generator
from noise2map.generation.sampling import SamplingOptions, sample_images
from noise2map.guidance import ConsistencyLoss, DepthGuidedPipeline, GuidanceConfig
from noise2map.guidance.depth_range import DepthRange
from noise2map.runs.output_folder import OutputFolder
from noise2map.zoo import resolve_generator

METRES = {"min_depth": 0.5, "max_depth": 20.0}


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """A folder with a plain pipeline, the parts of its guidance beside it, and a camera."""
    root = tmp_path_factory.mktemp("generator")
    unet = tiny_unet()
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=100)).save_pretrained(root)
    tiny_predictor(unet, **METRES).save_pretrained(root / "depth_predictor")
    tiny_prior(**METRES).save_pretrained(root / "depth_prior")
    (root / "camera.json").write_text(json.dumps({"intrinsics_px": [20, 24, 16, 16], "size_px": [32, 32]}))
    return root


def run(*arguments):
    with pytest.raises(SystemExit) as exit_:
        main(["sample", *map(str, arguments)])
    return exit_.value.code


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def test_one_command_gives_images_depth_normals_clouds_and_pairs(generator, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["--model", generator, "--seeds", "0-2", "--steps", 4, "--consistency-scale", 3, "--prior-scale", 2]
    assert run(*command, "--out", out, "--batch-size", 2) == 0
    assert "3 drawn" in capsys.readouterr().out
    with np.load(out / "depth" / "000001.npz") as stored:
        depth_m = stored["depth_m"]
    units = pixels(out / "depth" / "000001.png")
    assert depth_m.shape == (16, 16) and np.abs(units / 1000 - depth_m).max() < 1e-3
    header = (out / "clouds" / "000001.ply").read_bytes().split(b"end_header")[0].decode()
    assert f"element vertex {int((depth_m < 0.98 * 20).sum())}" in header
    assert pixels(out / "normals" / "000001.png").shape == (16, 16, 3)
    assert pixels(out / "pairs.png").shape[2] == 3
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [line["source"]["seed"] for line in lines] == [0, 1, 2]
    assert (pixels(out / "images" / "000001.png") != pixels(out / "unguided" / "images" / "000001.png")).any()

    before = (out / "images" / "000001.png").stat().st_mtime_ns
    (out / "images" / "000002.png").unlink()
    assert run(*command, "--out", out, "--seeds", "1-3") == 0
    assert "2 drawn, 1 done before" in capsys.readouterr().out
    assert (out / "images" / "000001.png").stat().st_mtime_ns == before
    assert run(*command, "--out", out, "--steps", 5) == 2
    assert "steps 4 -> 5" in capsys.readouterr().err


def test_an_image_that_is_all_sky_has_no_cloud_and_stops_nothing(tmp_path):
    drawn, depth_range = DrawnImage(Image.new("RGB", (16, 16)), np.full((16, 16), 12, np.float32)), DepthRange(0.5, 12.0, "log")
    with OutputFolder(tmp_path / "out") as folder:
        folder.use({"seed": 3})
        write_seed(folder, 3, {"": drawn}, depth_range, Camera([10, 10, 8, 8], "given"), guided=True)
        assert "guided_cloud" not in folder.done["000003"]["files"] and "guided_normals" in folder.done["000003"]["files"]
    assert not list(tmp_path.rglob("*.ply"))


def test_a_seed_does_not_depend_on_its_batch(generator, tmp_path):
    pipe = load_generator(str(generator))
    guidance, camera = GuidanceConfig.from_scales(2.0, 2.0), camera_of(generator, 16)
    for name, seeds in (("together", [5, 6, 7]), ("alone", [7])):
        options = SamplingOptions(num_inference_steps=3, batch_size=len(seeds))
        sample_images(pipe, seeds, tmp_path / name, options, guidance, camera=camera)
    for name in ("images/000007.png", "unguided/images/000007.png"):
        assert np.abs(pixels(tmp_path / "together" / name) - pixels(tmp_path / "alone" / name)).max() <= 1


def test_unguided_pictures_are_those_of_diffusers(generator, tmp_path):
    from diffusers import DDIMPipeline

    assert run("--model", generator, "--seeds", 4, "--steps", 3, "--sampler", "ddim", "--out", tmp_path / "out") == 0
    source = DDIMPipeline.from_pretrained(generator)
    source.set_progress_bar_config(disable=True)
    expected = source(generator=torch.Generator().manual_seed(4), num_inference_steps=3).images[0]
    assert (pixels(tmp_path / "out" / "images" / "000004.png") == np.asarray(expected).astype(int)).all()
    assert not (tmp_path / "out" / "unguided").exists()


def test_relative_depth_and_no_depth(generator, tmp_path, capsys):
    unet = tiny_unet()
    tiny_predictor(unet).save_pretrained(tmp_path / "relative")
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=100)).save_pretrained(tmp_path / "plain")
    command = ["--model", tmp_path / "plain", "--seeds", 0, "--steps", 2]
    assert run(*command, "--depth-predictor", tmp_path / "relative", "--out", tmp_path / "a") == 0
    assert "depth is relative" in capsys.readouterr().out
    assert (tmp_path / "a" / "depth" / "000000.npz").is_file() and not (tmp_path / "a" / "clouds").exists()
    assert run(*command, "--out", tmp_path / "b") == 0
    assert "no depth" in capsys.readouterr().out and [p.name for p in (tmp_path / "b").iterdir() if p.is_dir()] == ["images"]


def test_depth_of_another_predictor_is_not_written_beside_the_first(generator, tmp_path, capsys):
    unet = tiny_unet()
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=100)).save_pretrained(tmp_path / "plain")
    for name, seed in (("first", 1), ("second", 8)):
        tiny_predictor(unet, seed=seed, **METRES).save_pretrained(tmp_path / name)
    command = ["--model", tmp_path / "plain", "--seeds", 0, "--steps", 2]
    first, second = (["--depth-predictor", tmp_path / name] for name in ("first", "second"))
    assert run(*command, *first, "--out", tmp_path / "a") == 0
    assert run(*command, *first, "--out", tmp_path / "a") == 0 and "1 done before" in capsys.readouterr().out
    before = (tmp_path / "a" / "depth" / "000000.npz").read_bytes()
    assert run(*command, *second, "--out", tmp_path / "a") == 2
    assert "depth_from" in capsys.readouterr().err and (tmp_path / "a" / "depth" / "000000.npz").read_bytes() == before
    assert run(*command, "--out", tmp_path / "b") == 0
    assert run(*command, *first, "--out", tmp_path / "b") == 2 and "depth_from None ->" in capsys.readouterr().err
    assert run(*command, *first, "--out", tmp_path / "b", "--overwrite") == 0
    assert (tmp_path / "b" / "depth" / "000000.npz").is_file()


def test_a_window_of_guidance_may_be_open(generator, tmp_path, capsys):
    command = ["--model", generator, "--seeds", 0, "--steps", 3, "--consistency-scale", 3, "--out", tmp_path / "out"]
    for drawn in ("1 drawn", "1 done before"):
        assert run(*command, "--guidance-log-snr=-inf,inf") == 0
        assert drawn in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["guidance.log_snr"] == ["-inf", "inf"]
    assert run(*command, "--guidance-log-snr=-inf,0") == 2 and "guidance.log_snr" in capsys.readouterr().err


def test_a_saved_guided_pipeline_keeps_its_parts_and_sampler(generator, tmp_path):
    unet = tiny_unet()
    pipe = DepthGuidedPipeline(unet, DDIMScheduler(), tiny_predictor(unet, **METRES), tiny_prior(**METRES))
    pipe.save_pretrained(tmp_path / "whole")
    loaded = load_generator(str(tmp_path / "whole"), sampler="ddpm")
    assert loaded.depth_predictor is not None and loaded.depth_prior is not None
    assert isinstance(loaded.scheduler, DDPMScheduler)


def test_scales_mean_what_the_generator_was_saved_with(generator, tmp_path):
    own = load_generator(generator)
    DepthGuidedPipeline(**own.components, convention="plain", reduction="mean").save_pretrained(tmp_path / "plain")
    command = ["--seeds", "0", "--steps", 4, "--consistency-scale", 3, "--no-pair", "--sampler", "ddim", "--fov", 60]
    for name, folder, more in (
        ("own", tmp_path / "plain", []),
        ("said", generator, ["--convention", "plain", "--reduction", "mean"]),
        ("usual", generator, []),
    ):
        assert run("--model", folder, *command, *more, "--out", tmp_path / name) == 0
    own, said, usual = (pixels(tmp_path / name / "images" / "000000.png") for name in ("own", "said", "usual"))
    assert (own == said).all()
    assert (own != usual).any()


def test_camera(generator):
    assert camera_of(str(generator), 16) == ([10, 12, 8, 8], "camera.json")
    values, source = camera_of(str(generator), 16, fov_deg=90.0)
    assert source == "given" and values == pytest.approx([8, 8, 8, 8], abs=1e-3)


def test_seeds():
    assert parse_seeds("0-3, 8,2,10-10") == [0, 1, 2, 3, 8, 10]
    assert parse_seeds("18446744073709551615") == [2**64 - 1] and torch.Generator().manual_seed(2**64 - 1)
    for text in ("", "a", "3-1", "1-", "-2", "0-9999999", "18446744073709551616", "9" * 20):
        with pytest.raises(BadParameter, match="seeds"):
            parse_seeds(text)


@pytest.mark.parametrize(
    "change, message",
    [
        (["--consistency-scale", "-1"], "--consistency-scale"),
        (["--prior-scale", "nan"], "--prior-scale"),
        (["--steps", "0"], "'--steps'"),
        (["--steps", "2000"], "'--steps'"),
        (["--steps", "101"], "--steps is 101; expected a whole number, 1 to 100"),
        (["--seeds", "x"], "--seeds must be"),
        (["--convention", "foo"], "'foo' is not one of"),
        (["--sampler", "euler"], "'euler' is not one of"),
        (["--consistency-scale", "1e38"], "or pass --on-nonfinite skip"),
        (["--model", "freedoom-depth-laplace-tiny"], "is a model of maps, which noise2map predict runs"),
        (["--depth-prior", "./nowhere"], "./nowhere"),
        (["--model", "./nowhere"], "./nowhere"),
        (["--model", "no-such-generator"], "no-such-generator"),
        (["--fov", "180"], "--fov"),
        (["--eta", "5"], "'--eta'"),
    ],
)
def test_mistakes_are_one_line_without_traceback(generator, tmp_path, capsys, change, message):
    assert run("--model", generator, "--seeds", "0", "--steps", "2", "--out", tmp_path / "out", *change) == 2
    error = capsys.readouterr().err
    last = error.splitlines()[-1]  # after the progress bar, where there was one
    assert last.startswith(("noise2map: error:", "Error: Invalid value")) and message in last and "Traceback" not in error
    assert not list((tmp_path / "out").glob("*"))


def test_parts_that_do_not_belong_together(generator, tmp_path, capsys):
    other = tiny_unet(seed=5)
    tiny_predictor(other, **METRES).save_pretrained(tmp_path / "other")
    command = ["--model", generator, "--seeds", "0", "--out", tmp_path / "out"]
    assert run(*command, "--depth-predictor", tmp_path / "other") == 2
    assert "trained for another U-Net" in capsys.readouterr().err
    tiny_prior(min_depth=1.0, max_depth=5.0).save_pretrained(tmp_path / "prior")
    assert run(*command, "--depth-prior", tmp_path / "prior") == 2
    assert "expected the same range" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match=r"model_index\.json"):
        resolve_generator(str(tmp_path))


@pytest.mark.parametrize(("count", "abreast"), [(3, 1), (16, 2)])
def test_many_pairs_stand_abreast(tmp_path, count, abreast):
    for prefix in ("", "unguided/"):
        for kind in ("images", "depth"):
            (tmp_path / f"{prefix}{kind}").mkdir(parents=True, exist_ok=True)
        for seed in range(count):
            Image.new("RGB", (64, 64), (10 * seed, 0, 0)).save(tmp_path / f"{prefix}images/{seed_name(seed)}.png")
            np.savez(tmp_path / f"{prefix}depth/{seed_name(seed)}.npz", depth_m=np.full((64, 64), 2.0 + seed, np.float32))
    sheet = np.asarray(pair_sheet(tmp_path, range(count), ["", "unguided/"], metric=True, guided=True))
    assert sheet.shape[0] < 1.5 * sheet.shape[1]
    reds = [level for level in range(10, 10 * count, 10) if (sheet == (level, 0, 0)).all(-1).any()]
    assert reds == list(range(10, 10 * count, 10))
    rows = [np.flatnonzero((sheet == (10 * seed, 0, 0)).all(-1).any(1))[0] for seed in range(1, count)]
    assert len(set(rows)) == -(-count // abreast) - (abreast == 1)


def test_images_of_another_number_of_channels_are_refused_before_they_are_drawn(tmp_path, capsys, monkeypatch):
    DDPMPipeline(tiny_unet(in_channels=1, out_channels=1), DDPMScheduler(num_train_timesteps=100)).save_pretrained(
        tmp_path / "grey"
    )
    monkeypatch.setattr("noise2map.generation.sampling.draw", lambda *args, **keywords: pytest.fail("drew images"))
    assert run("--model", tmp_path / "grey", "--seeds", "0", "--steps", "2", "--out", tmp_path / "out") == 2
    assert "the generator draws images of 1 channel; expected 3, red, green and blue" in capsys.readouterr().err


def test_pairs_are_for_draw_images(generator, tmp_path):
    pipe, options = load_generator(generator), SamplingOptions(num_inference_steps=2)
    guidance = GuidanceConfig(losses=[ConsistencyLoss(scale=1.0)], placebo="neighbor")
    with pytest.raises(ValueError, match="guides by another image of the batch; expected draw_images"):
        sample_images(pipe, [0, 1], tmp_path / "out", options, guidance, camera=camera_of(generator, 32))
    assert not (tmp_path / "out").exists()
