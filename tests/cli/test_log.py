"""What the library logs, as the command line shows it."""

import logging

import pytest
from tqdm import tqdm

from noise2map.cli import show_log


@pytest.fixture(autouse=True)
def printed():
    logger = logging.getLogger("noise2map")
    handlers, level = list(logger.handlers), logger.level
    show_log()
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_information_goes_to_standard_output_and_warnings_to_standard_error(capsys):
    logger = logging.getLogger("noise2map.somewhere.below")
    logger.debug("detail")
    logger.info("%d images", 3)
    logger.warning("depth looks like millimeters")
    out, err = capsys.readouterr()
    assert (out, err) == ("3 images\n", "depth looks like millimeters\n")


def test_every_message_is_shown_once_however_often_the_command_line_starts(capsys):
    show_log()
    show_log()
    logging.getLogger("noise2map").info("once")
    assert capsys.readouterr().out == "once\n"


def test_a_message_does_not_break_a_progress_bar(capsys):
    with tqdm(total=2, ascii=True, ncols=60, mininterval=0) as bar:
        bar.update()
        logging.getLogger("noise2map").warning("between")
        bar.update()
    lines = capsys.readouterr().err.replace("\r", "\n").split("\n")
    assert "between" in [line.strip() for line in lines]  # alone on its line
