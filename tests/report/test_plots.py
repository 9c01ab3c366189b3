import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from noise2map.report import plots
from noise2map.report.plots import Series


def test_a_series_must_fit_together():
    with pytest.raises(ValueError, match="2 x but 1 y"):
        Series([1, 2], [1])


def test_quality_plot_draws_what_is_given():
    band = Series([1, 3, 10], [60.0, 62.0, 63.0], [59.0, 61.0, 62.0], [61.0, 63.0, 64.0])
    figure = plots.quality_plot({"diffusion": band, "none": Series([1], [58.0])}, "steps", "mIoU (%)", log_x=True)
    axes = figure.axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[1, 60], [3, 62], [10, 63]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["diffusion", "none"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "3", "10"]
    low, high = axes.collections[0].get_paths()[0].get_extents().intervaly
    assert (low, high) == (59, 64)
    with pytest.raises(ValueError, match="at least one"):
        plots.quality_plot({}, "x", "y")


def test_comparison_has_a_row_for_each_thing_and_a_panel_for_each_score():
    nan = float("nan")
    good = plots.Estimates([0.8, 0.6], [0.7, nan], [0.9, nan], [[0.75, 0.85], [0.6]])
    bad = plots.Estimates([0.1, 0.3], [0.05, 0.2], [0.15, 0.4], [[], []])
    figure = plots.comparison_plot(["guided", "real"], {"δ1": good, "AbsRel": bad}, title="depth")
    left, right = figure.axes
    assert [left.get_xlabel(), right.get_xlabel()] == ["δ1", "AbsRel"]
    assert [label.get_text() for label in left.get_yticklabels()] == ["guided", "real"]
    assert left.get_ylim()[0] > left.get_ylim()[1]  # the first row is the upper one
    interval, repeats, estimate = (line.get_xydata().tolist() for line in left.lines[:3])
    assert interval == [[0.7, 0], [0.9, 0]] and repeats == [[0.75, 0], [0.85, 0]] and estimate == [[0.8, 0]]
    assert right.lines[3].get_xydata().tolist() == [[0.2, 1], [0.4, 1]]
    with pytest.raises(ValueError, match="2 estimates but 1 low"):
        plots.Estimates([1, 2], [1], [1, 2], [[], []])
    with pytest.raises(ValueError, match="δ1 has 2 estimates for 1 names"):
        plots.comparison_plot(["guided"], {"δ1": good})
    with pytest.raises(ValueError, match="got 0 names"):
        plots.comparison_plot([], {"δ1": good})


def test_risk_coverage_names_the_oracle():
    x = np.linspace(0.1, 1, 10)
    figure = plots.risk_coverage_plot({"entropy": Series(x, 0.1 * x)}, Series(x, 0 * x))
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["entropy", "oracle"]


def test_training_plot_passes_over_records_without_the_value():
    records = [{"step": 1, "loss": 2.0}, {"step": 2, "eval_mIoU": 0.3}, {"step": 3, "loss": 1.0}]
    figure = plots.training_plot(records, ["loss", "grad_norm"])
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[1, 2], [3, 1]]
    with pytest.raises(ValueError, match="accuracy"):
        plots.training_plot(records, ["accuracy"])


def test_files_are_the_same_for_the_same_plot_and_parse(tmp_path):
    def draw(theme):
        return plots.quality_plot({"a": Series([1, 2], [3, 4])}, "steps", "y", theme=theme)

    assert plots.figure_bytes(draw("light")) == plots.figure_bytes(draw("light"))
    assert plots.figure_bytes(draw("light")) != plots.figure_bytes(draw("dark"))
    plots.save_figure(tmp_path / "a.svg", draw("light"))
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    assert root.tag.endswith("svg")
    assert b"<dc:date>" not in (tmp_path / "a.svg").read_bytes()
    plots.save_figure(tmp_path / "a.png", draw("dark"), dpi=50)
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match=r"\.jpg"):
        plots.figure_bytes(draw("light"), ".jpg")
