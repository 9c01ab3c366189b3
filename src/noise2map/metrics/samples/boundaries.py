"""Sharpness: boundaries of depth and of classes, and pixels that fly between two surfaces."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

FLYING_WINDOW = 5  # pixels
FLYING_TOLERANCE = 0.1  # relative
FLYING_JUMP = 1.25  # ratio of depths in a window that makes an edge

THRESHOLDS = tuple(1.05 + 0.2 * k / 9 for k in range(10))


def _neighbors(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Each pixel and the one before it along an axis."""
    return x.narrow(axis, 1, x.shape[axis] - 1), x.narrow(axis, 0, x.shape[axis] - 1)


def boundary_f1(prediction_m: Tensor, depth_m: Tensor, valid: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> Tensor:
    """Boundary F1 of depth maps (Depth Pro: Bochkovskii et al. 2024, Sec. 3.2).

    Two neighbors are a boundary where one is more than ``t`` times as far as the other, and which one says its direction, of four.
    Precision and recall of the predicted boundaries, without tolerance in place, are averaged over directions, their F1 over
    ``t = 1.05 .. 1.25`` with weights proportional to ``t``. It does not depend on the scale of a map.

    Args:
        prediction_m: ``(B, H, W)``, above 0 where valid.
        depth_m: ``(B, H, W)``, likewise.
        valid: Which pixels count ``(B, H, W)``, bool; a pair counts when both do.
        thresholds: Ratios ``t``.

    Returns:
        ``(B,)`` float64; NaN where no threshold finds a true boundary.
    """
    prediction_log = torch.where(valid, prediction_m, 1).double().log()
    depth_log = torch.where(valid, depth_m, 1).double().log()
    total = torch.zeros(len(depth_m), dtype=torch.float64, device=depth_m.device)
    found = torch.zeros_like(total, dtype=torch.bool)
    for t in thresholds:
        precision, recall = torch.zeros_like(total), torch.zeros_like(total)
        for axis in (-1, -2):
            near, far = _neighbors(valid, axis)
            both = near & far
            said, true = ((a - b) for a, b in (_neighbors(prediction_log, axis), _neighbors(depth_log, axis)))
            for sign in (1, -1):
                predicted, actual = both & (sign * said > math.log(t)), both & (sign * true > math.log(t))
                hits = (predicted & actual).sum((1, 2))
                precision += hits / predicted.sum((1, 2)).clamp_min(1) / 4
                recall += hits / actual.sum((1, 2)).clamp_min(1) / 4
                found |= actual.any(-1).any(-1)
        total += t * 2 * precision * recall / (precision + recall).clamp_min(1e-12)
    return torch.where(found, total / sum(thresholds), torch.nan)


def label_edges(labels: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of neighbors, and those with different labels.

    Args:
        labels: ``(B, H, W)``, or layers ``(B, K, H, W)``.
        valid: Of the same shape, bool; a pair counts when both pixels do.

    Returns:
        Edges and pairs, bool ``(B, P)``, in one order.
    """
    edges, pairs = [], []
    for axis in (-1, -2):
        a, b = _neighbors(labels, axis)
        both = torch.logical_and(*_neighbors(valid, axis))
        edges.append(((a != b) & both).flatten(1))
        pairs.append(both.flatten(1))
    return torch.cat(edges, 1), torch.cat(pairs, 1)


def edge_f1(predicted: Tensor, actual: Tensor) -> Tensor:
    """F1 of edges `label_edges`, without tolerance in place: ``(B, P)`` twice -> ``(B,)`` float64, NaN without a true edge."""
    hits, said, true = ((x.sum(1).double()) for x in (predicted & actual, predicted, actual))
    return torch.where(true > 0, 2 * hits / (said + true).clamp_min(1), torch.nan)


def flying_pixels(prediction_m: Tensor, depth_m: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels at depth edges whose depth is that of neither side: in a point cloud they hang in the air.

    At an edge, true depths of the 5x5 window around a pixel have a ratio above 1.25. The pixel flies where its predicted depth is
    between the window's nearest and farthest, and more than 10 % from every true depth of it.

    Args:
        prediction_m: ``(B, H, W)``, above 0 where valid.
        depth_m: ``(B, H, W)``, likewise.
        valid: Which pixels count ``(B, H, W)``, bool.

    Returns:
        Flying pixels and pixels at edges, bool ``(B, H, W)``.
    """
    log_true = torch.where(valid, depth_m, torch.nan).log()
    margin = FLYING_WINDOW // 2
    padded = functional.pad(log_true, (margin,) * 4, value=torch.nan)
    height, width = depth_m.shape[-2:]
    log_said = torch.where(valid, prediction_m, 1).log()
    tolerance = math.log1p(FLYING_TOLERANCE)
    low, high = torch.full_like(log_said, torch.inf), torch.full_like(log_said, -torch.inf)
    close = torch.zeros_like(valid)
    for row in range(FLYING_WINDOW):
        for column in range(FLYING_WINDOW):
            near = padded[..., row : row + height, column : column + width]
            low, high = torch.fmin(low, near), torch.fmax(high, near)
            close |= (log_said - near).abs() <= tolerance  # False for NaN
    edge = valid & (high - low > math.log(FLYING_JUMP))
    return edge & ~close & (log_said > low) & (log_said < high), edge
