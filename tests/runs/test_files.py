"""Files and folders appear whole or not at all; checksums and JSON."""

import json
import math
import os
import stat

import numpy as np
import pytest
import torch
from PIL import Image

from noise2map.runs import files


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_is_replaced_only_when_all_of_it_is_written(tmp_path):
    path = tmp_path / "new" / "a.bin"
    files.write_bytes(path, b"old")  # its folder is made

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left on device") as raised:
        files.write_file(path, fail)
    assert raised.value.filename == str(path)
    with pytest.raises(KeyboardInterrupt), files.writing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and names(path.parent) == ["a.bin"]
    with files.writing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_errors_name_the_file_that_they_are_about(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError) as raised:
        files.write_text(tmp_path / "file" / "a.txt", "text")
    assert "partial" not in str(raised.value) and str(tmp_path / "file") in str(raised.value)
    source = tmp_path / "none.png"
    with pytest.raises(FileNotFoundError) as raised:  # reading another file failed, not writing this one
        files.write_file(tmp_path / "copy.png", lambda file: file.write(source.read_bytes()))
    assert raised.value.filename == str(source)
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["é" * 120 + ".txt", "🙂" * 62 + ".txt", "x" * 251 + ".txt"])
def test_names_as_long_as_the_file_system_allows(tmp_path, name):
    files.write_text(tmp_path / name, "ü")
    assert (tmp_path / name).read_bytes() == "ü".encode() and names(tmp_path) == [name]


def test_images_take_their_format_from_the_suffix(tmp_path):
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    files.write_image(tmp_path / "a.PNG", image, optimize=True)
    with Image.open(tmp_path / "a.PNG") as found:
        assert found.format == "PNG" and found.tobytes() == image.tobytes()
    with pytest.raises(ValueError, match=r"no image format has the suffix '\.map'"):
        files.write_image(tmp_path / "a.map", image)
    assert names(tmp_path) == ["a.PNG"]


def test_json_has_no_nan(tmp_path):
    value = {1: math.nan, "b": (math.inf, "x", 2), "c": np.float32(0.5), "d": torch.tensor(3), "e": None, "f": tmp_path}
    plain = files.json_values(value)
    assert plain == {"1": None, "b": [None, "x", 2], "c": 0.5, "d": 3, "e": None, "f": str(tmp_path)}
    files.write_json(tmp_path / "a.json", plain)
    assert json.loads((tmp_path / "a.json").read_text()) == plain
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"a": math.nan})
    assert json.loads((tmp_path / "a.json").read_text()) == plain


def test_a_folder_is_replaced_only_when_all_of_it_is_written(tmp_path):
    target = tmp_path / "out" / "model"
    with files.writing_directory(target) as folder:
        (folder / "old").write_text("old")
        assert not target.exists() and folder.parent == target.parent
    with pytest.raises(ZeroDivisionError), files.writing_directory(target) as folder:
        (folder / "new").write_text("half")
        _ = 1 / 0
    assert names(target) == ["old"] and names(target.parent) == ["model"]
    with files.writing_directory(target) as folder:
        (folder / "new").write_text("new")
    assert names(target) == ["new"] and names(target.parent) == ["model"]


def test_a_linked_folder_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "old").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with files.writing_directory(tmp_path / "link") as folder:
        (folder / "new").write_text("new")
    assert (tmp_path / "link").is_symlink() and names(tmp_path / "disk") == ["new"] and names(tmp_path) == ["disk", "link"]


def test_a_folder_that_holds_something_can_be_kept(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name in ("full", "file"):
        with pytest.raises(FileExistsError), files.writing_directory(tmp_path / name, replace=False):
            pytest.fail("the block must not begin")
    with files.writing_directory(tmp_path / "empty", replace=False) as folder:
        (folder / "a").write_text("a")
    assert names(tmp_path / "full") == ["mine"] and names(tmp_path / "empty") == ["a"]
    assert names(tmp_path) == ["empty", "file", "full"]


def test_a_failed_swap_puts_the_old_folder_back(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "old").write_text("old")
    with pytest.raises(FileNotFoundError):
        files.replace_directory(tmp_path / "none", tmp_path / "target")
    assert names(tmp_path) == ["target"] and names(tmp_path / "target") == ["old"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_what_is_written_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").mkdir()
    (tmp_path / "usual.txt").touch()
    files.write_text(tmp_path / "a.txt", "a")
    with files.writing_directory(tmp_path / "a"):
        pass
    for ours, usual in (("a.txt", "usual.txt"), ("a", "usual")):
        assert stat.S_IMODE((tmp_path / ours).stat().st_mode) == stat.S_IMODE((tmp_path / usual).stat().st_mode)


def test_writable_folders(tmp_path):
    files.check_writable(tmp_path / "new" / "folder")
    assert names(tmp_path) == []
    (tmp_path / "there").mkdir()
    files.check_writable(tmp_path / "there")
    assert names(tmp_path) == ["there"]
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to the output folder") as raised:
        files.check_writable(tmp_path / "file")
    assert raised.value.filename == str(tmp_path / "file")


def test_checksums_tell_contents_apart():
    assert files.content_checksum([b"abc"], digits=64) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.content_checksum(["a", b"bc"]) == "ba7816bf8f01cfea"
    one, other = ({"a": 1, "b": [2, 3]}, {"b": [2, 3], "a": 1})
    assert files.settings_checksum(one) == files.settings_checksum(other)
    assert files.settings_checksum(one, 6) != files.settings_checksum({"a": 1, "b": [3, 2]}, 6)
    layer = torch.nn.BatchNorm1d(2)
    before = files.weights_checksum(layer)
    assert len(before) == 8 and files.weights_checksum(torch.nn.BatchNorm1d(2)) == before
    layer.running_mean[0] = 1e-6
    assert files.weights_checksum(layer) != before
