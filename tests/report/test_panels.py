import numpy as np
import pytest
from PIL import Image

from noise2map.report import panels
from noise2map.report.canvas import THEMES, ColorBar, fit_text, load_font, ticks
from noise2map.report.palettes import generic_palette
from noise2map.report.panels import Cell, Panel

NAMES = {0: "floor", 1: "wall", 2: "sky"}
PALETTE = generic_palette(3)


@pytest.fixture
def frame():
    random = np.random.default_rng(0)
    return random.integers(0, 255, (120, 160, 3), dtype=np.uint8)


def contains(picture, part):
    """Where ``part`` occurs in ``picture``, by comparing its first row everywhere."""
    height, width = part.shape[:2]
    for top in range(picture.shape[0] - height + 1):
        for left in np.flatnonzero((picture[top, : picture.shape[1] - width + 1] == part[0, 0]).all(-1)):
            if (picture[top : top + height, left : left + width] == part).all():
                return top, left
    return None


def test_small_frames_are_enlarged_by_whole_pixels(frame):
    labels = np.zeros((120, 160), np.uint8)
    panel = panels.segmentation_panel(frame, labels, np.zeros((120, 160)), NAMES, PALETTE, heading="a frame")
    picture = np.asarray(panels.render(panel))
    assert 1000 <= picture.shape[1] <= 1600
    assert contains(picture, frame.repeat(3, axis=0).repeat(3, axis=1)) is not None


@pytest.mark.parametrize("size", [(1, 1), (100, 20000), (3000, 30), (1200, 900)])
def test_any_shape_makes_a_picture_of_readable_size(size):
    image, flat = np.zeros((*size, 3), np.uint8), np.ones(size)
    picture = panels.render(panels.depth_panel(image, flat, flat * 0.1, truth_m=flat))
    assert 300 < picture.width < 2000 and 100 < picture.height < 4000


def test_cells_of_wide_images_stand_below_each_other_and_many_in_threes():
    assert panels.default_columns(3, 160 / 120) == 3
    assert panels.default_columns(3, 200.0) == 1
    assert panels.default_columns(5, 160 / 120) == 3


def test_theme_is_the_background(frame):
    for name, theme in THEMES.items():
        picture = panels.render(Panel([Cell("image", frame)]), theme=name)
        assert picture.getpixel((0, 0)) == theme.background
    with pytest.raises(ValueError, match="purple"):
        panels.render(Panel([Cell("image", frame)]), theme="purple")


def test_what_is_no_picture_is_refused(frame):
    with pytest.raises(ValueError, match="at least one"):
        panels.render(Panel([]))
    with pytest.raises(ValueError, match="'grey'"):
        panels.render(Panel([Cell("grey", frame[..., 0])]))
    with pytest.raises(ValueError, match="float"):
        panels.render(Panel([Cell("grey", frame.astype(float))]))


def test_label_errors_are_marked_and_counted(frame):
    truth = np.zeros((120, 160), np.uint8)
    truth[:60] = 255
    labels = np.zeros_like(truth)
    labels[90:, :16] = 1  # 480 of 9600 known pixels
    labels[:10] = 2  # unknown: does not count
    cell = panels.label_error_cell(frame, labels, truth)
    assert cell.note == "5.0% wrong"
    marked = (cell.image == panels.WRONG_COLOR).all(-1)
    assert (marked == ((labels != truth) & (truth != 255))).all()


def test_depth_error_is_relative_and_leaves_out_the_unknown():
    truth = np.array([[2.0, 4.0, 0.0]])
    cell = panels.depth_error_cell(np.array([[2.2, 3.0, 9.0]]), truth)
    assert cell.note == "mean 17.5%"  # (0.1 + 0.25) / 2
    assert panels.depth_error_cell(truth, np.zeros((1, 3))).note == "no truth"


def test_a_panel_without_uncertainty_has_no_cell_for_it(frame):
    flat = np.ones((120, 160))
    assert [c.title for c in panels.depth_panel(frame, flat, None).cells] == ["image", "depth"]
    with_truth = panels.segmentation_panel(frame, flat.astype(int), flat, NAMES, PALETTE, truth=flat.astype(int))
    assert [c.title for c in with_truth.cells] == ["image", "map", "uncertainty", "truth", "errors"]
    assert [name for _, name in with_truth.legend] == ["wall"]


def test_uncertainty_scale_is_a_round_number_above_nearly_all_values():
    values = np.linspace(0, 0.21, 1000)
    assert panels.uncertainty_limit(values) == 0.5
    assert panels.uncertainty_limit(np.zeros(10)) == 1e-6
    assert panels.uncertainty_limit(np.ones(10)) == 1.0


def test_color_bar_runs_from_low_to_high(frame):
    low, high = np.zeros((120, 160)), np.ones((120, 160))
    cell = panels.uncertainty_cell(low, limit=1.0)
    picture = np.asarray(panels.render(Panel([Cell("u", cell.image, ColorBar(0, 1, "magma"))])))
    bright = panels.uncertainty_cell(high, limit=1.0).image[0, 0]
    assert (picture == bright).all(-1).any()  # the bar's right end, though the map itself is dark


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [(1, 20, True, [1, 2, 5, 10, 20]), (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0.5, 40, True, [0.5, 1, 2, 5, 10, 20])],
)
def test_ticks_are_round(low, high, log, expected):
    assert ticks(low, high, log) == pytest.approx(expected)


def test_narrow_log_scales_fall_back_to_even_ticks():
    marks = ticks(3.1, 4.4, True)
    assert len(marks) >= 3 and all(3.1 <= mark <= 4.4 for mark in marks)


def test_long_texts_are_cut_in_the_middle():
    font = load_font(14)
    text = "a-very-long-folder-name/another/000123.png"
    cut = fit_text(text, font, 120)
    assert font.getlength(cut) <= 120 and cut.startswith("a-v") and cut.endswith(".png") and "…" in cut
    assert fit_text("ok", font, 120) == "ok"


def test_shrunk_pictures_average(frame):
    stripes = np.zeros((2400, 3200, 3), np.uint8)
    stripes[:, ::2] = 200
    picture = panels.render(Panel([Cell("a", stripes)], heading="x"))
    middle = np.asarray(picture.crop((100, 300, 300, 500)).convert("L"))
    assert 80 < middle.mean() < 120 and isinstance(picture, Image.Image)


@pytest.mark.parametrize("name", ["two\nlines.png", "tab\t\x00.png", "caf\udce9.png", "line\u2028end.png"])
def test_names_that_cannot_be_drawn_do_not_break_a_panel(name):
    cell = Cell(name, np.zeros((20, 30, 3), np.uint8), note=name)
    picture = panels.render(Panel([cell], heading=name, legend=[((1, 2, 3), name)]))
    plain = panels.render(Panel([Cell("a", cell.image)], heading="a", legend=[((1, 2, 3), "a")]))
    assert picture.height == plain.height  # still one line each
