import errno
import importlib
import json
import os
import pickle
import queue
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from noise2map.data.freedoom import FreedoomDataset, catalog
from noise2map.data.freedoom import format as store
from noise2map.rendering import selection
from noise2map.rendering import workers as chunks
from noise2map.rendering import workers as pool
from noise2map.rendering.frames import RenderOptions, render

pytest.importorskip("vizdoom")
render_module = importlib.import_module("noise2map.rendering.frames")  # the name in the package is the function

FRAMES = 50  # three chunks: two whole, one half
COMMAND = [sys.executable, "-c", "from noise2map.cli import main; main()", "data", "freedoom"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """The uninterrupted render, by one worker."""
    out = tmp_path_factory.mktemp("reference") / "val"
    assert render(RenderOptions(out=out, split="val", frames=FRAMES, workers=1), progress=False) == FRAMES
    return out


def contents(root: Path) -> dict[str, bytes]:
    """Every file of a split but the description, which holds the command."""
    files = (path for path in root.rglob("*") if path.is_file() and path.name != "dataset.json")
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def start(out: Path, scratch: Path) -> subprocess.Popen:
    """The command in its own process group, its scratch directories under ``scratch``."""
    scratch.mkdir(exist_ok=True)
    arguments = [*COMMAND, "--split", "val", "--frames", str(FRAMES), "--out", str(out)]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    return subprocess.Popen(
        arguments,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Under a shell that runs its jobs in the background SIGINT is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_for_frames(out: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list((out / "labels").glob("0*.png"))) < count:
        assert time.monotonic() < deadline, "no frames appear"
        time.sleep(0.01)


def processes_in(scratch: Path) -> list[str]:
    """Command lines that name the scratch directory: engines (Linux)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(scratch) in command:
            found.append(command)
    return found


def assert_nothing_left(out: Path, scratch: Path) -> None:
    deadline = time.monotonic() + 20
    while processes_in(scratch) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_in(scratch) == []
    assert list(out.rglob(".*")) == []
    for path in out.rglob("*.png"):
        with Image.open(path) as image:
            image.load()  # raises on half a file
    store.read_records(out)


def test_a_frame_does_not_depend_on_the_workers(reference, tmp_path):
    render(RenderOptions(out=tmp_path / "more", split="val", frames=FRAMES, workers=3), progress=False)
    assert contents(tmp_path / "more") == contents(reference)


def test_another_seed_gives_other_frames(reference, tmp_path):
    job = RenderOptions(out=tmp_path / "other", split="val", frames=2, seed=1)
    (task,) = chunks.plan(job.split, job.frames, render_module._open_folder(job))
    render_module._render_map(job, task, queue.Queue(), lambda: False, tmp_path)
    other = contents(tmp_path / "other")
    assert len([name for name in other if name.endswith(".png")]) == 8
    assert all(contents(reference)[name] != data for name, data in other.items() if name.startswith("image"))


def test_supersampled_frames_are_colors_and_say_so(reference, tmp_path):
    job = RenderOptions(out=tmp_path / "fine", split="val", frames=2, supersample=2)
    (task,) = chunks.plan(job.split, job.frames, render_module._open_folder(job))
    messages = queue.Queue()
    render_module._render_map(job, task, messages, lambda: False, tmp_path)
    store.write_records(job.out, {record["index"]: record for record in messages.queue})
    assert store.read_description(job.out)["supersample"] == 2
    coarse, fine = FreedoomDataset(reference, "both"), FreedoomDataset(job.out, "both")
    assert len(fine) == 2
    with Image.open(store.file_of(job.out, "image", 0)) as image:
        assert (image.mode, image.size) == ("RGB", (160, 120))
    for index in range(2):  # the same places, as these are drawn alike and worth keeping alike
        assert fine.records[index]["position_m"] == coarse.records[index]["position_m"]
        assert (fine[index]["labels"] == coarse[index]["labels"]).mean() > 0.9
        assert np.abs(np.asarray(fine[index]["image"], float) - np.asarray(coarse[index]["image"], float)).mean() < 20
        assert selection.view_of(fine[index]["image"], fine[index]["depth_m"]).brightness == pytest.approx(
            selection.view_of(coarse[index]["image"], coarse[index]["depth_m"]).brightness, rel=0.1
        )
    for other in (1, 4):
        with pytest.raises(ValueError, match=f"supersample = 2, not {other}"):
            render(RenderOptions(out=job.out, split="val", frames=3, supersample=other), progress=False)
    with pytest.raises(ValueError, match="supersample = 1, not 4"):
        render(RenderOptions(out=reference, split="val", frames=60, supersample=4), progress=False)


def test_what_is_missing_is_rendered_and_nothing_else(reference, tmp_path):
    out, whole = tmp_path / "val", contents(reference)
    assert render(RenderOptions(out=out, split="val", frames=23, workers=1), progress=False) == 23
    few = {name: data for name, data in contents(out).items() if name.endswith(".png")}
    assert len(few) == 4 * 23
    assert all(whole[name] == data for name, data in few.items())  # a frame does not depend on how many are asked for
    for name in ("depth/000007.png", "image/000021.png"):
        (out / name).unlink()
    (out / "image" / ".000031.png.77.partial").write_bytes(b"half")
    untouched = (out / "labels" / "000008.png").stat().st_mtime_ns
    assert render(RenderOptions(out=out, split="val", frames=FRAMES), progress=False) == FRAMES - 21
    assert contents(out) == whole
    assert (out / "labels" / "000008.png").stat().st_mtime_ns == untouched
    assert render(RenderOptions(out=out, split="val", frames=FRAMES), progress=False) == 0
    assert render(RenderOptions(out=out, split="val", frames=10), progress=False) == 0  # fewer than there are: kept
    assert len(FreedoomDataset(out)) == FRAMES


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ctrl-c", "terminate", "kill parent"])
def test_an_interrupted_render_goes_on_where_it_was(method, reference, tmp_path):
    out, scratch = tmp_path / "val", tmp_path / "scratch"
    process = start(out, scratch)
    wait_for_frames(out, 8)
    if method == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group
    else:
        process.send_signal(signal.SIGTERM if method == "terminate" else signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert_nothing_left(out, scratch)
    if method == "ctrl-c":
        assert process.returncode == 130
        assert "Traceback" not in errors
        assert list(scratch.iterdir()) == []
        done = store.finished_records(out)
        assert 8 <= len(done) < FRAMES
        assert len(FreedoomDataset(out)) == len(done)  # usable as far as it is
    render(RenderOptions(out=out, split="val", frames=FRAMES, workers=2), progress=False)
    assert contents(out) == contents(reference)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers through /proc")
def test_a_killed_worker_is_reported_and_its_engine_ended(tmp_path):
    out, scratch = tmp_path / "val", tmp_path / "scratch"
    process = start(out, scratch)
    wait_for_frames(out, 4)
    engine_of: dict[int, str] = {}
    while not engine_of and process.poll() is None:  # between two maps a worker has no engine for a moment
        found = ((pid, name(child)) for pid in children(process.pid) for child in children(pid))
        engine_of = {pid: engine for pid, engine in found if "+viz_instance_id" in engine}
    worker, engine = next(iter(engine_of.items()))
    instance = engine.split("\0")[engine.split("\0").index("+viz_instance_id") + 1]
    os.kill(worker, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "a render worker ended with exit code -9" in errors
    assert "Traceback" not in errors
    assert list(Path("/dev/shm").glob(f"*{instance}")) == []
    assert_nothing_left(out, scratch)


def children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def test_a_disk_that_fills_up_leaves_whole_frames_only(tmp_path, monkeypatch):
    job, messages, written = RenderOptions(out=tmp_path / "val", split="val", frames=20), queue.Queue(), []
    (task,) = chunks.plan(job.split, job.frames, render_module._open_folder(job))
    save = Image.Image.save

    def save_until_full(picture, file, *options):
        written.append(file)
        if len(written) > 19:  # four frames and all but the labels of the fifth fit
            file.write(b"half a picture")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(picture, file, *options)

    monkeypatch.setattr(Image.Image, "save", save_until_full)
    with pytest.raises(OSError, match="No space left on device") as raised:
        render_module._render_map(job, task, messages, lambda: False, tmp_path)
    assert raised.value.errno == errno.ENOSPC
    assert raised.value.filename == str(tmp_path / "val" / "labels" / "000004.png")
    assert str(raised.value) == str(pickle.loads(pickle.dumps(pool.portable(raised.value))))
    assert [message["index"] for message in messages.queue] == [0, 1, 2, 3]
    assert len(list((tmp_path / "val" / "labels").iterdir())) == 4
    assert_nothing_left(tmp_path / "val", tmp_path)


def test_an_error_of_a_worker_reaches_the_caller():
    messages = queue.Queue()
    messages.put({"index": 3})
    messages.put(OSError(errno.ENOSPC, "No space left on device", "/x/image/000004.png"))
    records = {}
    with pytest.raises(OSError, match="No space left on device"):
        pool.collect([None], messages, lambda record: records.update({record["index"]: record}))
    assert list(records) == [3]
    assert isinstance(pool.portable(type("Foreign", (Exception,), {"__module__": "vizdoom"})("x")), OSError)


def test_too_small_a_disk_is_told_before_anything_starts(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(OSError, match="not enough disk space: 50 frames need about") as raised:
        render(RenderOptions(out=tmp_path / "val", split="val", frames=FRAMES), progress=False)
    assert raised.value.errno == errno.ENOSPC
    assert list((tmp_path / "val").rglob("*.png")) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "trian"}, "split must be one of train, val, test, got 'trian'"),
        ({"frames": 0}, "frames must be between 1 and 10000000, got 0"),
        ({"workers": 0}, "workers must be between 1 and"),
        ({"seed": -1}, "seed must be between 0 and"),
        ({"supersample": 3}, "supersample must be one of 1, 2, 4, got 3"),
        ({"width": 512, "height": 288, "supersample": 4}, "supersample 4 needs images of 2048x1152"),
        ({"width": 100}, r"cannot render 100x120; it has 160x120"),
    ],
)
def test_bad_arguments_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        render(RenderOptions(out=tmp_path / "x", **options), progress=False)
    assert not (tmp_path / "x").exists()


def test_a_folder_of_something_else_is_refused(reference, tmp_path):
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(ValueError, match="not empty and not a Freedoom split"):
        render(RenderOptions(out=tmp_path, split="val", frames=5), progress=False)
    assert sorted(os.listdir(tmp_path)) == ["thesis.txt"]
    for options, found in (
        ({"seed": 2}, "seed = 0, not 2"),
        ({"split": "test"}, "split = 'val', not 'test'"),
        ({"keep_gore": True}, "gore = False"),
    ):
        with pytest.raises(ValueError, match=found):
            render(RenderOptions(out=reference, **{"split": "val", "frames": 60, **options}), progress=False)


def test_command_line_errors_are_one_line(tmp_path, capsys):
    from noise2map.cli import main

    (tmp_path / "file").write_text("")
    for arguments, message in (
        (["--out", str(tmp_path / "a"), "--size", "160"], "Invalid value for '--size': expected WIDTHxHEIGHT"),
        (["--out", str(tmp_path / "a"), "--gore", "maybe"], "'maybe' is not one of 'drop', 'keep'"),
        (["--out", str(tmp_path / "file" / "a")], "Not a directory"),
        (["--out", "/proc/nothing/a"], "/proc/nothing"),
    ):
        with pytest.raises(SystemExit) as raised:
            main(["data", "freedoom", *arguments])
        assert raised.value.code == 2
        errors = capsys.readouterr().err
        assert message in errors
        assert "Traceback" not in errors


def test_frames_on_disk_are_what_the_format_says(reference):
    description = json.loads((reference / "dataset.json").read_text())
    assert (description["split"], description["size"], description["frames"], description["seed"]) == ("val", [160, 120], FRAMES, 0)
    records = store.read_records(reference)
    assert sorted(records) == list(range(FRAMES))
    assert {record["map"] for record in records.values()} == {"E1M3", "E2M6", "E3M5"}  # the first three of the split
    assert not any(record["gore"] for record in records.values())
    for index, record in records.items():
        image, depth, labels = (Image.open(store.file_of(reference, part, index)) for part in store.PARTS)
        assert (image.mode, labels.mode, image.size, depth.size, labels.size) == ("P", "P", (160, 120), (160, 120), (160, 120))
        ids, centimetres = np.asarray(labels), np.asarray(depth)
        assert centimetres.dtype == np.uint16
        assert record["classes"] == [int(value) for value in np.unique(ids) if value != 255]
        assert (centimetres[ids == catalog.SKY] == 0).all()
        assert (centimetres[ids == 255] == 0).all()
        assert (centimetres[(ids != catalog.SKY) & (ids != 255)] > 0).all()
        assert (ids == 255).mean() <= 0.1
