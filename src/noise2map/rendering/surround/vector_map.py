"""A level as a vector map in nuScenes' format (map expansion 1.3): what a player can walk on, what stops him, where liquid is.

nuScenes has six layers for roads; a level has six of its own, stored under their names:

==================  ==========  =============================================================================
nuScenes            Freedoom    what it is
==================  ==========  =============================================================================
``drivable_area``   walkable    floor that a player can reach from the start of the level
``ped_crossing``    door        sectors that a door special opens
``walkway``         step        edges between heights that can be walked up (at most 0.75 m), 0.5 m wide
``stop_line``       ledge       edges that are too high for that, 0.5 m wide
``carpark_area``    liquid      water, slime, lava, blood
``road_divider``    wall        one-sided lines
``lane_divider``    wall        two-sided lines that nobody can pass: gratings, low openings
==================  ==========  =============================================================================

Coordinates are metres from the south-west corner of the level, x east, y north.
"""

from typing import Any

import numpy as np

from noise2map.data.freedoom.catalog import UNITS_PER_METRE
from noise2map.rendering.level import BODY_HEIGHT, STEP_HEIGHT, Level

_BAND = 8.0  # half the width of an edge, map units

_EMPTY = ("road_segment", "road_block", "lane", "lane_connector", "traffic_light")

Corners = list[tuple[float, float]]


def south_west(level: Level) -> tuple[float, float]:
    """Corner of the level that the map's coordinates start from, map units."""
    return float(min(level.x1.min(), level.x2.min())), float(min(level.y1.min(), level.y2.min()))


def map_expansion(level: Level) -> dict[str, Any]:
    """The vector map of a level, ready to be written as JSON.

    Raises:
        ImportError: If shapely is not installed.
    """
    writer = _Writer(level)
    areas = _areas(level)
    layers = {
        "drivable_area": [
            {"token": f"drivable-{i}", "polygon_tokens": [token]} for i, token in enumerate(writer.polygons(areas, walkable(level)))
        ],
        "ped_crossing": writer.records("door", writer.polygons(areas, level.door), road_segment_token=""),
        "carpark_area": writer.records("liquid", writer.polygons(areas, level.liquid), orientation=0.0, road_block_token=""),
    }
    step, ledge, passage = _edges(level)
    layers["walkway"] = writer.records("step", [writer.band(line) for line in np.nonzero(step)[0]])
    layers["stop_line"] = writer.records(
        "ledge",
        [writer.band(line) for line in np.nonzero(ledge)[0]],
        stop_line_type="",
        ped_crossing_tokens=[],
        traffic_light_tokens=[],
        road_block_token="",
    )
    one_sided = (level.back < 0) | (level.front < 0)
    layers["road_divider"] = writer.line_records("wall", np.nonzero(one_sided)[0], road_segment_token="")
    layers["lane_divider"] = writer.line_records("barrier", np.nonzero(~one_sided & ~passage)[0], lane_divider_segments=[])
    left, bottom = south_west(level)
    spans = ((level.x1, level.x2, left), (level.y1, level.y2, bottom))
    edge = [(max(a.max(), b.max()) - low) / UNITS_PER_METRE for a, b, low in spans]
    return {
        "version": "1.3",
        "canvas_edge": edge,
        "arcline_path_3": {},
        "connectivity": {},
        "node": writer.nodes,
        "line": writer.lines,
        "polygon": writer.outlines,
        **layers,
        **{name: [] for name in _EMPTY},
    }


def walkable(level: Level) -> np.ndarray:
    """Sectors that a player can stand in, ``(sectors,)`` bool: reached from the start, high enough or a door."""
    return level.reachable & ((level.ceiling - level.floor >= BODY_HEIGHT) | level.door)


