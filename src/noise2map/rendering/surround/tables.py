"""The manifest of surround samples as nuScenes' tables: each viewpoint is a scene of one sample."""

import json
from pathlib import Path
from typing import Any

from noise2map.data.freedoom.catalog import SPLITS
from noise2map.data.freedoom.surround import VISIBLE_TABLE
from noise2map.data.nuscenes.tables import CAMERAS, LIDAR, version_of
from noise2map.rendering.raycast import Camera
from noise2map.rendering.surround import files as store
from noise2map.rendering.surround.capture import CHANNELS_CLOCKWISE, TIC_US, calibration, turn
from noise2map.runs.files import write_text

_EPOCH_US = 1_500_000_000_000_000

_SAMPLE_US = 10_000_000

_SWEEP_US = 50_000

_UNUSED = ("attribute", "visibility", "category", "instance", "sample_annotation")

Tables = dict[str, list[dict[str, Any]]]


def write_tables(root: Path, split: str, camera: Camera, sweeps: int) -> Path:
    """Write the tables of the version that a split belongs to, of all its splits that are in the folder.

    Returns:
        The tables' folder. ``splits.json`` is written last, so that a set with it is whole.
    """
    version = version_of(split)
    manifests = {name: store.finished_records(root, name, sweeps) for name in SPLITS if version_of(name) == version}
    folder = root / version
    folder.mkdir(exist_ok=True)
    tables = make_tables(manifests, camera, sweeps)
    for name, records in tables.items():
        write_text(folder / f"{name}.json", json.dumps(records))
    scenes = {name: [manifest[index]["id"] for index in sorted(manifest)] for name, manifest in manifests.items() if manifest}
    write_text(folder / "splits.json", json.dumps(scenes))
    return folder


def make_tables(manifests: dict[str, dict[int, store.Record]], camera: Camera, sweeps: int) -> Tables:
    """nuScenes' thirteen tables, and one of our own, of the records of some splits."""
    channels = (*CAMERAS, LIDAR)
    records = [(number, manifest[index]) for number, manifest in enumerate(manifests.values()) for index in sorted(manifest)]
    maps = sorted({record["map"] for _, record in records})
    tables: Tables = {name: [] for name in _UNUSED}
    tables["sensor"] = [
        {"token": f"sensor-{name}", "channel": name, "modality": "lidar" if name == LIDAR else "camera"} for name in channels
    ]
    tables["calibrated_sensor"] = [
        {"token": f"calibration-{name}", "sensor_token": f"sensor-{name}", **calibration(name, camera)} for name in channels
    ]
    tables["log"] = [
        {"token": f"log-{name}", "logfile": "", "vehicle": "", "date_captured": "", "location": store.location_of(name)}
        for name in maps
    ]
    logs = [log["token"] for log in tables["log"]]
    tables["map"] = [{"token": "map-0", "log_tokens": logs, "category": "semantic_prior", "filename": ""}]
    for name in ("scene", "sample", "sample_data", "ego_pose", VISIBLE_TABLE):
        tables[name] = []
    for number, record in records:
        _add_sample(tables, record, _EPOCH_US + (number * 1_000_000 + record["index"]) * _SAMPLE_US, camera, sweeps)
    return tables


def _add_sample(tables: Tables, record: store.Record, time_us: int, camera: Camera, sweeps: int) -> None:
    token = record["id"]
    scene = {"token": f"scene-{token}", "name": token, "description": record["map"], "log_token": f"log-{record['map']}"}
    scene |= {"nbr_samples": 1, "first_sample_token": token, "last_sample_token": token}
    tables["scene"].append(scene)
    tables["sample"].append({"token": token, "timestamp": time_us, "scene_token": scene["token"], "prev": "", "next": ""})
    tables[VISIBLE_TABLE].append({"token": f"visible-{token}", "sample_token": token, "distance_m": record["sight_m"]})
    for tic, channel in enumerate(CHANNELS_CLOCKWISE):
        size = {"fileformat": "png", "width": camera.width, "height": camera.height}
        file = store.camera_file(token, channel)
        _add_reading(tables, record, channel, channel, file, time_us + tic * TIC_US, True, "", "", size)
    names = [f"{token}-{LIDAR}_{sweep}" for sweep in range(sweeps + 1)]
    for sweep in range(sweeps + 1):
        size = {"fileformat": "pcd", "width": 0, "height": 0}
        before, after = (names[i] if 0 <= i <= sweeps else "" for i in (sweep + 1, sweep - 1))
        file = store.lidar_file(token, sweep)
        _add_reading(tables, record, LIDAR, f"{LIDAR}_{sweep}", file, time_us - sweep * _SWEEP_US, sweep == 0, before, after, size)


def _add_reading(
    tables: Tables,
    record: store.Record,
    channel: str,
    pose: str,
    file: Path,
    time_us: int,
    is_key_frame: bool,
    before: str,
    after: str,
    size: dict[str, Any],
) -> None:
    token = f"{record['id']}-{pose}"
    *position_m, yaw_deg = record["poses"][pose]
    tables["ego_pose"].append(
        {"token": f"pose-{token}", "timestamp": time_us, "translation": position_m, "rotation": list(turn(yaw_deg))}
    )
    tables["sample_data"].append(
        {
            "token": token,
            "sample_token": record["id"],
            "ego_pose_token": f"pose-{token}",
            "calibrated_sensor_token": f"calibration-{channel}",
            "filename": file.as_posix(),
            "timestamp": time_us,
            "is_key_frame": is_key_frame,
            "prev": before,
            "next": after,
            **size,
        }
    )
