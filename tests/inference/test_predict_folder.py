import errno
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_depth_model, tiny_segmenter
from torch.nn import functional

from noise2map.inference import folder as folder_room
from noise2map.inference import memory
from noise2map.inference.folder import predict_folder, run_settings
from noise2map.inference.predictor import Predictor
from noise2map.inference.resuming import output_names
from noise2map.inference.sources import find_images
from noise2map.models import Noise2MapImageProcessor
from noise2map.models.decoding import PredictionOptions
from noise2map.runs import files
from noise2map.tasks.depth import depth_png_scale

OPTIONS = PredictionOptions(num_inference_steps=2, ensemble_size=2)
NAMES = {0: "floor", 1: "wall", 2: "ceiling", 3: "sky", 4: "door"}


@pytest.fixture(scope="module")
def segmenter():
    model = tiny_segmenter(id2label=NAMES, label2id={name: index for index, name in NAMES.items()})
    return Predictor(model, Noise2MapImageProcessor(size={"shortest_edge": 32}))


@pytest.fixture(scope="module")
def depther():
    return Predictor(tiny_depth_model(), Noise2MapImageProcessor(size={"shortest_edge": 32}))


@pytest.fixture
def images(tmp_path):
    """Three good images of two sizes, one cut off, one that is none, and a text."""
    source = tmp_path / "images"
    (source / "sub").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, size in (("a.png", (40, 50)), ("b.jpg", (40, 50)), ("sub/c.png", (64, 48))):
        Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)).save(source / name)
    (source / "cut.png").write_bytes((source / "a.png").read_bytes()[:700])
    (source / "fake.jpg").write_text("no image")
    (source / "notes.txt").write_text("x")
    return source


def run(images, out, predictor, options=OPTIONS, **keywords):
    return predict_folder(images, out, predictor, options, model_name="tiny", progress=False, **keywords)


def at_size(values, size):
    """A map at another size, as torch enlarges."""
    return functional.interpolate(torch.from_numpy(values)[None, None], size=tuple(size[::-1]), mode="bilinear")[0, 0].numpy()


def lines_of(out):
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def test_segmentation_files_hold_the_maps(images, tmp_path, segmenter):
    out = tmp_path / "out"
    report = run(images, out, segmenter)
    assert sorted(report.written) == ["a.png", "b.jpg", "sub/c.png"]
    assert set(report.failed) == {"cut.png", "fake.jpg"}
    assert all(name in message for name, message in report.failed.items())
    lines = {line["id"]: line for line in lines_of(out)}
    for image_id, line in lines.items():
        image = Image.open(images / image_id)
        expected = segmenter(image, [image_id], OPTIONS)[0]
        label = Image.open(out / line["files"]["labels"])
        assert label.mode == "P" and label.size == image.size == tuple(line["size"])
        assert (np.asarray(label) == expected.labels).all()
        assert (np.array(label.getpalette()).reshape(-1, 3)[:5] == segmenter.palette).all()
        uncertainty = np.asarray(Image.open(out / line["files"]["uncertainty"])) / 65535
        np.testing.assert_allclose(uncertainty, expected.uncertainty, atol=2e-5)
        assert line["uncertainty"]["kind"] == "entropy"
        assert line["uncertainty"]["mean"] == pytest.approx(float(expected.uncertainty.mean()), abs=1e-4)
        assert sum(line["class_shares"].values()) == pytest.approx(1, abs=1e-5)
        first = next(iter(line["class_shares"]))
        share = (expected.labels == segmenter.model.config.label2id[first]).mean()
        assert line["class_shares"][first] == pytest.approx(share, abs=1e-5)
        assert Image.open(out / line["files"]["panel"]).width > 500
        assert line["options"]["num_inference_steps"] == 2 and line["num_steps"] == 2 and line["model"] == "tiny"
    assert lines["sub/c.png"]["files"]["labels"] == "labels/sub/c.png"


def test_depth_files_agree_with_each_other(images, tmp_path, depther):
    out = tmp_path / "out"
    run(images, out, depther, panels=False)
    for line in lines_of(out):
        arrays = np.load(out / line["files"]["arrays"])
        assert arrays["depth_m"].dtype == np.float32 and arrays["uncertainty"].dtype == np.float32
        assert arrays["depth_m"].shape == arrays["uncertainty"].shape == tuple(line["processed_size"][::-1])
        millimetres = Image.open(out / line["files"]["depth"])
        assert millimetres.mode.startswith("I") and line["depth_png_units_per_m"] == 1000
        assert millimetres.size == tuple(line["size"])
        depth_m = at_size(arrays["depth_m"], line["size"])
        np.testing.assert_allclose(np.asarray(millimetres) / 1000, depth_m, atol=5.1e-4)
        assert line["depth_m"]["median"] == pytest.approx(float(np.median(depth_m)), abs=1e-3)
        assert "panel" not in line["files"]


