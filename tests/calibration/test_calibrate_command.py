"""``noise2map calibrate`` and ``experiment shifts``: what they find, write and refuse."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from command_line import run_command
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_bev import save_room_bev
from tiny_models import tiny_depth_model, tiny_segmenter
from torchmetrics.functional.classification import multiclass_calibration_error

from noise2map.calibration.drawing import DrawnImages
from noise2map.calibration.run import CalibrationOptions, fit_and_score, split_images
from noise2map.calibration.shifts import ShiftOptions, find_variants
from noise2map.data import load_samples
from noise2map.data.freedoom import SURROUND_SAMPLES_ROOT
from noise2map.inference.loading import load_model
from noise2map.models import Noise2MapImageProcessor
from noise2map.models.distributions.calibration import Calibration
from noise2map.tasks import get_task
from noise2map.tasks.calibrating import LEVELS, DrawnPixels

NAMES = load_samples("test").id2label


def save(model, folder, **files):
    model.save_pretrained(folder)
    Noise2MapImageProcessor(size={"height": 120, "width": 160}).save_pretrained(folder)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    labels = {"id2label": NAMES, "label2id": {name: index for index, name in NAMES.items()}}
    save(tiny_segmenter(**labels, num_labels=len(NAMES)), root / "classes", README_md="# A card\n\nText.\n\n## Licence\n\nFree.\n")
    save(tiny_depth_model(objective="laplace"), root / "laplace")
    save(tiny_depth_model(), root / "depth")
    save_room_bev(root / "around", ("camera", "lidar"))
    return root


def calibrate(capsys, model, out, *words):
    return run_command(capsys, "calibrate", model, "--out", out, "--limit", 6, "--pixels", 300, *words)


def rows_of(folder):
    document = json.loads((folder / "calibration.json").read_text())
    return document, {(row["images"], row["variant"]): row for row in document["scores"]}


def test_classes_are_calibrated_and_the_checkpoint_says_so_wherever_it_is_loaded(models, tmp_path, capsys):
    out = tmp_path / "out"
    code, text, err = calibrate(capsys, models / "classes", out, "--levels", "0.5,0.7", "--unit", "pixel")
    assert code == 0 and "held out" in text, err
    document, rows = rows_of(out)
    assert rows["calibrated on", "after"]["nll"] < rows["calibrated on", "before"]["nll"]
    assert set(rows) == {(part, name) for part in ("calibrated on", "held out") for name in ("before", "temperature", "after")}
    card = (out / "README.md").read_text()
    assert card.startswith("# A card\n\nText.\n") and "## Calibration" in card and (out / "reliability.png").is_file()
    before, _ = load_model(models / "classes")
    after, _ = load_model(out)
    assert after.config.calibration == document["calibration"] and before.config.calibration is None
    features = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    maps = [model.decode_map(features, generator=torch.Generator().manual_seed(0)) for model in (before, after)]
    torch.testing.assert_close(maps[1].logits * document["calibration"]["temperature"], maps[0].logits)
    # again: refused, then replaced, with one section on the card
    assert "use --overwrite or another --out" in calibrate(capsys, models / "classes", out)[2]
    assert calibrate(capsys, out, tmp_path / "again", "--held-out", "0")[0] == 0
    again = (tmp_path / "again" / "README.md").read_text()
    assert again.count("## Calibration") == 1 and again.index("## Licence") and "Free." in again
    assert rows_of(tmp_path / "again")[1]["calibrated on", "before"]["nll"] == pytest.approx(
        np.average([rows[part, "before"]["nll"] for part in ("calibrated on", "held out")], weights=_shares(document)), rel=1e-5
    )  # a calibrated model is calibrated anew from what it states by itself


def _shares(document):
    return [int(document["facts"][part].split()[0]) for part in ("calibrating", "held_out")]


def test_intervals_of_depth_hold_what_they_promise_where_they_were_fitted(models, tmp_path, capsys):
    code, _, err = calibrate(capsys, models / "laplace", tmp_path / "out", "--unit", "pixel", "--held-out", "0")
    assert code == 0, err
    _, rows = rows_of(tmp_path / "out")
    after = rows["calibrated on", "after"]
    assert after["coverage_50"] == pytest.approx(0.5, abs=0.002) and after["coverage_90"] == pytest.approx(0.9, abs=0.002)
    assert after["ece"] < 0.003 < rows["calibrated on", "before"]["ece"]
    assert after["nll"] < rows["calibrated on", "before"]["nll"]
    assert after["auroc"] == pytest.approx(
        rows["calibrated on", "before"]["auroc"], abs=0.01
    )  # the order stays, bins of scores move
    assert rows["calibrated on", "constant interval"]["coverage_90"] == pytest.approx(0.9, abs=0.002)
    # evaluate scores the intervals of the checkpoint, over all pixels
    assert (
        run_command(
            capsys, "evaluate", "--model", tmp_path / "out", "--limit", 6, "--steps", 3, "--resamples", 0, "--out", tmp_path / "e"
        )[0]
        == 0
    )
    row = next(csv.DictReader((tmp_path / "e" / "evaluation.csv").open()))
    assert float(row["scale_coverage_90"]) == pytest.approx(0.9, abs=0.03)
    assert float(row["scale_coverage_50"]) == pytest.approx(0.5, abs=0.05)


def test_a_model_without_a_scale_gets_a_constant_interval(models, tmp_path, capsys):
    assert calibrate(capsys, models / "depth", tmp_path / "out", "--unit", "pixel", "--held-out", "0")[0] == 0
    document, rows = rows_of(tmp_path / "out")
    assert document["calibration"]["scale"] > 0 and document["baselines"] == {}
    assert rows["calibrated on", "before"]["ece"] is None
    assert rows["calibrated on", "after"]["coverage_90"] == pytest.approx(0.9, abs=0.002)


def test_the_whole_is_written_or_nothing_and_never_over_the_source(models, tmp_path, capsys, monkeypatch):
    assert "the folder of the model itself" in calibrate(capsys, models / "depth", models / "depth")[2]
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "a.txt").write_text("mine")
    assert "no calibrated checkpoint to overwrite" in calibrate(capsys, models / "depth", tmp_path / "foreign", "--overwrite")[2]
    monkeypatch.setattr("noise2map.calibration.run.card_section", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    assert calibrate(capsys, models / "depth", tmp_path / "out")[0] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign"]


def folder_of(root, count, label=None, size=(64, 48)):
    for kind in ("images", "maps"):
        (root / kind).mkdir(parents=True)
    for index in range(count):
        rng = np.random.default_rng(index)
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(root / "images" / f"{index}.png")
        labels = rng.integers(0, 3, size) if label is None else np.full(size, label)
        Image.fromarray(labels.astype(np.uint8)).save(root / "maps" / f"{index}.png")
    names = {str(index): name for index, name in NAMES.items()}
    (root / "classes.json").write_text(json.dumps(names))
    return root


def test_a_folder_of_ones_own(models, tmp_path, capsys):
    root = folder_of(tmp_path / "own", 4)
    code, text, err = calibrate(capsys, models / "classes", tmp_path / "out", "--dataset", "folder", "--root", root)
    assert code == 0 and "2 images to calibrate on, 2 images held out" in text, err


@pytest.mark.parametrize(
    ("label", "words", "message"),
    [
        (2, (), "all labelled pixels are of one class, 'ceiling'; expected at least two to calibrate on"),
        (255, (), "no pixel of the calibrating images is labelled; there is nothing to calibrate on"),
        (None, ("--cluster", "map"), "do not say of which map they are"),
        (None, ("--unit", "map"), "do not say of which map they are"),
        (None, ("--levels", "1.5"), "expected a number between 0 and 1, such as 0.9, got '1.5'"),
    ],
)
def test_what_cannot_be_calibrated_is_said_in_a_sentence(models, tmp_path, capsys, label, words, message):
    root = folder_of(tmp_path / "own", 3, label)
    code, _, err = calibrate(capsys, models / "classes", tmp_path / "out", "--dataset", "folder", "--root", root, *words)
    assert code == 2 and message in " ".join(err.split()) and not (tmp_path / "out").exists()


def test_a_folder_without_maps_and_a_single_image(models, tmp_path, capsys):
    root = folder_of(tmp_path / "one", 1)
    common = (models / "classes", tmp_path / "out", "--dataset", "folder", "--root")
    assert "the data holds 1 image; expected at least 2, or a held_out of 0" in calibrate(capsys, *common, root)[2]
    (root / "maps" / "0.png").unlink()
    code, _, err = calibrate(capsys, *common, root)
    assert code == 2 and err.count("\n") <= 2
    code, _, err = calibrate(capsys, models / "around", tmp_path / "out")
    assert code == 2 and "noise2map: error:" in err  # a model of another task than the dataset


def test_shifts_score_what_is_left(models, tmp_path, capsys):
    assert calibrate(capsys, models / "laplace", tmp_path / "cal", "--unit", "pixel", "--held-out", "0")[0] == 0
    words = ("experiment", "shifts", models / "laplace", "--limit", 3, "--pixels", 200, "--shift", "darkness", "--out")
    code, _, err = run_command(capsys, *words, tmp_path / "out", "--calibrated", tmp_path / "cal")
    assert code == 0, err
    rows = list(csv.DictReader((tmp_path / "out" / "shifts.csv").open()))
    assert [row["variant"] for row in rows[:4]] == ["before", "temperature", "constant interval", "after"]
    assert {(row["shift"], float(row["strength"])) for row in rows} == {
        ("none", 0),
        *(("darkness", s) for s in (0.3, 0.6, 0.8, 0.9)),
    }
    assert len({row["error"] for row in rows[:4]}) == 1 and rows[0]["error"] != rows[-1]["error"]
    assert (tmp_path / "out" / "darkness.png").is_file()
    own = run_command(capsys, *words[:2], tmp_path / "cal", *words[3:], tmp_path / "own")
    assert own[0] == 0
    again = [row for row in csv.DictReader((tmp_path / "own" / "shifts.csv").open()) if row["variant"] == "after"]
    assert [row["nll"] for row in again] == [row["nll"] for row in rows if row["variant"] == "after"]
    assert "is not calibrated; expected --calibrated DIR" in run_command(capsys, *words, tmp_path / "x")[2]
    assert (
        "holds another model"
        in run_command(capsys, *words[:2], models / "depth", *words[3:], tmp_path / "y", "--calibrated", tmp_path / "cal")[2]
    )
    other = shutil.copytree(tmp_path / "cal", tmp_path / "retrained") / "model.safetensors"
    weights = load_file(other)
    save_file({name: value + 0.01 for name, value in weights.items()}, other, metadata={"format": "pt"})
    said = run_command(capsys, *words, tmp_path / "w", "--calibrated", other.parent)[2]
    assert "they differ in their weights" in said
    assert "is not calibrated" in run_command(capsys, *words, tmp_path / "z", "--calibrated", models / "laplace")[2]


def test_calibrations_in_folders_of_one_name_are_told_apart(models, tmp_path, capsys):
    assert calibrate(capsys, models / "laplace", tmp_path / "a" / "cal", "--unit", "pixel", "--held-out", "0")[0] == 0
    shutil.copytree(tmp_path / "a" / "cal", tmp_path / "b" / "cal")
    found = find_variants(
        ShiftOptions(model=str(models / "laplace"), calibrated=[str(tmp_path / one / "cal") for one in "ab"]),
        load_model(models / "laplace", "cpu")[0],
    )
    names = [str(tmp_path / one / "cal") for one in "ab"]
    assert list(found) == ["before", *(f"{name}{end}" for name in names for end in (": temperature", ": constant interval", ""))]
    with pytest.raises(ValueError, match="names a folder twice"):
        find_variants(ShiftOptions(model="m", calibrated=[names[0], names[0]]), load_model(models / "laplace", "cpu")[0])


def test_shifts_that_a_task_cannot_have_are_refused_where_they_are_named(models, tmp_path, capsys):
    sizes = ("--dataset", "freedoom-surround", "--root", SURROUND_SAMPLES_ROOT, "--split", "test", "--limit", "2", "--pixels", "50")
    code, _, err = run_command(
        capsys, "calibrate", models / "around", "--out", tmp_path / "cal", "--held-out", "0", "--unit", "pixel", *sizes
    )
    assert code == 0, err
    code, _, err = run_command(capsys, "experiment", "shifts", tmp_path / "cal", "--shift", "zoom", "--out", tmp_path / "x", *sizes)
    assert code == 2 and "shift is 'zoom', which bev samples cannot have" in err
    assert not (tmp_path / "x" / "shifts.csv").exists()


def test_a_folder_around_the_model_is_not_replaced(models, tmp_path, capsys):
    outer = tmp_path / "outer"
    assert calibrate(capsys, models / "laplace", outer, "--unit", "pixel", "--held-out", "0")[0] == 0
    shutil.copytree(models / "laplace", outer / "inner")
    code, _, err = calibrate(capsys, outer / "inner", outer, "--unit", "pixel", "--held-out", "0", "--overwrite")
    assert code == 2 and "a folder around the model" in err and (outer / "inner" / "config.json").is_file()


def test_shifts_that_were_interrupted_go_on(models, tmp_path, capsys, monkeypatch):
    from noise2map.calibration import shifts

    assert calibrate(capsys, models / "laplace", tmp_path / "cal", "--unit", "pixel", "--held-out", "0")[0] == 0
    words = ("experiment", "shifts", tmp_path / "cal", "--limit", 3, "--pixels", 200, "--shift", "darkness", "--out")
    assert run_command(capsys, *words, tmp_path / "whole")[0] == 0
    draw, calls = shifts.draw_images, []

    def break_at_the_third(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(shifts, "draw_images", break_at_the_third)
    out = tmp_path / "out"
    assert run_command(capsys, *words, out)[0] != 0
    assert not (out / "shifts.csv").exists()
    calls[:] = [None] * 3
    assert run_command(capsys, *words, out)[0] == 0
    assert len(calls) - 3 == 3  # of five, two were done

    def scores(folder):
        rows = list(csv.DictReader((folder / "shifts.csv").open()))
        return [{name: row[name] for name in row if name not in ("date", "command")} for row in rows]

    assert scores(out) == scores(tmp_path / "whole")
    assert not (out / shifts.FINISHED).exists()


def drawn_layers(temperatures, count=4000):
    """Log-odds that are too sure by known factors, of cells of eight images."""
    generator = torch.Generator().manual_seed(0)
    honest = torch.randn(count, len(temperatures), generator=generator) * 2
    truth = torch.bernoulli(honest.sigmoid(), generator=generator).long()
    truth[:50, 0] = 255
    pixels = DrawnPixels(honest * torch.tensor(temperatures), truth, torch.arange(count) % 8)
    return DrawnImages(pixels, [str(index) for index in range(8)], [None] * 8)


def test_every_layer_finds_its_own_temperature():
    calibrator = get_task("bev").calibrator(None)
    drawn = drawn_layers([0.5, 1.0, 3.0])
    chosen = CalibrationOptions(model="", out="", held_out=0.25)
    parts = split_images(drawn, chosen)
    assert len(parts["calibrated on"]) == 6 and not set(parts["calibrated on"]) & set(parts["held out"])
    facts = dict.fromkeys(("dataset", "split", "decoding", "calibrating", "unit", "pixels", "seed"), "")
    report = fit_and_score(calibrator, drawn, parts, chosen, facts)
    assert report.calibration.temperature == pytest.approx((0.5, 1.0, 3.0), rel=0.15)
    rows = {(row["images"], row["variant"]): row for row in report.rows}
    held_out = [rows["held out", name]["nll"] for name in ("after", "one temperature", "before")]
    assert held_out == sorted(held_out) and rows["held out", "after"]["ece"] < 0.03
    drawn.pixels.truth[:, 1] = 0  # a layer that is nowhere
    assert calibrator.fit(drawn.pixels, LEVELS, None).temperature[1] == 1


def test_layers_get_thresholds_that_overlap_best_and_nothing_else_changes():
    calibrator = get_task("bev").calibrator(None).by("thresholds")
    drawn = drawn_layers([0.5, 1.0, 3.0])
    drawn.pixels.stated -= 1.5  # rarer than they are: at 0.5 little is shown
    chosen = CalibrationOptions(model="", out="", held_out=0.25, method="thresholds")
    parts = split_images(drawn, chosen)
    facts = dict.fromkeys(("dataset", "split", "decoding", "calibrating", "unit", "pixels", "seed"), "")
    report = fit_and_score(calibrator, drawn, parts, chosen, facts)
    assert report.calibration == Calibration() and report.baselines == {} and len(report.thresholds) == 3
    rows = {(row["images"], row["variant"]): row for row in report.rows}
    for part, images in parts.items():
        pixels = drawn.pixels.of_images(images)
        for variant, cuts in (("before", [0.5] * 3), ("after", list(report.thresholds.values()))):
            overlap = []
            for k, cut in enumerate(cuts):
                known = pixels.truth[:, k] != 255
                guess, real = (pixels.stated.sigmoid()[:, k] >= cut)[known], (pixels.truth[:, k] == 1)[known]
                overlap.append(float((guess & real).sum() / (guess | real).sum()))
            assert rows[part, variant]["miou"] == pytest.approx(np.mean(overlap), abs=1e-6)
        assert rows[part, "after"]["miou"] > rows[part, "before"]["miou"] + 0.1
        assert rows[part, "after"]["nll"] == rows[part, "before"]["nll"]


@pytest.mark.parametrize("method", ["temperature", "thresholds"])
def test_thresholds_are_kept_by_the_processor(models, tmp_path, capsys, method):
    pytest.importorskip("shapely")
    pytest.importorskip("cv2")
    words = ("--dataset", "freedoom-surround", "--root", SURROUND_SAMPLES_ROOT, "--split", "test", "--cells", "all")
    code, text, err = calibrate(capsys, models / "around", tmp_path / "out", *words, "--method", method)
    assert code == 0 and "Layers are shown from a probability of: walkable" in text and "mIoU %" in text, err
    document, _ = rows_of(tmp_path / "out")
    (_, plain), (after, processor) = (load_model(one, kinds=("noise2map-bev",)) for one in (models / "around", tmp_path / "out"))
    assert plain.layer_thresholds is None and processor.layer_thresholds == list(document["layer_thresholds"].values())
    assert list(document["layer_thresholds"]) == list(after.config.id2label.values()) and document["facts"]["cells"] == "all"
    assert (after.config.calibration is None) == (method == "thresholds")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`layer_thresholds` of the processor: walkable 0." in card and ("`calibration`" in card) == (method == "temperature")
    assert "expected 'temperature'" in calibrate(capsys, models / "depth", tmp_path / "no", "--method", "thresholds")[2]


def test_what_no_temperature_mends_isotonic_confidences_do(models, tmp_path, capsys):
    """Half of the pixels are honest, half are said twice too surely where they are sure at all; scored by torchmetrics."""
    generator = torch.Generator().manual_seed(0)
    honest = torch.randn(40000, 8, generator=generator) * 2
    truth = torch.multinomial(honest.softmax(1), 1, generator=generator)[:, 0]
    sure = honest.softmax(1).amax(1) > 0.6
    stated = torch.where(sure[:, None], honest * 3, honest)
    image = torch.zeros(20000, dtype=torch.long)
    first, second = (DrawnPixels(stated[part], truth[part], image) for part in (slice(20000), slice(20000, None)))
    calibrator = get_task("segmentation").calibrator(tiny_segmenter(num_labels=8))
    errors = {}
    for method in calibrator.methods:
        fitted = calibrator.by(method).fit(first, LEVELS, None)
        logits = fitted.correct_classes(second.as_maps()[0])[0, :, :, 0].T
        assert logits.argmax(1).equal(second.stated.argmax(1))
        errors[method] = float(multiclass_calibration_error(logits.softmax(1), second.truth, num_classes=8, n_bins=15))
        assert calibrator.scores(second, fitted)["ece"] == pytest.approx(errors[method], abs=1e-4)
    assert errors["isotonic"] < 0.015 < 0.03 < errors["temperature"]
    code, _, err = calibrate(capsys, models / "laplace", tmp_path / "out", "--method", "isotonic")
    assert code == 2 and "method is 'isotonic'; expected 'temperature' for this model" in err
    assert calibrate(capsys, models / "classes", tmp_path / "out", "--method", "isotonic", "--average", "steps")[0] == 0
    assert len(load_model(tmp_path / "out")[0].calibration.confidences) > 1


def test_sets_cover_and_are_smaller_than_those_of_the_probabilities():
    generator = torch.Generator().manual_seed(0)
    honest = torch.randn(20000, 8, generator=generator) * 3
    truth = torch.multinomial(honest.softmax(1), 1, generator=generator)[:, 0]
    calibrator = get_task("segmentation").calibrator(tiny_segmenter(num_labels=8))
    first, second = (
        DrawnPixels(honest[part] * 2, truth[part], torch.zeros(10000, dtype=torch.long))
        for part in (slice(10000), slice(10000, None))
    )
    fitted = calibrator.fit(first, LEVELS, None)
    assert fitted.temperature == pytest.approx(2, rel=0.03)
    before, after = calibrator.scores(second, None), calibrator.scores(second, fitted)
    assert after["coverage_90"] == pytest.approx(0.9, abs=0.01) and after["coverage_95"] == pytest.approx(0.95, abs=0.01)
    assert before["coverage_90"] < 0.88
    naive = calibrator.scores(second, Calibration(temperature=fitted.temperature))
    assert after["size_90"] < naive["size_90"] and naive["coverage_90"] > 0.9  # whole classes are added: more than promised
    assert not math.isnan(after["auroc"])


def test_levels_may_come_in_any_order_and_numbers_are_checked_before_work():
    assert CalibrationOptions(model="", out="", levels=(0.9, 0.5, 0.9)).levels == (0.5, 0.9)
    for name, value in (("batch_size", 0), ("limit", -1), ("pixels", 0)):
        with pytest.raises(ValueError, match=f"{name} is {value}; expected at least"):
            CalibrationOptions(model="", out="", **{name: value})
