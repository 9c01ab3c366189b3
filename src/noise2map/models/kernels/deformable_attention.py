"""Deformable attention's sampling step in plain PyTorch: every pixel reads a few points near itself from a value map.

The arithmetic is that of one level of deformable attention (Zhu et al. 2021, eq. 2) with the queries being the pixels of
the map themselves: query ``(row, column)`` reads the value map bilinearly, zero outside, at ``(column + dx, row + dy)`` for
each of its points and adds up what it read with the attention weights. Three formulations give the same numbers at
different speeds, with and without gradients, compiled or not; ``docs/speed.md`` has the measurements.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from noise2map.models.kernels import embedding_bag as deformable_bags
from noise2map.models.kernels import exporting

FORMULATIONS = ("auto", "gather", "embedding_bag", "grid_sample")


def pixel_grid(height: int, width: int, device: torch.device | str | None = None) -> Tensor:
    """Column and row of every pixel, row-major, as ``(height * width, 2)`` float32 in the order ``(x, y)``."""
    columns, rows = torch.arange(width, device=device), torch.arange(height, device=device)
    return torch.stack((columns.expand(height, width), rows[:, None].expand(height, width)), dim=-1).view(-1, 2).float()


def deformable_sample(
    value: Tensor, offsets: Tensor, weights: Tensor, formulation: str = "auto", base_grid: Tensor | None = None
) -> Tensor:
    """Weighted sum of bilinear samples of ``value`` around every pixel of its own grid.

    Args:
        value: ``(B, h, w, heads, d)``, as a linear layer on tokens ``(B, h * w, heads * d)`` gives it.
        offsets: ``(B, h * w, heads, points, 2)`` in pixels of the value map, order ``(x, y)``, relative to each query's own
            pixel centre; queries are the pixels, row-major. Any magnitude: what falls outside the map reads zero.
        weights: ``(B, h * w, heads, points)``, already normalised (softmax over points).
        formulation: ``"gather"`` (indexing that ``torch.compile`` fuses; inference), ``"embedding_bag"`` (the fastest on
            CPU, with and without gradients or compilation), ``"grid_sample"`` (the usual one) or ``"auto"``: by device,
            gradients, compilation and export.
        base_grid: :func:`pixel_grid` of the map, if the caller keeps one.

    Returns:
        ``(B, h * w, heads * d)`` in the type of ``value``. Positions and bilinear weights are computed in float32 (float64
        for float64).

    Raises:
        ValueError: If the shapes do not belong together or the formulation is unknown.
    """
    _check(value, offsets, weights, formulation)
    if formulation == "auto":
        formulation = _choose(value, offsets, weights)
    if base_grid is None:
        base_grid = pixel_grid(value.shape[1], value.shape[2], value.device)
    if formulation == "gather":
        return _sample_gather(value, offsets, weights, base_grid)
    if formulation == "embedding_bag":
        return deformable_bags.sample(value, offsets, weights, base_grid)
    return _sample_grid(value, offsets, weights, base_grid)


def _check(value: Tensor, offsets: Tensor, weights: Tensor, formulation: str) -> None:
    if formulation not in FORMULATIONS:
        raise ValueError(f"formulation must be one of {', '.join(FORMULATIONS)}, got {formulation!r}")
    if value.ndim != 5:
        raise ValueError(f"value must be (B, h, w, heads, d), got shape {tuple(value.shape)}")
    batch, height, width, heads, _ = value.shape
    if weights.ndim != 4 or weights.shape[:3] != (batch, height * width, heads):
        raise ValueError(
            f"weights must be (B, h * w, heads, points) = ({batch}, {height * width}, {heads}, points), "
            f"got shape {tuple(weights.shape)}"
        )
    if offsets.shape != (*weights.shape, 2):
        raise ValueError(f"offsets must be {(*weights.shape, 2)}, got shape {tuple(offsets.shape)}")


def _choose(value: Tensor, offsets: Tensor, weights: Tensor) -> str:
    """The fastest formulation measured for the situation (docs/speed.md)."""
    if exporting():
        return "grid_sample"  # an operator of every runtime
    if value.device.type == "cpu":
        return "embedding_bag"
    needs_grad = torch.is_grad_enabled() and (value.requires_grad or offsets.requires_grad or weights.requires_grad)
    if needs_grad or value.device.type != "cuda":
        return "grid_sample"
    return "gather" if torch.compiler.is_compiling() else "embedding_bag"


def _sample_gather(value: Tensor, offsets: Tensor, weights: Tensor, base_grid: Tensor) -> Tensor:
    """Indexing of channel-contiguous vectors; compiled, the four corners and all points become one loop over outputs."""
    batch, height, width, heads, channels = value.shape
    tokens = value.reshape(batch, height * width, heads, channels)
    image = torch.arange(batch, device=value.device).view(-1, 1, 1, 1)
    head = torch.arange(heads, device=value.device).view(1, 1, -1, 1)
    total = None
    for index, weight in _corners(offsets, weights, base_grid, height, width):
        part = (tokens[image, index, head] * weight.unsqueeze(-1)).sum(dim=3)
        total = part if total is None else total + part
    return total.to(value.dtype).reshape(batch, height * width, heads * channels)


def _corners(offsets: Tensor, weights: Tensor, base_grid: Tensor, height: int, width: int) -> list[tuple[Tensor, Tensor]]:
    """Row-major pixel index and weight, both ``(B, h * w, heads, points)``, of the four pixels around each position.

    A corner outside the map gets weight zero and an index inside, so that reading it is harmless.
    """
    position = torch.promote_types(offsets.dtype, torch.float32)  # half precision could not even name a pixel
    grid = base_grid.to(position)[:, None, None, :]
    # Beyond one pixel outside nothing is read, so the clamp changes no value and keeps the conversion to integers defined.
    x = (offsets[..., 0].to(position) + grid[..., 0]).clamp(-1, width)
    y = (offsets[..., 1].to(position) + grid[..., 1]).clamp(-1, height)
    left, top = x.detach().floor(), y.detach().floor()
    right_part, lower_part = x - left, y - top
    weights = weights.to(position)
    left, top = left.long(), top.long()
    corners = []
    for row, row_weight in ((top, 1 - lower_part), (top + 1, lower_part)):
        row_weight = row_weight * weights * ((row >= 0) & (row < height))
        row_start = row.clamp(0, height - 1) * width
        for column, column_weight in ((left, 1 - right_part), (left + 1, right_part)):
            inside = (column >= 0) & (column < width)
            corners.append((row_start + column.clamp(0, width - 1), column_weight * row_weight * inside))
    return corners


def _sample_grid(value: Tensor, offsets: Tensor, weights: Tensor, base_grid: Tensor) -> Tensor:
    """The usual formulation on ``grid_sample``, one channel plane at a time."""
    batch, height, width, heads, channels = value.shape
    tokens, points = height * width, weights.shape[-1]
    position = torch.promote_types(value.dtype, torch.float32)
    at = (offsets.to(position) + base_grid.to(position)[:, None, None, :]) * 2 + 1
    grid = torch.stack((at[..., 0] / width - 1, at[..., 1] / height - 1), dim=-1)
    planes = value.permute(0, 3, 4, 1, 2).reshape(batch * heads, channels, height, width).to(position)
    sampled = F.grid_sample(planes, grid.transpose(1, 2).flatten(0, 1), align_corners=False)
    weights = weights.to(position).transpose(1, 2).reshape(batch * heads, 1, tokens, points)
    summed = (sampled * weights).sum(dim=-1)  # (B * heads, d, h * w)
    return summed.view(batch, heads * channels, tokens).transpose(1, 2).to(value.dtype)
