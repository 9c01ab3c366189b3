"""The script that ships with ONNX files, piece by piece against the library: it must say the same without torch."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from noise2map.diffusion import image_generator, make_schedule
from noise2map.diffusion.fields import multi_resolution_noise
from noise2map.diffusion.sampling import ddim_steps, ddpm_steps, dpmpp_2m_steps, karras_pairs
from noise2map.diffusion.sampling import time_pairs as library_pairs
from noise2map.export import run
from noise2map.models import Noise2MapImageProcessor
from noise2map.models.image_processing import to_rgb
from noise2map.models.normals import NormalsAggregator

CONFIG = {
    "noise_schedule": "cosine", "min_inverse_snr": 1e-5, "time_grid": "uniform", "time_difference": 1.0, "sampler": "ddim",
    "churn": 0.0, "map_scale": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("shape", [(3,), (15,), (16,), (17,), (40,), (2, 3, 15, 20)])
def test_noise_is_that_of_torch(shape):
    generator, noise = image_generator(5, "a/b.png"), run.Noise(5, "a/b.png")
    for _ in range(3):
        np.testing.assert_allclose(noise(*shape), torch.randn(shape, generator=generator).numpy(), atol=2e-6)


def test_blocky_noise_is_that_of_the_library():
    generator, noise = image_generator(5, "x"), run.Noise(5, "x")
    expected = multi_resolution_noise(4, 3, (15, 20), [generator])[0].numpy()
    np.testing.assert_allclose(noise.blocky(4, 3, 15, 20), expected, atol=2e-6)
    np.testing.assert_allclose(noise(20), torch.randn(20, generator=generator).numpy(), atol=2e-6)


@pytest.mark.parametrize("name", ["cosine", "linear"])
@pytest.mark.parametrize("floor", [1e-5, 0.0])
def test_levels_are_those_of_the_library(name, floor):
    schedule, config = make_schedule(name, floor), {"noise_schedule": name, "min_inverse_snr": floor}
    for t in (1.0, 2 / 3, 0.5, 0.1, 0.0):
        expected = schedule.alpha_sigma(torch.tensor(t))
        np.testing.assert_allclose(run.levels(config, t), [float(one) for one in expected], rtol=1e-5, atol=1e-7)
        ratio = float(schedule.log_snr(torch.tensor(t, dtype=torch.float64)))
        assert run.time_of(config, ratio) == pytest.approx(
            float(schedule.time_of(torch.tensor(ratio, dtype=torch.float64))), abs=1e-9
        )


@pytest.mark.parametrize("count", [1, 2, 7])
def test_time_grids_are_those_of_the_library(count):
    assert run.time_pairs(CONFIG, count) == library_pairs(count, 1.0)
    expected = karras_pairs(count, make_schedule("cosine"), 10 * 0.5, 0.1 * 0.5)
    np.testing.assert_allclose(run.time_pairs({**CONFIG, "time_grid": "karras"}, count), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("sampler", "churn"), [("ddim", 0.0), ("ddim", 0.6), ("ddim", 1.0), ("ddpm", 0.0), ("dpmpp_2m", 0.0)], ids=str
)
def test_the_loop_is_that_of_the_library(sampler, churn):
    """With a denoiser that is known in closed form."""
    config = {**CONFIG, "sampler": sampler, "churn": churn, "time_difference": 0.0}
    schedule, pairs = make_schedule("cosine"), library_pairs(4, 0.0)
    start = torch.randn(1, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    fresh = torch.randn(4, 1, 2, 3, 4, 5, generator=torch.Generator().manual_seed(1))

    def denoise(x, t):
        return (x * 0.3 + t.reshape(-1, 1, 1, 1)).tanh(), x * 2

    def step(x, t, extra):
        clean, said = denoise(torch.from_numpy(x).flatten(0, 1), torch.from_numpy(t))
        return [said.numpy(), said.unflatten(0, (1, 2)).numpy(), clean.unflatten(0, (1, 2)).numpy()]

    x = start.flatten(0, 1)
    noise = lambda index, _: fresh[index].flatten(0, 1)  # noqa: E731
    if sampler == "ddpm":
        steps = ddpm_steps(denoise, x, schedule, pairs, noise)
    elif sampler == "dpmpp_2m":
        steps = dpmpp_2m_steps(denoise, x, schedule, pairs)
    else:
        steps = ddim_steps(denoise, x, schedule, pairs, churn, noise)
    draws = iter(fresh.numpy())
    found = list(run.denoise(config, step, start.numpy(), 4, lambda: next(draws), lambda: None))
    # At t = 1 the posterior's mean divides what is left of a cancellation by alpha, 8e-5: the last bit of float32 shows.
    tolerance = 5e-3 if sampler == "ddpm" else 1e-4
    for ours, theirs in zip(found, steps, strict=True):
        np.testing.assert_allclose(ours[0], theirs.prediction.numpy(), atol=tolerance, rtol=1e-4)


@pytest.mark.parametrize("size", [(7, 9), (30, 41), (3, 80)])
def test_resizing_is_torchs(size):
    values = np.random.default_rng(0).standard_normal((3, 13, 17)).astype(np.float32)
    expected = functional.interpolate(torch.from_numpy(values)[None], size=size, mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(run.resize(values, *size), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"size": {"height": 120, "width": 160}},
        {"size": {"height": 64, "width": 96}, "keep_aspect_ratio": False},
        {"size": {"shortest_edge": 100, "longest_edge": 150}},
        {"do_resize": False},
        {"do_normalize": False, "do_rescale": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16"])
def test_images_are_prepared_as_by_the_processor(fields, mode, tmp_path):
    generator = np.random.default_rng(1)
    if mode == "I;16":
        image = Image.fromarray(generator.integers(0, 65536, (70, 90)).astype(np.uint16))
    else:
        image = Image.fromarray(generator.integers(0, 256, (70, 90, 4)).astype(np.uint8), "RGBA").convert(mode)
    image.save(tmp_path / "image.png")
    processor = Noise2MapImageProcessor(**fields)
    processor.save_pretrained(tmp_path)
    stored = run.json.loads((tmp_path / "preprocessor_config.json").read_text())
    from noise2map.data.images import open_image

    expected = processor(images=open_image(tmp_path / "image.png"), return_tensors="np")["pixel_values"]
    found = run.prepare(stored, run.read_image(str(tmp_path / "image.png")))
    if not fields.get("do_resize", True):
        found = found[..., : expected.shape[-2], : expected.shape[-1]]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("top", [1.0, 200.0, 40000.0])
def test_floats_are_scaled_as_by_the_processor(top, tmp_path):
    Image.fromarray(np.linspace(0, top, 70 * 90, dtype=np.float32).reshape(70, 90)).save(tmp_path / "image.tif")
    with Image.open(tmp_path / "image.tif") as image:
        expected = np.asarray(to_rgb(image))
    assert (np.asarray(run.read_image(str(tmp_path / "image.tif"))) == expected).all() and expected.max() >= 155
    Image.fromarray(np.full((70, 90), -1, np.float32)).save(tmp_path / "image.tif")
    with pytest.raises(ValueError, match="values from -1 to -1"):
        run.read_image(str(tmp_path / "image.tif"))


def test_classes_of_averaged_steps_are_those_of_mean_probabilities():
    runs = [np.random.default_rng(index).standard_normal((2, 4, 5, 6)).astype(np.float32) * 3 for index in range(3)]
    about = {"classes": True, "metres": False}
    found = run.finish(about, {"average": "steps"}, runs, [(5, 6)])
    mean = torch.from_numpy(np.stack(runs)).softmax(2).mean((0, 1))
    assert (found == mean.argmax(0).numpy()).all()
    last = run.finish(about, {"average": "last"}, runs, [(5, 6)])
    assert (last == runs[-1].mean(0).argmax(0)).all()


def test_directions_are_averaged_as_by_the_model():
    """Means of samples and steps differ in length: resized as they are, the long ones would win."""
    runs = [np.random.default_rng(index).standard_normal((8, 3, 5, 6)).astype(np.float32) for index in range(3)]
    runs = [run.unit(one.swapaxes(0, 1)).swapaxes(0, 1) for one in runs]
    for average, kept in (("last", runs[-1:]), ("steps", runs)):
        aggregator = NormalsAggregator(1, 8, average)
        for one in runs:
            aggregator.update(torch.from_numpy(one), torch.ones(1, dtype=torch.bool))
        mean, _ = aggregator.result()
        expected = mean
        for size in ((20, 24), (13, 17)):
            expected = functional.normalize(functional.interpolate(expected[:, :3], size=size, mode="bilinear"), dim=1)
        found = run.finish({"classes": False, "metres": False}, {"average": average}, runs, [(20, 24), (13, 17)])
        cosines = (torch.from_numpy(found).movedim(-1, 0) * expected[0]).sum(0)
        assert float(cosines.min()) > 0.9999, (average, len(kept))


def test_directions_keep_their_length():
    runs = [np.random.default_rng(0).standard_normal((2, 3, 5, 6)).astype(np.float32)]
    found = run.finish({"classes": False, "metres": False}, {"average": "last"}, runs, [(9, 11)])
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("words", [["none.png"], ["--steps", "0", "none.png"], ["--out", "no-folder/map.png", "none.png"]])
def test_bad_input_is_one_sentence(words, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["run.py", *words])
    with pytest.raises(SystemExit) as stop:
        run.main()
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_map_that_cannot_be_written_is_one_sentence(tmp_path, capsys, monkeypatch):
    Image.new("RGB", (8, 6)).save(tmp_path / "image.png")
    (tmp_path / "export.json").write_text('{"metres": true, "classes": false, "units_per_metre": 1000}')
    monkeypatch.setattr(run, "__file__", str(tmp_path / "run.py"))
    monkeypatch.setattr(run, "predict", lambda *_: np.ones((6, 8), np.float32))
    expected = {"map.jpg": "cannot write mode", "map.xyz": "unknown file extension", "none/map.png": "there is no folder"}
    for name, text in expected.items():
        monkeypatch.setattr("sys.argv", ["run.py", str(tmp_path / "image.png"), "--out", str(tmp_path / name)])
        with pytest.raises(SystemExit) as stop:
            run.main()
        assert stop.value.code == 2 and text in capsys.readouterr().err
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("diffusion", "words", "expected"),
    [
        (False, ["--steps", "3"], "by one call; got 3 steps and 1 samples"),
        (False, ["--samples", "4"], "by one call; got 1 steps and 4 samples"),
        (True, ["--steps", "3"], "cannot open the graphs in"),
        (False, [], "cannot open the graphs in"),
    ],
)
def test_graphs_that_cannot_be_used_are_one_sentence(tmp_path, capsys, monkeypatch, diffusion, words, expected):
    pytest.importorskip("onnxruntime")
    Image.new("RGB", (8, 6)).save(tmp_path / "image.png")
    config = {"diffusion": diffusion, "sampling": "diffusion"}
    (tmp_path / "export.json").write_text(json.dumps({"metres": True, "classes": False, "config": config}))
    (tmp_path / "preprocessor_config.json").write_text("{}")
    for part in ("encoder", "step"):
        (tmp_path / f"{part}.onnx").write_bytes(b"cut off")
    monkeypatch.setattr(run, "__file__", str(tmp_path / "run.py"))
    monkeypatch.setattr("sys.argv", ["run.py", str(tmp_path / "image.png"), "--out", str(tmp_path / "map.png"), *words])
    with pytest.raises(SystemExit) as stop:
        run.main()
    said = capsys.readouterr().err
    assert stop.value.code == 2 and expected in said and "Traceback" not in said and not (tmp_path / "map.png").exists()


def test_box_muller_is_normal():
    values = run.Noise(0, "x")(40000)
    assert abs(values.mean()) < 0.02 and abs(values.std() - 1) < 0.02
    assert abs(np.mean(values**4) - 3) < 0.1 and math.isfinite(values.max())
