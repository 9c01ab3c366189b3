"""`benchmarks/visible_tables.py`: means over training seeds, and which rows stand in which table."""

import visible_tables

from noise2map.report.tables import write_csv


def row(recipe, seed, model="final", **cells):
    settings = {"task": "depth", "steps": 1, "ensemble": 1, "sampling": "", "field_smoothness": "", "train_seed": seed}
    return {"recipe": recipe, "model": f"runs/tables/{recipe}-seed{seed}/{model}", **settings, **cells}


def lines(table):
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [dict(zip(cells[0], values, strict=True)) for values in cells[2:]]


def test_a_line_is_of_all_seeds_of_a_decoder(tmp_path):
    rows = [row("depth-laplace", seed, abs_rel=value, scale_auroc=0.75) for seed, value in enumerate((0.25, 0.5, 0.75))]
    rows += [row("depth-laplace", 0, "calibrated", abs_rel=0.125), row("depth-published", 0, steps=3, sample_variance_auroc=0.5)]
    rows += [
        row("depth-laplace", 0, test_protocol="flip: flip, whole", abs_rel=0.0625),
        row("depth-laplace", "0, 1", abs_rel=0.03125),
    ]
    rows += [row("depth-laplace", 0, ensemble=8, abs_rel=9.0), row("depth-unknown", 0, abs_rel=9.0)]
    write_csv(tmp_path / "table.csv", [{**dict.fromkeys(key for one in rows for key in one), **one} for one in rows])
    laplace, both, calibrated, flipped, published = lines(visible_tables.one_map_table(tmp_path / "table.csv"))
    assert laplace["AbsRel"] == "0.500 (0.250 to 0.750)" and laplace["seeds"] == "3" and laplace["error-AUROC"] == "0.750"
    assert calibrated["decoder"] == laplace["decoder"] + ", calibrated" and calibrated["AbsRel"] == "0.125"
    assert both["decoder"] == laplace["decoder"] + ", 2 as an ensemble" and both["AbsRel"] == "0.031" and both["seeds"] == "1"
    assert flipped["decoder"] == laplace["decoder"] + ", mean with the mirror image" and flipped["AbsRel"] == "0.062"
    assert published["calls"] == "3" and published["error-AUROC"] == "0.500" and published["AbsRel"] == "–"


def test_ways_of_drawing_have_lines_of_their_own(tmp_path):
    drawn = [{"sampling": "field", "field_smoothness": width} for width in (0.0, 2.0, "inf")]
    rows = [row("depth-laplace", 0, ensemble=8, crps=0.25, **words) for words in drawn]
    rows += [row("depth-crps", 0, ensemble=8, steps=steps, sampling="diffusion", crps=0.25) for steps in (1, 10)]
    rows += [row("depth-crps", 0, sampling="one_pass", crps=9.0)]
    write_csv(tmp_path / "table.csv", rows)
    found = [(line["maps drawn by"], line["calls"]) for line in lines(visible_tables.drawn_maps_table(tmp_path / "table.csv"))]
    assert found == [
        ("field over 0 cells", "1"),
        ("field over 2 cells", "1"),
        ("one luck for the whole map", "1"),
        ("diffusion", "1"),
        ("diffusion", "10"),
    ]


def test_differences_are_from_the_plain_decoder_in_the_order_of_decoders_calls_and_seeds(tmp_path):
    def pair(recipe, seed, protocol, other="depth-nodiffusion", score="abs_rel", value=-0.25):
        names = {"model": f"runs/{recipe}-seed{seed}/final", "other_model": f"runs/{other}-seed{seed}/final"}
        return {**names, "protocol": protocol, "score": score, "difference": value, "low": value - 0.5, "high": value + 0.5}

    rows = [pair("depth-published", 1, "10 steps, last, ddim"), pair("depth-published", 1, "3 steps, last, ddim")]
    rows += [pair("depth-laplace", seed, "1 step, last, ddim") for seed in (2, 0)]
    rows += [pair("depth-laplace", 0, "1 step, last, ddim", score="delta1", value=0.01)]
    rows += [pair("depth-laplace", 0, "1 step, last, ddim", score="rmse", value=9.0)]  # not shown
    rows += [pair("depth-published", 1, "3 steps, last, ddim", other="depth-published", value=9.0)]
    rows += [pair("depth-crps", 1, "3 steps x 8 samples, last, ddim", value=9.0)]
    write_csv(tmp_path / "table.csv", rows)
    found = lines(visible_tables.differences_table(tmp_path / "table.csv", "depth"))
    assert [(line["decoder"], line["calls"], line["seed"]) for line in found] == [
        (visible_tables.NAMES["depth-laplace"], "1", "0"),
        (visible_tables.NAMES["depth-laplace"], "1", "2"),
        (visible_tables.NAMES["depth-published"], "3", "1"),
        (visible_tables.NAMES["depth-published"], "10", "1"),
    ]
    assert found[0]["AbsRel"] == "-0.2500 [-0.7500, 0.2500]" and found[0]["δ1, points"] == "+1.0 [-49.0, 51.0]"
