"""The folder that a rendered split lives in: four PNGs a frame, one JSON line a frame, one JSON file for the whole.

``DIR/image/000012.png`` (palette, as the engine drew it, or RGB if supersampled), ``DIR/depth/000012.png`` (16 bits,
centimetres, 0 = sky or not known), ``DIR/labels/000012.png`` (palette, ten-class ids, 255 = not known),
``DIR/normals/000012.png`` (RGB, see :func:`noise2map.data.maps.normals.encode_normals`), ``DIR/metadata.jsonl``,
``DIR/dataset.json``.
"""

import json
from pathlib import Path
from typing import Any

from noise2map.runs.files import TEMPORARY_SUFFIX, write_text

FORMAT = 1

DESCRIPTION = "dataset.json"

PARTS = ("image", "depth", "labels")
NORMALS = "normals"  # a part, too, which splits rendered by older versions lack

CENTIMETRES = 100.0


def frame_id(split: str, index: int) -> str:
    """The id of a frame, unique over the three splits."""
    return f"freedoom-{split}-{index:06d}"


def file_of(root: Path, part: str, index: int) -> Path:
    """Path of one part (image, depth or labels) of a frame."""
    return root / part / f"{index:06d}.png"


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
    for path in (*root.glob(f".*{TEMPORARY_SUFFIX}"), *root.glob(f"*/.*{TEMPORARY_SUFFIX}")):
        path.unlink(missing_ok=True)


def read_description(root: Path) -> dict[str, Any]:
    """Read ``dataset.json``.

    Raises:
        FileNotFoundError: If the folder is not a rendered split.
        ValueError: If the file is not readable JSON or of another format.
    """
    path = root / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(
            f"{root} is not a Freedoom split: it has no {DESCRIPTION} (make one with: noise2map data freedoom --out {root})"
        )
    try:
        description = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        found = description.get("format") if isinstance(description, dict) else description
        raise ValueError(f"{path} has format {found!r}, this version reads format {FORMAT}")
    return description
