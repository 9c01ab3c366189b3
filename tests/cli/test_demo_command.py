"""``noise2map demo`` on tiny untrained models: everything it promises is there and fits together."""

import csv
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tiny_bev import save_room_bev
from tiny_generator import save_generator
from tiny_models import tiny_depth_model, tiny_segmenter

from noise2map import cli
from noise2map.data.freedoom import load_samples
from noise2map.data.freedoom.catalog import class_names
from noise2map.demo.guidance import FIRST_SEEDS
from noise2map.demo.maps import Frame, lift_frame, varied_frames
from noise2map.demo.page import FARTHER_COLOR, NEARER_COLOR, frame_legend, frame_rows, shared_limit
from noise2map.demo.run import FIRST_FRAMES
from noise2map.generation.loading import load_generator
from noise2map.models import Noise2MapImageProcessor

pytest.importorskip("shapely")
pytest.importorskip("cv2")

TASKS = ("segmentation", "depth", "birds-eye-view")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    names = class_names(10)
    labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    for name, model in (
        ("rooms", tiny_segmenter(num_labels=10, **labels)),
        ("plain", tiny_segmenter(num_labels=10, diffusion=False, **labels)),
        ("depth", tiny_depth_model(max_depth=40.0)),
    ):
        model.save_pretrained(root / name)
        Noise2MapImageProcessor(size={"height": 48, "width": 64}).save_pretrained(root / name)
    save_room_bev(root / "around", ("camera", "lidar"))
    paths = save_generator(root)
    load_generator(paths["generator"], paths["predictor"], paths["prior"]).save_pretrained(root / "whole")
    return root


def run(*words):
    with pytest.raises(SystemExit) as caught:
        cli.main(["demo", *map(str, words)])
    return caught.value.code


def test_a_panel_that_cannot_be_written_is_refused_first(models, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    words = ["--segmentation-model", models / "rooms", "--depth-model", models / "depth"]
    assert run("--out", tmp_path / "out", "--hero", tmp_path / "file" / "hero.png", *words) == 2
    assert "file" in capsys.readouterr().err and not (tmp_path / "out").exists()
    for name, said in (("hero.txt", "no image format has the suffix '.txt'"), ("", "a folder; expected a file such as hero.png")):
        assert run("--out", tmp_path / "out", "--hero", tmp_path / name, *words) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def made(models, tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "demo"
    words = ["--segmentation-model", models / "rooms", "--depth-model", models / "depth", "--frames", 2, "--scored", 3]
    words += ["--bev-model", models / "around", "--normals-model", "none", "--completion-model", "none"]
    words += ["--generator", models / "whole"]
    assert run("--out", out, "--hero", out / "hero.png", *words) == 0
    return out


def test_every_file_is_there_and_whole(made):
    names = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    guided = {name for name in names if name.startswith("guided/")}
    assert {f"guided/{FIRST_SEEDS[1]:06d}.png", "guided/denoising.webp", f"guided/clouds/{FIRST_SEEDS[0]:06d}-both.ply"} <= guided
    names -= guided
    wanted = {"index.html", "settings.json", "hero.png", "normals.png", "room.ply", *(f"scores-{task}.csv" for task in TASKS)}
    wanted |= {f"denoising-{task}{suffix}" for task in TASKS for suffix in (".gif", ".webp")}
    assert wanted <= names
    panels = names - wanted
    assert len(panels) == 6
    assert all(re.fullmatch(rf"({'|'.join(TASKS)})/(freedoom|surround)-test-\d+\.png", name) for name in panels)
    for name in names:
        if name.endswith((".png", ".gif", ".webp")):
            Image.open(made / name).load()
    assert Image.open(made / "denoising-depth.gif").n_frames == 10
    assert Image.open(made / "hero.png").width > 1200


def test_the_page_shows_all_and_fetches_nothing(made):
    page = (made / "index.html").read_text()
    for word in (
        "Segmentation",
        "Depth",
        "Bird&#x27;s-eye view",
        "In three dimensions",
        "Guided generation",
        "Scores",
        "1 step",
        "3 steps",
        "10 steps",
        "true normals",
    ):
        assert word in page
    assert page.count("data-gallery") >= 2 and "data-points" in page and page.count("data-player") >= 2
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)


def test_the_cloud_has_a_point_per_pixel_that_is_a_surface(made):
    data = (made / "room.ply").read_bytes()
    count = int(re.search(rb"element vertex (\d+)", data)[1])
    assert 0 < count <= 160 * 120
    page = (made / "index.html").read_text()
    text = page[page.index("data-points") :]
    cloud = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text)[1])
    assert len(cloud["points"]) * 3 // 4 // 6 == pytest.approx(count, abs=2)
    assert len(cloud["colors"]) == 5


