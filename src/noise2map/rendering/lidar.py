"""A LiDAR in a level: beams cast from a point against floors, ceilings and walls, and how far one can see.

The world is a plan with heights, so all beams of one azimuth cross the same lines in the same order. They are walked crossing by
crossing: what a beam has not met before a crossing it may meet there, or fly on. Objects and see-through textures are not met.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from noise2map.data.freedoom.catalog import UNITS_PER_METRE
from noise2map.rendering.level import Level
from noise2map.rendering.raycast import Crossings, Pose, cross

_QUADRANTS = 4  # of 90 degrees: within one, azimuths have finite tangents


@dataclass(frozen=True)
class LidarSpec:
    """Rays of a LiDAR.

    Attributes:
        beams: Beams above each other, at even angles.
        azimuths: Shots in a full turn, a multiple of 4.
        lowest_deg: Elevation of the lowest beam.
        highest_deg: Elevation of the highest beam.
        range_m: Farthest return.

    Raises:
        ValueError: If a number cannot work.
    """

    beams: int = 16
    azimuths: int = 360
    lowest_deg: float = -25.0
    highest_deg: float = 15.0
    range_m: float = 40.0

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise ValueError(f"beams must be at least 1, got {self.beams}")
        if self.azimuths < 4 or self.azimuths % _QUADRANTS:
            raise ValueError(f"azimuths must be a multiple of {_QUADRANTS}, got {self.azimuths}")
        if not -90 < self.lowest_deg <= self.highest_deg < 90:
            raise ValueError(
                f"lowest_deg and highest_deg must lie between -90 and 90 in this order, got {self.lowest_deg}, {self.highest_deg}"
            )
        if not self.range_m > 0:
            raise ValueError(f"range_m must be positive, got {self.range_m}")


def scan(level: Level, pose: Pose, spec: LidarSpec) -> np.ndarray:
    """Points of one turn, in the sensor's frame: x to the right, y forward, z up.

    Args:
        level: The map.
        pose: Of the sensor, map units; it stands upright.
        spec: What it shoots.

    Returns:
        ``(P, 5)`` float32: x, y, z in metres, intensity (255 times the cosine of the angle to the surface's normal), ring (0 is
        the lowest beam). Beams that meet nothing, or the sky, have no point.
    """
    elevation = np.deg2rad(np.linspace(spec.lowest_deg, spec.highest_deg, spec.beams))
    rise = np.tan(elevation)
    clouds = []
    for azimuth, crossings in _quadrants(level, pose, spec.azimuths):
        units, cosine = _shoot(level, pose, crossings, rise)
        flat = units / UNITS_PER_METRE  # (azimuths, beams), metres in the plane
        hit = np.isfinite(flat) & (flat / np.cos(elevation) <= spec.range_m)
        column, ring = np.nonzero(hit)
        distance, angle = flat[hit], azimuth[column]
        x, y, z = distance * np.sin(angle), distance * np.cos(angle), distance * rise[ring]
        clouds.append(np.stack([x, y, z, 255 * cosine[hit], ring], axis=1))
    return np.concatenate(clouds).astype(np.float32)


def sight(level: Level, pose: Pose, azimuths: int, steepest: float) -> np.ndarray:
    """Visible distance in each direction, to the last surface that shows between the borders of the image.

    Args:
        level: The map.
        pose: Of the eye, map units.
        azimuths: Directions in a full turn, a multiple of 4.
        steepest: Tangent of the steepest ray up and down that is looked along.

    Returns:
        Metres in the plane, ``(azimuths,)``, clockwise from the view's direction; 0 where no surface shows.
    """
    result = np.empty(azimuths)
    for azimuth, crossings in _quadrants(level, pose, azimuths):
        index = np.rint(azimuth / (2 * np.pi) * azimuths).astype(int) % azimuths
        result[index] = _last_seen(level, pose, crossings, steepest) / UNITS_PER_METRE
    return result


def _quadrants(level: Level, pose: Pose, azimuths: int) -> Iterator[tuple[np.ndarray, Crossings]]:
    """For each quarter turn its azimuths, radians clockwise from the pose's direction, and what they cross.

    The depths of these crossings are distances in the plane.
    """
    count = azimuths // _QUADRANTS
    offset = (np.arange(count) - count // 2) * (2 * np.pi / azimuths)
    for quadrant in range(_QUADRANTS):
        crossings = cross(level, replace(pose, yaw_deg=pose.yaw_deg - quadrant * 90.0), np.tan(offset))
        column = np.repeat(np.arange(count), crossings.end - crossings.begin)
        yield offset + quadrant * (np.pi / 2), replace(crossings, depth=crossings.depth / np.cos(offset)[column])


def _shoot(level: Level, pose: Pose, crossings: Crossings, rise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each beam ends and the cosine to the surface's normal there, both ``(azimuths, beams)``.

    Distances are in the plane, map units; infinite where a beam meets nothing. ``rise`` is the height it gains with it.
    """
    count = len(crossings.begin)
    distance, cosine = np.full((count, len(rise)), np.inf), np.zeros((count, len(rise)))
    flying = np.ones(distance.shape, bool)
    with np.errstate(divide="ignore"):
        per_height = 1 / rise
    steep, level_share = np.abs(rise) / np.sqrt(1 + rise**2), 1 / np.sqrt(1 + rise**2)
    column, step = np.arange(count), 0
    while True:
        at = crossings.begin[column] + step
        going = (at < crossings.end[column]) & flying[column].any(1)
        column, at = column[going], at[going]
        if len(column) == 0:
            return distance, cosine
        here, there, range_here = crossings.near[at], crossings.far[at], crossings.depth[at]
        solid, behind = there < 0, np.maximum(there, 0)
        beams = flying[column]
        height = pose.z + rise * range_here[:, None]
        floor = beams & (height < level.floor[here][:, None])
        ceiling = beams & (height > level.ceiling[here][:, None])
        beams = beams & ~floor & ~ceiling
        for met, plane, sky in (
            (floor, level.floor[here], level.sky_floor[here]),
            (ceiling, level.ceiling[here], level.sky_ceiling[here]),
        ):
            back = met & ~sky[:, None]
            _write(distance, column, back, (plane - pose.z)[:, None] * per_height)
            _write(cosine, column, back, steep)
        upper = height > level.ceiling[behind][:, None]
        met = beams & (solid[:, None] | upper | (height < level.floor[behind][:, None]))
        open_air = level.sky_ceiling[here] & level.sky_ceiling[behind] & ~solid
        back = met & ~(upper & open_air[:, None])  # between two open-air sectors the sky goes on
        _write(distance, column, back, range_here[:, None])
        _write(cosine, column, back, _facing(level, pose, crossings, at)[:, None] * level_share)
        flying[column] = beams & ~met
        step += 1