def _edges(level: Level) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lines that are steps, that are ledges, and that can be passed when doors are open, each ``(lines,)`` bool."""
    two = (level.front >= 0) & (level.back >= 0)
    front, back = np.maximum(level.front, 0), np.maximum(level.back, 0)
    opening = np.minimum(level.ceiling[front], level.ceiling[back]) - np.maximum(level.floor[front], level.floor[back])
    passage = two & ~level.blocking & ((opening >= BODY_HEIGHT) | level.door[front] | level.door[back])
    rise = np.abs(level.floor[front] - level.floor[back])
    return passage & (rise > 0) & (rise <= STEP_HEIGHT), passage & (rise > STEP_HEIGHT), passage


def _areas(level: Level) -> list[tuple[Any, int]]:
    """Pieces of the plan between lines and the sector of each; a piece comes before those that lie in its holes."""
    from noise2map.data.nuscenes.map_expansion import require_map_packages

    require_map_packages()
    from shapely import multilinestrings, polygonize, unary_union
    from shapely.geometry import Polygon

    apart = level.front != level.back  # a line with one sector on both sides bounds nothing
    ends = np.stack([level.x1, level.y1, level.x2, level.y2], axis=1).reshape(-1, 2, 2)[apart]
    noded = unary_union(multilinestrings(ends[np.abs(ends[:, 0] - ends[:, 1]).any(1)]))
    pieces = []
    for piece in polygonize(list(noded.geoms)).geoms:
        point = piece.representative_point()
        sector = _sector_at(level, point.x, point.y)
        if sector >= 0:
            pieces.append((piece, sector))
    # Whoever draws a polygon clears its holes: what lies within has to come later.
    return sorted(pieces, key=lambda pair: -Polygon(pair[0].exterior).area)


def _sector_at(level: Level, x: float, y: float) -> int:
    """Sector at a point: the one east of the last line crossed on the way from the west; -1 outside."""
    rises = (level.y1 <= y) != (level.y2 <= y)
    line = np.nonzero(rises)[0]
    at = level.x1[line] + (y - level.y1[line]) / (level.y2[line] - level.y1[line]) * (level.x2[line] - level.x1[line])
    line = line[at <= x]
    if len(line) == 0:
        return -1
    last = line[at[at <= x].argmax()]
    return int(level.front[last] if level.y2[last] > level.y1[last] else level.back[last])


class _Writer:
    """Collects nodes, lines and polygons, and gives them tokens."""

    def __init__(self, level: Level) -> None:
        self.level, self.origin = level, np.array(south_west(level))
        self.nodes: list[dict[str, Any]] = []
        self.lines: list[dict[str, Any]] = []
        self.outlines: list[dict[str, Any]] = []
        self._token_of: dict[tuple[float, float], str] = {}

    def node(self, x: float, y: float) -> str:
        """Token of a point given in map units."""
        position = (x, y)
        if position not in self._token_of:
            token = self._token_of[position] = f"node-{len(self.nodes)}"
            at = (np.array(position) - self.origin) / UNITS_PER_METRE
            self.nodes.append({"token": token, "x": float(at[0]), "y": float(at[1])})
        return self._token_of[position]

    def ring(self, corners: Corners) -> list[str]:
        """Tokens of a ring; the first corner is not repeated."""
        return [self.node(float(x), float(y)) for x, y in (corners[:-1] if corners[0] == corners[-1] else corners)]

    def polygon(self, exterior: Corners, holes: list[Corners]) -> str:
        """Token of a polygon."""
        token = f"polygon-{len(self.outlines)}"
        rings = [{"node_tokens": self.ring(hole)} for hole in holes]
        self.outlines.append({"token": token, "exterior_node_tokens": self.ring(exterior), "holes": rings})
        return token

    def polygons(self, areas: list[tuple[Any, int]], wanted: np.ndarray) -> list[str]:
        """Tokens of the pieces that lie in ``wanted`` sectors."""
        return [
            self.polygon(list(piece.exterior.coords), [list(ring.coords) for ring in piece.interiors])
            for piece, sector in areas
            if wanted[sector]
        ]

    def band(self, line: int) -> str:
        """Token of a thin rectangle around a line."""
        level = self.level
        a, b = np.array([level.x1[line], level.y1[line]]), np.array([level.x2[line], level.y2[line]])
        along = (b - a) / max(float(np.hypot(*(b - a))), 1e-9)
        across = np.array([-along[1], along[0]]) * _BAND
        return self.polygon([tuple(p.tolist()) for p in (a + across, a - across, b - across, b + across)], [])

    def records(self, name: str, tokens: list[str], **fields: Any) -> list[dict[str, Any]]:
        """A layer's records, one for each polygon."""
        return [{"token": f"{name}-{i}", "polygon_token": token, **fields} for i, token in enumerate(tokens)]

    def line_records(self, name: str, lines: np.ndarray, **fields: Any) -> list[dict[str, Any]]:
        """A layer's records, one for each line of the level."""
        found = []
        for i, line in enumerate(lines):
            level = self.level
            ends = [self.node(float(x[line]), float(y[line])) for x, y in ((level.x1, level.y1), (level.x2, level.y2))]
            self.lines.append({"token": f"line-{name}-{i}", "node_tokens": ends})
            found.append({"token": f"{name}-{i}", "line_token": f"line-{name}-{i}", **fields})
        return found
