"""Point clouds from a chosen side: an image by a z-buffer in numpy, and where the camera of a page begins."""

from dataclasses import dataclass

import numpy as np

_LARGEST_POINT = 9
_YAWS = 9  # of the sway that are looked at; in between the outline moves less than the margin
_MARGIN = 0.93  # of the stage that the cloud may fill
_NEAREST = 0.15  # of the radius
_MOST_GROWTH = 5.0


@dataclass(frozen=True, kw_only=True)
class FirstView:
    """Where the camera of a point cloud on a page begins: a pinhole that looks at the middle of the cloud from some distance.

    Lengths are in those of the points.

    Attributes:
        yaw: How far the camera sways to both sides, radians.
        pitch: How far it rises, radians.
        focal: Focal length in heights of the stage.
        aspect: Height of the stage over its width.
        reach: Distance of the camera from the middle.
        right: What is added to the points to the right, as the camera sees it.
        down: Likewise downwards.
    """

    yaw: float = 0.35
    pitch: float = 0.25
    focal: float = 1.6
    aspect: float = 0.52
    reach: float = 2.2
    right: float = 0.0
    down: float = 0.0


def first_view(points: np.ndarray) -> FirstView:
    """The nearest view from which the whole cloud is on the stage, wherever the camera is on its sway.

    A point at height ``a`` and depth ``d`` stays inside while ``|a + down| <= k (d + reach)``. Over all points that is
    ``down + A <= k reach`` and ``B - down <= k reach`` with ``A = max(a - k d)`` and ``B = max(-a - k d)``: the smallest ``reach``
    is ``(A + B) / 2k``, at ``down = (B - A) / 2``. Likewise for the width.

    Args:
        points: ``(N, 3)`` about their middle: x right, y down, z forward.
    """
    start = FirstView()
    tall, (x, y, z) = _MARGIN / (2 * start.focal), np.asarray(points, np.float64).T
    across, down = np.full(2, -np.inf), np.full(2, -np.inf)
    nearest = np.inf
    for yaw in np.linspace(-start.yaw, start.yaw, _YAWS):
        side, ahead = np.cos(yaw) * x + np.sin(yaw) * z, np.cos(yaw) * z - np.sin(yaw) * x
        below = np.cos(start.pitch) * y - np.sin(start.pitch) * ahead
        depth = np.sin(start.pitch) * y + np.cos(start.pitch) * ahead
        nearest = min(nearest, depth.min())
        across = np.maximum(across, [(sign * side - tall / start.aspect * depth).max() for sign in (1, -1)])
        down = np.maximum(down, [(sign * below - tall * depth).max() for sign in (1, -1)])
    reach = max(across.sum() / 2 / tall * start.aspect, down.sum() / 2 / tall, _NEAREST - nearest)
    return FirstView(reach=float(reach), right=float(across[1] - across[0]) / 2, down=float(down[1] - down[0]) / 2)


def point_growth(points_m: np.ndarray, focal_px: float) -> np.ndarray:
    """How many times the size of its pixel each point of an image has to be drawn, so that slanted surfaces have no gaps.

    That is its distance from its neighbours, in rows and in columns the nearer of the two, which leaves edges of objects alone.

    Args:
        points_m: ``(H, W, 3)`` metres in camera axes, not finite where there is none.
        focal_px: Focal length of the image.

    Returns:
        ``(H, W)``, from 1 to 5.
    """
    spacing = np.zeros(points_m.shape[:2])
    for axis in (0, 1):
        if points_m.shape[axis] > 1:
            gaps = np.linalg.norm(np.diff(points_m, axis=axis), axis=-1)
            edge = np.full_like(np.take(gaps, [0], axis), np.nan)
            nearer = np.fmin(np.concatenate([edge, gaps], axis), np.concatenate([gaps, edge], axis))
            spacing = np.fmax(spacing, nearer)
    pixel = np.maximum(points_m[..., 2], 1e-6) / focal_px
    return np.clip(np.nan_to_num(spacing / pixel, nan=1.0), 1.0, _MOST_GROWTH)


def view_points(
    points_m: np.ndarray,
    colors: np.ndarray,
    *,
    size: tuple[int, int] = (480, 360),
    yaw_deg: float = 25.0,
    pitch_deg: float = 20.0,
    zoom: float = 1.0,
    focal_px: float = 100.0,
    background: tuple[int, int, int] = (20, 22, 27),
) -> np.ndarray:
    """Look at points from a camera that circles their middle.

    Args:
        points_m: ``(N, 3)`` metres in camera axes: x right, y down, z forward. Non-finite rows are left out.
        colors: ``(N, 3)`` uint8.
        size: Width and height of the image.
        yaw_deg: How far the camera goes round to the right, 0 being the original view.
        pitch_deg: How far it rises.
        zoom: Larger is nearer.
        focal_px: Focal length of the image that the points come from: each is drawn as large as its pixel.
        background: Color where there is no point.

    Returns:
        ``(height, width, 3)`` uint8.

    Raises:
        ValueError: If points and colors do not match, or there is no finite point.
    """
    points_m, colors = np.asarray(points_m, dtype=np.float64), np.asarray(colors)
    if points_m.ndim != 2 or points_m.shape[1] != 3 or colors.shape != points_m.shape:
        raise ValueError(f"points and colors must both be (N, 3), got {points_m.shape} and {colors.shape}")
    finite = np.isfinite(points_m).all(axis=1)
    if not finite.any():
        raise ValueError("there is no finite point to draw")
    points_m, colors = points_m[finite], colors[finite]
    center = np.percentile(points_m, [5, 95], axis=0).mean(axis=0)
    radius = max(float(np.percentile(np.linalg.norm(points_m - center, axis=1), 90)), 1e-6)
    rotated = (points_m - center) @ _rotation(yaw_deg, pitch_deg).T
    depth = rotated[:, 2] + 2.2 * radius
    width, height = size
    focal = 1.5 * min(width, height) * zoom
    ahead = depth > 0.05 * radius
    x = np.round(width / 2 + focal * rotated[ahead, 0] / depth[ahead]).astype(np.int64)
    y = np.round(height / 2 + focal * rotated[ahead, 1] / depth[ahead]).astype(np.int64)
    side = np.ceil(1.2 * focal * points_m[ahead, 2] / focal_px / depth[ahead]).clip(1, _LARGEST_POINT).astype(np.int64)
    order = np.argsort(-depth[ahead], kind="stable")  # far to near: the place in this order is the z-buffer
    x, y, side = x[order], y[order], side[order]
    front = np.full(height * width, -1, np.int64)
    for dy in range(int(side.max(initial=0))):
        for dx in range(int(side.max(initial=0))):
            column, row = x + dx - side // 2, y + dy - side // 2
            drawn = (np.maximum(dx, dy) < side) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
            np.maximum.at(front, row[drawn] * width + column[drawn], np.flatnonzero(drawn))
    image = np.empty((height, width, 3), np.uint8)
    image[:] = background
    seen = front >= 0
    image.reshape(-1, 3)[seen] = colors[ahead][order][front[seen]]
    return image


def _rotation(yaw_deg: float, pitch_deg: float) -> np.ndarray:
    yaw, pitch = np.radians([yaw_deg, pitch_deg])
    about_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    return about_x @ about_y
