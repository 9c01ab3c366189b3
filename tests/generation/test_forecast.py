"""What a run will take, against what the run then does."""

import json
import re
import shutil

import pytest
from diffusers import DDPMPipeline, DDPMScheduler
from tiny_guidance import tiny_predictor, tiny_prior, tiny_unet

from noise2map.cli import main
from noise2map.generation.forecast import forecast_sampling, tried
from noise2map.generation.loading import Camera
from noise2map.generation.sampling import SamplingOptions, sample_images
from noise2map.guidance import DepthGuidedPipeline, GuidanceConfig, pipeline
from noise2map.runs.words import duration

METRES = {"min_depth": 0.5, "max_depth": 20.0}
CAMERA = Camera([20.0, 24.0, 16.0, 16.0], "given")


@pytest.fixture(scope="module")
def pipe():
    unet = tiny_unet()
    return DepthGuidedPipeline(unet, DDPMScheduler(num_train_timesteps=100), tiny_predictor(unet, **METRES), tiny_prior(**METRES))


@pytest.mark.parametrize(
    ("guidance", "pair"),
    [
        (GuidanceConfig(), True),
        (GuidanceConfig.from_scales(3.0, log_snr=(-2.0, 2.0)), True),
        (GuidanceConfig.from_scales(3.0, 2.0, every=2), False),
    ],
)
def test_steps_are_those_of_the_run(pipe, tmp_path, monkeypatch, guidance, pair):
    options = SamplingOptions(num_inference_steps=6, batch_size=2)
    forecast = forecast_sampling(pipe, 5, options, guidance, pair=pair)
    passes, guided = [], []
    hook = pipe.unet.register_forward_hook(lambda *_: passes.append(1))
    real = pipeline.guided_prediction
    monkeypatch.setattr(pipeline, "guided_prediction", lambda *words, **named: guided.append(1) or real(*words, **named))
    sample_images(pipe, range(5), tmp_path / "out", options, guidance, camera=CAMERA, pair=pair)
    hook.remove()
    times = {work.name.split()[0]: work.times for work in forecast.works}
    assert times.get("guided", 0) == len(guided) and sum(times.values()) == len(passes) > 0
    assert bool(guided) == bool(guidance.active)
    assert forecast.seconds == pytest.approx(sum(work.times * work.seconds for work in forecast.works)) and forecast.seconds > 0
    assert forecast.parameters["U-Net"] == sum(one.numel() for one in pipe.unet.parameters())
    assert forecast.peak_bytes > 4 * sum(forecast.parameters.values())
    for word in ("5 images in 6 steps", "U-Net", "time: about", "GiB"):
        assert word in forecast.text()


def test_a_long_step_is_tried_once(monkeypatch, pipe):
    clock = iter([0.0, 40.0, 40.0, 41.0])
    monkeypatch.setattr("noise2map.generation.forecast.perf_counter", lambda: next(clock))
    calls = []
    assert tried(lambda: calls.append(1), pipe.device) == 40.0 and len(calls) == 1


@pytest.fixture
def folder(pipe, tmp_path):
    DDPMPipeline(pipe.unet, pipe.scheduler).save_pretrained(tmp_path / "generator")
    pipe.depth_predictor.save_pretrained(tmp_path / "generator" / "depth_predictor")
    camera = {"intrinsics_px": [10, 12, 8, 8], "size_px": [16, 16]}
    (tmp_path / "generator" / "camera.json").write_text(json.dumps(camera))
    return tmp_path / "generator"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sample", "--seeds", "0-9", "--steps", "4", "--consistency-scale", "3"], ["10 images in 4 steps", "guided steps of 8"]),
        (
            ["train", "depth-predictor", "--counts", "3,9", "--steps", "7", "--timesteps", "10,20", "--val-images", "9",
             "--strong", "0,1", "--weak", "1"],
            ["2 depth predictors of 3, 9 images", "steps on 8 images of 16x16: 14 x", "scored batches: 8 x"],
        ),
    ],
)  # fmt: skip
def test_a_dry_run_writes_nothing(folder, tmp_path, capsys, words, expected):
    with pytest.raises(SystemExit) as stop:
        main([*words, "--model", str(folder), "--out", str(tmp_path / "out"), "--dry-run"])
    said = capsys.readouterr().out
    assert stop.value.code == 0 and not (tmp_path / "out").exists()
    for text in expected:
        assert text in said


def test_branches_that_only_measure_are_forecast(folder, tmp_path, capsys):
    def weights(word):
        with pytest.raises(SystemExit) as stop:
            words = ["--counts", "3", "--timesteps", "10", "--strong", "0,1", "--weak", "1", word, "--dry-run"]
            main(["train", "depth-predictor", "--model", str(folder), "--out", str(tmp_path / "out"), *words])
        assert stop.value.code == 0
        return re.search(r"depth predictor[^,\n]*\d[^,\n]*", capsys.readouterr().out.split("\n", 1)[1])[0]

    assert weights("--by-block") != weights("--no-by-block")


def test_a_generator_without_a_predictor_is_tried_too(folder, tmp_path, capsys):
    shutil.rmtree(folder / "depth_predictor")
    with pytest.raises(SystemExit) as stop:
        main(["sample", "--model", str(folder), "--seeds", "0-2", "--steps", "4", "--out", str(tmp_path / "out"), "--dry-run"])
    said = capsys.readouterr().out
    assert stop.value.code == 0 and "3 images in 4 steps, unguided" in said and ": 4 x" in said


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 seconds"),
        (1, "1 second"),
        (59.6, "1 minute"),
        (150, "2 minutes"),
        (3600, "1 hour"),
        (3 * 86400 + 43200, "3.5 days"),
    ],
)
def test_durations(seconds, words):
    assert duration(seconds) == words
