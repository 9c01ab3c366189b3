"""The page's script, run by Node on a stub of a page: what the webcam and quick clicks leave behind."""

import json
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

NODE = shutil.which("node")
STUB = Path(__file__).parents[1] / "fixtures" / "page_on_a_stub.js"


@pytest.fixture(scope="module")
def found():
    if NODE is None:
        pytest.skip("needs Node")
    script = files("noise2map.app").joinpath("page/app.js")
    done = subprocess.run([NODE, STUB, str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_webcam_stops_where_it_is_not_seen(found):
    assert found["running"] == [1, False, True]
    assert found["a_file_instead"] == [0, True, False, "webcam", "upload:1"]
    assert found["another_tab"] == [0, True, False]


def test_the_browser_is_asked_for_one_stream_at_a_time(found):
    assert found["while_it_asks"] is True and found["afterwards"] == [False, 1]


def test_what_is_shown_is_what_a_run_takes(found):
    """The image before, where that of the webcam could not be sent; no cover over a video."""
    assert found["a_failed_upload"] == [0, True, False, True, "sample:frame"]
    assert found["cover"] == [False, True]


def test_the_card_is_that_of_the_pixel_under_the_cross(found):
    assert found["pixel"] == ["second", "50%"]
