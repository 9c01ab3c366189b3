"""The folder that surround samples live in: files in nuScenes' places, and a manifest of what is finished for each split.

``samples/CAM_FRONT/ID__CAM_FRONT.png`` (palette, or RGB if supersampled; brightened), ``samples/LIDAR_TOP/ID__LIDAR_TOP.pcd.bin``,
``sweeps/LIDAR_TOP/ID__LIDAR_TOP__1.pcd.bin``, ``maps/expansion/freedoom-MAP.json``, ``surround-SPLIT.jsonl`` (a line for each
sample), ``surround-SPLIT.json`` (what was asked for). The tables are made of the manifest.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from noise2map.data.freedoom.catalog import DEFAULT_GAIN, brighten
from noise2map.data.nuscenes.tables import CAMERAS, LIDAR
from noise2map.rendering.frames import color_image
from noise2map.rendering.level import Level
from noise2map.rendering.surround.capture import CHANNELS_CLOCKWISE, LIDAR_ABOVE_EYE, Surround, reading_of, sweep_pose
from noise2map.rendering.surround.vector_map import map_expansion, south_west
from noise2map.runs.files import TEMPORARY_SUFFIX, write_file, write_text

Record = dict[str, Any]

MAP_FOLDER = Path("maps") / "expansion"


def sample_id(split: str, index: int) -> str:
    """The id of a sample: its token, and the name of its scene."""
    return f"surround-{split}-{index:06d}"


def location_of(map_name: str) -> str:
    """Name of a level's map file."""
    return f"freedoom-{map_name}"


def camera_file(identity: str, channel: str) -> Path:
    """Place of an image, from the root."""
    return Path("samples") / channel / f"{identity}__{channel}.png"


def lidar_file(identity: str, sweep: int) -> Path:
    """Place of a point cloud, from the root; sweep 0 is the key frame."""
    if sweep == 0:
        return Path("samples") / LIDAR / f"{identity}__{LIDAR}.pcd.bin"
    return Path("sweeps") / LIDAR / f"{identity}__{LIDAR}__{sweep}.pcd.bin"


def files_of(identity: str, sweeps: int) -> list[Path]:
    """Places of all files of a sample."""
    images = [camera_file(identity, channel) for channel in CAMERAS]
    return images + [lidar_file(identity, sweep) for sweep in range(sweeps + 1)]


def make_folders(root: Path, sweeps: int) -> None:
    """Make the folders that files go to."""
    for path in [*files_of("any", sweeps), MAP_FOLDER / "any"]:
        (root / path).parent.mkdir(parents=True, exist_ok=True)


def write_sample(root: Path, identity: str, surround: Surround, palette: np.ndarray) -> None:
    """Write the files of a sample, each all or nothing."""
    bright = np.asarray(brighten(Image.fromarray(palette[None]), DEFAULT_GAIN))[0]
    for channel, frame in zip(CHANNELS_CLOCKWISE, surround.frames, strict=True):
        image = color_image(frame, bright)
        if image.mode == "RGB":
            image = brighten(image, DEFAULT_GAIN)
        write_file(root / camera_file(identity, channel), lambda file, image=image: image.save(file, "PNG"))
    for sweep, cloud in enumerate(surround.clouds):
        data = cloud.astype("<f4").tobytes()
        write_file(root / lidar_file(identity, sweep), lambda file, data=data: file.write(data))


def make_record(surround: Surround, split: str, index: int, map_name: str, level: Level) -> Record:
    """The manifest's line of a sample."""
    origin = south_west(level)
    readings = {
        channel: reading_of(frame.pose, channel, origin) for channel, frame in zip(CHANNELS_CLOCKWISE, surround.frames, strict=True)
    }
    eye = surround.frames[0].pose
    for sweep in range(len(surround.clouds)):
        pose = sweep_pose(eye, sweep)
        held = replace(pose, z=pose.z - LIDAR_ABOVE_EYE)
        readings[f"{LIDAR}_{sweep}"] = reading_of(held, CHANNELS_CLOCKWISE[0], origin)
    return {
        "index": index,
        "id": sample_id(split, index),
        "map": map_name,
        "poses": {name: [*reading.position_m, reading.yaw_deg] for name, reading in readings.items()},
        "sight_m": [round(float(value), 2) for value in surround.sight_m],
        "gore": any(frame.gore for frame in surround.frames),
    }


def map_path(root: Path, map_name: str) -> Path:
    """The file of a level's vector map."""
    return root / MAP_FOLDER / f"{location_of(map_name)}.json"


def write_map(root: Path, map_name: str, level: Level) -> None:
    """Write the vector map of a level, if it is not there."""
    path = map_path(root, map_name)
    if not path.exists():
        write_text(path, json.dumps(map_expansion(level)))


def manifest_path(root: Path, split: str) -> Path:
    """The file with a line for each finished sample of a split."""
    return root / f"surround-{split}.jsonl"


def description_path(root: Path, split: str) -> Path:
    """The file that says what was asked for."""
    return root / f"surround-{split}.json"


def write_manifest(root: Path, split: str, records: dict[int, Record]) -> None:
    """Write the manifest of a split, in the order of the indices."""
    text = "".join(json.dumps(records[index]) + "\n" for index in sorted(records))
    write_text(manifest_path(root, split), text)


def read_manifest(root: Path, split: str) -> dict[int, Record]:
    """Records of a split by index; empty if there is none yet.

    Raises:
        ValueError: Naming file and line, if a line is not a record.
    """
    path, records = manifest_path(root, split), {}
    if path.exists():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                record = json.loads(line)
                records[int(record["index"])] = record
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number} is not a sample's record: {error}") from error
    return records


def finished_records(root: Path, split: str, sweeps: int) -> dict[int, Record]:
    """Records of the samples whose files are all there."""
    present = {path.parent: {entry.name for entry in (root / path.parent).glob("*")} for path in files_of("any", sweeps)}
    return {
        index: record
        for index, record in read_manifest(root, split).items()
        if all(path.name in present[path.parent] for path in files_of(record["id"], sweeps))
    }


def remove_partial_files(root: Path, sweeps: int) -> None:
    """Remove what a killed run left behind: temporary files, never a finished one."""
    for folder in {root, root / MAP_FOLDER, *((root / path).parent for path in files_of("any", sweeps))}:
        for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
            path.unlink(missing_ok=True)
