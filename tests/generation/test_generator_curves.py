"""Curves of trainings of generators: benchmarks/generator_curves.py."""

import json

import generator_curves
import pytest

LOSSES = {f"eval_loss{end}": value for end, value in {"": 0.3, "_q1": 0.5, "_q2": 0.4, "_q3": 0.2, "_q4": 0.1}.items()}


def test_a_curve_has_the_looks_at_held_out_images_alone(tmp_path):
    lines = [
        {"step": 50, "loss": 1.0},
        {"step": 100, **LOSSES},
        {"step": 150, "loss": 0.9},
        {"step": 200, **LOSSES, "eval_loss": 0.2},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    curve = generator_curves.read_curve(tmp_path)
    assert [(row["step"], row["eval_loss"], row["eval_loss_q4"]) for row in curve] == [(100, 0.3, 0.1), (200, 0.2, 0.1)]
    drawn = generator_curves.draw_curves([curve, curve]).axes
    assert [list(line.get_xdata()) for line in drawn[1].lines] == [[100, 200]] * len(LOSSES)
    assert list(drawn[0].lines[0].get_ydata()) == [0.3, 0.2]


def test_a_training_that_never_looked_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 50, "loss": 1.0}))
    with pytest.raises(ValueError, match=r"metrics.jsonl holds no eval_loss; expected .*eval_every above 0"):
        generator_curves.read_curve(tmp_path)
