"""Output folders: nothing foreign is lost, settings decide, one process at a time, a line per id."""

import json
import signal
import subprocess
import sys

import pytest

from noise2map.runs.output_folder import LINES, SETTINGS, OutputFolder, claim, is_output_folder

MODEL = {"model": "rooms", "size": [3, 4]}


def write(folder, item="a", text=b"x"):
    folder.write({"id": item, "source": {}, "files": {"map": f"maps/{item}.txt"}}, {f"maps/{item}.txt": text})


def ids(root):
    return [json.loads(line)["id"] for line in (root / LINES).read_text().splitlines()]


def test_foreign_files_are_refused_before_anything_is_written(tmp_path):
    (tmp_path / "mine.png").write_text("mine")
    with pytest.raises(ValueError, match=r"files that noise2map did not write \(mine\.png\).*--overwrite"):
        OutputFolder(tmp_path, MODEL)
    with pytest.raises(ValueError, match=r"mine\.png"), claim(tmp_path, MODEL):
        pytest.fail("the block ran")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.png"]
    with OutputFolder(tmp_path, MODEL, overwrite=True) as folder:
        write(folder)
    assert (tmp_path / "mine.png").read_text() == "mine" and ids(tmp_path) == ["a"]


def test_a_foreign_settings_file_does_not_make_a_folder_ours(tmp_path):
    (tmp_path / SETTINGS).write_text('{"theme": "dark"}')
    with pytest.raises(ValueError, match="did not write"):
        OutputFolder(tmp_path, MODEL)
    (tmp_path / SETTINGS).write_text('{"the')
    with pytest.raises(ValueError, match="cannot be read"):
        OutputFolder(tmp_path, MODEL)


def test_hidden_and_system_files_are_nobodys(tmp_path):
    (tmp_path / ".DS_Store").write_text("")
    (tmp_path / "Thumbs.db").write_text("")
    with OutputFolder(tmp_path, MODEL) as folder:
        write(folder)
        assert folder.is_done("a", {})
    assert (tmp_path / ".DS_Store").exists() and (tmp_path / "Thumbs.db").exists()


def test_equal_settings_go_on_and_others_are_refused(tmp_path):
    with OutputFolder(tmp_path / "o", {"size": (3, 4), "model": "rooms"}) as folder:
        write(folder)
    with OutputFolder(tmp_path / "o", MODEL) as folder:
        assert folder.is_done("a", {}) and not folder.is_done("a", {"bytes": 1}) and not folder.is_done("b", {})
    with pytest.raises(ValueError, match=r"other settings \(model 'rooms' -> 'depth'\)"):
        OutputFolder(tmp_path / "o", {**MODEL, "model": "depth"})
    with pytest.raises(ValueError, match=r"\(steps None -> 3\)"):
        OutputFolder(tmp_path / "o", {**MODEL, "steps": 3})
    with pytest.raises(ValueError, match=r"size \[3, 4\] -> None"):
        OutputFolder(tmp_path / "o", {"model": "rooms"})
    with OutputFolder(tmp_path / "o", {"model": "depth"}, overwrite=True) as folder:
        assert not folder.done
        write(folder, "b")
    assert ids(tmp_path / "o") == ["b"]
    assert json.loads((tmp_path / "o" / SETTINGS).read_text())["model"] == "depth"


def test_a_run_that_wrote_nothing_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="too many"), OutputFolder(tmp_path / "new" / "o", MODEL):
        raise ValueError("too many steps")
    assert not (tmp_path / "new" / "o").exists()
    (tmp_path / "old").mkdir()
    with pytest.raises(ValueError, match="too many"), OutputFolder(tmp_path / "old", MODEL):
        raise ValueError("too many steps")
    assert list((tmp_path / "old").iterdir()) == []


def test_a_run_killed_before_its_first_line_blocks_nobody(tmp_path):
    with OutputFolder(tmp_path, MODEL) as folder:
        folder.begin()
        (tmp_path / "half.png").write_text("")
    with OutputFolder(tmp_path, {"model": "depth"}) as folder:
        write(folder)
    assert json.loads((tmp_path / SETTINGS).read_text())["model"] == "depth"


def test_settings_may_come_later(tmp_path):
    with OutputFolder(tmp_path) as folder:
        with pytest.raises(RuntimeError, match="no settings yet"):
            write(folder)
        folder.use(MODEL)
        write(folder)
    with OutputFolder(tmp_path) as folder, pytest.raises(ValueError, match="other settings"):
        folder.use({"model": "depth"})


def test_an_id_has_one_line(tmp_path):
    with OutputFolder(tmp_path, MODEL) as folder:
        for item in ("a", "b", "a"):
            write(folder, item)
    assert sorted(ids(tmp_path)) == ["a", "b"]
    with open(tmp_path / LINES, "a") as file:
        file.write('{"id": "c", "fil')  # killed here
    with OutputFolder(tmp_path, MODEL) as folder:
        write(folder, "b", b"new")
        folder.forget(["a", "nothing"])
    assert ids(tmp_path) == ["b"] and (tmp_path / "maps" / "b.txt").read_bytes() == b"new"