def test_the_png_of_a_depth_uncertainty_uses_its_bits(images, tmp_path, depther):
    run(images, tmp_path / "out", depther, panels=False)
    for line in lines_of(tmp_path / "out"):
        units = np.asarray(Image.open(tmp_path / "out" / line["files"]["uncertainty"])).astype(np.int64)
        exact = np.load(tmp_path / "out" / line["files"]["arrays"])["uncertainty"]
        assert exact.max() < 0.01  # 655 of 65535 at most, if 65535 meant 1
        factor = line["uncertainty"]["png_units_per_1"]
        assert 6553 <= units.max() <= 65535 and line["uncertainty"]["unit"] == "share of the depth"
        np.testing.assert_allclose(units / factor, at_size(exact, line["size"]), atol=0.6 / factor)


def test_arrays_can_be_left_out(images, tmp_path, depther):
    run(images, tmp_path / "out", depther, panels=False, arrays=False)
    assert not list((tmp_path / "out").rglob("*.npz")) and len(list((tmp_path / "out" / "depth").rglob("*.png"))) == 3


def test_what_was_left_out_is_written_when_it_is_asked_for(images, tmp_path, depther):
    out = tmp_path / "out"
    run(images, out, depther, panels=False, arrays=False)
    assert {tuple(line["left_out"]) for line in lines_of(out)} == {("panels", "arrays")}
    assert len(run(images, out, depther, panels=False).written) == 3 and len(list((out / "depth").rglob("*.npz"))) == 3
    assert len(run(images, out, depther).written) == 3 and len(list((out / "panels").rglob("*.png"))) == 3
    assert not any("left_out" in line for line in lines_of(out)) and len(lines_of(out)) == 3
    assert len(run(images, out, depther, panels=False, arrays=False).skipped) == 3  # more than is asked for is there


def test_sixteen_bits_hold_the_farthest_depth():
    assert [depth_png_scale(metres) for metres in (10, 65.5, 80, 300)] == [1000, 1000, 256, 100]


def test_a_second_run_goes_on(images, tmp_path, segmenter, monkeypatch):
    out = tmp_path / "out"
    run(images, out, segmenter)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    monkeypatch.setattr(segmenter.model, "encode_image", lambda *_: pytest.fail("done before"))
    report = run(images, out, segmenter)
    assert report.written == [] and sorted(report.skipped) == ["a.png", "b.jpg", "sub/c.png"]
    assert set(report.failed) == {"cut.png", "fake.jpg"}
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}


def test_what_is_missing_torn_or_changed_is_done_again(images, tmp_path, segmenter):
    out = tmp_path / "out"
    run(images, out, segmenter)
    kept = lines_of(out)
    (out / "labels" / "a.png").unlink()
    with open(out / "predictions.jsonl", "a") as file:
        file.write('{"id": "b.jpg", "fil')  # the run was killed here
    Image.new("RGB", (48, 64)).save(images / "sub" / "c.png")
    report = run(images, out, segmenter)
    assert sorted(report.written) == ["a.png", "sub/c.png"] and report.skipped == ["b.jpg"]
    assert (out / "labels" / "a.png").is_file()
    assert len(lines_of(out)) == len(kept) == 3  # the lines of what was done again replace the old ones


def test_other_settings_are_refused_unless_overwritten(images, tmp_path, segmenter):
    out = tmp_path / "out"
    run(images, out, segmenter)
    with pytest.raises(ValueError, match=r"num_inference_steps 2 -> 3.*--overwrite"):
        run(images, out, segmenter, options=PredictionOptions(num_inference_steps=3, ensemble_size=2))
    other = Predictor(tiny_segmenter(seed=1, id2label=NAMES), segmenter.processor)
    with pytest.raises(ValueError, match="weights"):
        run(images, out, other)
    assert all(line["num_steps"] == 2 for line in lines_of(out))
    run(images, out, segmenter, options=PredictionOptions(num_inference_steps=3, ensemble_size=2), overwrite=True)
    assert [line["num_steps"] for line in lines_of(out)] == [3, 3, 3]


