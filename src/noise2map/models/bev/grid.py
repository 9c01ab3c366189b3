"""The grids of a bird's-eye view, and the way from one to another.

Maps are indexed ``[..., x, y]``: rows run along LiDAR x (to the right of the car in nuScenes), columns along y (forward), the
first cell at the lowest coordinate.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Bounds(NamedTuple):
    """An axis cut into cells: lower and upper border and the size of a cell, metres."""

    lower: float
    upper: float
    step: float

    @property
    def count(self) -> int:
        """Number of cells."""
        return round((self.upper - self.lower) / self.step)

    def centers(self, device: torch.device | None = None) -> Tensor:
        """Centres of the cells ``(count,)``, metres."""
        return torch.arange(self.count, device=device, dtype=torch.float32) * self.step + (self.lower + self.step / 2)


class GridTransform(nn.Module):
    """Resamples features from one grid to another that lies inside it, bilinearly; zero outside.

    Args:
        source: axes x and y that the features cover (their own cell size follows from their number of cells).
        target: axes x and y of the result.
    """

    def __init__(self, source: tuple[Bounds, Bounds], target: tuple[Bounds, Bounds]) -> None:
        super().__init__()
        self.source, self.target = source, target

    def forward(self, features: Tensor) -> Tensor:
        """``(N, C, h, w)`` -> ``(N, C, X, Y)``."""
        x, y = (
            (cells.centers(features.device) - frame.lower) / (frame.upper - frame.lower) * 2 - 1
            for frame, cells in zip(self.source, self.target)
        )
        rows, columns = torch.meshgrid(x, y, indexing="ij")
        dtype = torch.promote_types(features.dtype, torch.float32)  # half precision could not even name a cell
        grid = torch.stack([columns, rows], dim=-1).to(dtype).expand(features.shape[0], -1, -1, -1)
        out = functional.grid_sample(features.to(dtype), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return out.to(features.dtype)
