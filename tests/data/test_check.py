import numpy as np
import pytest
from PIL import Image

from noise2map.cli import main
from noise2map.data import FolderDataset, load_samples, open_public_dataset
from noise2map.data.checking import check_dataset, check_lines
from noise2map.data.subsets import SkipUnreadable, evenly_spaced
from noise2map.rendering.export import export_frames

PICTURES = 5


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    base = tmp_path_factory.mktemp("check")
    for name in ("nyu", "ade20k"):
        export_frames(name, "samples", base / name, limit=PICTURES)
    return base


@pytest.fixture
def nyu(exported, tmp_path):
    """A copy that a test may damage."""
    import shutil

    return shutil.copytree(exported / "nyu", tmp_path / "nyu")


def cut_in_half(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


class Arrays:
    """A dataset of given depth maps."""

    id2label = {}
    palette = np.zeros((0, 3), np.uint8)

    def __init__(self, depths):
        self.depths = [np.asarray(depth, np.float32) for depth in depths]

    def __len__(self):
        return len(self.depths)

    def __getitem__(self, index):
        depth_m = self.depths[index]
        image = Image.new("RGB", depth_m.shape[::-1], (index, index, index))
        return {"image": image, "id": str(index), "depth_m": depth_m, "valid": depth_m > 0}


def test_counts_of_classes_are_those_of_the_maps():
    data = load_samples("val")
    report = check_dataset(data, "rooms", limit=7)
    samples = [data[index] for index in evenly_spaced(len(data), 7)]
    stacked = np.stack([sample["labels"] for sample in samples])
    for label in range(10):
        assert report.class_pixels[label] == (stacked == label).sum()
        assert report.class_images[label] == (stacked == label).any((1, 2)).sum()
    assert report.class_pixels[-1] == (stacked == 255).sum()
    assert report.sizes == {(160, 120): 7} and report.cameras == 7 and report.focal_px == (80, 80)
    means = [np.asarray(sample["image"]).mean() for sample in samples]
    assert report.brightness == pytest.approx((min(means), np.mean(means), max(means)))
    text = "\n".join(check_lines(report, data.id2label))
    assert "rooms: 7 of 30 samples read" in text and "wall" in text and "warning" not in text


def test_quantiles_of_depth():
    rng = np.random.default_rng(0)
    depths = rng.lognormal(1, 0.8, (4, 30, 40)).astype(np.float32)
    depths[:, :10] = 0
    report = check_dataset(Arrays(depths), "depths")
    shares = (0, 0.01, 0.25, 0.5, 0.75, 0.99, 1)
    assert report.depth_quantiles(*shares) == pytest.approx(np.quantile(depths[depths > 0], shares), rel=0.02)
    assert report.known_share == pytest.approx(2 / 3)
    assert report.sparse_images == 0


@pytest.mark.parametrize(
    ("factor", "expected"),
    [(0.256, "1/256 m"), (5.0, "1/5000 m"), (10.0, "1/10000 m"), (100.0, None), (1.0, "")],
)
def test_a_wrong_scale_is_noticed(exported, factor, expected):
    """Files in another unit than the loader takes them for."""
    truth = open_public_dataset("nyu", exported / "nyu")
    depths = [truth[index]["depth_m"] * 0.5 for index in range(PICTURES)]  # Freedoom's halls, made rooms
    report = check_dataset(Arrays([depth * factor for depth in depths]), "NYU", 0, True, (1.0, 8.0), 1000)
    found = [text for text in report.warnings if "scale is likely wrong" in text]
    assert bool(found) == (expected != "")
    if expected:
        assert expected in found[0].split("the files may hold")[1].split("instead of millimetres")[0]


def test_scale_of_the_exported_files_is_right(exported):
    report = check_dataset(open_public_dataset("nyu", exported / "nyu"), "NYU", 0, True, (1.0, 8.0), 1000)
    assert report.warnings == []


def test_maps_without_content_are_noticed(exported):
    report = check_dataset(Arrays(np.zeros((3, 4, 5))), "none")
    assert any("no pixel has a depth" in text for text in report.warnings)
    sparse = np.zeros((3, 40, 50))
    sparse[:, 0, :5] = 3
    assert any("under 2 %" in text for text in check_dataset(Arrays(sparse), "sparse").warnings)
    data = open_public_dataset("ade20k", exported / "ade20k")
    report = check_dataset(data, "ADE20K val", released=2000)
    assert any("5 samples, the released split has 2000" in text for text in report.warnings)
    assert any("classes are nowhere: building, tree" in text for text in report.warnings)
    data._table = np.full(256, 255)
    assert any("every pixel is ignored" in text for text in check_dataset(data, "ADE20K val").warnings)


def test_broken_files_are_collected_or_fatal(nyu):
    paths = sorted(nyu.glob("*/sync_depth_*.png"))
    image = sorted(nyu.glob("*/rgb_*.jpg"))[-1]
    cut_in_half(paths[1])
    image.write_bytes(b"no picture")
    data = open_public_dataset("nyu", nyu, "all")
    report = check_dataset(data, "NYU")
    assert report.images == 2 * PICTURES - 2 and len(report.broken) == 2
    assert paths[1].name in report.broken[0] and image.name in report.broken[1]
    assert not report.complete
    assert any(paths[1].name in line for line in check_lines(report, {}))
    with pytest.raises(OSError, match=paths[1].name):
        check_dataset(data, "NYU", skip_broken=False)


def test_unreadable_samples_are_named_and_replaces(nyu):
    paths = sorted(nyu.glob("*/sync_depth_*.png"))
    data = open_public_dataset("nyu", nyu, "all")
    order = {pair.map: index for index, pair in enumerate(data.pairs)}
    first, last = order[cut_in_half(paths[0])], len(data) - 1
    cut_in_half(data.pairs[last].map)
    skipping = SkipUnreadable(data)
    assert len(skipping) == len(data) and skipping.id2label == {}
    with pytest.warns(UserWarning, match=r"skipped: cannot read image .*sync_depth"):
        samples = [skipping[index] for index in range(len(data))]
    assert samples[first]["id"] == data.ids[first + 1]
    assert samples[last]["id"] == data.ids[1]  # around the end, past the broken first one
    assert sorted(skipping.broken) == [first, last]


def test_too_many_broken_samples_are_an_error(nyu):
    for path in sorted(nyu.glob("*/sync_depth_*.png"))[:3]:
        cut_in_half(path)
    skipping = SkipUnreadable(open_public_dataset("nyu", nyu, "all"), at_most=2)
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(OSError, match="more than 2 broken samples; the last: cannot read"),
    ):
        skipping[0]
    with pytest.raises(ValueError, match="at_most is -1"):
        SkipUnreadable([], -1)

    class Nothing(list):
        def __getitem__(self, index):
            raise ValueError(f"sample {index} makes no sense")

    with pytest.warns(UserWarning), pytest.raises(ValueError, match="none of the 3 samples can be read; the first: sample 0"):
        SkipUnreadable(Nothing([1, 2, 3]))[0]


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def test_commands(tmp_path, capsys):
    out = tmp_path / "kitti"
    assert run("data", "export", "--layout", "kitti", "--from", "samples", "--out", out, "--limit", 4) == 0
    assert "4 train and 4 test frames in the layout of kitti" in capsys.readouterr().out
    sheet = tmp_path / "sheets" / "kitti.png"
    assert run("data", "check", "kitti", out, "--sheet", sheet) == 0
    text = capsys.readouterr().out
    assert "KITTI test: 4 of 4 samples read" in text and "depth in metres: least" in text
    with Image.open(sheet) as picture:
        assert picture.width > 1000
    missing = sorted(out.glob("gt_depth/2000_01_02*/**/*.png"))[0]
    missing.unlink()
    assert run("data", "check", "kitti", out) == 1
    text = capsys.readouterr().out
    assert "1 missing file:" in text and missing.name in text and "3 of 3 samples read" in text
    assert run("data", "export", "--layout", "kitti", "--from", "samples", "--out", out) == 2
    assert "is not empty" in capsys.readouterr().err


