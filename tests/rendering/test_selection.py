import json
import shutil

import numpy as np
import pytest
from PIL import Image

from noise2map.cli import main
from noise2map.data import FreedoomDataset
from noise2map.data.freedoom import SAMPLES_ROOT
from noise2map.data.freedoom import format as store
from noise2map.rendering.selection import Selection, View, select_frames, view_of

SOURCE = SAMPLES_ROOT / "train"
ROOMS = Selection(min_brightness=38, max_redness=18, min_median_depth_m=3, min_depth_contrast=4)


def test_a_view_is_that_of_the_middle_square():
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 2:6] = (200, 100, 0)
    depth_m = np.full((4, 8), 99.0)
    depth_m[:, 2:4], depth_m[:, 4:6] = 2.0, 8.0
    depth_m[0, 2] = 0.0  # sky
    view = view_of(Image.fromarray(pixels), depth_m)
    luma = 0.299 * 200 + 0.587 * 100
    assert view == View(pytest.approx(luma), pytest.approx(200 - luma), pytest.approx(8.0), pytest.approx(4.0))
    with pytest.raises(ValueError, match="expected one size"):
        view_of(Image.fromarray(pixels), depth_m[:, :4])


def test_a_view_of_sky_alone():
    view = view_of(Image.new("RGB", (4, 4), (9, 9, 9)), np.zeros((4, 4)))
    assert (view.median_depth_m, view.depth_contrast) == (0.0, 1.0)


def passes(index):
    """The rule of ROOMS once more, by sorting."""
    pixels = np.asarray(Image.open(store.file_of(SOURCE, "image", index)).convert("RGB"), float)[:, 20:140]
    depth_cm = np.asarray(Image.open(store.file_of(SOURCE, "depth", index)), float)[:, 20:140]
    luma = (pixels * [0.299, 0.587, 0.114]).sum(-1).mean()
    known = np.sort(depth_cm[depth_cm > 0])
    near, median, far = (np.interp(q * (known.size - 1), np.arange(known.size), known) for q in (0.05, 0.5, 0.95))
    return luma >= 38 and pixels[..., 0].mean() - luma <= 18 and median >= 300 and far >= 4 * near


def test_a_selection_is_a_split_of_its_own(tmp_path):
    out = tmp_path / "rooms"
    taken, total = select_frames(SOURCE, out, ROOMS, "the command")
    before, after = FreedoomDataset(SOURCE, "both"), FreedoomDataset(out, "both")
    expected = [record["id"] for record in before.records if passes(record["index"])]
    assert [record["id"] for record in after.records] == expected
    assert (taken, total) == (len(expected), 60)
    assert 0 < taken < 60
    place = [record["id"] for record in before.records].index(expected[0])
    one, same = before[place], after[0]
    assert np.array_equal(np.asarray(one["image"]), np.asarray(same["image"]))
    assert np.array_equal(one["depth_m"], same["depth_m"])
    description = json.loads((out / "dataset.json").read_text())
    assert description["selection"]["command"] == "the command"
    assert (description["frames"], description["selection"]["of"], description["split"]) == (taken, 60, "train")


def test_everything_passes_without_bounds(tmp_path):
    assert select_frames(SOURCE, tmp_path / "all", Selection()) == (60, 60)


def test_an_interrupted_selection_is_finished_by_the_next_call(tmp_path, monkeypatch):
    out = tmp_path / "rooms"

    def interrupted(indices, **options):
        yield from indices[:30]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("noise2map.rendering.selection.progress_bar", interrupted)
        select_frames(SOURCE, out, ROOMS)
    with pytest.raises(FileNotFoundError):
        FreedoomDataset(out)
    select_frames(SOURCE, tmp_path / "whole", ROOMS)
    select_frames(SOURCE, out, ROOMS)
    assert (out / "metadata.jsonl").read_text() == (tmp_path / "whole" / "metadata.jsonl").read_text()
    with pytest.raises(FileExistsError, match="finished split already"):
        select_frames(SOURCE, out, ROOMS)


def test_what_cannot_be_selected_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"min_depth_contrast is 0\.5; expected a finite number, at least 1"):
        Selection(min_depth_contrast=0.5)
    with pytest.raises(ValueError, match="max_redness is nan"):
        Selection(max_redness=float("nan"))
    with pytest.raises(ValueError, match="no frame of 60"):
        select_frames(SOURCE, tmp_path / "none", Selection(min_brightness=255))
    assert not (tmp_path / "none").exists()
    with pytest.raises(FileNotFoundError, match="not a Freedoom split"):
        select_frames(tmp_path, tmp_path / "none", ROOMS)


def test_command(tmp_path, capsys):
    out = tmp_path / "rooms"
    bounds = ["--min-brightness", "38", "--max-redness", "18", "--min-median-depth", "3", "--min-depth-contrast", "4"]
    with pytest.raises(SystemExit) as stop:
        main(["data", "select", "--from", str(SOURCE), "--out", str(out), *bounds])
    assert not stop.value.code
    assert f"{len(FreedoomDataset(out))} of 60 frames" in capsys.readouterr().out


def test_normals_are_taken_along_where_there_are_any(tmp_path):
    source = tmp_path / "train"
    shutil.copytree(SOURCE, source)
    (source / "normals").mkdir()
    for path in (source / "image").iterdir():
        (source / "normals" / path.name).write_text(path.stem)
    taken, _ = select_frames(source, tmp_path / "rooms", ROOMS)
    found = {path.name: path.read_text() for path in (tmp_path / "rooms" / "normals").iterdir()}
    assert len(found) == taken and all(name == f"{text}.png" for name, text in found.items())
    assert found.keys() == {path.name for path in (tmp_path / "rooms" / "image").iterdir()}