def test_maps_of_another_configuration_are_not_taken_for_done(images, tmp_path):
    """Weights, processor and options are the same; what the model makes of them is not."""
    for fields in (
        {"temperature": 2.0},
        {"calibration": {"temperature": 2.0}},
        {"auto_threshold": 0.2},
        {"uncertainty": "entropy"},
    ):
        before, after = (Predictor(tiny_segmenter(**one), Noise2MapImageProcessor()) for one in ({}, fields))
        plain, other = (run_settings(one, OPTIONS, "tiny") for one in (before, after))
        assert "config" not in plain  # as in folders of before there was one
        assert [name for name in other if other[name] != plain.get(name)] == ["config"]
    near, far = (
        run_settings(Predictor(tiny_depth_model(max_depth=one), Noise2MapImageProcessor()), OPTIONS, "m") for one in (5, 9)
    )
    assert near["config"] != far["config"]
    out = tmp_path / "maps"
    run([images / "a.png"], out, before)
    assert run([images / "a.png"], out, before).skipped
    with pytest.raises(ValueError, match=r"other settings \(config None -> "):
        run([images / "a.png"], out, after)


def test_maps_do_not_depend_on_the_folder_around_them(images, tmp_path, depther):
    run(images, tmp_path / "all", depther, panels=False)
    run(images / "a.png", tmp_path / "one", depther, panels=False)
    arrays = [np.load(tmp_path / out / "depth" / "a.npz")["depth_m"] for out in ("all", "one")]
    np.testing.assert_allclose(*arrays, rtol=1e-4)


def test_a_full_disk_leaves_whole_files_and_the_run_goes_on_later(images, tmp_path, segmenter, monkeypatch):
    out = tmp_path / "out"
    whole, written = files.write_bytes, []

    def until_full(path, data):
        if len(written) == 4:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path)
        whole(path, data)

    monkeypatch.setattr("noise2map.runs.output_folder.write_bytes", until_full)
    with pytest.raises(OSError, match="No space left"):
        run(images, out, segmenter)
    monkeypatch.undo()
    assert len(lines_of(out)) == 1  # three files and the line of the first image; one file of the second
    for path in out.rglob("*.png"):
        Image.open(path).load()
    report = run(images, out, segmenter)
    assert len(report.skipped) == 1 and len(report.written) == 2


def test_a_line_that_does_not_fit_is_taken_back(images, tmp_path, segmenter, monkeypatch):
    out = tmp_path / "out"
    run(images / "a.png", out, segmenter)
    before = (out / "predictions.jsonl").read_bytes()
    place = folder_room.OutputFolder(out, folder_room.run_settings(segmenter, OPTIONS.resolved(segmenter.model.config), "tiny"))

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            return self.file.write(data[:10])

    monkeypatch.setattr("builtins.open", lambda *a, **k: Full(os.fdopen(os.open(a[0], os.O_RDWR | os.O_APPEND), "ab", 0)))
    with pytest.raises(OSError, match="No space"):
        place.write({"id": "b", "files": {}}, {})
    monkeypatch.undo()
    assert (out / "predictions.jsonl").read_bytes() == before and "b" not in place.done


def test_images_too_large_for_memory_fail_alone(images, tmp_path, segmenter, monkeypatch):
    Image.new("RGB", (4000, 64)).save(images / "wide.png")
    limit = memory.estimate_bytes(segmenter.model.config, memory.Workload(1, 64, 600, 2, 64 * 600))
    monkeypatch.setattr(memory, "available_bytes", lambda device: limit)
    report = run(images, tmp_path / "out", segmenter, panels=False)
    assert "GiB" in report.failed["wide.png"] and len(report.written) == 3


def test_equal_names_from_two_folders_do_not_replace_each_other(tmp_path, segmenter):
    for folder, color in (("fa", "red"), ("fb", "blue")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (40, 32), color).save(tmp_path / folder / "x.png")
        Image.new("RGB", (40, 32), color).save(tmp_path / folder / "x.jpg")
    out = tmp_path / "out"
    for _ in range(2):
        for folder in ("fa", "fb"):
            for name in ("x.png", "x.jpg"):
                run(tmp_path / folder / name, out, segmenter)
    lines = lines_of(out)
    assert sorted(line["id"] for line in lines) == ["fb/x.jpg", "fb/x.png", "x.jpg", "x.png"]
    written = [path for line in lines for path in line["files"].values()]
    assert len(set(written)) == len(written) and all((out / path).is_file() for path in written)
    report = run(tmp_path / "fb" / "x.png", out, segmenter)
    assert report.written == [] and report.skipped == ["fb/x.png"]


