"""Learning-rate curves: poly and cosine decay, each with a linear warm-up that multiplies the decayed rate.

The warm-up follows the convention of the published DDP runs: it does not replace the decay during the first iterations but
scales it, ``lr(it) = regular(it) * (1 - (1 - it / warmup) * (1 - ratio))``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

POLICIES = ("poly", "cosine", "constant")


@dataclass(frozen=True)
class LearningRateCurve:
    """The learning rate, as a factor of the base rate, at every iteration.

    Attributes:
        policy: ``"poly"`` (``(1 - it / iterations) ** power``), ``"cosine"`` (half a cosine) or ``"constant"``.
        iterations: length of the run in optimiser steps.
        warmup_iterations: length of the linear warm-up in optimiser steps; 0 for none.
        warmup_ratio: factor at iteration 0, in (0, 1].
        power: exponent of the poly curve.
        min_ratio: the floor of the decay, as a fraction of the base rate, in [0, 1).

    Raises:
        ValueError: for a policy that does not exist or a number out of its range.
    """

    policy: str = "poly"
    iterations: int = 160_000
    warmup_iterations: int = 1500
    warmup_ratio: float = 1e-6
    power: float = 1.0
    min_ratio: float = 0.0

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"schedule policy is {self.policy!r}; expected one of {', '.join(POLICIES)}")
        if self.iterations < 1:
            raise ValueError(f"schedule iterations is {self.iterations}; expected at least 1")
        if self.warmup_iterations < 0:
            raise ValueError(f"schedule warmup_iterations is {self.warmup_iterations}; expected 0 or more")
        if not 0 < self.warmup_ratio <= 1:
            raise ValueError(f"schedule warmup_ratio is {self.warmup_ratio}; expected a number in (0, 1]")
        if not 0 <= self.min_ratio < 1:
            raise ValueError(f"schedule min_ratio is {self.min_ratio}; expected a number in [0, 1)")

    def factor(self, iteration: int) -> float:
        """The factor of the base rate used by the optimiser step number ``iteration`` (0-based)."""
        progress = min(iteration / self.iterations, 1.0)
        if self.policy == "poly":
            regular = self.min_ratio + (1 - self.min_ratio) * (1 - progress) ** self.power
        elif self.policy == "cosine":
            regular = self.min_ratio + (1 - self.min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
        else:
            regular = 1.0
        if iteration < self.warmup_iterations:
            regular *= 1 - (1 - iteration / self.warmup_iterations) * (1 - self.warmup_ratio)
        return regular

    def scheduler(self, optimizer: Optimizer) -> LambdaLR:
        """A PyTorch scheduler over every parameter group of ``optimizer``."""
        curve: Callable[[int], float] = self.factor
        return LambdaLR(optimizer, curve)
