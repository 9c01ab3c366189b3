import numpy as np
import pytest
from picture_files import save_image, save_map

from noise2map.data import SunRgbdDataset
from noise2map.data.sun_rgbd import decode, encode

SCENES = ["kv1/NYUdata/NYU0001", "kv2/kinect2data/000002_2014-resize", "xtion/sun3ddata/brown/scan1/00001"]


def rotate_by_hand(millimetres):
    """Left by three bits, on the written-out binary number."""
    bits = format(millimetres, "016b")
    return int(bits[3:] + bits[:3], 2)


@pytest.fixture
def root(tmp_path):
    for number, scene in enumerate(SCENES):
        folder = tmp_path / "SUNRGBD" / scene
        save_image(folder / "image" / "0001.jpg")
        stored = np.zeros((6, 8), np.uint16)
        stored[0, :4] = [rotate_by_hand(value) for value in (1, 2500, 8191, 40000 + number)]
        save_map(folder / "depth" / "0001.png", stored)
        save_map(folder / "depth_bfx" / "0001.png", np.full((6, 8), rotate_by_hand(3000), np.uint16))
        (folder / "intrinsics.txt").write_text("518.857901 0.000000 284.582449\n0.000000 519.469611 208.736166\n0 0 1\n")
    return tmp_path


def test_all_16_bit_values_go_there_and_back():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert (decode(encode(values)) == values).all()
    assert [int(value) for value in encode(np.array([1, 2500, 8191, 65535]))] == [rotate_by_hand(v) for v in (1, 2500, 8191, 65535)]


def test_depth_and_intrinsics(root):
    data = SunRgbdDataset(root)
    assert data.ids == ["kv1-NYUdata-NYU0001", "kv2-kinect2data-000002_2014-resize", "xtion-sun3ddata-brown-scan1-00001"]
    sample = data[2]
    assert sample["depth_m"][0, :4] == pytest.approx([0.001, 2.5, 8.191, 40.002])
    assert sample["valid"].sum() == 4 and sample["depth_m"].dtype == np.float32
    assert sample["intrinsics"] == pytest.approx([518.8579, 519.4696, 284.0824, 208.2362], abs=1e-3)
    filled = SunRgbdDataset(root / "SUNRGBD", filled=True)[0]
    assert filled["depth_m"] == pytest.approx(np.full((6, 8), 3.0))


def test_listed_pairs(root):
    lines = [f"SUNRGBD/{scene}/image/0001.jpg SUNRGBD/{scene}/depth/0001.png" for scene in SCENES[1:]]
    for folder in (root, root / "SUNRGBD"):
        (folder / "SUNRGBD_val_splits.txt").write_text("\n".join(lines))
        assert SunRgbdDataset(folder, "test").ids == SunRgbdDataset(folder).ids[1:]


def test_what_is_missing_or_broken(root):
    with pytest.raises(FileNotFoundError, match=r"SUN RGB-D needs the list .*SUNRGBD_val_splits\.txt"):
        SunRgbdDataset(root, "test")
    with pytest.raises(FileNotFoundError, match="SUN RGB-D needs SUNRGBD/"):
        SunRgbdDataset(root / "none")
    with pytest.raises(ValueError, match="holds no image"):
        SunRgbdDataset(root / "SUNRGBD" / "kv1")
    (root / "SUNRGBD" / SCENES[0] / "intrinsics.txt").write_text("1 2 3")
    with pytest.raises(ValueError, match=r"intrinsics\.txt must hold the nine numbers"):
        SunRgbdDataset(root)[0]
    (root / "SUNRGBD" / SCENES[0] / "intrinsics.txt").unlink()
    assert "intrinsics" not in SunRgbdDataset(root)[0]


def test_hidden_files_and_scenes_without_depth(root):
    scene = root / "SUNRGBD" / SCENES[0]
    for folder, name in (("image", "._0001.jpg"), ("depth", "._0001.png")):
        (scene / folder / name).write_bytes(b"resource fork")
    assert len(SunRgbdDataset(root)) == 3
    (root / "SUNRGBD" / SCENES[1] / "depth" / "0001.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"kv2/kinect2data/000002_2014-resize/depth/0001.png"):
        SunRgbdDataset(root)
    kept = SunRgbdDataset(root, missing="drop")
    assert len(kept) == 2 and [path.name for path in kept.missing] == ["0001.png"]


def test_linked_folders_and_the_folder_itself_as_root(root, monkeypatch):
    names = [f"SUNRGBD/{scene}/{part}" for scene in SCENES for part in ("image/0001.jpg", "depth/0001.png")]
    (root / "SUNRGBD" / "sun_rgbd_test.txt").write_text("\n".join(map(" ".join, zip(names[::2], names[1::2]))) + "\n")
    (root / "elsewhere").mkdir()
    (root / "elsewhere" / "sun").symlink_to(root / "SUNRGBD")
    for split in ("test", "all"):
        assert len(SunRgbdDataset(root / "elsewhere" / "sun", split)) == 3
    monkeypatch.chdir(root / "SUNRGBD")
    assert len(SunRgbdDataset(".", "test")) == 3
    (root / "SUNRGBD" / "kv1").rename(root / "moved")
    (root / "SUNRGBD" / "kv1").mkdir()
    (root / "SUNRGBD" / "kv1" / "linked").symlink_to(root / "moved" / "NYUdata")
    assert SunRgbdDataset(root).ids[0] == "kv1-linked-NYU0001"