def _write(target: np.ndarray, column: np.ndarray, where: np.ndarray, values: np.ndarray) -> None:
    part = target[column]
    part[where] = np.broadcast_to(values, where.shape)[where]
    target[column] = part


def _facing(level: Level, pose: Pose, crossings: Crossings, at: np.ndarray) -> np.ndarray:
    """Cosine in the plane between the way to each crossing's line (at its nearest point) and the line's normal.

    The distance of the line divided by that of the crossing.
    """
    line = crossings.line[at]
    ex, ey = level.x2[line] - level.x1[line], level.y2[line] - level.y1[line]
    away = np.abs((level.x1[line] - pose.x) * ey - (level.y1[line] - pose.y) * ex) / np.maximum(np.hypot(ex, ey), 1e-9)
    return np.clip(away / np.maximum(crossings.depth[at], 1e-9), 0.0, 1.0)


def _last_seen(level: Level, pose: Pose, crossings: Crossings, steepest: float) -> np.ndarray:
    """Distance of the crossing where the last ray of each azimuth ends, ``(azimuths,)``, map units."""
    count = len(crossings.begin)
    low, high, seen = np.full(count, -steepest), np.full(count, steepest), np.zeros(count)
    column, step = np.arange(count), 0
    while True:
        at = crossings.begin[column] + step
        going = (at < crossings.end[column]) & (low[column] < high[column])
        column, at = column[going], at[going]
        if len(column) == 0:
            return seen
        here, there, distance = crossings.near[at], crossings.far[at], crossings.depth[at]
        behind = np.maximum(there, 0)
        floor = np.maximum(level.floor[here], level.floor[behind])
        ceiling = np.minimum(level.ceiling[here], level.ceiling[behind])
        seen[column] = distance
        low[column] = np.where(there < 0, np.inf, np.maximum(low[column], (floor - pose.z) / distance))
        high[column] = np.minimum(high[column], (ceiling - pose.z) / distance)
        step += 1
