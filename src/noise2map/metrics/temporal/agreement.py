"""Agreement of the maps of two consecutive frames, where the true motion of every pixel is known."""

import torch
from torch import Tensor

from noise2map.metrics.normals import angular_error, normals_valid


def warp_nearest(before: Tensor, offset_px: Tensor) -> Tensor:
    """Values of a frame at the places where the pixels of the next frame were, the nearest pixel of each.

    Args:
        before: ``(H, W)`` or ``(H, W, C)``.
        offset_px: ``(H, W, 2)``, columns and rows from a pixel of the next frame to its place before.

    Returns:
        Like ``before``, on the pixels of the next frame; places outside take the value of the edge.

    Raises:
        ValueError: if the sizes differ.
    """
    if offset_px.shape != (*before.shape[:2], 2):
        raise ValueError(f"flow of shape {tuple(offset_px.shape)} for a map {tuple(before.shape)}; expected (H, W, 2)")
    height, width = before.shape[:2]
    rows = torch.arange(height, device=before.device)[:, None] + offset_px[..., 1].round().long()
    columns = torch.arange(width, device=before.device)[None] + offset_px[..., 0].round().long()
    return before[rows.clamp(0, height - 1), columns.clamp(0, width - 1)]


def class_disagreement(before: Tensor, now: Tensor, offset_px: Tensor, visible: Tensor) -> tuple[int, int]:
    """Pixels whose class differs from that of the same surface in the frame before.

    Args:
        before: class ids ``(H, W)`` of the frame before.
        now: class ids ``(H, W)``.
        offset_px: see `warp_nearest`.
        visible: ``(H, W)`` bool, pixels that count.

    Returns:
        How many differ, and how many count.
    """
    differ = (warp_nearest(before, offset_px) != now) & visible
    return int(differ.sum()), int(visible.sum())


def depth_disagreement(moved_m: Tensor, now_m: Tensor, offset_px: Tensor, visible: Tensor) -> tuple[float, int]:
    """Differences of log depth from the depth of the same surface in the frame before.

    Args:
        moved_m: metres ``(H, W)``: the map of the frame before on its own pixels, each depth moved to where the camera is now
            (`noise2map.data.freedoom.motion.Motion.move_depth`). Without the move, walking would count as disagreement.
        now_m: metres ``(H, W)``.
        offset_px: see `warp_nearest`.
        visible: ``(H, W)`` bool, pixels that count; those whose moved depth is not positive are left out.

    Returns:
        Sum of ``|log now - log moved|``, and how many pixels count.
    """
    moved = warp_nearest(moved_m, offset_px)
    counted = visible & (moved > 0) & (now_m > 0)
    difference = (torch.where(counted, now_m, 1).log() - torch.where(counted, moved, 1).log()).abs()
    return float(difference.double().sum()), int(counted.sum())


def normals_disagreement(turned: Tensor, now: Tensor, offset_px: Tensor, visible: Tensor) -> tuple[float, int]:
    """Angles between normals and those of the same surface in the frame before.

    Args:
        turned: unit vectors ``(H, W, 3)``: the map of the frame before on its own pixels, each turned into the axes that the
            camera has now (`noise2map.data.freedoom.motion.Motion.turn_normals`), zero where unknown. Without the turn, turning
            the camera would count as disagreement.
        now: unit vectors ``(H, W, 3)``, zero where unknown.
        offset_px: see `warp_nearest`.
        visible: ``(H, W)`` bool, pixels that count; those without a normal in one of the frames are left out.

    Returns:
        Sum of the angles in degrees, and how many pixels count.
    """
    before = warp_nearest(turned, offset_px)
    pair = [one.movedim(-1, 0)[None] for one in (before, now)]
    counted = visible & normals_valid(pair[0])[0] & normals_valid(pair[1])[0]
    angles = angular_error(*pair)[0]
    return float(angles[counted].sum()), int(counted.sum())
