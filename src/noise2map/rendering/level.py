"""The geometry of one map: walls, sectors, which floor can be reached, and where a camera may stand."""

import numpy as np

from noise2map.rendering.wad import MapLumps

STEP_HEIGHT = 24.0  # map units a player walks up

BODY_HEIGHT = 56.0

STANDING_HEIGHT = 64.0  # headroom asked of a viewpoint: the eye is at 41

WALL_CLEARANCE = 24.0

THING_CLEARANCE = 48.0  # warping closer than this picks items up and destroys monsters

_PLAYER_START = 1

_SKY_FLAT = b"F_SKY1"

_LIQUID_FLATS = (b"NUKAGE", b"FWATER", b"SLIME0", b"LAVA", b"BLOOD")

_SECRET, _LEVEL_END, _SECRET_BIT = 9, 11, 128

# Line specials of the vanilla engine, by what they move: the sector behind the line, or the sectors with its tag.
_DOOR_HERE = (1, 26, 27, 28, 31, 32, 33, 34, 117, 118)

_DOOR_TAGGED = (
    2, 3, 4, 16, 29, 42, 46, 50, 61, 63, 75, 76, 86, 90, 99, 103, 105, 106, 107, 108, 109, 110, 111, 112, 113, 114,
    115, 116, 133, 134, 135, 136, 137, 175, 196,
)  # fmt: skip

_MOVER_TAGGED = (
    5, 7, 8, 10, 15, 18, 19, 20, 21, 22, 23, 24, 30, 36, 37, 38, 45, 47, 53, 55, 56, 58, 59, 60, 62, 64, 65, 66, 67, 68,
    69, 70, 71, 82, 83, 84, 87, 88, 91, 92, 93, 94, 95, 96, 98, 100, 101, 102, 119, 120, 121, 122, 123, 127, 128, 129,
    130, 131, 132, 140, 143, 148, 149,
)  # fmt: skip

_TELEPORT = (39, 97, 125, 126)


