"""Polygons and thick lines on a pixel grid, bit for bit as the nuScenes tools draw them (with OpenCV), in numpy.

Both draw more than the exact coverage: outlines belong to a polygon, and every corner of a line gets a small cross. Coordinates are
``(column, row)``; fixed point means units of 1/65536 pixel.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SHIFT = 16
_ONE = 1 << _SHIFT
_HALF = _ONE >> 1
_THICKNESS = 2

Points = NDArray[np.int64]
Mask = NDArray[np.uint8]


def fill_polygon(mask: Mask, rings: Sequence[Points], value: int = 1) -> None:
    """Fills closed rings by the even-odd rule, outlines included, in place.

    Args:
        mask: ``(H, W)``.
        rings: integer corners ``(n, 2)`` each, all of one polygon or of a set of polygons.
        value: written to the covered pixels.
    """
    height, width = mask.shape
    crossings = []
    for ring in rings:
        corners = np.asarray(ring, np.int64)
        starts = np.roll(corners, 1, axis=0)
        for start, end in zip(starts.tolist(), corners.tolist()):
            _draw_segment(mask, start, end, value)
            edge = _edge(start, end, width, height)
            if edge is not None:
                top, bottom, x, slope = edge
                rows = np.arange(max(top, 0), min(bottom, height))
                crossings.append(np.stack([rows, x + (rows - top) * slope]))
    if not crossings:
        return
    row, x = np.concatenate(crossings, axis=1)
    order = np.lexsort((x, row))
    row, x = row[order][::2], x[order].reshape(-1, 2)  # every row is crossed an even number of times
    left, right = (x[:, 0] + _ONE - 1) >> _SHIFT, x[:, 1] >> _SHIFT
    seen = (left < width) & (right >= 0)
    row, left, right = row[seen], left[seen].clip(min=0), right[seen].clip(max=width - 1)
    change = np.zeros((height, width + 1), np.int64)
    np.add.at(change, (row, left), 1)
    np.add.at(change, (row, right + 1), -1)
    mask[change.cumsum(1)[:, :-1] > 0] = value


def _edge(start: list[int], end: list[int], width: int, height: int) -> tuple[int, int, int, int] | None:
    """First row, row after the last, x in the first row and step of x for each row, the last two in fixed point."""
    if start[1] == end[1]:
        return None
    a, b = list(start), list(end)
    if not all(0 <= x < width and 0 <= y < height for x, y in (a, b)):
        _, c, d = clip_segment(width, height, a, b)
        # A segment that is cut down to a single row keeps its own rows.
        a, b = (c, d) if c[1] != d[1] else ([c[0], a[1]], [d[0], b[1]])
    (ax, ay), (bx, by) = (a[0] << _SHIFT, a[1]), (b[0] << _SHIFT, b[1])
    slope = _divide(bx - ax, by - ay)
    if start[1] < end[1]:
        return start[1], end[1], ax + (start[1] - ay) * slope, slope
    return end[1], start[1], bx + (end[1] - by) * slope, slope


def _divide(a: int, b: int) -> int:
    """Integer division that rounds toward zero."""
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def clip_segment(width: int, height: int, a: list[int], b: list[int]) -> tuple[bool, list[int], list[int]]:
    """Cuts a segment at the borders of the picture, in integers: whether anything is left, and the new ends."""
    (x1, y1), (x2, y2) = a, b
    right, bottom = width - 1, height - 1

    def outside(x: int, y: int) -> int:
        return (x < 0) | (x > right) << 1 | (y < 0) << 2 | (y > bottom) << 3

    c1, c2 = outside(x1, y1), outside(x2, y2)
    if not c1 & c2 and c1 | c2:
        if c1 & 12:
            edge = 0 if c1 < 8 else bottom
            x1, y1 = x1 + int(float(edge - y1) * (x2 - x1) / (y2 - y1)), edge
            c1 = outside(x1, 0) & 3
        if c2 & 12:
            edge = 0 if c2 < 8 else bottom
            x2, y2 = x2 + int(float(edge - y2) * (x2 - x1) / (y2 - y1)), edge
            c2 = outside(x2, 0) & 3
        if not c1 & c2 and c1 | c2:
            if c1:
                edge = 0 if c1 == 1 else right
                x1, y1, c1 = edge, y1 + int(float(edge - x1) * (y2 - y1) / (x2 - x1)), 0
            if c2:
                edge = 0 if c2 == 1 else right
                x2, y2, c2 = edge, y2 + int(float(edge - x2) * (y2 - y1) / (x2 - x1)), 0
    return not c1 | c2, [x1, y1], [x2, y2]


def _draw_segment(mask: Mask, a: list[int], b: list[int], value: int) -> None:
    """One pixel wide, eight-connected (Bresenham), from left to right."""
    height, width = mask.shape
    visible, a, b = clip_segment(width, height, a, b)
    if not visible:
        return
    if b[0] < a[0]:
        a, b = b, a
    dx, dy = b[0] - a[0], b[1] - a[1]
    sign, dy = (1, dy) if dy >= 0 else (-1, -dy)
    long, short = max(dx, dy), min(dx, dy)
    along = np.arange(long + 1)
    across = np.zeros_like(along) if long == 0 else (2 * short * along + long + 2 * long - 1) // (2 * long) - 1
    columns, rows = (across, along) if dy > dx else (along, across)
    mask[a[1] + sign * rows, a[0] + columns] = value


def draw_polyline(mask: Mask, points: Points, value: int = 1) -> None:
    """An open line two pixels thick through integer corners ``(n, 2)``, in place."""
    height, width = mask.shape
    corners = np.asarray(points, np.int64).tolist()
    for a, b in itertools.pairwise(corners):
        # Each segment is first cut at a frame two pixels outside the picture.
        shifted = ([coordinate + _THICKNESS for coordinate in point] for point in (a, b))
        visible, *ends = clip_segment(width + 2 * _THICKNESS, height + 2 * _THICKNESS, *shifted)
        if visible:
            a, b = ([coordinate - _THICKNESS for coordinate in point] for point in ends)
            if a != b:
                fine = ([coordinate << _SHIFT for coordinate in point] for point in (a, b))
                _fill_convex(mask, _widened(*fine), value)
            _draw_cross(mask, a, value)
            _draw_cross(mask, b, value)


def _widened(a: list[int], b: list[int]) -> list[list[int]]:
    """Corners, in fixed point, of the rectangle one pixel to either side of a segment in fixed point."""
    dx, dy = (a[0] - b[0]) / _ONE, (b[1] - a[1]) / _ONE
    scale = _ONE / np.sqrt(dx * dx + dy * dy)
    across = round(dy * scale), round(dx * scale)
    return [[p[0] + s * across[0], p[1] + s * across[1]] for p, s in ((a, 1), (a, -1), (b, -1), (b, 1))]


def _draw_cross(mask: Mask, center: list[int], value: int) -> None:
    for dx, dy in ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)):
        x, y = center[0] + dx, center[1] + dy
        if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]:
            mask[y, x] = value


def _fill_convex(mask: Mask, corners: list[list[int]], value: int) -> None:
    """Fills a convex polygon given in fixed point, outline included."""
    height, width = mask.shape
    for a, b in zip([corners[-1], *corners[:-1]], corners):
        _draw_fine_segment(mask, a, b, value)
    rows = [(y + _HALF) >> _SHIFT for _, y in corners]
    columns = [(x + _HALF) >> _SHIFT for x, _ in corners]
    top, bottom = min(rows), min(max(rows), height - 1)
    if max(rows) < 0 or max(columns) < 0 or min(columns) >= width or top >= height:
        return
    first = min(range(len(corners)), key=lambda i: corners[i][1])
    sides = [_Side(first, 1, top), _Side(first, len(corners) - 1, top)]
    left_edges = len(corners)
    for y in range(top, bottom + 1):
        for side in sides:
            if y >= side.until:
                left_edges = side.advance(corners, rows, y, left_edges)
        if left_edges < 0:
            break
        if y >= 0:
            x1, x2 = sorted(side.x for side in sides)
            x1, x2 = (x1 + _HALF) >> _SHIFT, (x2 + _HALF) >> _SHIFT
            if x2 >= 0 and x1 < width:
                mask[y, max(x1, 0) : min(x2, width - 1) + 1] = value
        for side in sides:
            side.x += side.step


class _Side:
    """Walks down one side of a convex polygon."""

    def __init__(self, corner: int, direction: int, row: int) -> None:
        self.corner, self.direction, self.until = corner, direction, row
        self.x, self.step = -_ONE, 0

    def advance(self, corners: list[list[int]], rows: list[int], y: int, edges: int) -> int:
        """Turns to the edge that leaves row ``y``; returns how many edges of the polygon are left for both sides."""
        here = self.corner
        there = (here + self.direction) % len(corners)
        while True:
            edges -= 1
            if edges < 0:
                return edges
            if rows[there] > y:
                count = rows[there] - y
                self.x, self.until, self.corner = corners[here][0], rows[there], there
                self.step = _divide((corners[there][0] - self.x) * 2 + count, 2 * count)
                return edges
            here, there = there, (there + self.direction) % len(corners)


def _draw_fine_segment(mask: Mask, a: list[int], b: list[int], value: int) -> None:
    """One pixel wide, between ends in fixed point."""
    height, width = mask.shape
    visible, a, b = clip_segment(width << _SHIFT, height << _SHIFT, a, b)
    if not visible:
        return
    flat = abs(b[0] - a[0]) > abs(b[1] - a[1])
    major = 0 if flat else 1
    if b[major] < a[major]:
        a, b = b, a
    length, rise = b[major] - a[major], b[1 - major] - a[1 - major]
    step = _divide(rise * _ONE, length | 1)
    count = np.arange((length >> _SHIFT) + 1)
    along = ((a[major] + _HALF) >> _SHIFT) + count
    across = (a[1 - major] + _HALF + count * step) >> _SHIFT
    along = np.append(along, (b[major] + _HALF) >> _SHIFT)
    across = np.append(across, (b[1 - major] + _HALF) >> _SHIFT)
    x, y = (along, across) if flat else (across, along)
    seen = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    mask[y[seen], x[seen]] = value
