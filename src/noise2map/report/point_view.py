"""An image of a colored point cloud from a chosen side, by a z-buffer in numpy."""

import numpy as np

_LARGEST_POINT = 9


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