def test_a_folder_that_was_moved_is_the_same(images, tmp_path, segmenter):
    run(images, tmp_path / "out", segmenter)
    images.rename(tmp_path / "elsewhere")
    report = run(tmp_path / "elsewhere", tmp_path / "out", segmenter)
    assert report.written == [] and sorted(report.skipped) == ["a.png", "b.jpg", "sub/c.png"]


def test_old_outputs_do_not_become_inputs(images, segmenter):
    for name in ("maps", "maps2"):
        report = run(images, images / name, segmenter)
        assert sorted(report.written) == ["a.png", "b.jpg", "sub/c.png"]
    assert report.left_out["maps/"] == "written by noise2map" and "maps2/" not in report.left_out


def test_odd_names_do_not_stop_the_folder(tmp_path, segmenter):
    source = tmp_path / "images"
    source.mkdir()
    image = Image.new("RGB", (40, 32))
    for name in (b"a.png", b"new\nline.png", b"caf\xe9.png", "\u202eright.png".encode(), b"z.png"):
        with open(os.fsencode(source) + b"/" + name, "wb") as file:
            image.save(file, "PNG")
    report = run(source, tmp_path / "out", segmenter)
    assert not report.failed and len(report.written) == 5
    assert {"new\\nline.png", "caf\\xe9.png", "a.png", "z.png"} < set(report.written)
    assert all((tmp_path / "out" / path).is_file() for line in lines_of(tmp_path / "out") for path in line["files"].values())
    assert len(run(source, tmp_path / "out", segmenter).skipped) == 5


def test_foreign_files_are_not_written_over(images, tmp_path, segmenter):
    mine = tmp_path / "out" / "labels" / "a.png"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(ValueError, match="did not write"):
        run(images, tmp_path / "out", segmenter)
    assert mine.read_text() == "mine"
    run(images, tmp_path / "out", segmenter, overwrite=True)
    Image.open(mine).load()


def test_a_strip_is_processed_at_a_bounded_size(tmp_path, segmenter):
    Image.new("RGB", (2000, 2)).save(tmp_path / "strip.png")
    run(tmp_path / "strip.png", tmp_path / "out", segmenter)
    line = lines_of(tmp_path / "out")[0]
    assert line["processed_size"] == [2000, 32] and line["size"] == [2000, 2]


@pytest.mark.parametrize(
    "ids", [["a.jpg", "b.png"], ["a.jpg", "a.png"], ["a.jpg", "a.png", "a.jpg.png"], ["a.png", "a.png.jpg", "x/a.png"], ["a"]]
)
def test_no_two_images_write_one_file(ids):
    names = output_names(ids)
    assert len(set(names.values())) == len(ids)
    if ids == ["a.jpg", "b.png"]:
        assert names == {"a.jpg": "a", "b.png": "b"}


def test_names_that_no_file_can_have_are_shortened(tmp_path):
    long = "\u00e4" * 124  # 248 bytes
    names = output_names([f"{long}.png", f"{long}.jpg", f"x/{long}a.png", f"{'y' * 236}.png"])
    assert len(set(names.values())) == 4 and names[f"{'y' * 236}.png"] == "y" * 236
    for name in names.values():
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / f"{name}.json.part").write_text("fits")
    assert names == output_names([f"{'y' * 236}.png", f"{long}.jpg", f"x/{long}a.png", f"{long}.png"])
    with pytest.raises(FileNotFoundError, match="a source is empty"):
        find_images("")


def test_frames_that_look_alike_in_a_listing_are_different_images(tmp_path, segmenter):
    """Bitmaps out of an archive: equal names, sizes and times; the second folder was taken for done."""
    random = np.random.default_rng(0)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        Image.fromarray(random.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(tmp_path / name / "0001.bmp")
        os.utime(tmp_path / name / "0001.bmp", (1_000_000_000, 1_000_000_000))
    out = tmp_path / "maps"
    assert list(run(tmp_path / "first", out, segmenter).written) == ["0001.bmp"]
    report = run(tmp_path / "second", out, segmenter)
    assert list(report.written) == ["second/0001.bmp"] and not report.skipped
    assert {line["id"] for line in lines_of(out)} == {"0001.bmp", "second/0001.bmp"}
