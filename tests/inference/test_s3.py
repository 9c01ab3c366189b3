"""Images in object storage, by the interface of S3: the same as of a folder here, with either engine."""

import json
import tarfile

import numpy as np
import pytest
import torch
from command_line import run_command
from PIL import Image
from s3_stand_in import BUCKET, s3_bucket
from tiny_models import tiny_depth_model

from noise2map.inference.reading import read_image, read_images
from noise2map.inference.sources import find_images
from noise2map.models import Noise2MapImageProcessor

NAMES = ("a/0.png", "a/1.png", "b/0.png", "b/1.png", "b/2.png")


@pytest.fixture(scope="module")
def s3():
    with s3_bucket() as system:
        yield system


@pytest.fixture(scope="module")
def folder(tmp_path_factory, s3):
    """Five images in two sizes, here and in the bucket: as they are, as tars, and as a table."""
    root = tmp_path_factory.mktemp("s3")
    random = np.random.default_rng(0)
    for index, name in enumerate(NAMES):
        path = root / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (32 + 16 * (index % 2), 40, 3), dtype=np.uint8)).save(path)
    (root / "shards").mkdir()
    for part in "ab":
        with tarfile.open(root / "shards" / f"{part}.tar", "w") as tar:
            for path in sorted((root / "photos" / part).iterdir()):
                tar.add(path, path.name)
    whole = (root / "shards" / "b.tar").read_bytes()
    (root / "cut.tar").write_bytes(whole[: len(whole) // 2])
    (root / "not.tar").write_bytes(b"no tar" * 1000)
    for path in root.rglob("*"):
        if path.is_file():
            s3.pipe(f"{BUCKET}/{path.relative_to(root).as_posix()}", path.read_bytes())
    return root


def pixels(found):
    return {name: np.asarray(read_image(source)).tobytes() for name, source in found.images.items()}


def test_what_is_found_is_what_a_folder_holds(folder, s3):
    for source in ("photos", "photos/*/1.png", "photos/**/*.png", "shards/*.tar", "shards/a.tar", "photos/b/2.png", "*.tar"):
        here, there = find_images(str(folder / source)), find_images(f"s3://{BUCKET}/{source}")
        assert pixels(there) == pixels(here) and there.failed == here.failed, source
    assert set(there.failed) == {"cut.tar", "not.tar"} and there.images  # what stands before the cut is not lost
    for address in (f"s3://{BUCKET}/nothing", "s3://no-such-bucket/photos", f"s3://{BUCKET}/nothing/*.png"):
        with pytest.raises(FileNotFoundError, match=address.replace("*", r"\*")):
            find_images(address)


def test_tables(folder, s3):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    values = [{"bytes": (folder / "photos" / name).read_bytes(), "path": name} for name in NAMES]
    parquet.write_table(arrow.table({"image": values}), folder / "all.parquet", row_group_size=2)
    parquet.write_table(arrow.table({"caption": ["x"]}), folder / "none.parquet")
    for name in ("all.parquet", "none.parquet"):
        s3.pipe(f"{BUCKET}/{name}", (folder / name).read_bytes())
    s3.pipe(f"{BUCKET}/broken.parquet", b"x" * 100)
    assert pixels(find_images(f"s3://{BUCKET}/all.parquet")) == pixels(find_images(folder / "photos"))
    assert "columns caption; expected one of encoded images" in find_images(f"s3://{BUCKET}/none.parquet").failed["none.parquet"]
    reason = find_images(f"s3://{BUCKET}/broken.parquet").failed["broken.parquet"]
    assert reason.count("cannot read") == 1


def test_what_is_uploaded_or_taken_away_meanwhile(folder, s3):
    address = f"s3://{BUCKET}/more"
    for name in ("0.png", "1.png"):
        s3.pipe(f"{BUCKET}/more/{name}", (folder / "photos" / "a" / name).read_bytes())
    before = find_images(address)
    assert list(before.images) == ["0.png", "1.png"]
    s3.pipe(f"{BUCKET}/more/2.png", (folder / "photos" / "b" / "2.png").read_bytes())
    s3.pipe(f"{BUCKET}/more/1.png", (folder / "photos" / "b" / "1.png").read_bytes())
    s3.rm(f"{BUCKET}/more/0.png")
    after = find_images(address)
    assert list(after.images) == ["1.png", "2.png"]
    assert before.images["1.png"].record() != after.images["1.png"].record()
    failed = {}
    assert [name for name, _ in read_images(before.images.items(), failed.__setitem__)] == ["1.png"]
    assert "there is no file" in failed["0.png"]


def files_of(out):
    files = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    lines = [json.loads(line) for line in files.pop("predictions.jsonl").splitlines()]
    records = [line.pop("source") for line in lines]
    return files, sorted(lines, key=lambda line: line["id"]), records


@pytest.mark.slow
def test_maps_of_a_bucket_by_both_engines(folder, s3, tmp_path, capsys):
    pytest.importorskip("ray")
    tiny_depth_model().save_pretrained(tmp_path / "model")
    Noise2MapImageProcessor(size={"shortest_edge": 32}).save_pretrained(tmp_path / "model")
    words = (
        "--model",
        tmp_path / "model",
        "--steps",
        "1",
        "--ensemble",
        "2",
        "--batch-size",
        "1",
        "--no-panels",
        "--device",
        "cpu",
    )
    ray = ("--engine", "ray", "--workers", "2")

    def run(source, out, *more):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in the workers
        try:
            return run_command(capsys, "predict", source, *words, "--out", tmp_path / out, *more)
        finally:
            torch.set_num_threads(threads)

    assert run(folder / "shards" / "*.tar", "here")[0] == 0
    expected = files_of(tmp_path / "here")
    address = f"s3://{BUCKET}/shards/*.tar"
    for out, more in (("local", ()), ("ray", ray)):
        code, text, err = run(address, out, *more)
        assert code == 0 and "5 predicted" in text, err
        found = files_of(tmp_path / out)
        assert found[:2] == expected[:2] and all(record["url"].startswith("s3://") for record in found[2])
        code, text, _ = run(address, out, *more)
        assert code == 0 and "0 predicted, 5 done before" in text
    # One object is another one now: its images are done again, by the other engine, the rest is not.
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("1.png", "0.png"):
            tar.add(folder / "photos" / "b" / name, name)
    s3.pipe(f"{BUCKET}/shards/a.tar", (tmp_path / "a.tar").read_bytes())
    code, text, _ = run(address, "local", *ray)
    assert code == 0 and "2 predicted, 3 done before" in text


def test_maps_are_written_here(folder, s3, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = (folder / "photos", "--model", "freedoom-depth-laplace-tiny", "--out", f"s3://{BUCKET}/maps")
    code, _, err = run_command(capsys, "predict", *words)
    assert code == 2 and "expected a folder of this machine" in err and not list(tmp_path.iterdir())
