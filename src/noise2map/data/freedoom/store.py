"""The folder that a rendered split lives in: three PNGs a frame, one JSON line a frame, one JSON file for the whole.

``DIR/image/000012.png`` (palette, as the engine drew it), ``DIR/depth/000012.png`` (16 bits, centimetres, 0 = sky or not
known), ``DIR/labels/000012.png`` (palette, ten-class ids, 255 = not known), ``DIR/metadata.jsonl``, ``DIR/dataset.json``.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from noise2map.data.freedoom import catalog
from noise2map.data.freedoom.frames import Frame
from noise2map.data.freedoom.raycast import Camera
from noise2map.runs.files import TEMPORARY_SUFFIX, write_file, write_text

FORMAT = 1
PARTS = ("image", "depth", "labels")
CENTIMETRES = 100.0
_MAX_CENTIMETRES = 65535


def frame_id(split: str, index: int) -> str:
    """The id of a frame, unique over the three splits."""
    return f"freedoom-{split}-{index:06d}"


def file_of(root: Path, part: str, index: int) -> Path:
    """Path of one part (image, depth or labels) of a frame."""
    return root / part / f"{index:06d}.png"


def make_record(frame: Frame, split: str, index: int, map_name: str, camera: Camera) -> dict[str, Any]:
    """The JSON line of a frame."""
    position = (frame.pose.x, frame.pose.y, frame.pose.z)
    return {
        "index": index,
        "id": frame_id(split, index),
        "map": map_name,
        "position_m": [round(value / catalog.UNITS_PER_METRE, 6) for value in position],
        "yaw_deg": round(frame.pose.yaw_deg, 4),
        "pitch_deg": round(frame.pose.pitch_deg, 4),
        "intrinsics": [round(value, 6) for value in camera.intrinsics],
        "classes": [int(value) for value in np.unique(frame.labels) if value != catalog.IGNORE],
        "gore": frame.gore,
    }


def depth_to_centimetres(depth_m: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Depth in metres to what the file holds, uint16 centimetres; 0 where it is infinite or not ``known``."""
    finite = np.where(np.isfinite(depth_m) & known, depth_m, 0.0)
    return np.clip(np.rint(finite * CENTIMETRES), 0, _MAX_CENTIMETRES).astype(np.uint16)


def write_frame(root: Path, index: int, frame: Frame, palette: np.ndarray) -> None:
    """Write the three files of a frame, each all or nothing."""
    image = Image.fromarray(frame.colour)  # mode L of palette indices
    image.putpalette(palette.tobytes())
    labels = Image.fromarray(frame.labels)
    colours = np.zeros((256, 3), np.uint8)
    colours[:10] = catalog.class_palette(10)
    labels.putpalette(colours.tobytes())
    depth = Image.fromarray(depth_to_centimetres(frame.depth_m, frame.labels != catalog.IGNORE))
    for part, picture in (("image", image), ("depth", depth), ("labels", labels)):
        write_file(file_of(root, part, index), lambda file, picture=picture: picture.save(file, "PNG"))


def write_records(root: Path, records: dict[int, dict[str, Any]]) -> None:
    """Write ``metadata.jsonl``, in the order of the indices."""
    write_text(root / "metadata.jsonl", "".join(json.dumps(records[index]) + "\n" for index in sorted(records)))


def read_records(root: Path) -> dict[int, dict[str, Any]]:
    """Read ``metadata.jsonl`` by index; empty if there is none yet.

    Raises:
        ValueError: Naming file and line, if a line is not a record.
    """
    path = root / "metadata.jsonl"
    records = {}
    if path.exists():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                record = json.loads(line)
                records[int(record["index"])] = record
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number} is not a frame's record: {error}") from error
    return records


def finished_records(root: Path) -> dict[int, dict[str, Any]]:
    """Records of the frames whose three files are there."""
    present = [{path.stem for path in (root / part).glob("*.png")} for part in PARTS]
    whole = set.intersection(*present)
    return {index: record for index, record in read_records(root).items() if f"{index:06d}" in whole}


def remove_partial_files(root: Path) -> None:
    """Remove what a killed run left behind: temporary files, never a finished one."""
    for part in (".", *PARTS):
        for path in (root / part).glob(f".*{TEMPORARY_SUFFIX}"):
            path.unlink(missing_ok=True)


def read_description(root: Path) -> dict[str, Any]:
    """Read ``dataset.json``.

    Raises:
        FileNotFoundError: If the folder is not a rendered split.
        ValueError: If the file is not readable JSON or of another format.
    """
    path = root / "dataset.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{root} is not a Freedoom split: it has no dataset.json (make one with: noise2map data freedoom --out {root})"
        )
    try:
        description = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        found = description.get("format") if isinstance(description, dict) else description
        raise ValueError(f"{path} has format {found!r}, this version reads format {FORMAT}")
    return description
