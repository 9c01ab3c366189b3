import hashlib
import io
import multiprocessing
import os
import pickle
from functools import partial

import numpy as np
import pytest
from PIL import Image

from noise2map.data import LsunDataset, lsun, open_dataset
from noise2map.data import lsun as lsun_keys

lmdb = pytest.importorskip("lmdb")


def write_database(path, count=6, kind="WEBP", **options):
    pictures = {}
    with lmdb.open(str(path), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for index in range(count):
            pixels = np.random.default_rng(index).integers(0, 256, (6, 8, 3), dtype=np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, kind, **options)
            key = hashlib.sha1(bytes([index])).hexdigest()
            transaction.put(key.encode(), buffer.getvalue())
            pictures[key] = pixels
    return pictures


@pytest.fixture
def root(tmp_path):
    write_database(tmp_path / "church_outdoor_val_lmdb", 2)
    return tmp_path


def test_pictures_by_key(root):
    pictures = write_database(root / "bedroom_train_lmdb", lossless=True)
    data = LsunDataset(root, "bedroom", "train")
    assert len(data) == 6
    found = {sample["id"]: np.asarray(sample["image"]) for sample in (data[index] for index in range(6))}
    assert found.keys() == pictures.keys()
    assert all((found[key] == pixels).all() for key, pixels in pictures.items())
    assert list(found) == sorted(found)
    assert pickle.loads(pickle.dumps(data))[1]["id"] == data[1]["id"]


def test_the_only_category_and_the_folder_itself(root):
    assert len(LsunDataset(root, split="val")) == len(LsunDataset(root / "church_outdoor_val_lmdb")) == 2
    write_database(root / "tower_val_lmdb", 1)
    with pytest.raises(ValueError, match=r"several categories \(church_outdoor, tower\); say which"):
        LsunDataset(root, split="val")
    with pytest.raises(FileNotFoundError, match=r"has no bedroom_val_lmdb; LSUN needs CATEGORY_SPLIT_lmdb"):
        LsunDataset(root, "bedroom", "val")


def test_a_key_file_of_a_part_is_that_of_the_whole(root, tmp_path):
    keys = tmp_path / "keys.npy"
    assert len(LsunDataset(root, split="val", key_file=keys, limit=1)) == 1
    assert LsunDataset(root, split="val", key_file=keys).keys.tolist() == LsunDataset(root, split="val").keys.tolist()


def test_key_file_keeps_the_list(root, tmp_path):
    keys = tmp_path / "keys.npy"
    first = LsunDataset(root, split="val", key_file=keys)
    assert keys.is_file()
    assert LsunDataset(root, split="val", key_file=keys, limit=1).keys.tolist() == first.keys[:1].tolist()
    np.save(keys, np.zeros(3))
    with pytest.raises(ValueError, match="expected a list of keys"):
        LsunDataset(root, split="val", key_file=keys)


@pytest.fixture
def kept_lists(tmp_path, monkeypatch):
    """The cache folder of lists; four keys are a long list."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(lsun_keys, "_WORTH_KEEPING", 4)
    return tmp_path / "cache" / "noise2map" / "lsun"


@pytest.fixture
def walks(monkeypatch):
    """One entry for each time that keys are listed."""
    seen, walk = [], lsun_keys._walk
    monkeypatch.setattr(lsun_keys, "_walk", lambda *arguments: seen.append(arguments) or walk(*arguments))
    return seen


def test_a_long_list_is_kept_outside_the_data(root, kept_lists, walks):
    keys = sorted(write_database(root / "bedroom_train_lmdb"))
    before = sorted(path.name for path in (root / "bedroom_train_lmdb").iterdir())
    assert len(LsunDataset(root, "bedroom", limit=5)) == 5 and not kept_lists.exists()  # a part is not kept
    first = LsunDataset(root, "bedroom").keys
    assert len(walks) == 2
    again, part = LsunDataset(root, "bedroom").keys, LsunDataset(root / "bedroom_train_lmdb", limit=3).keys
    assert len(walks) == 2
    assert [key.decode() for key in first.tolist()] == keys and again.tolist() == first.tolist()
    assert part.tolist() == first[:3].tolist()
    assert [path.suffix for path in kept_lists.iterdir()] == [".npz"]
    assert sorted(path.name for path in (root / "bedroom_train_lmdb").iterdir()) == before
    assert len(LsunDataset(root, split="val")) == 2 and len(list(kept_lists.iterdir())) == 1  # a short list is not kept


def close(path):
    """As at the end of a process."""
    lsun._OPEN.pop(path.resolve())[1].close()


def test_a_changed_database_is_listed_again(root, kept_lists, walks):
    path = root / "bedroom_train_lmdb"
    write_database(path)
    first = LsunDataset(path).keys.tolist()
    stat = (path / "data.mdb").stat()
    close(path)
    with lmdb.open(str(path)) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"zz", transaction.pop(first[0]))  # as many entries as before
    os.utime(path / "data.mdb", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # and as old
    assert LsunDataset(path).keys.tolist() == [*first[1:], b"zz"] and len(walks) == 2
    assert LsunDataset(path).keys.tolist() == [*first[1:], b"zz"] and len(walks) == 2
    assert len(list(kept_lists.iterdir())) == 1  # in the place of the old list
    os.utime(path / "data.mdb", ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    LsunDataset(path)
    assert len(walks) == 3


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "other", "text"])
def test_a_damaged_list_is_passed_over(root, kept_lists, walks, damage):
    write_database(root / "bedroom_train_lmdb")
    keys = LsunDataset(root, "bedroom").keys.tolist()
    (file,) = kept_lists.iterdir()
    content = file.read_bytes()
    place = content.index(keys[2])
    file.write_bytes(
        {
            "empty": b"",
            "cut": content[: len(content) // 2],
            "flipped": content[:place] + b"!" + content[place + 1 :],
            "other": content.replace(b"keys.npy", b"kexs.npy"),
            "text": b"not a list",
        }[damage]
    )
    assert LsunDataset(root, "bedroom").keys.tolist() == keys and len(walks) == 2
    assert file.read_bytes() == content


def test_a_list_that_cannot_be_kept_is_no_error(root, kept_lists):
    write_database(root / "bedroom_train_lmdb")
    kept_lists.parent.parent.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="could not be kept"):
        assert len(LsunDataset(root, "bedroom")) == 6


def test_forked_workers_read_for_themselves(root):
    data = LsunDataset(root, split="val")
    expected = [data[index]["id"] for index in range(2)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(partial(identity_of, data), [0, 1, 0, 1], chunksize=1) == expected * 2
    assert [data[index]["id"] for index in range(2)] == expected
    assert LsunDataset(root, split="val")[0]["id"] == expected[0]  # a second dataset on the same database


def identity_of(data, index):
    return data[index]["id"]


def test_broken_pictures_are_named(root):
    with lmdb.open(str(root / "church_outdoor_val_lmdb"), map_size=2**24) as environment, environment.begin(write=True) as t:
        t.put(b"0000", b"RIFF no picture")
    with pytest.raises(OSError, match=r"cannot read image 0000 of .*church_outdoor_val_lmdb"):
        LsunDataset(root, split="val")[0]


def test_no_database(tmp_path):
    (tmp_path / "a_val_lmdb").mkdir()
    (tmp_path / "a_val_lmdb" / "data.mdb").write_bytes(b"nothing" * 100)
    with pytest.raises(ValueError, match="cannot be opened as an LMDB database"):
        LsunDataset(tmp_path, split="val")
    write_database(tmp_path / "b_test_lmdb", 0)
    with pytest.raises(ValueError, match="holds no image"):
        LsunDataset(tmp_path, split="test")
    with pytest.raises(ValueError, match="limit is 0"):
        LsunDataset(tmp_path, limit=0)


def test_a_database_is_not_taken_for_another_split_or_category(root):
    path = root / "bedroom_train_lmdb"
    write_database(path)
    assert len(LsunDataset(path)) == len(LsunDataset(path, "bedroom", "train")) == len(open_dataset(f"lsun:{path}")) == 6
    with pytest.raises(ValueError, match="is a database of the split 'train'; expected 'val'"):
        open_dataset(f"lsun/val:{path}")
    with pytest.raises(ValueError, match="is a database of the category 'bedroom'; expected 'church_outdoor'"):
        LsunDataset(path, "church_outdoor")
    write_database(root / "mine")
    assert len(LsunDataset(root / "mine", "church_outdoor", "val")) == 6  # a name that says nothing contradicts nothing
