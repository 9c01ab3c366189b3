"""Folders of maps made by anyone: found, matched, read in every format, scored by hand counts."""

import json
import logging

import numpy as np
import pytest
from PIL import Image
from tiny_models import tiny_depth_model, tiny_segmenter

from noise2map.cli import main
from noise2map.data import FolderDataset
from noise2map.data.maps.normals import encode_normals
from noise2map.evaluation.stored import MapFolder, bare_name, evaluate_maps, stored_batches
from noise2map.models import Noise2MapImageProcessor

LABELS = {
    "a": np.array([[0, 0, 1, 1], [0, 255, 1, 1]], np.uint8),
    "b": np.array([[1, 1, 1, 1], [0, 0, 0, 0]], np.uint8),
}
DEPTH = {"a": np.array([[1.0, 2.0], [4.0, 0.0]], np.float32), "b": np.array([[2.0, 2.0], [2.0, 2.0]], np.float32)}


def data_folder(tmp_path, truths, write):
    """``ROOT/images`` and ``ROOT/maps``."""
    root = tmp_path / "data"
    for part in ("images", "maps"):
        (root / part).mkdir(parents=True)
    for name, truth in truths.items():
        height, width = truth.shape[:2]
        Image.new("RGB", (width, height)).save(root / "images" / f"{name}.png")
        write(truth).save(root / "maps" / f"{name}.png")
    (root / "classes.json").write_text(json.dumps(["floor", "wall"]))
    return root


def png(values):
    return Image.fromarray(values)


def millimetres(values):
    return Image.fromarray((values * 1000).astype(np.uint16))


def found_scores(evaluation):
    return evaluation.results[0].scorer.scores()


@pytest.mark.parametrize("layout", ["plain", "npy", "npz", "labels"])
def test_class_maps_by_hand(tmp_path, layout):
    """Of 15 known pixels two are wrong: in ``a`` a floor called wall, in ``b`` a wall called floor."""
    root, maps = data_folder(tmp_path, LABELS, png), tmp_path / "maps"
    predicted = {name: values.copy() for name, values in LABELS.items()}
    predicted["a"][0, 0], predicted["a"][1, 1], predicted["b"][0, 0] = 1, 1, 0
    folder = maps / "labels" if layout == "labels" else maps
    folder.mkdir(parents=True)
    for name, values in predicted.items():
        if layout == "npy":
            np.save(folder / f"{name}.npy", values.astype(np.int64))
        elif layout == "npz":
            np.savez(folder / f"{name}.npz", labels=values, other=values * 0)
        else:
            Image.fromarray(values).save(folder / f"{name}.png")
    stored = MapFolder(maps, None if layout == "labels" else "segmentation")
    evaluation = evaluate_maps(stored, FolderDataset(root, "segmentation"))
    floor, wall = (7 - 1) / (7 + 1), (8 - 1) / (8 + 1)  # 7 and 8 true pixels, one of each called the other
    assert found_scores(evaluation) == pytest.approx({"mIoU": (floor + wall) / 2, "aAcc": 13 / 15, "mAcc": (6 / 7 + 7 / 8) / 2})
    assert evaluation.image_ids == ["a", "b"] and evaluation.results[0].protocol.name == "as stored"


def test_uncertainty_beside_the_maps_is_scored(tmp_path):
    root, maps = data_folder(tmp_path, LABELS, png), tmp_path / "maps"
    for part in ("labels", "uncertainty"):
        (maps / part).mkdir(parents=True)
    for name, values in LABELS.items():
        wrong = values.copy()
        wrong[0, 0] = 1 - wrong[0, 0]
        Image.fromarray(wrong).save(maps / "labels" / f"{name}.png")
        Image.fromarray((65535 * (wrong != values)).astype(np.uint16)).save(maps / "uncertainty" / f"{name}.png")
    evaluation = evaluate_maps(MapFolder(maps), FolderDataset(root, "segmentation"))
    assert evaluation.results[0].scorer.uncertainties["uncertainty"].compute()["auroc"].item() == 1


@pytest.mark.parametrize("records", [False, True])
def test_uncertainty_of_some_maps_alone_is_refused_before_any_is_scored(tmp_path, records):
    root, maps = data_folder(tmp_path, LABELS, png), tmp_path / "maps"
    for part in ("labels", "uncertainty"):
        (maps / part).mkdir(parents=True)
    for name, values in LABELS.items():
        Image.fromarray(values).save(maps / "labels" / f"{name}.png")
    Image.fromarray(np.zeros((2, 4), np.uint16)).save(maps / "uncertainty" / "b.png")
    if records:
        kinds = ("labels", "uncertainty")
        lines = [{"id": f"{name}.png", "files": {kind: f"{kind}/{name}.png" for kind in kinds}} for name in LABELS]
        (maps / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=r"1 of 2 maps in .* have a file of their uncertainty, .* such as .*uncertainty.a\.png"):
        next(stored_batches(FolderDataset(root, "segmentation"), MapFolder(maps), 0.001))


