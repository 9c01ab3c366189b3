"""``noise2map evaluate generator`` on a tiny generator: numbers, files, page, resuming, refusals."""

import csv
import json
import re
import shutil
import struct
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_generator import FEATURES, save_generator, save_map_models
from tiny_guidance import tiny_prior

from noise2map.cli import main
from noise2map.generation.evaluation.feature_extractors import make_extractor
from noise2map.generation.evaluation.references import ReferenceImages
from noise2map.generation.evaluation.settings import setting_tables
from noise2map.generation.evaluation.study import GeneratorOptions
from noise2map.generation.loading import prior_name
from noise2map.guidance import DepthGuidedPipeline
from noise2map.metrics import feature_distance

IMAGES = 18


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    return {**save_generator(root), **save_map_models(root)}


def words(paths, out, **changes):
    options = {
        "model": paths["generator"],
        "references": "samples",
        "depth-predictor": paths["predictor"],
        "depth-prior": paths["prior"],
        "extractor": paths["segmentation"],
        "estimator": paths["depth"],
        "out": out,
        "samples": IMAGES,
        "steps": 2,
        "resamples": 8,
        "limit": 20,
        "batch-size": 9,
        "pairs": 2,
        "device": "cpu",
        "cache": out / "cache",
    }
    options |= {name.replace("_", "-"): value for name, value in changes.items()}
    return [part for name, value in options.items() if value is not None for part in (f"--{name}", str(value))]


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "generator", *map(str, arguments)])
    return stop.value.code or 0


@pytest.fixture(scope="module")
def study(paths, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    arguments = [*words(paths, out, sweep_samples=17, scales="0,40"), "--depth-prior", str(paths["prior-4px"])]
    assert run(*arguments) == 0
    return out, arguments


def rows_of(out, table="guidance", name="generator.csv"):
    with open(out / name, newline="") as file:
        return [row for row in csv.DictReader(file) if row.get("table", table) == table]


@pytest.mark.slow
def test_table_has_all_settings_at_equal_seeds_and_the_references(study):
    rows = rows_of(study[0])
    assert [row["setting"] for row in rows] == ["none", "DCG", "DPG", "both", "real", "references"]
    assert [(row["consistency_scale"], row["prior_scale"]) for row in rows[:4]] == [
        ("0.0", "0.0"),
        ("40.0", "0.0"),
        ("0.0", "40.0"),
        ("40.0", "40.0"),
    ]
    for row in rows[:4]:
        for metric in ("FID", "dFID", "KID", "dKID"):
            assert float(row[f"{metric}_low"]) <= float(row[metric]) <= float(row[f"{metric}_high"])
        assert float(row["disagreement"]) > 0 and float(row["seconds_per_image"]) > 0
        assert row["extractor"].startswith("segmentation:stage4@") and row["estimator"].startswith("depth@")
        assert row["images"] == str(IMAGES) and row["reference_images"] == "20" and row["command"] and row["reference_hash"]
    assert float(rows[5]["disagreement"]) > 0 and not rows[5]["FID"]
    assert rows[4]["images"] == "10" and float(rows[4]["FID"]) > 0 and rows[4]["consistency_scale"] == ""


@pytest.mark.slow
def test_distances_are_those_of_the_files(study, paths):
    out, _ = study
    extractor = make_extractor(str(paths["segmentation"]), "cpu")
    references = ReferenceImages("samples", 16, 20)
    real = torch.from_numpy(np.stack([references[index] for index in range(20)])).permute(0, 3, 1, 2)
    for row, key in zip(rows_of(out), ("unguided", "consistency-40")):
        files = [np.asarray(Image.open(path)) for path in sorted((out / "samples").glob(f"{key}_??????????/*.png"))]
        assert len(files) == IMAGES
        drawn = torch.from_numpy(np.stack(files)).permute(0, 3, 1, 2)
        for metric, kind in (("FID", "frechet"), ("KID", "kernel")):
            expected = feature_distance(kind, extractor(drawn), extractor(real)).item()
            assert float(row[metric]) == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.slow
def test_sweeps_share_images_with_the_table_and_count_their_own(study):
    out, _ = study
    scales = rows_of(out, "scales")
    assert [row["setting"] for row in scales] == ["scale 0", "scale 40", "real", "references"]
    assert {row["images"] for row in scales[:2]} == {"17"}
    priors = rows_of(out, "priors")
    assert [row["prior"].split("-")[0] for row in priors[:2]] == ["8px", "4px"]
    folders = sorted(path.name.rpartition("_")[0] for path in (out / "samples").iterdir())
    # Scale 40 is both, scale 0 is none; the second prior has a folder of its own.
    assert folders == ["consistency-40", *["consistency-40_prior-40"] * 2, "prior-40", "unguided"]
    assert (out / "scales_dFID.svg").is_file() and (out / "priors_FID.svg").is_file()


@pytest.mark.slow
def test_differences_are_paired_and_named(study):
    rows = rows_of(study[0], name="differences.csv")
    by_pair = {(row["this"], row["minus"], row["score"]): row for row in rows}
    table = {row["setting"]: row for row in rows_of(study[0])}
    row = by_pair["both", "none", "dFID"]
    assert float(row["difference"]) == pytest.approx(float(table["both"]["dFID"]) - float(table["none"]["dFID"]), abs=1e-9)
    assert float(row["low"]) <= float(row["difference"]) <= float(row["high"])
    assert ("both", "DCG", "dFID") in by_pair and ("DCG", "DPG", "FID") in by_pair and ("DPG", "none", "disagreement") in by_pair


@pytest.mark.slow
def test_page_shows_pairs_and_clouds_whose_files_can_be_read(study):
    out, _ = study
    page = (out / "page.html").read_text(encoding="utf-8")
    assert "seed 0" in page and "seed 1" in page and "dFID" in page and "data-points" in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)  # nothing is fetched
    glb = (out / "clouds" / "000000-both.glb").read_bytes()
    magic, version, length = struct.unpack("<4sII", glb[:12])
    assert (magic, version, length) == (b"glTF", 2, len(glb))
    size = struct.unpack("<I", glb[12:16])[0]
    document = json.loads(glb[20 : 20 + size])
    assert document["accessors"][0]["count"] > 0
    ply = (out / "clouds" / "000001-none.ply").read_bytes()
    assert int(re.search(rb"element vertex (\d+)", ply).group(1)) > 0


