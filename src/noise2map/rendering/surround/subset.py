"""A few samples cut out of a surround set: a small set of the same format, its maps cut to what lies around the samples."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from noise2map.data.freedoom.catalog import SPLITS
from noise2map.data.freedoom.shipped import LICENSE_PATH
from noise2map.data.nuscenes.tables import LIDAR
from noise2map.rendering.raycast import Camera
from noise2map.rendering.surround import files as store
from noise2map.rendering.surround.tables import write_tables
from noise2map.runs.files import write_text
from noise2map.runs.progress import progress_bar

REACH_M = 20.0  # half the diagonal of the 25.6 m map is 18.1 m

_LINE_LAYERS = ("road_divider", "lane_divider")

Place = tuple[float, float]


def cut_surround(source: Path, out: Path, tokens: Sequence[str], split: str = "test", sweeps: int = 0) -> Path:
    """Copy some samples of a split into a folder of their own, which `FreedoomSurroundDataset` reads.

    Images, points and tables are the same; a map keeps what comes within ``REACH_M`` metres (along x or y) of a sample.

    Args:
        source: Folder of the dataset.
        out: Folder to make; it must not be there, or be empty.
        tokens: The samples.
        split: Their split.
        sweeps: LiDAR readings to keep before each key frame.

    Returns:
        ``out``.

    Raises:
        FileNotFoundError: If ``source`` holds no such split, or a sample lacks a file.
        ValueError: If a sample is not in the split, ``out`` is not empty, or a number cannot work.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    described = store.description_path(source, split)
    if not described.is_file():
        raise FileNotFoundError(f"there is no {described}: {source} holds no {split} samples of Freedoom surround")
    description = json.loads(described.read_text())
    if not 0 <= sweeps <= description["sweeps"]:
        raise ValueError(f"sweeps must be between 0 and the {description['sweeps']} of {source}, got {sweeps}")
    if not tokens:
        raise ValueError("name at least one sample")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; choose another folder")
    by_token = {record["id"]: record for record in store.finished_records(source, split, sweeps).values()}
    missing = [token for token in tokens if token not in by_token]
    if missing:
        raise ValueError(f"sample {missing[0]!r} is not in split {split!r} of {source} ({len(by_token)} samples)")
    chosen = {by_token[token]["index"]: by_token[token] for token in tokens}
    _copy(source, out, chosen, sweeps)
    maps = sorted({record["map"] for record in chosen.values()})
    for name in maps:
        places = [tuple(r["poses"][f"{LIDAR}_0"][:2]) for r in chosen.values() if r["map"] == name]
        tables = json.loads(store.map_path(source, name).read_text())
        write_text(store.map_path(out, name), json.dumps(cut_map(tables, places), separators=(",", ":")))
    kept = [f"{LIDAR}_{sweep}" for sweep in range(sweeps + 1, description["sweeps"] + 1)]
    for index, record in chosen.items():
        poses = {name: pose for name, pose in record["poses"].items() if name not in kept}
        chosen[index] = {**record, "poses": poses}
    store.write_manifest(out, split, chosen)
    write_tables(out, split, Camera(*description["size"]), sweeps)
    text = json.dumps({**description, "sweeps": sweeps, "maps": maps}, indent=1) + "\n"
    write_text(store.description_path(out, split), text)  # last: a folder with it is whole
    return out


def _copy(source: Path, out: Path, records: dict[int, store.Record], sweeps: int) -> None:
    store.make_folders(out, sweeps)
    shutil.copyfile(LICENSE_PATH, out / LICENSE_PATH.name)
    for record in progress_bar(records.values(), unit="sample", desc="copying"):
        for path in store.files_of(record["id"], sweeps):
            shutil.copyfile(source / path, out / path)


def cut_map(tables: dict[str, Any], places: Sequence[Place], reach_m: float = REACH_M) -> dict[str, Any]:
    """The part of a map expansion around some places: records whole, those left out whose bounding box is farther away.

    Args:
        tables: The map expansion.
        places: x and y in metres.
        reach_m: Half the side of the squares that are kept.

    Returns:
        A map expansion that draws the same layers within the squares.
    """
    nodes = {node["token"]: (node["x"], node["y"]) for node in tables["node"]}
    near = [line for line in tables["line"] if _reaches([nodes[token] for token in line["node_tokens"]], places, reach_m)]
    lines = {line["token"] for line in near}
    outlines = [
        outline
        for outline in tables["polygon"]
        if _reaches([nodes[token] for token in outline["exterior_node_tokens"]], places, reach_m)
    ]
    polygons = {outline["token"] for outline in outlines}
    used = {token for line in near for token in line["node_tokens"]}
    for outline in outlines:
        used.update(outline["exterior_node_tokens"], *(hole["node_tokens"] for hole in outline["holes"]))
    found = {**tables, "line": near, "polygon": outlines}
    found["node"] = [node for node in tables["node"] if node["token"] in used]
    for name, records in tables.items():
        if name in ("node", "line", "polygon") or not isinstance(records, list) or not records or not isinstance(records[0], dict):
            continue
        if name in _LINE_LAYERS:
            found[name] = [record for record in records if record["line_token"] in lines]
        elif "polygon_token" in records[0]:
            found[name] = [record for record in records if record["polygon_token"] in polygons]
        elif "polygon_tokens" in records[0]:
            parts = [{**record, "polygon_tokens": [t for t in record["polygon_tokens"] if t in polygons]} for record in records]
            found[name] = [record for record in parts if record["polygon_tokens"]]
    return found


def _reaches(points: Sequence[Place], places: Sequence[Place], reach_m: float) -> bool:
    low, high = ([choose(axis) for axis in zip(*points)] for choose in (min, max))
    return any(all(low[i] <= place[i] + reach_m and high[i] >= place[i] - reach_m for i in (0, 1)) for place in places)
