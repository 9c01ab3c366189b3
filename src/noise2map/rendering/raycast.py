"""Casts one ray per image column through a level: exact depth and the surface behind every pixel.

The engine's geometry is a plan with heights, so a column sees the lines that its ray crosses, in order of distance, and
each crossing leaves a window of rows open for what lies behind. All columns are walked at once, crossing by crossing.
"""

from dataclasses import dataclass

import numpy as np

from noise2map.rendering.level import Level

FLOOR, CEILING, WALL, UPPER, LOWER, SKY = range(6)

NOTHING = 255

_NEAR = 1e-3

# Where the engine rounds: a column looks a quarter of a pixel right of its left edge, and the edge of a surface falls on
# the first row whose lower border reaches it. Both are fits to the engine's labels, see docs/freedoom.md.
_COLUMN_OFFSET, _ROW_OFFSET = 0.25, 1.0


@dataclass(frozen=True)
class Camera:
    """The engine's camera: 90 degrees across a 4:3 image with pixels 1.2 times as tall as wide.

    Wider images see more at the sides with the same focal lengths.

    Attributes:
        width: Of the image, pixels.
        height: Likewise.
        supersample: The engine draws at this many times the width and the height; a pixel is the mean of a block of what it draws,
            and its geometry that of the drawn pixel next to the middle of the block.
    """

    width: int
    height: int
    supersample: int = 1

    @property
    def drawn_size(self) -> tuple[int, int]:
        """Width and height that the engine draws at."""
        return self.width * self.supersample, self.height * self.supersample

    @property
    def middle(self) -> tuple[int, int]:
        """Column and row, in a block of drawn pixels, of the one that looks where the middle of the block is: to the right of it
        and above, since the engine's columns look to the left of their centres and its rows below."""
        return self.supersample // 2, max(self.supersample // 2 - 1, 0)

    @property
    def ray_offset(self) -> tuple[float, float]:
        """Where in a pixel its ray passes, from the left and from the top, in pixels."""
        column, row = self.middle
        return (column + _COLUMN_OFFSET) / self.supersample, (row + _ROW_OFFSET) / self.supersample

    @property
    def focal_x_px(self) -> float:
        """Focal length in pixel widths, 2 H / 3."""
        return self.height * 2 / 3

    @property
    def focal_y_px(self) -> float:
        """Focal length in pixel heights, 0.8 H."""
        return self.height * 0.8

    @property
    def intrinsics(self) -> tuple[float, float, float, float]:
        """``fx, fy, cx, cy`` in pixels; the centre of the first pixel is at (0.5, 0.5)."""
        return self.focal_x_px, self.focal_y_px, self.width / 2, self.height / 2


@dataclass(frozen=True)
class Pose:
    """Where the camera is: position and eye height in map units, yaw in degrees anticlockwise from east, pitch in degrees
    downwards. The engine shears the image for pitch, it does not rotate it."""

    x: float
    y: float
    z: float
    yaw_deg: float
    pitch_deg: float = 0.0


@dataclass(frozen=True)
class Surfaces:
    """Visible surface of each pixel, arrays ``(H, W)``.

    Attributes:
        depth: Distance along the horizontal optical axis in map units, float32; infinite for sky.
        kind: FLOOR, CEILING, WALL (one-sided), UPPER, LOWER, SKY or NOTHING, uint8.
        sector: Sector on this side of the surface, int32.
        line: Line of a wall, -1 for floors, ceilings and their sky, int32.
    """

    depth: np.ndarray
    kind: np.ndarray
    sector: np.ndarray
    line: np.ndarray


@dataclass(frozen=True)
class Crossings:
    """Rays crossing lines, sorted by column and then by distance; ``begin``/``end`` delimit a column's crossings.

    ``depth`` is along the optical axis, map units.
    """

    line: np.ndarray
    depth: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    near: np.ndarray  # sector on the camera's side, per crossing
    far: np.ndarray  # sector behind, -1 behind a one-sided line


