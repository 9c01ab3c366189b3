"""Polygons and thick lines on a pixel grid, drawn by OpenCV: bit for bit as the nuScenes tools draw them.

Both draw more than the exact coverage: outlines belong to a polygon, and every corner of a line gets a small cross. Coordinates are
``(column, row)``.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_THICKNESS = 2

Points = NDArray[np.int64]
Mask = NDArray[np.uint8]


def fill_polygon(mask: Mask, rings: Sequence[Points], value: int = 1) -> None:
    """Fill closed rings by the even-odd rule, outlines included, in place.

    Args:
        mask: ``(H, W)``.
        rings: integer corners ``(n, 2)`` each, all of one polygon or of a set of polygons.
        value: written to the covered pixels.

    Raises:
        ImportError: if OpenCV is not installed.
    """
    import cv2

    if len(rings):
        cv2.fillPoly(mask, [_corners(ring) for ring in rings], value)


def draw_polyline(mask: Mask, points: Points, value: int = 1) -> None:
    """Draw an open line two pixels thick through integer corners ``(n, 2)``, in place.

    Raises:
        ImportError: if OpenCV is not installed.
    """
    import cv2

    cv2.polylines(mask, [_corners(points)], False, value, _THICKNESS)


def _corners(points: Points) -> NDArray[np.int32]:
    return np.ascontiguousarray(points, np.int32).reshape(-1, 1, 2)
