"""Bars on a terminal and in logs."""

import io
import sys
import time

import pytest

from noise2map.runs import progress
from noise2map.runs.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def replaced(monkeypatch, stream):
    """In the test itself: between a fixture and a test pytest sets its own stderr."""
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_a_terminal_sees_the_bar_at_once(monkeypatch):
    stderr = replaced(monkeypatch, Terminal())
    assert list(progress_bar(range(3), desc="walks")) == [0, 1, 2]
    assert "walks" in stderr.getvalue() and "3/3" in stderr.getvalue()


def test_a_log_hears_nothing_of_short_work_and_of_long_work_now_and_then(monkeypatch):
    stderr = replaced(monkeypatch, io.StringIO())
    assert list(progress_bar(range(3))) == [0, 1, 2] and stderr.getvalue() == ""
    monkeypatch.setattr(progress, "_LOG_SECONDS", 0.05)
    with progress_bar(total=1000, unit="image") as bar:
        for _ in range(1000):
            time.sleep(2e-4)
            bar.update()
    lines = stderr.getvalue().split("\r")
    assert "1000/1000" in lines[-1] and 2 <= len(lines) < 40


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_no_bar_where_none_is_wanted(kind, monkeypatch):
    stderr = replaced(monkeypatch, kind())
    monkeypatch.setattr(progress, "_LOG_SECONDS", 0.0)
    assert list(progress_bar(range(3), shown=False)) == [0, 1, 2] and stderr.getvalue() == ""
