"""Videos of maps: one field of noise, finished segments kept, a warm start that takes over the map before."""

import os
import signal

import av
import numpy as np
import pytest
import torch
from clips import flat_frames, write_clip
from PIL import Image
from tiny_models import tiny_config, tiny_depth_model, tiny_segmenter

from noise2map.cli import main
from noise2map.diffusion import image_generator
from noise2map.diffusion.process import add_noise
from noise2map.inference.predictor import Predictor
from noise2map.models import Noise2MapForNormalEstimation, Noise2MapImageProcessor
from noise2map.models.decoding import DecodingOptions, PredictionOptions
from noise2map.models.denoising.run import WarmStart, time_grid
from noise2map.video import ClipPredictor, FlowFolder, predict_frames, predict_video, predicting
from noise2map.video.painting import Painter


@pytest.fixture(scope="module")
def predictors():
    processor = Noise2MapImageProcessor(size={"height": 48, "width": 64})
    return {"depth": Predictor(tiny_depth_model(), processor), "segmentation": Predictor(tiny_segmenter(), processor)}


def shapes(path):
    with av.open(str(path)) as container:
        return [one.to_ndarray(format="rgb24").shape for one in container.decode(video=0)]


@pytest.mark.parametrize("task", ["depth", "segmentation"])
def test_every_frame_has_the_map_of_an_image_with_the_noise_of_the_clip(predictors, task, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", flat_frames(3))
    with av.open(str(path)) as container:
        images = [one.to_image() for one in container.decode(video=0)]
    found = list(predict_frames(path, predictors[task], PredictionOptions(num_inference_steps=2), batch_size=2))
    alone = [predictors[task](image, ["clip.mp4"], num_inference_steps=2)[0] for image in images]
    assert len(found) == 3
    for one, wanted in zip(found, alone):
        np.testing.assert_allclose(one.map, wanted.map, rtol=1e-4)


def test_normals_are_painted_with_x_red_y_green_z_blue(tmp_path):
    torch.manual_seed(0)
    model = Noise2MapForNormalEstimation(tiny_config(map_scale=0.1, objective="angular")).eval()
    predictor = Predictor(model, Noise2MapImageProcessor(size={"height": 48, "width": 64}))
    path = write_clip(tmp_path / "clip.mp4", flat_frames(3))
    prediction = next(predict_frames(path, predictor, PredictionOptions(num_inference_steps=1)))
    painted = Painter(predictor, [prediction]).paint(prediction)["map"]
    np.testing.assert_allclose(painted, 127.5 * (1 + prediction.normals), atol=2)
    report = predict_video(path, tmp_path / "out", predictor, options=PredictionOptions(num_inference_steps=1), progress=False)
    files = report.lines[0]["files"]
    assert {"map", "overlay"} <= set(files) and [shapes(tmp_path / "out" / files["map"])[0], not report.failed] == [
        (48, 64, 3),
        True,
    ]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a process that was forked")
def test_a_killed_run_goes_on_with_the_same_maps(predictors, tmp_path, monkeypatch):
    monkeypatch.setattr(predicting, "SEGMENT", 2)
    path = write_clip(tmp_path / "clip.mp4", flat_frames(5))
    options, predictor = PredictionOptions(num_inference_steps=1), predictors["depth"]
    run = {"options": options, "warm_start": 0.5, "progress": False}
    report = predict_video(path, tmp_path / "whole", predictor, **run)
    files = report.lines[0]["files"]
    assert {kind: len(shapes(tmp_path / "whole" / name)) for kind, name in files.items()} == dict.fromkeys(files, 5)
    assert {"map", "overlay"} <= set(files) and shapes(tmp_path / "whole" / files["map"])[0] == (48, 64, 3)
    assert not (tmp_path / "whole" / "segments").exists() and report.lines[0]["decoder_calls"] == 5

    counts = []
    predict_batch = ClipPredictor.predict_batch

    def counted(self, batch, *rest):
        counts.append(len(batch))
        if len(counts) == limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return predict_batch(self, batch, *rest)

    monkeypatch.setattr(ClipPredictor, "predict_batch", counted)
    limit = 5 + 4  # five frames for the range of colors; killed in the second segment
    if (child := os.fork()) == 0:
        torch.set_num_threads(1)  # a child has none of the threads of its parent
        predict_video(path, tmp_path / "again", predictor, **run)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert (tmp_path / "again" / "segments").is_dir() and not (tmp_path / "again" / "map").exists()
    counts, limit = [], 0
    predict_video(path, tmp_path / "again", predictor, **run)
    assert sum(counts) == 5 + 3  # the first segment was kept
    for name in files.values():
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    counts = []
    assert predict_video(path, tmp_path / "again", predictor, **run).skipped == ["clip.mp4"] and not counts
    with pytest.raises(ValueError, match="holds results of other settings"):
        predict_video(path, tmp_path / "again", predictor, **{**run, "warm_start": 0.6})


def test_a_clip_that_breaks_off_leaves_nothing_and_others_are_done(predictors, tmp_path, monkeypatch):
    monkeypatch.setattr(predicting, "SEGMENT", 2)
    paths = [write_clip(tmp_path / name, flat_frames(3)) for name in ("bad.mp4", "good.mp4")]
    frames = predicting.VideoReader.frames

    def breaking(self, first=0):
        for number, frame in enumerate(frames(self, first)):
            if self.path.name == "bad.mp4" and number == 2:
                raise ValueError("'bad.mp4' breaks off after 2 frames: invalid data")
            yield frame

    monkeypatch.setattr(predicting.VideoReader, "frames", breaking)
    report = predict_video(paths, tmp_path / "out", predictors["depth"], PredictionOptions(num_inference_steps=1), progress=False)
    assert (report.written, list(report.failed)) == (["good.mp4"], ["bad.mp4"])
    assert {one.name for one in (tmp_path / "out").rglob("*.mp4")} == {"good.mp4"}


@pytest.mark.parametrize(
    "fields", [{}, {"time_grid": "karras", "time_difference": 0, "matched_filter": True, "map_encoding": "one_hot"}]
)
def test_a_warm_start_is_the_rest_of_a_run_from_the_noisy_map(fields):
    model = tiny_segmenter(**fields).eval()
    features = torch.randn(1, model.decoder.feature_channels, 8, 8)
    signal, noise = torch.randn(1, 2, model.codec.channels, 8, 8), torch.randn(1, 2, model.codec.channels, 8, 8)
    with torch.inference_mode():
        out = model.decode_map(
            features, 2, 2, noise=noise, sampling="diffusion", warm_start=WarmStart(signal, 0.5), output_steps=True
        )
    alpha, sigma = model.schedule.alpha_sigma(torch.tensor(0.5))
    torch.testing.assert_close(out.steps[0].x_t, add_noise(signal, noise, alpha, sigma).flatten(0, 1))
    assert (len(out.steps), out.steps[0].t) == (2, pytest.approx(0.5, abs=1e-3)) and out.steps[1].t < 0.5
    options = DecodingOptions(num_inference_steps=3, sampling="diffusion").resolved(model.config)
    whole, warm = time_grid(model, options), time_grid(model, options, 0.4)
    assert len(warm) == len(whole) == 3 and whole[0][0] == 1 and warm[0][0] == pytest.approx(0.4, abs=1e-3)


def test_a_map_is_moved_along_the_flow(predictors):
    """Two cells of 4 pixels to the right and one down; what came into view, or was hidden, begins from noise alone."""
    before = WarmStart(torch.randn(2, 3, 5, 8, 10), 0.5)
    offset, visible = torch.tensor([-8.0, -4.0]).expand(2, 32, 40, 2), torch.ones(2, 32, 40, dtype=torch.bool)
    visible[1, :, 20:24] = False
    wanted = torch.zeros_like(before.signal)
    wanted[..., 1:, 2:] = before.signal[..., :-1, :-2]
    wanted[1, ..., 5] = 0
    assert torch.equal(before.moved(offset, visible).signal, wanted)
    with pytest.raises(ValueError, match=r"flow of shape \(32, 40, 2\) .* expected \(2, H, W, 2\)"):
        before.moved(offset[0], visible[0])
    still = np.zeros((48, 64, 2), np.float32), np.ones((48, 64), bool)
    frames = [Image.fromarray(pixels) for pixels in flat_frames(3)]
    options = PredictionOptions(num_inference_steps=1)
    clips = [ClipPredictor(predictors["depth"], "clip", options, 0.5) for _ in range(3)]
    gone = still[0] + 1000, still[1]
    flows = (None, [None, still, still], [None, gone, gone])
    plain, same, other = ([one.map for one in clip.predict_frames(frames, flows=flow)] for clip, flow in zip(clips, flows))
    assert np.array_equal(plain, same) and not np.array_equal(plain[1:], other[1:])
    with pytest.raises(ValueError, match="expected a warm_start"):
        next(ClipPredictor(predictors["depth"], "clip", options).predict_frames(frames, flows=[None]))


def test_flow_from_files_goes_with_the_frames_whatever_segment_they_are_in(predictors, tmp_path, monkeypatch):
    monkeypatch.setattr(predicting, "SEGMENT", 2)
    path = write_clip(tmp_path / "clip.mp4", flat_frames(4))
    (tmp_path / "flow").mkdir()
    flows = {number: (np.full((48, 64, 2), 4 * number, np.float32), np.ones((48, 64), bool)) for number in (1, 3)}
    for number, (offset, visible) in flows.items():
        np.savez(tmp_path / "flow" / f"{number:06d}.npz", offset_px=offset, visible=visible)
    folder = FlowFolder(tmp_path / "flow")
    seen = []
    moved = WarmStart.moved
    monkeypatch.setattr(WarmStart, "moved", lambda self, *flow: (seen.append(flow), moved(self, *flow))[1])
    run = {"options": PredictionOptions(num_inference_steps=1), "warm_start": 0.5, "progress": False}
    predict_video(path, tmp_path / "out", predictors["depth"], flow=folder, **run)
    assert [(float(offset[0, 0, 0, 0]), bool(visible.all())) for offset, visible in seen] == [(4, True), (0, False), (12, True)]
    with pytest.raises(ValueError, match=r"000001.npz has offset_px of shape \(48, 64, 2\).* expected .* \(40, 64, 2\)"):
        folder.check((64, 40))
    with pytest.raises(ValueError, match="holds results of other settings"):
        predict_video(path, tmp_path / "out", predictors["depth"], **run)
    (tmp_path / "flow" / "000001.npz").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"000001\.npz is no file of flow; expected arrays 'offset_px' and 'visible'"):
        folder.check((64, 48))
    with pytest.raises(ValueError, match=r"is no folder of flow; expected files 000001\.npz"):
        FlowFolder(tmp_path)


