import pickle

import numpy as np
import pytest
from picture_files import save_image, save_map

from noise2map.data import KittiDataset

DATE, DRIVE = "2011_09_26", "2011_09_26_drive_0002_sync"
CALIBRATION = """calib_time: 09-Jan-2012 13:57:47
S_rect_02: 1.242000e+03 3.750000e+02
P_rect_02: 7.215377e+02 0.000000e+00 6.095593e+02 4.485728e+01 0.000000e+00 7.215377e+02 1.728540e+02 2.163791e-01 0 0 1 0.0027
P_rect_03: 7.0e+02 0 6.0e+02 -3.395242e+02 0 7.1e+02 1.7e+02 2.199936e+00 0 0 1 2.729905e-03
"""


def image_name(number, camera="02"):
    return f"{DATE}/{DRIVE}/image_{camera}/data/{number:010d}.png"


def depth_name(number, camera="02"):
    return f"{DRIVE}/proj_depth/groundtruth/image_{camera}/{number:010d}.png"


@pytest.fixture
def root(tmp_path):
    lines = []
    for number in (69, 70, 71):
        save_image(tmp_path / "input" / image_name(number))
        lines.append(f"{image_name(number)} {depth_name(number) if number != 70 else 'None'} 721.5377")
        if number != 70:
            stored = np.zeros((6, 8), np.uint16)
            stored[2:, 1] = 256, 12800, 65535, number
            save_map(tmp_path / "gt_depth" / depth_name(number), stored)
    (tmp_path / "kitti_eigen_test.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_depth_in_metres_and_lines_without_depth(root):
    data = KittiDataset(root)
    assert data.ids == [f"{DRIVE}-02-0000000069", f"{DRIVE}-02-0000000071"]
    assert data.without_depth == 1
    sample = data[0]
    assert sample["depth_m"].dtype == np.float32
    assert sample["depth_m"][2:, 1].tolist() == [1.0, 50.0, 65535 / 256, 69 / 256]
    assert sample["valid"].sum() == 4 and (sample["valid"] == (sample["depth_m"] > 0)).all()


def test_intrinsics_of_the_day_or_of_the_line(root):
    assert KittiDataset(root)[0]["intrinsics"] == pytest.approx([721.5377, 721.5377, 4, 3])
    (root / "input" / DATE / "calib_cam_to_cam.txt").write_text(CALIBRATION)
    assert KittiDataset(root)[0]["intrinsics"] == pytest.approx([721.5377, 721.5377, 610.0593, 173.354])
    save_image(root / "input" / image_name(5, "03"))
    save_map(root / "gt_depth" / depth_name(5, "03"), np.ones((6, 8), np.uint16))
    (root / "mine.txt").write_text(f"{image_name(5, '03')} {depth_name(5, '03')}\n")
    data = pickle.loads(pickle.dumps(KittiDataset(root, "mine.txt")))
    assert data[0]["intrinsics"] == pytest.approx([700, 710, 600.5, 170.5])


def test_all_pairs_without_a_list(root):
    save_image(root / "input" / image_name(72, "03"))
    save_map(root / "gt_depth" / depth_name(72, "03"), np.ones((6, 8), np.uint16))
    save_map(root / "gt_depth" / depth_name(99), np.ones((6, 8), np.uint16))  # depth of a picture that is not there
    data = KittiDataset(root, "all")
    assert data.ids == [f"{DRIVE}-02-0000000069", f"{DRIVE}-02-0000000071", f"{DRIVE}-03-0000000072"]


def test_folders_as_downloaded(tmp_path, root):
    other = tmp_path / "as-downloaded"
    other.mkdir()
    (root / "input" / DATE).rename(other / DATE)
    (other / "data_depth_annotated" / "val").mkdir(parents=True)
    (other / "data_depth_annotated" / "train").mkdir()
    (root / "gt_depth" / DRIVE).rename(other / "data_depth_annotated" / "val" / DRIVE)
    (root / "kitti_eigen_test.txt").rename(other / "eigen_test_files_with_gt.txt")
    assert len(KittiDataset(other)) == len(KittiDataset(other, "all")) == 2


def test_lists_that_are_missing_or_broken(root):
    with pytest.raises(FileNotFoundError, match=r"KITTI needs the list .*kitti_eigen_train\.txt or eigen_train_files.*'all' takes"):
        KittiDataset(root, "train")
    with pytest.raises(ValueError, match="KITTI has no split 'val'"):
        KittiDataset(root, "val")
    for line in ("one", "a b c", "a b -3", "a b 3 4", "a b nan"):
        (root / "mine.txt").write_text(f"{image_name(69)} {depth_name(69)}\n\n{line}\n")
        with pytest.raises(ValueError, match=r"mine\.txt, line 3 is .*expected: image depth"):
            KittiDataset(root, "mine.txt")
    (root / "mine.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a text file"):
        KittiDataset(root, "mine.txt")
    (root / "mine.txt").write_text("image.png depth.png 700\n")
    with pytest.raises(ValueError, match=r"'image\.png'; expected DATE/DRIVE/image_02"):
        KittiDataset(root, "mine.txt")
    (root / "mine.txt").write_text(f"{image_name(69)} {depth_name(69)}\n" * 2)
    with pytest.raises(ValueError, match="more than once"):
        KittiDataset(root, "mine.txt")


def test_missing_files_are_named(root):
    (root / "gt_depth" / depth_name(71)).unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of 4 files: .*0000000071\.png; expected input/DATE/DRIVE"):
        KittiDataset(root)
    assert len(KittiDataset(root, missing="drop")) == 1


def test_broken_calibration_is_named(root):
    path = root / "input" / DATE / "calib_cam_to_cam.txt"
    path.write_text("P_rect_02: 1 2 3\n")
    with pytest.raises(ValueError, match="P_rect_02 must be 12 numbers"):
        KittiDataset(root)[0]
    path.write_text("nothing\n")
    with pytest.raises(ValueError, match="has no line P_rect_02"):
        KittiDataset(root)[0]


def test_eight_bit_depth_is_refused(root):
    save_map(root / "gt_depth" / depth_name(69), np.ones((6, 8), np.uint8))
    with pytest.raises(ValueError, match="depth needs a 16-bit"):
        KittiDataset(root)[0]


def test_files_that_another_system_left_behind_are_no_depth(root):
    expected = KittiDataset(root, "all").ids
    for folder, name in (("input", image_name(69)), ("gt_depth", depth_name(69))):
        path = root / folder / name
        (path.parent / f"._{path.name}").write_bytes(b"resource fork")
    assert expected and KittiDataset(root, "all").ids == expected
