import errno
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from noise2map.report import files


def test_content_appears_and_directories_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "c.txt"
    files.write_text(path, "ä\n")
    assert path.read_bytes() == "ä\n".encode()
    assert [entry.name for entry in path.parent.iterdir()] == ["c.txt"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error):
    path = tmp_path / "map.png"
    files.write_bytes(path, b"old")
    whole = Path.write_bytes

    def half(self, data):
        whole(self, data[: len(data) // 2])
        raise error

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(type(error)) as caught:
        files.write_bytes(path, b"something new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["map.png"]
    if isinstance(error, OSError):
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == str(path)


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        files.write_text(tmp_path / "file" / "a.txt", "x")


def test_images_are_encoded_by_suffix(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    files.write_image(tmp_path / "a.png", Image.fromarray(pixels))
    assert (np.asarray(Image.open(tmp_path / "a.png")) == pixels).all()
    with pytest.raises(ValueError, match=r"\.abc"):
        files.write_image(tmp_path / "a.abc", Image.fromarray(pixels))


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())
