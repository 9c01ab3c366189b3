"""Interval of a mean over a handful of training seeds."""

import torch
from torch import Tensor

from noise2map.metrics.bootstrap import Interval

# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom. A bootstrap of three numbers says nothing; this does.
_T_975 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip


def seed_interval(values: Tensor) -> Interval:
    """Mean of the results `(K,)` of K training seeds with its 95 % interval by Student's t.

    Args:
        values: One result of each seed; of paired differences, their differences.

    Returns:
        The interval; its ends are NaN for one seed.

    Raises:
        ValueError: If there is no value, or one is not finite.
    """
    if values.ndim != 1 or not len(values) or not bool(torch.isfinite(values).all()):
        raise ValueError(f"need at least one finite result of a seed, got {values.tolist()}")
    mean, count = float(values.double().mean()), len(values)
    if count == 1:
        return Interval(mean, float("nan"), float("nan"), 0.95, 1)
    half = _T_975[min(count - 1, len(_T_975)) - 1] * float(values.double().std()) / count**0.5
    return Interval(mean, mean - half, mean + half, 0.95, count)
