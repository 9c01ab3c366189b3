"""Sparse 3D convolution in plain PyTorch: gather, multiply, scatter-add, for one kernel offset at a time.

It is cross-correlation, like `conv3d`, evaluated at the active sites only. A *submanifold* convolution keeps the set of sites; a
strided one activates every site whose window holds an active one (Graham & van der Maaten 2017).
"""

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Pairs = list[tuple[Tensor, Tensor]]  # for each kernel offset: rows of the input, rows of the output

Triple = tuple[int, int, int]


@dataclass
class Sites:
    """Active sites of a batch of grids, sorted.

    Attributes:
        ranks: ``((b X + x) Y + y) Z + z`` of each site, ascending ``(V,)``, int64.
        shape: X, Y, Z.
        batch_size: B.
    """

    ranks: Tensor
    shape: Triple
    batch_size: int
    _submanifold: dict[Triple, Pairs] = field(default_factory=dict, repr=False)

    def coordinates(self) -> Tensor:
        """``(V, 4)``: sample, x, y, z."""
        x, y, z = self.shape
        rest = self.ranks
        columns = []
        for size in (z, y, x):
            columns.append(rest % size)
            rest = torch.div(rest, size, rounding_mode="floor")
        return torch.stack([rest, *reversed(columns)], dim=-1)

    def submanifold_pairs(self, kernel: Triple) -> Pairs:
        """Pairs of a centred kernel whose outputs are these sites themselves; computed once for a set of sites."""
        if kernel not in self._submanifold:
            place, rows = self.coordinates()[:, 1:], torch.arange(len(self.ranks), device=self.ranks.device)
            found: dict[Triple, tuple[Tensor, Tensor]] = {(0, 0, 0): (rows, rows)}
            shifts = [tuple(o - k // 2 for o, k in zip(offset, kernel)) for offset in _offsets(kernel)]
            for x, y, z in shifts:
                if (-x, -y, -z) in found:  # who is my neighbour has me for a neighbour
                    found[x, y, z] = found[-x, -y, -z][::-1]
                else:
                    found[x, y, z] = self._neighbours(place, (x, y, z))
            self._submanifold[kernel] = [found[x, y, z] for x, y, z in shifts]
        return self._submanifold[kernel]

    def _neighbours(self, place: Tensor, shift: Triple) -> tuple[Tensor, Tensor]:
        """Rows of the sites that lie a shift away from others, and the rows of these; ``place`` is x, y, z of all."""
        moved = place + place.new_tensor(shift)
        inside = ((moved >= 0) & (moved < moved.new_tensor(self.shape))).all(-1)
        ranks = self.ranks + ((shift[0] * self.shape[1] + shift[1]) * self.shape[2] + shift[2])
        found = torch.searchsorted(self.ranks, ranks).clamp(max=len(self.ranks) - 1)
        hit = (inside & (self.ranks[found] == ranks)).nonzero().squeeze(1)
        return found[hit], hit

    def strided(self, kernel: Triple, stride: Triple, padding: Triple) -> tuple["Sites", Pairs]:
        """Sites and pairs of a strided convolution."""
        coordinates = self.coordinates()
        shape = tuple((n + 2 * p - k) // s + 1 for n, k, s, p in zip(self.shape, kernel, stride, padding))
        limit, steps = coordinates.new_tensor(shape), coordinates.new_tensor(stride)
        inputs, ranks = [], []
        for offset in _offsets(kernel):
            top = coordinates[:, 1:] + coordinates.new_tensor([p - o for p, o in zip(padding, offset)])
            out = torch.div(top, steps, rounding_mode="floor")
            row = ((top == out * steps) & (out >= 0) & (out < limit)).all(-1).nonzero().squeeze(1)
            inputs.append(row)
            ranks.append(rank_of(torch.cat([coordinates[row, :1], out[row]], dim=1), shape))
        active, where = torch.unique(torch.cat(ranks), return_inverse=True)
        outputs = where.split([len(row) for row in inputs])
        return Sites(active, shape, self.batch_size), list(zip(inputs, outputs))


def rank_of(coordinates: Tensor, shape: Triple) -> Tensor:
    """``(V, 4)`` sample, x, y, z -> ``(V,)``."""
    sample, x, y, z = coordinates.unbind(-1)
    return ((sample * shape[0] + x) * shape[1] + y) * shape[2] + z


def _offsets(kernel: Triple) -> list[Triple]:
    return list(itertools.product(*map(range, kernel)))


class _PairConvolution(torch.autograd.Function):
    """Keeps only the input for the backward pass, not what was gathered from it for every offset."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, pairs: Pairs, count: int) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.pairs = pairs
        out = features.new_zeros(count, weight.shape[-1])
        for (source, target), matrix in zip(pairs, weight):
            if len(source):
                out.index_add_(0, target, (features[source] @ matrix).to(out.dtype))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        features, weight = ctx.saved_tensors
        grad_features, grad_weight = torch.zeros_like(features), torch.zeros_like(weight)
        for k, (source, target) in enumerate(ctx.pairs):
            if len(source):
                part = grad[target]
                grad_features.index_add_(0, source, (part @ weight[k].T).to(features.dtype))
                grad_weight[k] = features[source].T @ part
        return grad_features, grad_weight, None, None


class SparseConv3d(nn.Module):
    """Sparse convolution without bias; the weight is ``(kx, ky, kz, C_in, C_out)``, as in the published state dict.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        kernel: size along x, y, z.
        stride: `None` for a submanifold convolution.
        padding: of a strided convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Triple = (3, 3, 3),
        stride: Triple | None = None,
        padding: Triple = (0, 0, 0),
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.weight = nn.Parameter(torch.empty(*kernel, in_channels, out_channels))
        self.reset_parameters()

    @property
    def bound(self) -> float:
        """Bound of the uniform initialisation: the published one, which is smaller than usual."""
        return 1 / math.sqrt(self.weight[0].numel())

    def reset_parameters(self) -> None:
        """Draws fresh weights."""
        nn.init.uniform_(self.weight, -self.bound, self.bound)

    def forward(self, features: Tensor, sites: Sites) -> tuple[Tensor, Sites]:
        """``(V, C_in)`` at sites -> ``(V', C_out)`` and its sites."""
        if self.stride is None:
            out_sites, pairs = sites, sites.submanifold_pairs(self.kernel)
        else:
            out_sites, pairs = sites.strided(self.kernel, self.stride, self.padding)
        weight = self.weight.flatten(0, 2).to(features.dtype)
        return _PairConvolution.apply(features, weight, pairs, len(out_sites.ranks)), out_sites


class SiteNorm(nn.BatchNorm1d):
    """Batch normalisation over the active sites.

    On the CPU, torch adds up the rows of a `(V, C)` matrix in float32, which puts the output at 77,000 sites off by 7e-6; along the
    last axis of `(1, C, V)` it accumulates in float64.
    """

    def forward(self, features: Tensor) -> Tensor:
        """``(V, C)`` -> the same."""
        if not self.training or features.device.type != "cpu":
            return super().forward(features)
        return super().forward(features.T[None])[0].T.contiguous()


def to_dense(features: Tensor, sites: Sites) -> Tensor:
    """``(V, C)`` at sites -> ``(B, C, X, Y, Z)``, zero elsewhere."""
    x, y, z = sites.shape
    dense = features.new_zeros(sites.batch_size * x * y * z, features.shape[1])
    return dense.index_copy(0, sites.ranks, features).view(sites.batch_size, x, y, z, -1).movedim(-1, 1)
