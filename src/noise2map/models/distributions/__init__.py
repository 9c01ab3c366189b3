"""Distributions that heads predict in one pass, with their likelihoods and quantiles."""

import torch
from torch import Tensor


def bounded_exp(z: Tensor, low: float, high: float) -> Tensor:
    """``exp(z)`` between ``exp(low)`` and ``exp(high)``, any shape: what a head says of a scale.

    Bent, not cut off, at the bounds: a scale that went too far must be able to come back.
    """
    middle, reach = 0.5 * (low + high), 0.5 * (high - low)
    return (middle + reach * torch.tanh((z - middle) / reach)).exp()
