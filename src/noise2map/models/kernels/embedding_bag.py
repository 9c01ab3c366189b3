"""Deformable sampling as sums over bags of rows, with a backward pass that scatters nothing.

Forward: the value map gets a border of zeros, so that every sampling position, once clamped to it, has four corners that
exist; each token and head is then one bag of ``4 * points`` rows of the map, summed by ``F.embedding_bag``, a tuned kernel on
CPU. Backward: with ``D`` the dot products of the incoming gradient with the four corners' rows, the gradients of weights and
positions are those of bilinear interpolation of ``D``. The gradient of the value map is a transposed sparse product; the
samples are sorted by the cell they fall in (a radix sort of small integers) and become bags themselves, one for each
cell and corner. No atomic additions, so the result does not depend on the number of threads.

Both passes are custom operators: ``torch.compile`` calls them as they are.
"""

import functools
import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def sample(value: Tensor, offsets: Tensor, weights: Tensor, base_grid: Tensor) -> Tensor:
    """The sum of :func:`noise2map.models.kernels.deformable_attention.deformable_sample`, same arguments and result."""
    batch, height, width, heads, channels = value.shape
    if torch.is_grad_enabled() and (value.requires_grad or offsets.requires_grad or weights.requires_grad):
        bags = _BagSample.apply(value, offsets, weights, base_grid)
    else:
        cell, x_part, y_part = _locate(value.shape[1:3], _images(value), *_positions(value, offsets, base_grid))
        corner_weights = _corner_weights(weights, x_part, y_part).to(value.dtype)
        bags = _sum_bags(pad_map(value, value.dtype), _corner_rows(cell, width), corner_weights)
    return bags.view(batch, height * width, heads * channels)


def sample_at(padded: Tensor, offsets: Tensor, weights: Tensor, pixels: Tensor, images: Tensor) -> Tensor:
    """The sum of :func:`sample` at some pixels alone, without gradients.

    Args:
        padded: Value maps with a border of zeros, from :func:`pad_map`, ``(B, h + 2, w + 2, heads, d)``.
        offsets: ``(M, heads, points, 2)`` in pixels, relative to each query's own pixel.
        weights: ``(M, heads, points)``.
        pixels: Column and row of each query, ``(M, 2)``.
        images: Its image, ``(M,)``, from 0 to B - 1.

    Returns:
        ``(M, heads * d)``.
    """
    height, width = padded.shape[1] - 2, padded.shape[2] - 2
    grid = pixels.to(_position_type(padded, offsets))[:, None, None, :]
    x, y = offsets[..., 0] + grid[..., 0], offsets[..., 1] + grid[..., 1]
    cell, x_part, y_part = _locate((height, width), images.int().view(-1, 1, 1), x, y)
    corner_weights = _corner_weights(weights, x_part, y_part).to(padded.dtype)
    return _sum_bags(padded, _corner_rows(cell, width), corner_weights).view(len(offsets), -1)


class _BagSample(torch.autograd.Function):
    """The same sum, ``(B * h * w * heads, d)``, with its gradients.

    Arithmetic in float32 (float64 for float64) also for half-precision tensors.
    """

    @staticmethod
    def forward(ctx, value: Tensor, offsets: Tensor, weights: Tensor, base_grid: Tensor) -> Tensor:
        bags, *saved = bag_forward(value, offsets, weights, base_grid)
        ctx.save_for_backward(weights, *saved)
        ctx.types = value.dtype, offsets.dtype, weights.dtype
        return bags

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        gradients = bag_backward(gradient, *ctx.saved_tensors)
        value, offsets, weights = (tensor.to(dtype) for tensor, dtype in zip(gradients, ctx.types))
        return value, offsets, weights, None