def command(*words):
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *map(str, words)])
    assert not ended.value.code


def test_depth_is_scored_in_the_range_of_the_model_that_made_the_maps(tmp_path, caplog):
    """The pixel of ``a`` that is off lies beyond what the model of the maps can say."""
    root, maps, model = data_folder(tmp_path, DEPTH, millimetres), tmp_path / "maps", tmp_path / "model"
    tiny_depth_model(max_depth=3.0).save_pretrained(model)
    Noise2MapImageProcessor().save_pretrained(model)
    (maps / "depth").mkdir(parents=True)
    for name, values in DEPTH.items():
        np.save(maps / "depth" / f"{name}.npy", np.where(values > 3, 3, np.maximum(values, 1)).astype(np.float32))
    words = ("--predictions", maps, "--dataset", "folder", "--root", root, "--resamples", 0, "--out")
    command(*words, tmp_path / "unknown")
    assert "depth is scored from 0.001 to 80 m" in caplog.text
    (maps / "settings.json").write_text(json.dumps({"model": str(model)}))
    caplog.clear()
    command(*words, tmp_path / "known")
    command(*words, tmp_path / "chosen", "--max-depth", 5)
    assert "depth is scored" not in caplog.text
    rows = {
        name: json.loads((tmp_path / name / "evaluation.json").read_text())["rows"][0] for name in ("unknown", "known", "chosen")
    }
    assert [row["max_depth"] for row in rows.values()] == [80, 3, 5]
    assert rows["known"]["abs_rel"] == 0 < rows["unknown"]["abs_rel"] == rows["chosen"]["abs_rel"]


@pytest.mark.parametrize("kind", ["png", "npy"])
def test_depth_by_hand(tmp_path, kind):
    """Errors of 10 % at one pixel of three in ``a``, of 50 % at all of ``b``."""
    root, maps = data_folder(tmp_path, DEPTH, millimetres), tmp_path / "maps"
    maps.mkdir()
    predicted = {"a": DEPTH["a"] + np.array([[0, 0.2], [0, 7]], np.float32), "b": DEPTH["b"] * 1.5}
    for name, values in predicted.items():
        if kind == "npy":
            np.save(maps / f"{name}.npy", values)
        else:
            millimetres(values).save(maps / f"{name}.png")
    evaluation = evaluate_maps(MapFolder(maps, "depth"), FolderDataset(root, "depth"))
    assert found_scores(evaluation)["abs_rel"] == pytest.approx((0.1 / 3 + 0.5) / 2, rel=1e-4)
    assert found_scores(evaluation)["delta1"] == pytest.approx(0.5)


def test_normals_by_hand(tmp_path):
    truth = np.zeros((2, 2, 3), np.float32)
    truth[..., 1] = 1
    root, maps = data_folder(tmp_path, {"a": truth}, lambda values: Image.fromarray(encode_normals(values))), tmp_path / "maps"
    maps.mkdir()
    predicted = truth.copy()
    predicted[0, 0] = (1, 0, 0)
    np.save(maps / "a.npy", predicted * 2)
    evaluation = evaluate_maps(MapFolder(maps, "normals"), FolderDataset(root, "normals"))
    assert found_scores(evaluation)["mean_angle"] == pytest.approx(90 / 4)


def test_records_of_predict_are_read(tmp_path):
    root, maps = data_folder(tmp_path, DEPTH, millimetres), tmp_path / "maps"
    (maps / "depth").mkdir(parents=True)
    lines = []
    for name, values in DEPTH.items():
        Image.fromarray((values * 256).astype(np.uint16)).save(maps / "depth" / f"{name}.png")
        lines.append({"id": f"{name}.png", "depth_png_units_per_m": 256, "files": {"depth": f"depth/{name}.png"}})
    (maps / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluation = evaluate_maps(MapFolder(maps), FolderDataset(root, "depth"))
    assert found_scores(evaluation)["abs_rel"] == pytest.approx(0, abs=1e-3)


def test_names_are_matched_without_suffix():
    assert bare_name("rooms/a.JPG") == bare_name("rooms/a.npy") == "rooms/a"
    assert bare_name("frame.v2") == "frame.v2"


def test_what_cannot_be_scored_is_refused(tmp_path, caplog):
    root, maps = data_folder(tmp_path, LABELS, png), tmp_path / "maps"
    dataset = FolderDataset(root, "segmentation")
    with pytest.raises(FileNotFoundError, match="there is no folder of maps"):
        MapFolder(maps)
    maps.mkdir()
    with pytest.raises(ValueError, match="say with --task what its maps are"):
        MapFolder(maps)
    with pytest.raises(ValueError, match="holds no map for segmentation"):
        MapFolder(maps, "segmentation")
    Image.fromarray(LABELS["a"]).save(maps / "a.png")
    Image.fromarray(LABELS["a"]).save(maps / "c.png")
    with pytest.raises(ValueError, match=r"has no map for 1 of 2 images, such as 'b'.*they are called a, c"):
        evaluate_maps(MapFolder(maps, "segmentation"), dataset)
    Image.fromarray(LABELS["b"][:, :2]).save(maps / "b.png")
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match=r"b.png is 2x2; the true map is 4x2"):
        evaluate_maps(MapFolder(maps, "segmentation"), dataset)
    assert "1 maps of" in caplog.text and "belong to none of the images, such as c" in caplog.text
    Image.fromarray(np.full((2, 4), 7, np.uint8)).save(maps / "b.png")
    with pytest.raises(ValueError, match="image 'b'"):
        evaluate_maps(MapFolder(maps, "segmentation"), dataset)
    np.save(maps / "b.npy", LABELS["b"].astype(np.float32))
    with pytest.raises(ValueError, match="expected integer class ids"):
        evaluate_maps(MapFolder(maps, "segmentation"), dataset)