@pytest.mark.slow
def test_run_again_it_draws_nothing_and_finds_the_same(study, monkeypatch, capsys):
    out, arguments = study
    before = json.loads((out / "generator.json").read_text())["rows"]

    def fail(*args, **kwargs):
        raise AssertionError("drawn again")

    monkeypatch.setattr(DepthGuidedPipeline, "__call__", fail)
    assert run(*arguments) == 0
    after = json.loads((out / "generator.json").read_text())["rows"]
    keys = ("FID", "dFID_low", "dKID", "disagreement", "edge_alignment")
    assert [[row.get(key) for key in keys] for row in after] == [[row.get(key) for key in keys] for row in before]
    screen = capsys.readouterr()
    assert "features: segmentation:stage4@" in screen.out and "both" in screen.out
    assert "warning: FID and dFID of fewer than 2048" in screen.err


def test_guided_settings_in_short(paths, tmp_path):
    arguments = words(paths, tmp_path, resamples=0, steps=1, pairs=1, samples=17)
    assert run(*arguments, "--guidance-log-snr=-inf,30") == 0
    rows = rows_of(tmp_path)
    assert [row["setting"] for row in rows] == ["none", "DCG", "DPG", "both", "real", "references"]
    assert all(float(row["FID"]) > 0 and float(row["dFID"]) > 0 for row in rows[:4])
    assert "data-points" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_controls_of_guidance(paths, tmp_path):
    """Unguided images at other numbers of steps and at the cost of guided ones, and placebos beside guidance."""
    controls = {"unguided_steps": "1,3", "placebos": "neighbor,noise,reversed", "pulls": "hinge,square", "samples": 18, "limit": 40}
    arguments = [*words(paths, tmp_path, resamples=0, steps=2, pairs=1, **controls), "--equal-cost"]
    assert run(*arguments) == 0
    clouds = {path.stem.partition("-")[2] for path in (tmp_path / "clouds").iterdir()}
    assert clouds == {"none", "both"}  # not the last row, which nothing guides
    assert [(row["setting"], row["steps"]) for row in rows_of(tmp_path, "steps")[:3]] == [
        ("1 steps", "1"),
        ("2 steps", "2"),
        ("3 steps", "3"),
    ]
    main_rows = {row["setting"]: row for row in rows_of(tmp_path)}
    assert int(main_rows["none, equal cost"]["steps"]) > 2 and main_rows["both"]["steps"] == "2"
    placebos = {row["setting"]: row for row in rows_of(tmp_path, "placebos")}
    assert list(placebos)[:5] == ["none", "both", "both, neighbor", "both, noise", "both, reversed"]
    assert placebos["both"]["FID"] == main_rows["both"]["FID"] and placebos["both, noise"]["placebo"] == "noise"
    assert len({placebos[name]["FID"] for name in list(placebos)[:5]}) == 5
    pulls = {row["setting"]: row for row in rows_of(tmp_path, "pulls")}
    assert list(pulls)[:4] == ["none", "DCG", "DCG, hinge", "DCG, square"]
    assert pulls["DCG"]["FID"] == main_rows["DCG"]["FID"]
    # All images, real ones too, disagree alike in this network: the square, whose gradient is (m - c) / c, changes nothing.
    assert len({pulls[name]["FID"] for name in ("none", "DCG", "DCG, hinge")}) == 3
    # Of a pair one is lost: both are drawn again, and are as they were.
    (folder,) = (tmp_path / "samples").glob("*_neighbor_*")
    before = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    records = folder / "predictions.jsonl"
    assert len(before) == 18 and records.is_file()
    lines = records.read_text().splitlines()
    records.write_text("\n".join(line for line in lines if json.loads(line)["id"] != "7") + "\n")
    (folder / "000007.png").unlink()
    assert run(*arguments) == 0
    assert {path.name: path.read_bytes() for path in folder.glob("*.png")} == before