@torch.library.custom_op("noise2map::bag_forward", mutates_args=())
def bag_forward(
    value: Tensor, offsets: Tensor, weights: Tensor, base_grid: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The sums and what their gradients need.

    Returns:
        Sums ``(B * h * w * heads, d)``; the padded map; for every sample ``(B, h * w, heads, points)`` the row of its upper left
        corner, its position in the cell in x and y, and whether x and y are inside the map; rows and weights of the
        corners ``(B, h * w, heads, 4, points)``.
    """
    x, y = _positions(value, offsets, base_grid)
    x_inside, y_inside = (x > -1) & (x < value.shape[2]), (y > -1) & (y < value.shape[1])
    cell, x_part, y_part = _locate(value.shape[1:3], _images(value), x, y)
    corner_weights = _corner_weights(weights, x_part, y_part)
    rows, padded = _corner_rows(cell, value.shape[2]), pad_map(value, x_part.dtype)
    bags = _sum_bags(padded, rows, corner_weights)
    return bags.to(value.dtype), padded, cell, x_part, y_part, x_inside, y_inside, rows, corner_weights


@bag_forward.register_fake
def _(value: Tensor, offsets: Tensor, weights: Tensor, base_grid: Tensor) -> tuple[Tensor, ...]:
    batch, height, width, heads, channels = value.shape
    points = weights.shape[-1]
    dtype = _position_type(value, offsets)
    sample_shape = batch, height * width, heads, points
    corner_shape = batch, height * width, heads, 4, points
    return (
        value.new_empty(batch * height * width * heads, channels),
        value.new_empty(batch, height + 2, width + 2, heads, channels, dtype=dtype),
        *(value.new_empty(sample_shape, dtype=kind) for kind in (torch.int32, dtype, dtype, torch.bool, torch.bool)),
        value.new_empty(corner_shape, dtype=torch.int32),
        value.new_empty(corner_shape, dtype=dtype),
    )


@torch.library.custom_op("noise2map::bag_backward", mutates_args=())
def bag_backward(
    gradient: Tensor,
    weights: Tensor,
    padded: Tensor,
    cell: Tensor,
    x_part: Tensor,
    y_part: Tensor,
    x_inside: Tensor,
    y_inside: Tensor,
    rows: Tensor,
    corner_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value ``(B, h, w, heads, d)``, offsets and weights, given that of the sums and :func:`bag_forward`'s."""
    _, _, padded_width, heads, channels = padded.shape
    points = cell.shape[-1]
    gradient = gradient.to(padded.dtype).contiguous()
    table = padded.view(-1, channels)
    dots = _row_dots(gradient, table, rows.view(-1, 4 * points)).view_as(corner_weights)
    upper_left, upper_right, lower_left, lower_right = dots.unbind(dim=-2)
    upper_slope, lower_slope = upper_right - upper_left, lower_right - lower_left
    upper, lower = torch.addcmul(upper_left, upper_slope, x_part), torch.addcmul(lower_left, lower_slope, x_part)
    x_slope, y_slope = torch.lerp(upper_slope, lower_slope, y_part), lower - upper
    weight_gradient = torch.addcmul(upper, y_slope, y_part)
    # Where a position was clamped, it has no influence.
    offset_gradient = torch.stack((x_slope * x_inside, y_slope * y_inside), dim=-1).mul_(weights.unsqueeze(-1))
    value_gradient = _transposed_bags(
        gradient, cell.view(-1), corner_weights.view(-1, 4, points), len(table), _steps(heads, padded_width - 2)
    )
    value_gradient = value_gradient.view_as(padded)[:, 1:-1, 1:-1].contiguous()
    return value_gradient, offset_gradient, weight_gradient


@bag_backward.register_fake
def _(gradient: Tensor, weights: Tensor, padded: Tensor, cell: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, height, width, heads, channels = padded.shape
    value_gradient = padded.new_empty(batch, height - 2, width - 2, heads, channels)
    return value_gradient, padded.new_empty(*cell.shape, 2), padded.new_empty(cell.shape)


def _position_type(value: Tensor, offsets: Tensor) -> torch.dtype:
    """Half-precision coordinates could not even name a pixel."""
    return torch.promote_types(torch.promote_types(value.dtype, offsets.dtype), torch.float32)


def pad_map(value: Tensor, dtype: torch.dtype) -> Tensor:
    """``(B, h, w, heads, d)`` with a border of zeros, ``(B, h + 2, w + 2, heads, d)``."""
    batch, height, width, heads, channels = value.shape
    padded = value.new_zeros(batch, height + 2, width + 2, heads, channels, dtype=dtype)
    padded[:, 1:-1, 1:-1] = value
    return padded


def _positions(value: Tensor, offsets: Tensor, base_grid: Tensor) -> list[Tensor]:
    """Columns and rows where the samples are, ``(B, h * w, heads, points)`` each."""
    grid = base_grid.to(_position_type(value, offsets))[:, None, None, :]
    return [offsets[..., axis] + grid[..., axis] for axis in (0, 1)]


def _images(value: Tensor) -> Tensor:
    """Number of the image of each query of value maps ``(B, h, w, heads, d)``, ``(B, 1, 1, 1)`` int32."""
    return torch.arange(value.shape[0], dtype=torch.int32, device=value.device).view(-1, 1, 1, 1)


def _locate(size: Sequence[int], images: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Upper left corner of each sampling position as a row of the padded map (int32), and where in its cell it is.

    Positions are ``(..., heads, points)`` in maps of height and width ``size``; images are int32 and broadcast to them.
    """
    height, width = size
    heads = x.shape[-2]
    corner, part = [], []
    for position, side in ((x, width), (y, height)):
        position = position.clamp(-1, side)
        # The second clamp also gives not-a-number an index that exists; the weights then carry it on.
        corner.append(position.floor().int().clamp(-1, side - 1))
        part.append(position - corner[-1])
    image = images * ((height + 2) * (width + 2))
    head = torch.arange(heads, dtype=torch.int32, device=x.device).view(-1, 1)
    left, top = corner
    return (top * (width + 2) + left + (image + width + 3)) * heads + head, part[0], part[1]


def _corner_weights(weights: Tensor, x_part: Tensor, y_part: Tensor) -> Tensor:
    """``(..., heads, 4, points)``: attention weight times bilinear weight, corners row by row."""
    lower = weights * y_part
    upper = weights - lower
    lower_right, upper_right = lower * x_part, upper * x_part
    return torch.stack((upper - upper_right, upper_right, lower - lower_right, lower_right), dim=-2)


def _steps(heads: int, width: int) -> list[int]:
    """Distances in rows of the padded map from the upper left corner to the four corners."""
    return [0, heads, (width + 2) * heads, (width + 3) * heads]


def _corner_rows(cell: Tensor, width: int) -> Tensor:
    """``(..., heads, 4, points)``: rows of the padded map, from the upper left corners ``(..., heads, points)``."""
    return torch.stack([cell + step for step in _steps(cell.shape[-2], width)], dim=-2)


def _sum_bags(padded: Tensor, rows: Tensor, corner_weights: Tensor) -> Tensor:
    """One bag per token and head: ``(B * h * w * heads, d)``."""
    bag = (-1, 4 * rows.shape[-1])
    table = padded.view(-1, padded.shape[-1])
    return F.embedding_bag(rows.view(bag), table, mode="sum", per_sample_weights=corner_weights.view(bag))


@functools.cache
def _quiet_sparse() -> None:
    """Make the one-time notice that compressed sparse tensors are in beta come and go unseen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 1], [0], [1.0], (1, 1))


def _row_dots(left: Tensor, right: Tensor, index: Tensor) -> Tensor:
    """Dot product of row ``i`` of ``left`` ``(n, d)`` with rows ``index[i]`` of ``right`` ``(m, d)``: ``(n, k)``."""
    if left.device.type != "cpu":
        return torch.einsum("nd,nkd->nk", left, right[index])
    _quiet_sparse()
    count, per_row = index.shape
    pattern = torch.sparse_csr_tensor(
        torch.arange(0, count * per_row + 1, per_row, dtype=index.dtype),
        index.view(-1),
        left.new_zeros(count * per_row),
        (count, right.shape[0]),
        check_invariants=False,
    )
    return torch.sparse.sampled_addmm(pattern, left, right.t(), beta=0.0).values().view(count, per_row)


def _transposed_bags(gradient: Tensor, cell: Tensor, corner_weights: Tensor, count: int, steps: list[int]) -> Tensor:
    """Sum over samples of corner weight times gradient, into the rows of the corners.

    Args:
        gradient: ``(n, d)``, one row per bag.
        cell: ``(n * points,)`` int32, row of each sample's upper left corner.
        corner_weights: ``(n, 4, points)``.
        count: Number of rows of the map.
        steps: Distance in rows from the upper left corner to each of the four.

    Returns:
        ``(count, d)``.
    """
    points = corner_weights.shape[-1]
    _, order = torch.sort(cell)
    ends = torch.bincount(cell, minlength=count).cumsum(0)
    starts = F.pad(ends[:-1], (1, 0)).to(cell.dtype)
    bag = torch.div(order, points, rounding_mode="floor").to(cell.dtype)
    total = None
    for corner, step in enumerate(steps):
        corner_weight = corner_weights[:, corner].reshape(-1).index_select(0, order)
        part = F.embedding_bag(bag, gradient, starts, mode="sum", per_sample_weights=corner_weight)
        if total is None:
            total = part
        else:
            total[step:] += part[: count - step]
    return total
