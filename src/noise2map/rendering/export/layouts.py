"""Writers of frames for each layout: folders, names, byte formats, and the lists or cameras that belong to it."""

import hashlib
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from noise2map.data import ade20k, cityscapes, kitti, nyu, sun_rgbd
from noise2map.data.lsun import import_lmdb
from noise2map.rendering.export.writer import FrameWriter, classes_of_frames, save_array, save_image, to_16_bits
from noise2map.runs.files import write_text

# Freedoom class -> class of the dataset. No two share one, so that nothing is lost.
ADE20K_CLASSES = {
    "floor": "floor",
    "wall": "wall",
    "ceiling": "ceiling",
    "sky": "sky",
    "door": "door",
    "step": "step",
    "liquid": "water",
    "item": "box",
    "decor": "column",
    "monster": "animal",
}

CITYSCAPES_CLASSES = {
    "floor": "road",
    "wall": "building",
    "ceiling": "wall",
    "sky": "sky",
    "door": "fence",
    "step": "sidewalk",
    "liquid": "terrain",
    "item": "traffic sign",
    "decor": "vegetation",
    "monster": "person",
}


class Ade20kLayout(FrameWriter):
    """``ADEChallengeData2016``: JPEG images, grey PNG annotations in which 0 is "other"."""

    splits = ("train", "val")
    classes = ADE20K_CLASSES

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        file_ids = {name: index + 1 for index, (name, _) in enumerate(ade20k.CLASSES)}
        self._ids = classes_of_frames(self.classes, file_ids, other=0)

    def write(self, split: str, number: int, frame: dict[str, Any], record: dict[str, Any]) -> str:
        """Write a frame."""
        name, folder = f"ADE_{split}_{number + 1:08d}", ade20k.SPLITS[split]
        base = self.root / "ADEChallengeData2016"
        save_image(base / "images" / folder / f"{name}.jpg", frame["image"])
        save_array(base / "annotations" / folder / f"{name}.png", self._ids[frame["labels"]])
        return name


class CityscapesLayout(FrameWriter):
    """``leftImg8bit``, ``gtFine`` (label ids) and ``camera``; every game map is a city."""

    splits = ("train", "val")
    classes = CITYSCAPES_CLASSES

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        file_ids = {name: label_id for name, label_id, _ in cityscapes.CLASSES}
        self._ids = classes_of_frames(self.classes, file_ids, other=0)

    def write(self, split: str, number: int, frame: dict[str, Any], record: dict[str, Any]) -> str:
        """Write a frame."""
        city = record["map"].lower()
        name = f"{city}_000000_{record['index']:06d}"
        save_image(self.root / "leftImg8bit" / split / city / f"{name}{cityscapes.IMAGE_END}", frame["image"])
        save_array(self.root / "gtFine" / split / city / f"{name}{cityscapes.LABEL_END}", self._ids[frame["labels"]])
        fx, fy, cx, cy = (float(value) for value in frame["intrinsics"])
        camera = self.root / "camera" / split / city / f"{name}{cityscapes.CAMERA_END}"
        camera.parent.mkdir(parents=True, exist_ok=True)
        intrinsic = {"fx": fx, "fy": fy, "u0": cx - 0.5, "v0": cy - 0.5}
        write_text(camera, json.dumps({"intrinsic": intrinsic}) + "\n")
        return name