def test_the_command_scores_a_folder_and_compares_two(tmp_path, capsys):
    root, out = data_folder(tmp_path, LABELS, png), tmp_path / "out"
    for folder, wrong in (("good", 0), ("bad", 1)):
        (tmp_path / folder).mkdir()
        for name, values in LABELS.items():
            predicted = values.copy()
            predicted[0, 0] = predicted[0, 0] ^ wrong
            Image.fromarray(predicted).save(tmp_path / folder / f"{name}.png")
    words = ["evaluate", "--predictions", tmp_path / "good", "--compare", tmp_path / "bad", "--task", "segmentation"]
    words += ["--dataset", "folder", "--root", root, "--out", out, "--resamples", "20"]
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert not ended.value.code
    rows = json.loads((out / "evaluation.json").read_text())["rows"]
    assert [row["aAcc"] for row in rows] == pytest.approx([1, 13 / 15])
    assert all(row["protocol"] == "as stored" and "ece" not in row for row in rows)
    assert "on 2 images of folder all" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected --model or --predictions"),
        (["--model", "x", "--predictions", "y"], "expected --model or --predictions"),
        (["--predictions", "y", "--steps", "3"], "maps are scored as stored"),
        (["--predictions", "y", "--protocol", "flip"], "stored already see no further image"),
    ],
)
def test_options_that_do_not_fit(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *words])
    assert ended.value.code and message in capsys.readouterr().err


def stored_by(folder, model, truths):
    """A folder of maps that says which model made them."""
    (folder / "labels").mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps({"model": str(model)}))
    for name, values in truths.items():
        Image.fromarray(values).save(folder / "labels" / f"{name}.png")
    return folder


def test_stored_maps_are_scored_on_what_their_model_was_not_trained_on(tmp_path, capsys):
    from noise2map.runs.data_split import DataSplit, file_checksum

    truths = {name: np.full((4, 4), index % 2, np.uint8) for index, name in enumerate("abcd")}
    root = data_folder(tmp_path, truths, png)
    for index, path in enumerate(sorted((root / "images").iterdir())):
        Image.new("RGB", (4, 4), (index, 0, 0)).save(path)
    marks = {path.stem: file_checksum(path) for path in (root / "images").iterdir()}
    model = tmp_path / "model"
    tiny_segmenter(num_labels=2, id2label={0: "floor", 1: "wall"}).save_pretrained(model)
    DataSplit(train={name: marks[name] for name in "abc"}, val={"d": marks["d"]}).write(model)
    maps = stored_by(tmp_path / "maps", model, truths)
    rows = {}
    for split in (None, "all"):
        words = ["--predictions", maps, "--dataset", "folder", "--root", root, "--resamples", 0, "--out", tmp_path / f"out-{split}"]
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", *map(str, words), *(["--split", split] if split else [])])
        assert not stop.value.code
        rows[split] = json.loads((tmp_path / f"out-{split}" / "evaluation.json").read_text())["rows"][0]
    assert (rows[None]["split"], rows[None]["images"], rows[None]["images_trained_on"]) == ("val", 1, 0)
    assert (rows["all"]["split"], rows["all"]["images"], rows["all"]["images_trained_on"]) == ("all", 4, 3)


def test_maps_of_models_with_another_order_of_classes_are_warned_of(tmp_path, capsys):
    root = data_folder(tmp_path, LABELS, png)
    folders = []
    for name, names in (("one", {0: "floor", 1: "wall"}), ("two", {0: "wall", 1: "floor"})):
        tiny_segmenter(num_labels=2, id2label=names).save_pretrained(tmp_path / f"model-{name}")
        Noise2MapImageProcessor(size={"shortest_edge": 32}).save_pretrained(tmp_path / f"model-{name}")
        folders.append(stored_by(tmp_path / name, tmp_path / f"model-{name}", LABELS))
    words = ["--predictions", folders[0], "--compare", folders[1], "--dataset", "folder", "--root", root, "--resamples", 0]
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *map(str, words)])
    assert not stop.value.code
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and warnings[0].startswith(f"warning: {folders[1]}: ")
