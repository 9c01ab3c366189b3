"""Laws of rooms that a depth map in metres keeps or breaks; no reference set is needed."""

from noise2map.metrics.room_geometry.floor import FloorPlane, fit_floor
from noise2map.metrics.room_geometry.laws import EYE_HEIGHT_M, ROOM_SCORES, order_share, room_scores, upright_share

__all__ = ["EYE_HEIGHT_M", "ROOM_SCORES", "FloorPlane", "fit_floor", "order_share", "room_scores", "upright_share"]
