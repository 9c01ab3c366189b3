"""Proper scoring rules of a few samples, as training losses: what rewards a spread that is neither too small nor too large."""

import torch
from torch import Tensor
from torch.nn import functional

# 1 would be the fair score, which two members can minimise by any spread along directions that the truth does not see; below 1
# the loss stays bounded there ("almost fair", Lang et al. 2024, AIFS-CRPS).
FAIRNESS = 0.95
_POOLS = (2, 4, 8)
_STRIDES = (1, 2, 4)
_TINY = 1e-6
_KNOWN_SHARE = 0.3  # of a pool's cells, for the pool to count


def almost_fair_crps(members: Tensor, truth: Tensor, valid: Tensor, fairness: float = FAIRNESS) -> Tensor:
    """Continuous ranked probability score of m members, averaged over valid cells.

    ``mean_i |u_i - y| - fairness / (2 m (m - 1)) sum_{i != j} |u_i - u_j|``: with fairness 1 its expectation is the score of the
    distribution that the members are drawn from (Ferro 2014); with ``1 - 1/m`` it is that of the members as they are.

    Args:
        members: ``(B, m, h, w)``, m of at least 2.
        truth: ``(B, h, w)``.
        valid: ``(B, h, w)``, boolean.
        fairness: 0 to 1.

    Returns:
        Scalar; zero (with a graph) if nothing is valid.

    Raises:
        ValueError: if there are fewer than two members.
    """
    count = members.shape[1]
    if count < 2:
        raise ValueError(f"got {count} members; expected at least 2, the score needs pairs")
    error = (members - truth.unsqueeze(1)).abs().mean(1)
    pairs = (members.unsqueeze(1) - members.unsqueeze(2)).abs().sum((1, 2)) / (2 * count * (count - 1))
    score = (error - fairness * pairs) * valid
    return score.sum() / valid.sum().clamp(min=1)


def map_crps(members: Tensor, truth: Tensor, valid: Tensor, fairness: float = FAIRNESS) -> Tensor:
    """`almost_fair_crps` of cells, of means over blocks of 2, 4 and 8 cells, and of differences of cells 1, 2 and 4 apart.

    The score of cells alone does not see how cells hang together. The blocks score what is common to a region, the differences
    what happens at edges; each kind has half the weight of the cells.

    Args:
        members: ``(B, m, h, w)``.
        truth: ``(B, h, w)``; what it holds where it is not valid does not matter.
        valid: ``(B, h, w)``, boolean.
        fairness: see `almost_fair_crps`.

    Returns:
        Scalar.
    """
    truth = torch.where(valid, truth, 0)
    total = almost_fair_crps(members, truth, valid, fairness)
    known = valid.to(members.dtype).unsqueeze(1)
    for size in _POOLS:
        if min(truth.shape[-2:]) < size:
            continue
        share = functional.avg_pool2d(known, size, ceil_mode=True)
        pooled = functional.avg_pool2d(torch.cat([members, truth.unsqueeze(1)], 1) * known, size, ceil_mode=True)
        pooled = pooled / share.clamp(min=1e-3)
        total = total + 0.5 * almost_fair_crps(pooled[:, :-1], pooled[:, -1], share[:, 0] > _KNOWN_SHARE, fairness)
    for stride in _STRIDES:
        for dim in (-2, -1):
            length = truth.shape[dim] - stride
            if length < 1:
                continue
            ends = [(one.narrow(dim, stride, length), one.narrow(dim, 0, length)) for one in (members, truth, valid)]
            (u1, u0), (y1, y0), (v1, v0) = ends
            total = total + 0.5 * almost_fair_crps(u1 - u0, y1 - y0, v1 & v0, fairness)
    return total


def energy_score(members: Tensor, truth: Tensor, valid: Tensor, size: int, stride: int, fairness: float = FAIRNESS) -> Tensor:
    """Energy score of square patches (Gneiting & Raftery 2007, Sec. 4.3), averaged, per square root of a patch's valid cells.

    ``mean_i ||u_i - y|| - fairness / (2 m (m - 1)) sum_{i != j} ||u_i - u_j||`` with the norm over all cells and channels of a
    patch: unlike the score of single cells it sees how cells hang together.

    Args:
        members: ``(B, m, K, h, w)``, m of at least 2.
        truth: ``(B, K, h, w)``.
        valid: ``(B, h, w)``, boolean; other cells do not count.
        size: side of a patch, in cells.
        stride: distance of patches.
        fairness: see `almost_fair_crps`.

    Returns:
        Scalar.

    Raises:
        ValueError: if there are fewer than two members.
    """
    count = members.shape[1]
    if count < 2:
        raise ValueError(f"got {count} members; expected at least 2, the score needs pairs")
    known = valid.to(members.dtype).unsqueeze(1)

    def norm(difference: Tensor) -> Tensor:
        squares = (difference.square().sum(1, keepdim=True)) * known
        # The small term keeps the gradient of the root finite where two maps agree.
        return (functional.avg_pool2d(squares, size, stride) * size**2 + _TINY).sqrt()

    error = torch.stack([norm(members[:, i] - truth) for i in range(count)]).mean(0)
    pairs = [norm(members[:, i] - members[:, j]) for i in range(count) for j in range(i)]
    score = error - fairness * torch.stack(pairs).mean(0) / 2
    cells = functional.avg_pool2d(known, size, stride) * size**2
    weight = (cells > 0).to(score.dtype)
    return (score / cells.clamp(min=1).sqrt() * weight).sum() / weight.sum().clamp(min=1)


def map_energy_score(members: Tensor, truth: Tensor, valid: Tensor, fairness: float = FAIRNESS) -> Tensor:
    """`energy_score` of single cells (half the weight), of patches of 4 and 10 cells, and of patches of means over 2 and 4 cells.

    Args:
        members: ``(B, m, K, h, w)``.
        truth: ``(B, K, h, w)``.
        valid: ``(B, h, w)``, boolean.
        fairness: see `almost_fair_crps`.

    Returns:
        Scalar.
    """
    shortest = min(truth.shape[-2:])
    total = 0.5 * energy_score(members, truth, valid, 1, 1, fairness)
    for size in (4, 10):
        side = min(size, shortest)
        total = total + energy_score(members, truth, valid, side, max(1, side // 2), fairness)
    known = valid.to(members.dtype).unsqueeze(1)
    for pool in (2, 4):
        if shortest < 4 * pool:
            continue
        share = functional.avg_pool2d(known, pool)
        pooled = functional.avg_pool2d((members * known.unsqueeze(1)).flatten(0, 1), pool).unflatten(0, members.shape[:2])
        pooled = pooled / share.unsqueeze(1).clamp(min=1e-3)
        small = functional.avg_pool2d(truth * known, pool) / share.clamp(min=1e-3)
        total = total + energy_score(pooled, small, share[:, 0] > _KNOWN_SHARE, 4, 2, fairness)
    return total