def cast(level: Level, pose: Pose, camera: Camera) -> Surfaces:
    """Surface and depth of every pixel, objects and see-through textures left out.

    Args:
        level: The map.
        pose: Camera pose in the map.
        camera: Image size.
    """
    column_tan = (np.arange(camera.width) + camera.ray_offset[0] - camera.width / 2) / camera.focal_x_px
    spans = _walk(level, pose, camera, cross(level, pose, column_tan))
    return _paint(level, pose, camera, spans)


def horizon_row(pose: Pose, camera: Camera) -> float:
    """Row (in pixels from the top, real-valued) of points at eye height."""
    return camera.height / 2 - np.tan(np.deg2rad(pose.pitch_deg)) * camera.focal_y_px


def cross(level: Level, pose: Pose, column_tan: np.ndarray) -> Crossings:
    """Where rays in the plane meet lines of the level.

    Args:
        level: The map.
        pose: Where the rays start; its height does not matter.
        column_tan: Tangent of the angle of each ray to the right of the view's direction, increasing, ``(columns,)``.
    """
    cos, sin = np.cos(np.deg2rad(pose.yaw_deg)), np.sin(np.deg2rad(pose.yaw_deg))
    # camera coordinates of the ends: z forward, r to the right
    dx1, dy1, dx2, dy2 = level.x1 - pose.x, level.y1 - pose.y, level.x2 - pose.x, level.y2 - pose.y
    z1, r1, z2, r2 = dx1 * cos + dy1 * sin, dx1 * sin - dy1 * cos, dx2 * cos + dy2 * sin, dx2 * sin - dy2 * cos
    edge = np.abs(column_tan).max() * 1.001 + 1e-6
    from_front = dx1 * dy2 - dx2 * dy1 < 0  # the camera is on the line's right
    visible = ((z1 > 0) | (z2 > 0)) & (from_front | (level.back >= 0))
    visible &= ~((r1 > edge * z1) & (r2 > edge * z2)) & ~((r1 < -edge * z1) & (r2 < -edge * z2))
    index = np.nonzero(visible)[0]
    z1, z2, r1, r2, from_front = z1[index], z2[index], r1[index], r2[index], from_front[index]

    # the columns that a line covers once it is cut off at the near plane
    dz = np.where(z2 == z1, 1.0, z2 - z1)
    at_near = r1 + (r2 - r1) * (_NEAR - z1) / dz
    tan1 = np.where(z1 < _NEAR, at_near, r1) / np.maximum(z1, _NEAR)
    tan2 = np.where(z2 < _NEAR, at_near, r2) / np.maximum(z2, _NEAR)
    first, last = np.searchsorted(column_tan, np.minimum(tan1, tan2)), np.searchsorted(column_tan, np.maximum(tan1, tan2))
    count = last - first
    line = np.repeat(np.arange(len(index)), count)
    column = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[line]
    gap1, gap2 = r1[line] - column_tan[column] * z1[line], r2[line] - column_tan[column] * z2[line]
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = z1[line] + (z2 - z1)[line] * (gap1 / (gap1 - gap2))
    ahead = depth > _NEAR
    line, column, depth = line[ahead], column[ahead], depth[ahead]
    order = np.lexsort((depth, column))
    line, column, depth = line[order], column[order], depth[order]
    begin, end = (np.searchsorted(column, np.arange(len(column_tan)), side) for side in ("left", "right"))
    near = np.where(from_front, level.front[index], level.back[index])[line]
    far = np.where(from_front, level.back[index], level.front[index])[line]
    return Crossings(index[line], depth, begin, end, near, far)


def _row_at(y: np.ndarray, offset: float) -> np.ndarray:
    """First row at or below an edge at height ``y`` of the image: the one whose ray, ``offset`` pixels down, reaches it."""
    return np.ceil(np.clip(y, -1e6, 1e6) - offset + 1e-6)


