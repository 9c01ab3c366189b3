"""Convex upsampling: every pixel of the map is a weighted mean of the cells around it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

FACTOR = 4
"""Pixels of the map for each side of a cell."""

_NEIGHBOURS = 9
# Weight that neighbours begin with where bilinear interpolation gives them none: small, yet with a gradient.
_LEAST_WEIGHT = 1e-4

Mix = Callable[[Tensor], Tensor]
"""Values at cells ``(N, K, h, w)`` -> means of them at pixels ``(N, K, 4h, 4w)``."""


class ConvexUpsampling(nn.Module):
    """Learns from the decoder's tokens how the pixels of a cell are mixed from it and its eight neighbours.

    Teed & Deng (2020), "RAFT", sec. 3.3, x4 in place of x8. Unlike bilinear interpolation it can put an edge between two pixels.
    The weights are positive and sum to one, so a pixel never leaves the range of its surroundings. What the network says is added
    to the logarithms of the bilinear weights: an untrained model resizes nearly bilinearly (`resize_map`).

    Args:
        hidden_size: channels of the tokens.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(hidden_size, hidden_size, 3, padding=1)
        self.weights = nn.Conv2d(hidden_size, FACTOR * FACTOR * _NEIGHBOURS, 1)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Mix:
        """Tokens ``(N, h*w, C)`` -> a function that enlarges any values at their cells."""
        maps = tokens.transpose(1, 2).unflatten(2, size)
        z = self.weights(functional.relu(self.hidden(maps)))
        z = z.to(torch.promote_types(z.dtype, torch.float32)).unflatten(1, (FACTOR * FACTOR, _NEIGHBOURS))
        prior = bilinear_weights().clamp(min=_LEAST_WEIGHT).log().to(z)
        weights = (z + prior[:, :, None, None]).softmax(2)  # (N, 16, 9, h, w)
        return lambda values: mix_neighbours(values, weights)


def bilinear_weights() -> Tensor:
    """Weights ``(16, 9)`` with which bilinear interpolation mixes the cells around the 16 pixels of a cell, row by row."""
    offset = (torch.arange(FACTOR, dtype=torch.float64) + 0.5) / FACTOR - 0.5  # from the middle of the cell, in cells
    line = (1 - (offset[:, None] - torch.arange(-1, 2)).abs()).clamp(min=0)  # (4, 3)
    return torch.einsum("yi,xj->yxij", line, line).reshape(FACTOR * FACTOR, _NEIGHBOURS)


def mix_neighbours(values: Tensor, weights: Tensor) -> Tensor:
    """Means of every cell and its neighbours; beyond the border the outermost cells go on.

    Args:
        values: ``(N, K, h, w)``.
        weights: ``(N, 16, 9, h, w)``, summing to one over the third axis; pixels and neighbours row by row.

    Returns:
        ``(N, K, 4h, 4w)``.
    """
    height, width = values.shape[-2:]
    padded = functional.pad(values, (1, 1, 1, 1), mode="replicate")
    total = values.new_zeros(())
    for neighbour in range(_NEIGHBOURS):  # one after the other: all at once would take nine times the memory
        top, left = divmod(neighbour, 3)
        shifted = padded[:, :, None, top : top + height, left : left + width]
        total = total + shifted * weights[:, None, :, neighbour]
    pixels = total.unflatten(2, (FACTOR, FACTOR))  # (N, K, 4, 4, h, w)
    return pixels.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)
