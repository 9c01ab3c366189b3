"""From pixels to a bird's-eye view: every pixel spreads its features over depth, every cell adds up what falls into it.

The published code multiplies depth and features out into a volume of ``N D h w C`` numbers (1.3 GB for six cameras) and sums it by
cell. Here the points are sorted by cell once, and each cell's sum is taken straight from the two factors, so that the volume
never exists (Philion & Fidler 2020, "splat"; Liu et al. 2023).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from noise2map.models.bev.grid import Bounds


@dataclass(frozen=True)
class PoolingPlan:
    """Which point of the frustums of one rig falls into which cell. It changes only if the cameras move.

    Attributes:
        point: index of each kept point into ``(N, D, h, w)``, sorted by cell ``(P,)``, int32.
        pixel: index of its pixel into ``(N, h, w)``, ``(P,)``, int32.
        offsets: first kept point of each cell, and the number of all ``(Z*X*Y + 1,)``, int32; cells ordered z, x, y.
        shape: cells along z, x, y.
    """

    point: Tensor
    pixel: Tensor
    offsets: Tensor
    shape: tuple[int, int, int]

    def counts(self) -> Tensor:
        """Points in each cell ``(Z, X, Y)``."""
        return self.offsets.diff().view(self.shape)


def plan_pooling(points: Tensor, grid: tuple[Bounds, Bounds, Bounds]) -> PoolingPlan:
    """Sorts frustum points by cell.

    The index of a cell is the coordinate in cells **truncated toward zero**, as in the published code, not rounded down: points up
    to one cell below the grid count as its first cell. Weights were trained with it.

    Args:
        points: ``(N, D, h, w, 3)``, metres in the map's frame.
        grid: axes x, y and z.
    """
    _, depths, height, width, _ = points.shape
    lower = points.new_tensor([axis.lower + axis.step / 2 for axis in grid])  # the centre of the first cell
    step = points.new_tensor([axis.step for axis in grid])
    index = ((points.reshape(-1, 3) - (lower - step / 2)) / step).long()
    count_x, count_y, count_z = (axis.count for axis in grid)
    kept = ((index >= 0) & (index < index.new_tensor([count_x, count_y, count_z]))).all(-1)
    point = kept.nonzero().squeeze(1)
    x, y, z = index[point].unbind(-1)
    cell = (z * count_x + x) * count_y + y
    cell, order = torch.sort(cell, stable=True)
    point = point[order]
    counts = torch.bincount(cell, minlength=count_z * count_x * count_y)
    offsets = functional.pad(counts.cumsum(0), (1, 0))
    area = height * width
    pixel = point // (depths * area) * area + point % area
    return PoolingPlan(point.int(), pixel.int(), offsets.int(), (count_z, count_x, count_y))


def pool(plan: PoolingPlan, depth: Tensor, context: Tensor) -> Tensor:
    """Sum of depth x context over the points of each cell.

    Args:
        plan: from `plan_pooling`.
        depth: probability of each depth ``(N, D, h, w)``.
        context: features ``(N, C, h, w)``, of the same type.

    Returns:
        ``(Z*C, X, Y)``; an empty cell is 0.
    """
    weight = depth.reshape(-1).index_select(0, plan.point)
    table = context.movedim(1, -1).flatten(0, 2)
    # A bag is a cell: a segment sum of weighted rows of the table.
    sums = functional.embedding_bag(
        plan.pixel, table, plan.offsets, mode="sum", per_sample_weights=weight, include_last_offset=True
    )
    count_z, count_x, count_y = plan.shape
    return sums.view(count_z, count_x, count_y, -1).permute(0, 3, 1, 2).reshape(-1, count_x, count_y)
