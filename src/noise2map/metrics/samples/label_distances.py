"""Distances of class maps and of sets of them: IoU, generalised energy distance, matched IoU."""

import math

import torch
from torch import Tensor


def pairwise_iou(members_a: Tensor, members_b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersections and unions of every map of one set with every map of another.

    Args:
        members_a: Pixels of the class in S maps ``(..., S, P)``, bool; 0 where nobody knows.
        members_b: Likewise ``(..., T, P)``.

    Returns:
        Two tensors ``(..., S, T)`` float64.
    """
    a, b = members_a.float(), members_b.float()
    common = (a @ b.transpose(-1, -2)).double()
    return common, a.sum(-1).double()[..., :, None] + b.sum(-1).double()[..., None, :] - common


def mean_iou_of_maps(common: Tensor, union: Tensor) -> Tensor:
    """Mean over classes of the IoU of two maps ``(..., K)`` -> ``(...)``.

    Conventions: only classes that one of the two maps holds count; background is a class like others, leave its column out where it
    is not one; two maps without any class agree (IoU 1).
    """
    here = union > 0
    total = torch.where(here, common / union.clamp_min(1), 0).sum(-1)
    number = here.sum(-1)
    return torch.where(number > 0, total / number.clamp_min(1), 1.0)


def energy_distance(to_truth: Tensor, among_samples: Tensor, among_truths: Tensor | None = None, fair: bool = True) -> Tensor:
    """Squared generalised energy distance ``2 E d(s, y) - E d(s, s') - E d(y, y')`` of two sets of maps (Kohl et al. 2018).

    Zero on average where both sets come from one distribution. With one truth and ``d`` the share of pixels that differ it is the
    Brier score of the samples' frequencies and sees every pixel by itself; ``d = 1 - IoU`` sees maps as wholes.

    Args:
        to_truth: Distances of samples and truths ``(..., R, M)``.
        among_samples: Distances among the samples ``(..., R, R)``, 0 on the diagonal.
        among_truths: Distances among the truths ``(..., M, M)``; None for one truth.
        fair: Average over pairs of *different* maps, which does not depend on R. Many papers average over all pairs, the sample
            with itself included; with R = 1 either gives ``2 d(s, y)``.

    Returns:
        ``(...)``.
    """

    def mean_pair(distances: Tensor) -> Tensor:
        count = distances.shape[-1]
        pairs = count * (count - 1) if fair else count * count
        return distances.sum((-1, -2)) / max(pairs, 1)

    value = 2 * to_truth.mean((-1, -2)) - mean_pair(among_samples)
    return value if among_truths is None else value - mean_pair(among_truths)


def hungarian_matched_iou(iou: Tensor) -> float:
    """Mean IoU of samples and truths matched one to one so that it is largest (Kassapis et al. 2021).

    Both sets are repeated to their least common multiple, so that each counts equally; with one truth it is the mean IoU of a
    sample.

    Args:
        iou: IoU of every sample and every truth ``(R, M)``.

    Raises:
        ValueError: If there is no sample or no truth.
    """
    from scipy.optimize import linear_sum_assignment

    samples, truths = iou.shape
    if not samples or not truths:
        raise ValueError(f"need at least one sample and one truth to match, got {samples} and {truths}")
    if truths == 1:
        return float(iou.mean())
    size = math.lcm(samples, truths)
    repeated = iou.repeat(size // samples, size // truths).cpu().numpy()
    rows, columns = linear_sum_assignment(repeated, maximize=True)
    return float(repeated[rows, columns].mean())