class _DepthLayout(FrameWriter):
    """Base class of the layouts with list files."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.lines: dict[str, list[str]] = defaultdict(list)

    def save_depth(self, path: Path, depth_m: np.ndarray, units_per_metre: float) -> None:
        stored = to_16_bits(depth_m, units_per_metre)
        self.lost_pixels += int(((depth_m > 0) & (stored == 0)).sum())
        save_array(path, stored)

    def write_lists(self, names: dict[str, tuple[str, ...]]) -> None:
        for split, lines in self.lines.items():
            write_text(self.root / names[split][0], "\n".join(lines) + "\n")


class KittiLayout(_DepthLayout):
    """``input`` (PNG), ``gt_depth`` (PNG, 1/256 m), calibration files and lists; a game map is a drive, a split a date."""

    splits = ("train", "test")
    _DATES = {"train": "2000_01_01", "test": "2000_01_02"}

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._drives: dict[str, int] = {}
        self._cameras: dict[str, np.ndarray] = {}

    def write(self, split: str, number: int, frame: dict[str, Any], record: dict[str, Any]) -> str:
        """Write a frame."""
        date = self._DATES[split]
        drive = f"{date}_drive_{self._drives.setdefault(record['map'], len(self._drives) + 1):04d}_sync"
        image = f"{date}/{drive}/image_02/data/{record['index']:010d}.png"
        depth = f"{drive}/proj_depth/groundtruth/image_02/{record['index']:010d}.png"
        save_image(self.root / "input" / image, frame["image"])
        self.save_depth(self.root / "gt_depth" / depth, frame["depth_m"], 1 / kitti.METRES_PER_UNIT)
        known = self._cameras.setdefault(date, frame["intrinsics"])
        if not np.array_equal(known, frame["intrinsics"]):
            raise ValueError(f"frame {frame['id']} has another camera than the frames before it; KITTI has one for each date")
        self.lines[split].append(f"{image} {depth} {float(frame['intrinsics'][0]):.4f}")
        return f"{drive}-02-{record['index']:010d}"

    def finish(self) -> None:
        """Write the lists and the calibration of each date."""
        self.write_lists(kitti.LISTS)
        for date, (fx, fy, cx, cy) in self._cameras.items():
            projection = " ".join(f"{value:.6e}" for value in (fx, 0, cx - 0.5, 0, 0, fy, cy - 0.5, 0, 0, 0, 1, 0))
            write_text(self.root / "input" / date / "calib_cam_to_cam.txt", f"P_rect_02: {projection}\n")


class NyuLayout(_DepthLayout):
    """Scene folders of JPEG images and millimetre PNGs, with lists; a game map is a scene."""

    splits = ("train", "test")

    def write(self, split: str, number: int, frame: dict[str, Any], record: dict[str, Any]) -> str:
        """Write a frame."""
        scene, index = record["map"].lower(), f"{record['index']:05d}"
        image, depth = f"{scene}/rgb_{index}.jpg", f"{scene}/sync_depth_{index}.png"
        save_image(self.root / image, frame["image"])
        self.save_depth(self.root / depth, frame["depth_m"], 1 / nyu.METRES_PER_UNIT)
        slash = "/" if split == "train" else ""  # as the published lists have it
        self.lines[split].append(f"{slash}{image} {slash}{depth} {float(frame['intrinsics'][0]):.4f}")
        return f"{scene}-{index}"

    def finish(self) -> None:
        """Write the lists."""
        self.write_lists(nyu.LISTS)


class SunRgbdLayout(_DepthLayout):
    """A folder per image with ``image``, ``depth`` (rotated bits), ``depth_bfx`` and ``intrinsics.txt``, and lists."""

    splits = ("train", "test")

    def write(self, split: str, number: int, frame: dict[str, Any], record: dict[str, Any]) -> str:
        """Write a frame."""
        scene = f"xtion/freedoom/{record['map'].lower()}/{record['index']:06d}"
        folder, name = f"SUNRGBD/{scene}", f"{record['index']:07d}"
        save_image(self.root / folder / "image" / f"{name}.jpg", frame["image"])
        millimetres = to_16_bits(frame["depth_m"], 1000)
        self.lost_pixels += int(((frame["depth_m"] > 0) & (millimetres == 0)).sum())
        for part in ("depth", "depth_bfx"):
            save_array(self.root / folder / part / f"{name}.png", sun_rgbd.encode(millimetres))
        fx, fy, cx, cy = (float(value) for value in frame["intrinsics"])
        matrix = f"{fx:.6f} 0.000000 {cx + 0.5:.6f}\n0.000000 {fy:.6f} {cy + 0.5:.6f}\n0.000000 0.000000 1.000000\n"
        write_text(self.root / folder / "intrinsics.txt", matrix)
        self.lines[split].append(f"{folder}/image/{name}.jpg {folder}/depth/{name}.png")
        return scene.replace("/", "-")

    def finish(self) -> None:
        """Write the lists."""
        self.write_lists(sun_rgbd.LISTS)


class LsunLayout(FrameWriter):
    """``freedoom_train_lmdb`` and ``freedoom_val_lmdb``: images only."""

    splits = ("train", "val")

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._lmdb = import_lmdb()
        self._open: dict[str, Any] = {}

    def write(self, split: str, number: int, frame: dict[str, Any], record: dict[str, Any]) -> str:
        """Write a frame."""
        buffer = io.BytesIO()
        frame["image"].save(buffer, "WEBP", quality=_QUALITY)
        key = hashlib.sha1(frame["id"].encode()).hexdigest()
        self._put(split, key.encode(), buffer.getvalue())
        return key

    def _put(self, split: str, key: bytes, value: bytes) -> None:
        """Store an image; LMDB must be told its size beforehand, so a full database is enlarged."""
        if split not in self._open:
            path = self.root / f"{CATEGORY}_{split}_lmdb"
            # Without a flush for every image: the whole folder is thrown away if the export does not finish.
            self._open[split] = self._lmdb.open(str(path), map_size=_SPARE_BYTES, sync=False, metasync=False)
        environment = self._open[split]
        while True:
            try:
                with environment.begin(write=True) as transaction:
                    transaction.put(key, value)
                return
            except self._lmdb.MapFullError:
                environment.set_mapsize(environment.info()["map_size"] * 2)

    def finish(self) -> None:
        """Flush the databases."""
        for environment in self._open.values():
            environment.sync(True)

    def close(self) -> None:
        """Close the databases."""
        for environment in self._open.values():
            environment.close()
        self._open = {}


LAYOUTS: dict[str, type[FrameWriter]] = {
    "ade20k": Ade20kLayout,
    "cityscapes": CityscapesLayout,
    "kitti": KittiLayout,
    "nyu": NyuLayout,
    "sun-rgbd": SunRgbdLayout,
    "lsun": LsunLayout,
}

CATEGORY = "freedoom"

_SPARE_BYTES = 2**26

_QUALITY = 95