def test_a_generator_alone_is_scored_without_guidance(paths, tmp_path, capsys):
    training = tmp_path / "training"
    training.mkdir()
    for index in range(3):
        noise = np.random.default_rng(index).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).save(training / f"{index}.png")
    out, alone = tmp_path / "out", {"depth_predictor": None, "depth_prior": None, "resamples": 0, "training": training}
    assert run(*words(paths, out, **alone, pairs=1)) == 0
    rows = rows_of(out)
    assert [row["setting"] for row in rows] == ["none", "real", "references"] and "FID_low" not in rows[0]
    captured = capsys.readouterr()
    assert "only the unguided generator" in captured.err and "nearest of the training images" in captured.out
    nearest = rows_of(out, name="nearest.csv")
    assert [(row["setting"], row["images"]) for row in nearest] == [
        ("none", str(IMAGES)),
        ("references", "20"),
        ("training, to each other", "3"),
    ]
    assert "The unguided images that are nearest to a training image" in (out / "page.html").read_text()
    assert run(*words(paths, out, **alone, pairs=1, steps=1)) == 2
    assert "num_inference_steps 2 -> 1" in capsys.readouterr().err
    assert not (out / "differences.csv").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": FEATURES}, "KID, or --allow-singular to have a number"),
        ({"limit": 3}, "3 reference images and 16 features"),
        ({"depth-predictor": None}, "a depth prior is given, but no depth predictor"),
        ({"depth-predictor": None, "depth-prior": None, "scales": "0,1"}, "needs a depth predictor"),
        ({"references": "nowhere"}, "or a folder; there is no folder nowhere"),
        ({"consistency-scale": -1}, "--consistency-scale"),
        ({"scales": "0,ten"}, "'ten'"),
        ({"sampler": "euler"}, "'euler' is not one of"),
        ({"probe-timestep": 5000}, "timestep is 5000"),
        ({"fov": 180}, "--fov"),
        ({"extractor": "inceptionn"}, "inceptionn"),
    ],
)
def test_bad_input_is_refused_before_anything_is_drawn(paths, tmp_path, capsys, changes, message):
    assert run(*words(paths, tmp_path, **changes)) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ({"samples": 19, "placebos": "neighbor"}, [], "pairs seeds 2k and 2k + 1; expected seed 19 beside 18"),
        ({"steps": 999}, ["--equal-cost"], r"--equal-cost asks for \d{4} unguided steps, but the generator has 1000"),
        ({"unguided-steps": "2,1001"}, [], "1001; expected a whole number, 1 to 1000"),
    ],
)
@pytest.mark.parametrize("draw", [[], ["--draw", "all"]])
def test_a_row_that_cannot_be_drawn_is_refused_before_any_is(paths, tmp_path, capsys, changes, flags, message, draw, monkeypatch):
    monkeypatch.setattr(DepthGuidedPipeline, "__call__", lambda *_, **__: pytest.fail("drawn"))
    rows = "both, neighbor" if "placebos" in changes else "none, equal cost" if flags else "1001 steps"
    draw = [draw[0], f"none,{rows}"] if draw else []
    assert run(*words(paths, tmp_path, **changes), *flags, *draw) == 2
    error = capsys.readouterr().err
    assert re.search(message.replace("+", r"\+"), error) and not list(tmp_path.rglob("*.png"))


