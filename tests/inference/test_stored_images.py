"""Images in tars, parquet tables, patterns and at addresses: the same images, ids and maps as from a folder."""

import io
import json
import shutil
import tarfile

import fsspec
import numpy as np
import pytest
from PIL import Image
from tiny_models import tiny_segmenter

from noise2map.inference.folder import predict_folder
from noise2map.inference.predictor import Predictor
from noise2map.inference.reading import read_image, read_images
from noise2map.inference.sources import find_images
from noise2map.inference.stored.images import safe_name
from noise2map.models import Noise2MapImageProcessor
from noise2map.models.decoding import PredictionOptions


@pytest.fixture
def folder(tmp_path):
    """``photos/a`` and ``photos/b``, two images each."""
    random = np.random.default_rng(0)
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (8, 9, 3), dtype=np.uint8)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def pack(folder, path, **members):
    """A tar of a folder, as WebDataset would: with captions between the images."""
    with tarfile.open(path, "w") as tar:
        for file in sorted(folder.rglob("*.png")):
            tar.add(file, file.relative_to(folder).as_posix())
            caption = tarfile.TarInfo(file.relative_to(folder).with_suffix(".txt").as_posix())
            caption.size = 2
            tar.addfile(caption, io.BytesIO(b"hi"))
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def pixels(found):
    return {name: np.asarray(read_image(source)).tobytes() for name, source in found.images.items()}


def test_a_tar_is_read_as_the_folder_it_was_made_of(folder, tmp_path):
    expected = pixels(find_images(folder))
    assert pixels(find_images(pack(folder, tmp_path / "all.tar"))) == expected
    for name in "ab":
        pack(folder / name, tmp_path / f"{name}.tar")
    found = find_images(str(tmp_path / "[ab].tar"))
    assert pixels(found) == {name.replace("/", ".tar/"): content for name, content in expected.items()}
    assert pixels(find_images([tmp_path / "a.tar", tmp_path / "b.tar"])) == pixels(found)  # equal names are lengthened
    assert {source.container for source in found.images.values()} == {str(tmp_path / "a.tar"), str(tmp_path / "b.tar")}


def test_a_folder_does_not_open_the_tars_in_it(folder):
    pack(folder, folder / "backup.tar")
    found = find_images(folder)
    assert len(found.images) == 4 and "pattern" in found.skipped["backup.tar"]


def test_a_member_cannot_leave_the_folder_of_the_maps(folder, tmp_path):
    image = (folder / "a" / "0.png").read_bytes()
    path = pack(folder / "a", tmp_path / "evil.tar", **{"../../up.png": image, "/etc/root.png": image, "x/./../y.png": image})
    assert sorted(find_images(path).images) == ["0.png", "1.png", "etc/root.png", "up.png", "x/y.png"]
    assert [safe_name(name) for name in ("C:\\x\\..\\a.png", "..", "/")] == ["C:/x/a.png", "unnamed", "unnamed"]