def test_the_lower_the_level_the_more_is_taken_over(predictors):
    """At a level of almost 0 the decoder sees the map before itself; at almost 1 nothing of it is left."""
    clip = ClipPredictor(predictors["depth"], "clip", PredictionOptions(num_inference_steps=1), 0.999)
    first, second = (Image.fromarray(np.full((48, 64, 3), value, np.uint8)) for value in (40, 200))
    list(clip.predict_frames([first, second]))
    cold = predictors["depth"](second, ["clip"], num_inference_steps=1)[0].map
    before = clip.state.clone()
    differences = []
    for level in (0.999, 0.3):
        clip = ClipPredictor(predictors["depth"], "clip", PredictionOptions(num_inference_steps=1), level)
        clip.state = before
        differences.append(np.abs(next(clip.predict_frames([second])).map - cold).mean())
    assert differences[0] < 0.2 * differences[1]
    assert image_generator(0, "clip").initial_seed() != image_generator(1, "clip").initial_seed()


def test_levels_and_models_that_cannot_work_are_refused(predictors, tmp_path):
    with pytest.raises(ValueError, match=r"warm_start is 1\.5; expected a noise level between 0 and 1"):
        ClipPredictor(predictors["depth"], "clip", None, 1.5)
    with pytest.raises(ValueError, match="sampling is 'one_pass'"):
        ClipPredictor(predictors["segmentation"], "clip", PredictionOptions(sampling="one_pass"), 0.5)
    path = write_clip(tmp_path / "clip.mp4", flat_frames(2))
    with pytest.raises(ValueError, match="not drawn into videos"):
        predict_video(path, tmp_path / "out", predictors["depth"], PredictionOptions(interval=0.9))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["clip.mp4", "--warm-start", "2"], "expected a noise level between 0 and 1"),
        (["clip.mp4", "text.mp4"], ""),
        (["clip.mp4", "photo.png"], "expected videos alone or no videos"),
        (["photo.png", "--warm-start", "0.5"], "it is for videos"),
        (["text.mp4"], "is no video that can be read"),
        (["clip.mp4", "--interval", "0.9"], "not drawn into videos"),
        (["clip.mp4", "--no-panels"], "--no-panels: it is for images, got videos"),
        (["clip.mp4", "--no-arrays"], "--no-arrays: it is for images, got videos"),
        (["http://127.0.0.1/clip.mp4"], "videos are read from files"),
    ],
)
def test_the_command_says_what_cannot_be_done(words, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "clip.mp4", flat_frames(1))
    (tmp_path / "text.mp4").write_bytes(b"hello" * 99)
    Image.new("RGB", (64, 48)).save("photo.png")
    with pytest.raises(SystemExit) as stop:
        main(["predict", *words, "--model", "no-such-model", "--out", "out", "--device", "cpu"])
    captured = capfd.readouterr()
    assert stop.value.code == 2 and message in captured.err and "Traceback" not in captured.err
    assert not (tmp_path / "out").exists()