def _walk(level: Level, pose: Pose, camera: Camera, crossings: Crossings) -> tuple[np.ndarray, ...]:
    """Column spans ``(column, first row, past row, kind, sector, line, depth)``, each an array over spans."""
    horizon, focal, offset = horizon_row(pose, camera), camera.focal_y_px, camera.ray_offset[1]
    top, bottom = np.zeros(camera.width), np.full(camera.width, float(camera.height))
    open_columns = np.arange(camera.width)
    spans = []
    step = 0
    while True:
        at = crossings.begin[open_columns] + step
        column, at = open_columns[at < crossings.end[open_columns]], at[at < crossings.end[open_columns]]
        if len(column) == 0:
            break
        depth, near, far, line = crossings.depth[at], crossings.near[at], crossings.far[at], crossings.line[at]
        solid = far < 0
        behind = np.maximum(far, 0)
        first, past = top[column], bottom[column]
        scale = focal / depth
        near_floor, near_ceiling = level.floor[near], level.ceiling[near]
        far_floor, far_ceiling = level.floor[behind], level.ceiling[behind]
        floor_row = np.clip(_row_at(horizon + (pose.z - near_floor) * scale, offset), first, past)
        ceiling_row = np.clip(_row_at(horizon - (near_ceiling - pose.z) * scale, offset), first, floor_row)
        lintel = np.clip(_row_at(horizon - (far_ceiling - pose.z) * scale, offset), ceiling_row, floor_row)
        upper_row = np.where(solid, floor_row, np.where(far_ceiling < near_ceiling, lintel, ceiling_row))
        sill = np.clip(_row_at(horizon + (pose.z - far_floor) * scale, offset), upper_row, floor_row)
        lower_row = np.where(~solid & (far_floor > near_floor), sill, floor_row)
        sky = level.sky_ceiling[near]
        # an upper wall between two open-air sectors is not drawn: the sky goes on
        upper_kind = np.where(solid, WALL, np.where(sky & level.sky_ceiling[behind], SKY, UPPER))
        no_line = np.full(len(column), -1)
        spans += [
            (column, first, ceiling_row, np.where(sky, SKY, CEILING), near, no_line, depth),
            (column, ceiling_row, upper_row, upper_kind, near, line, depth),
            (column, lower_row, floor_row, np.full(len(column), LOWER), near, line, depth),
            (column, floor_row, past, np.where(level.sky_floor[near], SKY, FLOOR), near, no_line, depth),
        ]
        top[column], bottom[column] = upper_row, lower_row
        open_columns = column[(upper_row < lower_row) & ~solid]
        step += 1
    if not spans:
        return tuple(np.empty(0) for _ in range(7))
    return tuple(np.concatenate(part) for part in zip(*spans))


def _paint(level: Level, pose: Pose, camera: Camera, spans: tuple[np.ndarray, ...]) -> Surfaces:
    shape = (camera.height, camera.width)
    result = Surfaces(
        np.full(shape, np.inf, np.float32),
        np.full(shape, NOTHING, np.uint8),
        np.full(shape, -1, np.int32),
        np.full(shape, -1, np.int32),
    )
    filled = np.nonzero(spans[2] > spans[1])[0]
    column, first, past, kind, sector, line = (part[filled].astype(np.int64) for part in spans[:6])
    count = past - first
    span = np.repeat(np.arange(len(count)), count)
    row = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[span]
    column, kind, sector, line, depth = column[span], kind[span], sector[span], line[span], spans[6][filled][span]
    below_horizon = row + 0.5 - horizon_row(pose, camera)  # the engine shades planes by the row's centre
    with np.errstate(divide="ignore", invalid="ignore"):
        plane = (
            np.where(kind == FLOOR, pose.z - level.floor[sector], pose.z - level.ceiling[sector])
            * camera.focal_y_px
            / below_horizon
        )
    depth = np.where(kind <= CEILING, plane, np.where(kind == SKY, np.inf, depth))
    result.depth[row, column] = np.maximum(depth, 1.0)
    result.kind[row, column] = kind
    result.sector[row, column] = sector
    result.line[row, column] = line
    return result