def test_a_given_prior_takes_the_place_of_one_that_does_not_fit(paths, tmp_path, capsys):
    own = shutil.copytree(paths["generator"], tmp_path / "generator")
    tiny_prior(min_depth=1.0, max_depth=5.0).save_pretrained(own / "depth_prior")
    arguments = words(paths, tmp_path / "out", model=own, samples=2)
    assert run(*arguments, "--draw", "both") == 0
    assert len(list((tmp_path / "out" / "samples").glob("consistency-40_prior-40_*/*.png"))) == 2
    assert run(*words(paths, tmp_path / "out", model=own, samples=2, depth_prior=None), "--draw", "both") == 2
    assert "both" in capsys.readouterr().err  # there is nothing that could draw it: the prior was left out, with a warning
    assert run(*words(paths, tmp_path / "other", model=own, samples=2, depth_prior=None), "--draw", "DCG") == 0


def test_foreign_files_are_not_written_among(paths, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert run(*words(paths, tmp_path)) == 2
    assert "noise2map did not write (thesis.txt)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["thesis.txt"]


def test_plan_leaves_out_what_there_are_no_parts_for(tmp_path):
    options = GeneratorOptions(model="g", references="r", out=tmp_path, sweep_scales=(10.0, 0.0))
    first, second = tiny_prior(), tiny_prior(seed=3)
    assert list(setting_tables(options, SimpleNamespace(depth_predictor=None), [])) == ["guidance"]
    assert list(setting_tables(options, SimpleNamespace(depth_predictor=1), [])["guidance"]) == ["none", "DCG"]
    sweep = setting_tables(options, SimpleNamespace(depth_predictor=1), [])["scales"]
    assert [[(loss.name, loss.scale) for loss in one.guidance.active] for one in sweep.values()] == [[], [("consistency", 10.0)]]
    assert list(setting_tables(options, SimpleNamespace(depth_predictor=1), [first])) == ["guidance", "scales"]
    without = replace(options, prior_scale=0.0, placebos=("neighbor",))
    tables = setting_tables(without, SimpleNamespace(depth_predictor=1), [first])
    assert [list(tables[name]) for name in ("guidance", "placebos")] == [["none", "DCG"], ["none", "DCG", "DCG, neighbor"]]
    tables = setting_tables(options, SimpleNamespace(depth_predictor=1), [first, second])
    assert list(tables) == ["guidance", "scales", "priors"]
    assert tables["priors"][f"prior {prior_name(second)}"].guidance.losses[1].prior is second
    assert list(setting_tables(options, SimpleNamespace(depth_predictor=1), [first, first])) == [
        "guidance",
        "scales",
    ]  # given twice, there is nothing to sweep


def test_settings_can_be_drawn_apart_and_are_found_again(paths, tmp_path, capsys):
    arguments = words(paths, tmp_path, samples=4, scales="0.5", sweep_samples=2, placebos="neighbor")
    assert run(*arguments, "--draw", "both,scale 0.5") == 0
    assert run(*arguments, "--draw", "None") == 0
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "samples").rglob("*.png")}
    names = sorted({path.parent.name.rpartition("_")[0] for path in kept})
    assert names == ["consistency-0.5_prior-0.5", "consistency-40_prior-40", "unguided"]
    assert len(kept) == 4 + 2 + 4 and not (tmp_path / "generator.csv").exists() and not (tmp_path / "measured").exists()
    assert run(*arguments, "--draw", "dcg,dpg,none,Both, neighbor,both") == 0  # a comma in a name is no other row
    assert len(list((tmp_path / "samples").rglob("*.png"))) == 10 + 8 + 4
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())
    assert run(*arguments, "--draw", "none,neither") == 2
    assert "no row 'neither' to draw; expected some of none; DCG; DPG; both; both, neighbor; scale 0.5" in capsys.readouterr().err


@pytest.mark.slow
def test_a_generator_with_a_camera_has_its_rooms_measured(paths, tmp_path, capfd):
    seen = shutil.copytree(paths["generator"], tmp_path / "generator")
    (seen / "camera.json").write_text(json.dumps({"intrinsics_px": [10.0, 12.0, 8.0, 8.0], "size_px": [16, 16]}))
    for name, model in (("seen", seen), ("unseen", paths["generator"])):
        changes = {"model": model, "depth_predictor": None, "depth_prior": None, "samples": 2, "limit": 3, "resamples": 0}
        arguments = words(paths, tmp_path / name, allow_singular="", **changes)
        assert run(*[part for part in arguments if part]) == 0
    none, references = rows_of(tmp_path / "seen")
    for row in (none, references):
        assert 0 <= float(row["floor_at_eye"]) <= 1 and 0 < float(row["order_share"]) <= 1 and 0 <= float(row["upright_share"]) <= 1
    assert "order_share" not in rows_of(tmp_path / "unseen")[0]
    shown = capfd.readouterr()
    assert shown.err.count("are not measured: that needs a camera.json of the generator") == 1
    assert shown.out.count("upright") == 1
