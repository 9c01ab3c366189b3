"""Reads the lumps of a WAD file that describe a map. The format is id Software's of 1993, all fields little-endian."""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_LUMPS_OF_A_MAP = 10

_THING = np.dtype([("x", "<i2"), ("y", "<i2"), ("angle", "<i2"), ("kind", "<i2"), ("flags", "<i2")])

_LINE = np.dtype(
    [("v1", "<u2"), ("v2", "<u2"), ("flags", "<u2"), ("special", "<u2"), ("tag", "<u2"), ("front", "<u2"), ("back", "<u2")]
)

_SIDE = np.dtype([("x", "<i2"), ("y", "<i2"), ("upper", "S8"), ("lower", "S8"), ("middle", "S8"), ("sector", "<u2")])

_VERTEX = np.dtype([("x", "<i2"), ("y", "<i2")])

_SECTOR = np.dtype(
    {
        "names": ["floor", "ceiling", "floor_flat", "ceiling_flat", "light", "special", "tag"],
        "formats": ["<i2", "<i2", "S8", "S8", "<i2", "<u2", "<u2"],
    }
)


@dataclass(frozen=True)
class MapLumps:
    """The five arrays that define a map; coordinates and heights in map units (32 to the metre)."""

    things: np.ndarray
    lines: np.ndarray
    sides: np.ndarray
    vertices: np.ndarray
    sectors: np.ndarray


class Wad:
    """A WAD file: its directory in memory, its lumps read on demand.

    Args:
        path: The file.

    Raises:
        ValueError: If the file is not a WAD, or its directory lies outside of it.
        OSError: If it cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._bytes = self.path.read_bytes()
        if self._bytes[:4] not in (b"IWAD", b"PWAD"):
            raise ValueError(f"{self.path} is not a WAD file: it starts with {self._bytes[:4]!r}")
        count, start = struct.unpack_from("<ii", self._bytes, 4)
        if count < 0 or start < 12 or start + 16 * count > len(self._bytes):
            raise ValueError(
                f"{self.path} is truncated: its directory ends at {start + 16 * count}, it has {len(self._bytes)} bytes"
            )
        self._directory = []
        for index in range(count):
            offset, size, name = struct.unpack_from("<ii8s", self._bytes, start + 16 * index)
            self._directory.append((name.split(b"\0")[0].decode("latin1"), offset, size))

    def map_names(self) -> list[str]:
        """Names of the maps, in the order of the file."""
        pairs = zip(self._directory, self._directory[1:])
        return [name for (name, _, _), (following, _, _) in pairs if following == "THINGS"]

    def lump(self, name: str) -> bytes:
        """The bytes of the last lump of this name (a later one overrides an earlier)."""
        for entry, offset, size in reversed(self._directory):
            if entry == name:
                return self._bytes[offset : offset + size]
        raise ValueError(f"{self.path} has no lump {name!r}")

    def palette(self) -> np.ndarray:
        """The engine's 256 colors, ``(256, 3)`` uint8."""
        return np.frombuffer(self.lump("PLAYPAL")[:768], np.uint8).reshape(256, 3)

    def read_map(self, name: str) -> MapLumps:
        """The arrays of map ``name``; ``ValueError`` names the maps there are if it is missing."""
        names = self.map_names()
        if name not in names:
            raise ValueError(f"{self.path} has no map {name!r}; it has {', '.join(names)}")
        start = max(index for index, entry in enumerate(self._directory) if entry[0] == name)
        lumps: dict[str, bytes] = {}
        for entry, offset, size in self._directory[start + 1 : start + 1 + _LUMPS_OF_A_MAP]:
            lumps.setdefault(entry, self._bytes[offset : offset + size])
        return MapLumps(
            things=np.frombuffer(lumps["THINGS"], _THING),
            lines=np.frombuffer(lumps["LINEDEFS"], _LINE),
            sides=np.frombuffer(lumps["SIDEDEFS"], _SIDE),
            vertices=np.frombuffer(lumps["VERTEXES"], _VERTEX),
            sectors=np.frombuffer(lumps["SECTORS"], _SECTOR),
        )