@pytest.mark.parametrize("cut", [0.5, 0.02])
def test_of_a_tar_that_is_cut_off_the_rest_fails(folder, tmp_path, cut):
    whole = pack(folder, tmp_path / "whole.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: int(len(whole) * cut)])
    found = find_images(tmp_path / "cut.tar")
    assert len(found.images) < 4 and set(found.failed) == {"cut.tar"}
    assert set(pixels(found).items()) <= set(pixels(find_images(tmp_path / "whole.tar")).items())
    (tmp_path / "not.tar").write_bytes(b"no tar" * 1000)
    found = find_images([tmp_path / "not.tar", tmp_path / "whole.tar"])
    assert len(found.images) == 4 and "no tar" in found.failed["not.tar"]


def test_patterns_are_relative_to_their_fixed_part(folder, tmp_path):
    assert list(find_images(str(folder / "*" / "1.png")).images) == ["a/1.png", "b/1.png"]
    assert list(find_images(str(folder / "**" / "*.png")).images) == list(find_images(folder).images)
    assert list(find_images(str(tmp_path / "ph*")).images) == [f"photos/{name}" for name in find_images(folder).images]
    shutil.copytree(folder, folder / "maps")
    (folder / "maps" / "settings.json").write_text('{"noise2map": "0.1.0"}')
    assert len(find_images(str(folder / "**" / "*.png")).images) == 4
    with pytest.raises(ValueError, match="holds no image"):
        find_images(str(folder / "*.jpg"))


def test_addresses_are_listed_and_read_through_fsspec(folder):
    memory = fsspec.filesystem("memory")
    expected = pixels(find_images(folder))
    try:
        for name in expected:
            memory.pipe(f"/bucket/photos/{name}", (folder / name).read_bytes())
        memory.pipe("/bucket/a.tar", pack(folder / "a", folder.parent / "a.tar").read_bytes())
        assert pixels(find_images("memory://bucket/photos")) == expected
        assert list(find_images("memory://bucket/photos/*/1.png").images) == ["a/1.png", "b/1.png"]
        assert pixels(find_images("memory://bucket/a.tar")) == pixels(find_images(folder / "a"))
        assert list(find_images("memory://bucket/*.tar").images) == ["a.tar/0.png", "a.tar/1.png"]
        record = next(iter(find_images("memory://bucket/a.tar").images.values())).record()
        assert record["member"] == "0.png" and json.loads(json.dumps(record)) == record
        gone = find_images("memory://bucket/photos").images.items()
        memory.rm("/bucket/photos/a/0.png")
        failed = {}
        assert len(list(read_images(gone, failed.__setitem__))) == 3 and "there is no file" in failed["a/0.png"]
    finally:
        memory.rm("/bucket", recursive=True)
    for address, kind, words in (
        ("memory://nothing/here", FileNotFoundError, "memory://nothing/here"),
        ("nosuch://bucket", OSError, "Protocol not known"),
        ("zip://*.png::photos.zip", ValueError, "chains"),
    ):
        with pytest.raises(kind, match=words):
            find_images(address)


def test_parquet_tables_with_and_without_paths(folder, tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = sorted(folder.rglob("*.png"))
    values = [{"bytes": file.read_bytes(), "path": file.relative_to(folder).as_posix()} for file in files]
    parquet.write_table(arrow.table({"image": values, "label": [0, 1, 2, 3]}), tmp_path / "named.parquet", row_group_size=3)
    expected = pixels(find_images(folder))
    assert pixels(find_images(tmp_path / "named.parquet")) == expected
    parquet.write_table(arrow.table({"jpg": [one["bytes"] for one in values[:3]] + [b""]}), tmp_path / "bare.parquet")
    found = find_images(tmp_path / "bare.parquet").images.items()
    failed = {}
    read = dict(read_images(found, failed.__setitem__))
    assert [np.asarray(one).tobytes() for one in read.values()] == list(expected.values())[:3]
    assert list(read) == ["000000", "000001", "000002"] and "no bytes" in failed["000003"]
    parquet.write_table(arrow.table({"caption": ["x"]}), tmp_path / "none.parquet")
    assert "columns caption; expected one of encoded images" in find_images(tmp_path / "none.parquet").failed["none.parquet"]
    (tmp_path / "broken.parquet").write_bytes(b"x" * 100)
    assert "broken.parquet" in find_images(tmp_path / "broken.parquet").failed


def test_maps_of_a_tar_are_those_of_its_folder_and_are_gone_on_with(folder, tmp_path):
    predictor = Predictor(tiny_segmenter(), Noise2MapImageProcessor(size={"shortest_edge": 32}))
    options = PredictionOptions(num_inference_steps=1)
    path = pack(folder, tmp_path / "all.tar", **{"bad.png": b"no image"})

    def run(source, out):
        return predict_folder(source, tmp_path / out, predictor, options, panels=False, progress=False)

    run(folder, "one")
    report = run(path, "two")
    assert len(report.written) == 4 and "all.tar: bad.png" in report.failed["bad.png"]
    for file in (tmp_path / "one").rglob("*.png"):
        assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes()
    report = run(path, "two")
    assert len(report.skipped) == 4 and not report.written


def test_rows_without_an_image_and_tables_without_one_fail_alone(folder, tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    content = (folder / "a" / "0.png").read_bytes()
    parquet.write_table(arrow.table({"image": [{"bytes": content, "path": "x.png"}, None]}), tmp_path / "holes.parquet")
    failed = {}
    read = dict(read_images(find_images(tmp_path / "holes.parquet").images.items(), failed.__setitem__))
    assert sorted(read) == ["x.png"] and len(failed) == 1 and "no bytes" in next(iter(failed.values()))
    parquet.write_table(arrow.table({"caption": ["x"]}), tmp_path / "none.parquet")
    found = find_images([tmp_path / "none.parquet", folder])
    assert len(found.images) == 4 and "columns caption" in found.failed["none.parquet"]