def test_opening_a_finished_folder_changes_no_file(tmp_path):
    with OutputFolder(tmp_path, MODEL) as folder:
        write(folder)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with OutputFolder(tmp_path, MODEL) as folder:
        assert folder.is_done("a", {})
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert set(after) == set(before) and all(after[path] == before[path] for path in before)


_HOLD = """
import sys
from noise2map.runs.output_folder import OutputFolder
with OutputFolder(sys.argv[1], {"model": "rooms", "size": [3, 4]}) as folder:
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_second_process_is_refused_until_the_first_ends(tmp_path):
    first = subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "held\n"
    for overwrite in (False, True):
        with pytest.raises(BlockingIOError, match=f"process {first.pid} on .* is writing to {tmp_path}"):
            OutputFolder(tmp_path, MODEL, overwrite=overwrite)
    first.kill()  # no chance to clean up: the lock must go with the process
    first.wait()
    with OutputFolder(tmp_path, MODEL) as folder:
        write(folder)
        with pytest.raises(BlockingIOError):
            OutputFolder(tmp_path, MODEL)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_forgotten_folder_is_unlocked(tmp_path):
    folder = OutputFolder(tmp_path, MODEL)
    del folder
    with OutputFolder(tmp_path, MODEL) as again:
        write(again)
    assert is_output_folder(tmp_path)


def test_claims_are_for_commands_that_write_at_once(tmp_path):
    out = tmp_path / "out"
    with claim(out, MODEL) as folder:
        (folder.root / "table.csv").write_text("1")
    assert is_output_folder(out) and sorted(path.name for path in out.iterdir()) == [SETTINGS, "table.csv"]
    with claim(out, MODEL):  # the same again: replaced
        (out / "table.csv").write_text("2")
    assert sorted(path.name for path in out.iterdir()) == [SETTINGS, "table.csv"]
    with pytest.raises(ValueError, match="other settings"), claim(out, {"model": "depth"}):
        pytest.fail("the block ran")
    with claim(out, {"model": "depth"}, overwrite=True):
        (out / "table.csv").write_text("3")
    with pytest.raises(ValueError, match="other settings"), claim(out, MODEL):
        pytest.fail("the block ran")


def test_a_failed_claim_does_not_block_the_mended_command(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ZeroDivisionError), claim(out, MODEL):
        raise ZeroDivisionError
    assert not out.exists()
    with pytest.raises(ZeroDivisionError), claim(out, MODEL):
        (out / "table.csv").write_text("half")
        raise ZeroDivisionError
    with claim(out, {"model": "depth"}):
        (out / "table.csv").write_text("whole")
    with pytest.raises(ZeroDivisionError), claim(out, MODEL, overwrite=True):
        (out / "table.csv").unlink()
        (out / "table.csv").write_text("replaced before the failure")
        raise ZeroDivisionError
    assert json.loads((out / SETTINGS).read_text())["model"] == "rooms"


def test_what_a_killed_process_has_left_is_gone_on_with(tmp_path):
    out = tmp_path / "out"
    code = f"""
import os, signal
from noise2map.runs.output_folder import claim
with claim({str(out)!r}, {MODEL!r}) as folder:
    (folder.root / "samples").mkdir()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert is_output_folder(out) and (out / "samples").is_dir()
    with claim(out, MODEL) as folder:
        assert not folder.overwrite and (out / "samples").is_dir()
    assert json.loads((out / SETTINGS).read_text())["finished"]


def test_a_claim_that_fails_before_it_writes_leaves_results_of_other_settings_as_they_were(tmp_path):
    with OutputFolder(tmp_path, MODEL) as folder:
        write(folder)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ZeroDivisionError), claim(tmp_path, {"model": "depth"}, overwrite=True):
        raise ZeroDivisionError
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_output_folders_are_recognised(tmp_path):
    assert not is_output_folder(tmp_path) and not is_output_folder(tmp_path / "none")
    (tmp_path / SETTINGS).write_text("[1]")
    assert not is_output_folder(tmp_path)
    (tmp_path / SETTINGS).write_text('{"noise2map": "0.1.0", "model": "rooms"}')
    assert is_output_folder(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="cannot write to the output folder"):
        OutputFolder(tmp_path / "file" / "out", MODEL)


def test_an_equal_request_is_recalled(tmp_path):
    request = {"model": "rooms", "steps": None}
    with OutputFolder(tmp_path) as folder:
        assert not folder.recall(request)
        folder.use({"steps": 3})
        write(folder)
    with OutputFolder(tmp_path) as folder:
        assert folder.recall(request) and folder.is_done("a", {})
        write(folder, "b")
    with OutputFolder(tmp_path) as folder:
        assert not folder.recall({**request, "steps": 3}) and not folder.done
        folder.use({"steps": 3})  # another request, equal settings
        assert set(folder.done) == {"a", "b"}
    with OutputFolder(tmp_path, overwrite=True) as folder:
        assert not folder.recall(request)
    with OutputFolder(tmp_path) as folder:
        assert not folder.recall({}) and not folder.done