def test_scores_are_those_of_the_metrics(made):
    rows = list(csv.DictReader((made / "scores-segmentation.csv").open()))
    assert [row["steps"] for row in rows] == ["1", "3", "10"]
    assert all(0 <= float(row["mIoU %"]) <= 100 and 0 <= float(row["error-AUROC"]) <= 1 for row in rows)
    depth = list(csv.DictReader((made / "scores-depth.csv").open()))
    assert all(float(row["AbsRel"]) > 0 and row["samples"] == "2" for row in depth)


def test_another_folder_is_not_written_over(models, made, tmp_path, capsys):
    (tmp_path / "index.html").write_text("mine")
    words = ["--segmentation-model", models / "rooms", "--depth-model", models / "depth"]
    assert run("--out", tmp_path, *words) == 2
    assert "files that noise2map did not write (index.html)" in capsys.readouterr().err
    assert (tmp_path / "index.html").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1
    assert run("--out", made, *words, "--seed", 1) == 2  # a demo of other settings
    assert "results of other settings" in capsys.readouterr().err


def test_labels_say_what_the_numbers_are(made):
    """Depth errors are means that can grow; no cell calls a share of pixels better. Uncertainty has one scale."""
    page = (made / "index.html").read_text()
    assert re.search(r"mean error \d+\.\d% → \d+\.\d%", page) and "% better" not in page
    assert "as often as you like" not in page and "thousands" not in page
    assert "DCG)" in page and not re.search(r">(DCG|DPG|none)<", page)  # explained once, and in no caption
    assert "16 x 16 pixels, shown enlarged" in page


def test_rounding_noise_is_not_painted_as_a_structure():
    depth = np.full((6, 8), 2.0, np.float32)
    noise = np.linspace(0, 1e-6, 48, dtype=np.float32).reshape(6, 8)
    frame = Frame("a", "MAP01", np.zeros((6, 8, 3), np.uint8), depth, np.array([8.0, 8, 4, 3]), {})
    frame.by_steps[1] = SimpleNamespace(depth_m=depth, labels=None, uncertainty=noise, interval={})
    cell = frame_rows(frame, SimpleNamespace(task="depth", has_classes=False), shared_limit([frame]))[1][1]
    assert cell.bar.high >= 0.01 and cell.note == "at most 1e-06"
    assert len(np.unique(cell.image.reshape(-1, 3), axis=0)) == 1


def test_a_single_call_shows_where_the_truth_leaves_its_interval():
    truth = np.full((2, 4), 2.0, np.float32)
    truth[0] = (1.0, 2.0, 5.0, 0.0)  # nearer, inside, farther, unknown
    stated = {"lower_m": np.full((2, 4), 1.5, np.float32), "upper_m": np.full((2, 4), 3.0, np.float32)}
    frame = Frame("a", "MAP01", np.zeros((2, 4, 3), np.uint8), truth, np.array([8.0, 8, 2, 1]), {})
    frame.by_steps[1] = SimpleNamespace(depth_m=truth + 1, labels=None, uncertainty=truth, interval=stated)
    predictor = SimpleNamespace(task="depth", has_classes=False)
    cell = frame_rows(frame, predictor, 1.0)[1][2]
    assert cell.title == "90% interval" and cell.note == f"{5 / 7:.1%} of truths inside"
    assert [tuple(color) for color in cell.image[0]] == [NEARER_COLOR, (0, 0, 0), FARTHER_COLOR, (0, 0, 0)]
    assert [color for color, _ in frame_legend(frame, predictor)] == [NEARER_COLOR, FARTHER_COLOR]


def test_a_model_of_the_other_task_is_refused(models, tmp_path, capsys):
    code = run("--out", tmp_path / "x", "--segmentation-model", models / "depth", "--depth-model", models / "depth")
    assert code == 2 and "is for depth; expected one for segmentation" in capsys.readouterr().err


def test_frames_come_from_different_maps():
    samples = load_samples("test")
    chosen = varied_frames(samples, 6)
    places = {samples.records[index]["map"] for index in chosen}
    assert len(chosen) == 6 and len(places) == 6
    last = samples.records[-1]["id"]
    assert varied_frames(samples, 3, [last, "no such frame"])[0] == len(samples) - 1
    assert len(set(varied_frames(samples, 20, [last]))) == 20


def test_the_first_frames_are_shipped():
    assert set(FIRST_FRAMES) <= {record["id"] for record in load_samples("test").records}


def test_a_flat_wall_has_normals_towards_the_camera():
    depth = np.full((12, 16), 3.0, np.float32)
    sky = np.zeros((12, 16), bool)
    sky[:2] = True
    room = lift_frame(depth, depth, np.array([8.0, 9.6, 8.0, 6.0]), sky)
    np.testing.assert_allclose(room.normals, np.broadcast_to([0, 0, -1], (12, 16, 3)), atol=1e-5)
    assert room.mean_angle_deg == pytest.approx(0, abs=0.1)
    assert np.isnan(room.points_m[:2]).all() and np.isfinite(room.points_m[2:]).all()
    assert room.points_m[6, 8] == pytest.approx([3 * 0.5 / 8, 3 * 0.5 / 9.6, 3.0])