def test_commands_refuse_nonsense(tmp_path, capsys):
    assert run("data", "check", "coco", tmp_path) == 2
    assert "dataset must be one of freedoom, samples, folder" in capsys.readouterr().err
    assert run("data", "check", "nyu", tmp_path / "none") == 2
    assert "NYU-Depth V2 needs SCENE/rgb_NUMBER.jpg" in capsys.readouterr().err
    assert run("data", "check", "nyu", tmp_path, "--broken", "ignore") == 2
    assert run("data", "export", "--layout", "coco", "--from", "samples", "--out", tmp_path / "x") == 2
    assert "'coco' is not one of 'ade20k'" in capsys.readouterr().err


def pairs(folder, labels, suffix=".png"):
    """Four images with the same map each."""
    for part in ("images", "maps"):
        (folder / part).mkdir(parents=True)
    for name in "abcd":
        Image.new("RGB", (8, 6), (9, 9, ord(name))).save(folder / "images" / f"{name}.png")
        Image.fromarray(np.tile(np.uint8(labels), (6, 8 // len(labels)))).save(folder / "maps" / f"{name}{suffix}")
    return folder


def test_all_kinds_of_errors_are_collected(tmp_path, capsys):
    root = pairs(tmp_path, [0, 1])
    (root / "classes.json").write_text('["floor", "wall"]')
    Image.new("RGB", (8, 6)).save(root / "images" / "alone.png")
    Image.new("RGB", (8, 6)).save(root / "images" / "a.jpg")
    cut_in_half(root / "images" / "b.png")
    Image.new("L", (8, 5)).save(root / "maps" / "c.png")
    Image.new("L", (8, 6), 7).save(root / "maps" / "d.png")
    assert run("data", "check", "folder", root) == 1
    text = capsys.readouterr().out
    assert "1 of 4 samples read" in text and "2 missing files:" in text and "3 broken samples:" in text
    for part in (
        "maps has no map of",
        "images/alone.png",
        "a.jpg and",
        "a.png have the same name",
        "cannot read image",
        "c.png is 8x6 and its map",
        "d.png has unknown class ids 7; known are 0 to 1, and 255",
    ):
        assert part in text
    assert run("data", "check", "folder", root, "--broken", "raise") == 2
    assert "cannot read image" in capsys.readouterr().err


def test_a_divided_folder_is_checked_part_by_part(tmp_path, capsys):
    pairs(tmp_path / "train", [0, 1, 2, 1])
    pairs(tmp_path / "val", [0, 1])
    (tmp_path / "val" / "maps" / "a.png").unlink()
    assert run("data", "check", "folder", tmp_path, "--sheet", tmp_path / "sheet.png") == 1
    text = capsys.readouterr().out
    assert "folder train: 4 of 4 samples read" in text and "folder val: 3 of 3 samples read" in text
    assert (tmp_path / "sheet-train.png").is_file() and (tmp_path / "sheet-val.png").is_file()
    assert run("data", "check", "folder", tmp_path, "--split", "train") == 0
    assert "class 2" in capsys.readouterr().out  # what train accepts without classes.json
    assert run("data", "check", "folder", tmp_path, "--split", "foo") == 2
    assert "has no split 'foo'; it has train, val" in capsys.readouterr().err


def test_masks_that_are_not_what_they_seem(tmp_path, capsys):
    assert run("data", "check", "folder", pairs(tmp_path / "binary", [0, 255])) == 0
    text = capsys.readouterr().out
    assert "warning: the maps in" in text and "only 0, 255; 255 means 'not known': for a mask of two classes write 0 and 1" in text
    assert run("data", "check", "folder", pairs(tmp_path / "jpeg", [0, 1], ".jpg")) == 1
    text = capsys.readouterr().out
    assert "4 broken samples:" in text and text.count("is a JPEG, whose compression changes class ids; save class maps as PNG") == 4
    stray = pairs(tmp_path / "stray", [0, 1])
    ids = np.tile(np.uint8([0, 1]), (6, 4))
    ids[3, 3] = 254
    Image.fromarray(ids).save(stray / "maps" / "c.png")
    assert run("data", "check", "folder", stray) == 0
    text = capsys.readouterr().out
    assert "class ids reach 254, which makes 255 classes, but only 3 of them occur (0, 1, 254); id 254 is in" in text
    assert "maps/c.png: is it meant?" in text


def test_own_folder_with_a_wrong_scale(tmp_path, capsys):
    for part in ("images", "maps"):
        (tmp_path / part).mkdir()
    for name in "ab":
        Image.new("RGB", (8, 6), (9, 9, ord(name))).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(np.full((6, 8), 300, np.uint16)).save(tmp_path / "maps" / f"{name}.png")  # 3 m in centimetres
    assert len(FolderDataset(tmp_path, "depth")) == 2
    assert run("data", "check", "folder", tmp_path, "--task", "depth", "--depth-scale", "1") == 0
    text = capsys.readouterr().out
    assert "scale is likely wrong" in text and "centimetres (" in text and "instead of metres" in text


def test_contact_sheet_shows_pictures_and_maps():
    from noise2map.report.panels import contact_sheet

    data = load_samples("val")
    sheet = np.asarray(contact_sheet([data[0], data[1]], data.id2label, data.palette, "rooms"))
    colors = {tuple(color) for color in sheet.reshape(-1, 3)[::7].tolist()}
    present = {tuple(data.palette[label].tolist()) for label in np.unique(data[0]["labels"]) if label < 3}
    assert present and present <= colors
    with pytest.raises(ValueError, match="at least one sample"):
        contact_sheet([], {}, data.palette)


def test_a_part_of_a_folder_that_lacks_maps_is_not_complete(tmp_path, capsys):
    for name in "abcd":
        for part in ("images", "maps"):
            (tmp_path / "mine" / part).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 6), 1).save(tmp_path / "mine" / part / f"{name}.png")
    (tmp_path / "mine" / "maps" / "b.png").unlink()
    for arguments in ([], ["--split", "train"]):
        with pytest.raises(SystemExit) as stopped:
            main(["data", "check", "folder", str(tmp_path / "mine"), *arguments])
        assert stopped.value.code == 1 and "b.png" in "".join(capsys.readouterr())