class Level:
    """Static geometry of a map, in map units (32 to the metre); every array is indexed by line or by sector.

    Attributes:
        x1, y1, x2, y2: Ends of each line, ``(lines,)`` float64. The front side lies to the right of 1 -> 2.
        front, back: Sector on each side of a line, ``(lines,)`` int64; -1 where there is none.
        floor, ceiling: Heights, ``(sectors,)`` float64.
        sky_ceiling, sky_floor, liquid, door: Which sectors these are, ``(sectors,)`` bool.
        masked: Lines with a see-through texture (bars, fences), which is not ray-cast, ``(lines,)`` bool.
        reachable: Sectors a player can walk to from the start, ``(sectors,)`` bool.
        cell: Side of a cell of ``grid``.
        grid: Sector at each cell centre, ``(rows, columns)`` int16, -1 outside the map.
    """

    def __init__(self, lumps: MapLumps, cell: float = 8.0) -> None:
        lines, sides, vertices, sectors = lumps.lines, lumps.sides, lumps.vertices, lumps.sectors
        self.x1, self.y1 = (vertices[axis][lines["v1"]].astype(np.float64) for axis in "xy")
        self.x2, self.y2 = (vertices[axis][lines["v2"]].astype(np.float64) for axis in "xy")
        self.front, self.back = (_sector_of(lines[side], sides, len(sectors)) for side in ("front", "back"))
        self.floor, self.ceiling = sectors["floor"].astype(np.float64), sectors["ceiling"].astype(np.float64)
        self.sky_ceiling = sectors["ceiling_flat"] == _SKY_FLAT
        self.sky_floor = sectors["floor_flat"] == _SKY_FLAT
        self.liquid = np.array([flat.startswith(_LIQUID_FLATS) for flat in sectors["floor_flat"].tolist()])
        self.blocking = ((lines["flags"] & 1) != 0) | (self.back < 0)
        middle = [
            np.where(lines[s] < len(sides), sides["middle"][np.minimum(lines[s], len(sides) - 1)], b"-") for s in ("front", "back")
        ]
        self.masked = (self.back >= 0) & ((middle[0] != b"-") | (middle[1] != b"-"))
        special = sectors["special"]
        self._forbidden = np.isin(special, (_SECRET, _LEVEL_END)) | ((special & _SECRET_BIT) != 0)
        self.door = _tagged(lines, sectors, _DOOR_TAGGED)
        behind = self.back[np.isin(lines["special"], _DOOR_HERE)]
        self.door[behind[behind >= 0]] = True
        self._moving = self.door | _tagged(lines, sectors, _MOVER_TAGGED)
        self.things = np.stack([lumps.things["x"], lumps.things["y"]], -1).astype(np.float64)
        self.cell = cell
        self.grid = self._rasterise()
        starts = lumps.things[lumps.things["kind"] == _PLAYER_START]
        if len(starts) == 0:
            raise ValueError("the map has no player start (thing 1)")
        self.reachable = self._flood(float(starts[0]["x"]), float(starts[0]["y"]), lines, sectors)
        self._obstacles = self._find_obstacles()
        self.standing_cells = self._find_standing_cells()

    def sector_at(self, x: np.ndarray | float, y: np.ndarray | float) -> np.ndarray:
        """Sector at map positions, to the accuracy of the grid; -1 outside the map. Same shape as ``x``."""
        column = np.clip(((np.asarray(x) - self._left) // self.cell).astype(int), 0, self.grid.shape[1] - 1)
        row = np.clip(((np.asarray(y) - self._bottom) // self.cell).astype(int), 0, self.grid.shape[0] - 1)
        return self.grid[row, column]

    def clearance(self, x: float, y: float) -> float:
        """Distance from a position to the nearest line that a player cannot cross."""
        ax, ay, ex, ey, length2 = self._obstacles
        along = np.clip(((x - ax) * ex + (y - ay) * ey) / length2, 0, 1)
        return float(np.sqrt(((ax + along * ex - x) ** 2 + (ay + along * ey - y) ** 2).min()))

    def draw_viewpoint(self, rng: np.random.Generator) -> tuple[int, int]:
        """A position drawn uniformly from the reachable floor, away from walls, ledges and things (integers: the engine
        warps to whole units)."""
        while True:
            row, column = self.standing_cells[rng.integers(len(self.standing_cells))]
            offset = rng.random(2)
            x = round(self._left + (column + offset[0]) * self.cell)
            y = round(self._bottom + (row + offset[1]) * self.cell)
            near = np.hypot(self.things[:, 0] - x, self.things[:, 1] - y).min()
            if near >= THING_CLEARANCE and self.clearance(x, y) >= WALL_CLEARANCE:
                return x, y

    def _rasterise(self) -> np.ndarray:
        """Scan-line fill at cell centres: the sector east of the last line crossed on the way from the west."""
        cell = self.cell
        self._left = min(self.x1.min(), self.x2.min()) - cell
        self._bottom = min(self.y1.min(), self.y2.min()) - cell
        columns = int((max(self.x1.max(), self.x2.max()) - self._left) // cell) + 2
        rows = int((max(self.y1.max(), self.y2.max()) - self._bottom) // cell) + 2
        row_y = self._bottom + (np.arange(rows) + 0.5) * cell + 0.0137  # off the vertices, which are integers
        low, high = np.minimum(self.y1, self.y2), np.maximum(self.y1, self.y2)
        first, last = np.searchsorted(row_y, low), np.searchsorted(row_y, high)  # rows with low <= y < high
        count = last - first
        line = np.repeat(np.arange(len(count)), count)
        row = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[line]
        rise = self.y2[line] - self.y1[line]
        x = self.x1[line] + (row_y[row] - self.y1[line]) / rise * (self.x2[line] - self.x1[line])
        east = np.where(rise > 0, self.front[line], self.back[line])
        order = np.lexsort((x, row))
        row, x, east = row[order], x[order], east[order]
        start = np.clip(np.ceil((x - self._left) / cell - 0.5).astype(int), 0, columns - 1)  # first centre at or past x
        mark = np.full(rows * columns, -1, np.int64)
        mark[row * columns + start] = np.arange(len(row))  # numpy keeps the last of equal indices
        mark = np.maximum.accumulate(mark.reshape(rows, columns), axis=1)
        return np.where(mark >= 0, east[np.maximum(mark, 0)], -1).astype(np.int16)

    def _flood(self, x: float, y: float, lines: np.ndarray, sectors: np.ndarray) -> np.ndarray:
        """Sectors reached from a start by steps of at most 24 up with headroom 56; doors and lifts count as open."""
        neighbours: list[list[int]] = [[] for _ in range(len(self.floor))]
        for line in np.nonzero((self.back >= 0) & (self.front >= 0) & ~self.blocking)[0]:
            for here, there in ((self.front[line], self.back[line]), (self.back[line], self.front[line])):
                rise = self.floor[there] - self.floor[here]
                opening = min(self.ceiling[here], self.ceiling[there]) - max(self.floor[here], self.floor[there])
                if self._moving[here] or self._moving[there] or (rise <= STEP_HEIGHT and opening >= BODY_HEIGHT):
                    neighbours[here].append(int(there))
        for line in np.nonzero(np.isin(lines["special"], _TELEPORT))[0]:
            neighbours[self.front[line]].extend(np.nonzero(sectors["tag"] == lines["tag"][line])[0].tolist())
        reached = np.zeros(len(self.floor), bool)
        pending = [int(self.sector_at(x, y))]
        while pending:
            sector = pending.pop()
            if sector >= 0 and not reached[sector]:
                reached[sector] = True
                pending.extend(neighbours[sector])
        return reached

    def _find_obstacles(self) -> tuple[np.ndarray, ...]:
        front, back = np.maximum(self.front, 0), np.maximum(self.back, 0)
        opening = np.minimum(self.ceiling[back], self.ceiling[front]) - np.maximum(self.floor[back], self.floor[front])
        ledge = np.abs(self.floor[back] - self.floor[front]) > STEP_HEIGHT
        solid = self.blocking | ledge | (opening < BODY_HEIGHT)
        ex, ey = (self.x2 - self.x1)[solid], (self.y2 - self.y1)[solid]
        return self.x1[solid], self.y1[solid], ex, ey, np.maximum(ex * ex + ey * ey, 1e-9)

    def _find_standing_cells(self) -> np.ndarray:
        good = self.reachable & (self.ceiling - self.floor >= STANDING_HEIGHT) & ~self.door & ~self._forbidden
        cells = np.argwhere((self.grid >= 0) & good[np.maximum(self.grid, 0)])
        if len(cells) == 0:
            raise ValueError("the map has no reachable floor to stand on")
        return cells


def _sector_of(side_index: np.ndarray, sides: np.ndarray, count: int) -> np.ndarray:
    sector = sides["sector"][np.minimum(side_index, len(sides) - 1)].astype(np.int64)
    return np.where((side_index < len(sides)) & (sector < count), sector, -1)


def _tagged(lines: np.ndarray, sectors: np.ndarray, specials: tuple[int, ...]) -> np.ndarray:
    """Sectors that share a non-zero tag with a line of one of these specials, ``(sectors,)`` bool."""
    tags = np.unique(lines["tag"][np.isin(lines["special"], specials)])
    return np.isin(sectors["tag"], tags[tags != 0])
