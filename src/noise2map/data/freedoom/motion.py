"""Motion of a camera through a scene that stands still: where the surface behind a pixel was in the frame before.

Axes of a camera: x right, y down, z along the optical axis. Poses are level, as the engine's are: a position and a yaw.
"""

from dataclasses import dataclass

import numpy as np

_MARGIN = 0.02  # share of its depth by which a point may lie outside the depths around it
_OF_MAPS = np.array([1.0, -1.0, -1.0])  # axes of maps of normals, in those of a camera


@dataclass(frozen=True)
class Motion:
    """Motion of the camera from one frame to the next: a point at ``p`` before is at ``rotation @ p + translation_m`` now.

    Attributes:
        rotation: ``(3, 3)``.
        translation_m: ``(3,)``, metres.
    """

    rotation: np.ndarray
    translation_m: np.ndarray

    @classmethod
    def between(cls, before_m: np.ndarray, before_yaw_deg: float, now_m: np.ndarray, now_yaw_deg: float) -> "Motion":
        """The motion between two level poses.

        Args:
            before_m: Position ``(x, y, height)`` in the world, metres.
            before_yaw_deg: Degrees anticlockwise from the world's x axis.
            now_m: Likewise.
            now_yaw_deg: Likewise.
        """
        to_before, to_now = _axes(before_yaw_deg), _axes(now_yaw_deg)
        return cls(to_now @ to_before.T, to_now @ (np.asarray(before_m, np.float64) - np.asarray(now_m, np.float64)))

    def move_depth(self, depth_m: np.ndarray, rays: np.ndarray) -> np.ndarray:
        """Depth now of points that were seen at a depth before.

        Args:
            depth_m: ``(...)``.
            rays: ``(..., 3)`` of the frame before, with z = 1.
        """
        return (rays @ self.rotation[2]) * depth_m + self.translation_m[2]

    def turn_normals(self, normals: np.ndarray) -> np.ndarray:
        """Normals in the axes of the camera now, of surfaces whose normals were seen before.

        Args:
            normals: ``(..., 3)`` in the axes that maps of normals have: x right, y up, z towards the viewer.
        """
        return (normals * _OF_MAPS) @ self.rotation.T * _OF_MAPS


def _axes(yaw_deg: float) -> np.ndarray:
    """Rotation ``(3, 3)`` from the world (x, y, height) to a level camera."""
    cos, sin = np.cos(np.deg2rad(yaw_deg)), np.sin(np.deg2rad(yaw_deg))
    return np.array([[sin, -cos, 0], [0, 0, -1], [cos, sin, 0]])


@dataclass(frozen=True)
class Flow:
    """Where the surface behind each pixel of a frame was in the frame before.

    Attributes:
        offset_px: ``(H, W, 2)`` float32, columns and rows from the pixel to the place before; 0 where nothing is known.
        visible: ``(H, W)`` bool: it was in the frame before and nothing stood before it.
    """

    offset_px: np.ndarray
    visible: np.ndarray


def pixel_rays(size: tuple[int, int], intrinsics: np.ndarray, offset: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    """Rays ``(H, W, 3)`` with z = 1.

    Args:
        size: ``(H, W)``.
        intrinsics: ``fx, fy, cx, cy`` in pixels, the centre of the first pixel at (0.5, 0.5).
        offset: Where in a pixel its ray passes, from the left and from the top.
    """
    fx, fy, cx, cy = intrinsics
    columns, rows = np.meshgrid(np.arange(size[1]) + offset[0], np.arange(size[0]) + offset[1])
    return np.stack([(columns - cx) / fx, (rows - cy) / fy, np.ones(size)], -1)


def backward_flow(
    depth_now_m: np.ndarray,
    depth_before_m: np.ndarray,
    motion: Motion,
    intrinsics: np.ndarray,
    offset: tuple[float, float] = (0.5, 0.5),
) -> Flow:
    """The flow of a scene that stands still, from true depth.

    A place counts as visible if its distance from the camera before lies among the depths of the four pixels around it there, give
    or take 2 %: a floor seen at a grazing angle does, what was hidden does not.

    Args:
        depth_now_m: ``(H, W)`` along the optical axis; infinite for sky, which turns with the camera and does not come nearer;
            0 where unknown.
        depth_before_m: Likewise, of the frame before.
        motion: From the frame before to this one.
        intrinsics: ``fx, fy, cx, cy`` of both.
        offset: Where in a pixel its ray passes.
    """
    height, width = depth_now_m.shape
    rays, sky, known = pixel_rays((height, width), intrinsics, offset), np.isinf(depth_now_m), depth_now_m > 0
    points = rays * np.where(sky, 1.0, depth_now_m)[..., None]
    points = (points - np.where(sky[..., None], 0, motion.translation_m)) @ motion.rotation  # the inverse is the transpose
    fx, fy, cx, cy = intrinsics
    ahead = points[..., 2] > 1e-3
    distance = np.where(ahead, points[..., 2], 1.0)
    columns = points[..., 0] / distance * fx + cx - offset[0]  # of the grid: 0 is the ray of the first pixel
    rows = points[..., 1] / distance * fy + cy - offset[1]
    inside = known & ahead & (columns >= 0) & (columns <= width - 1) & (rows >= 0) & (rows <= height - 1)
    column, row = np.where(inside, columns, 0), np.where(inside, rows, 0)
    around = np.stack(
        [
            depth_before_m[one(row).astype(int), other(column).astype(int)]
            for one in (np.floor, np.ceil)
            for other in (np.floor, np.ceil)
        ]
    )
    nearest = np.where(around > 0, around, np.inf).min(0)
    expected = np.where(sky, np.inf, distance)
    visible = inside & (around > 0).any(0) & (expected <= around.max(0) * (1 + _MARGIN)) & (expected >= nearest * (1 - _MARGIN))
    grid_columns, grid_rows = np.meshgrid(np.arange(width), np.arange(height))
    found = np.stack([columns - grid_columns, rows - grid_rows], -1)
    return Flow(np.where((known & ahead)[..., None], found, 0).astype(np.float32), visible)
