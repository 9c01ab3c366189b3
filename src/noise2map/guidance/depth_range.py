"""Depth of images <-> the signal that predictors and priors work on, nominally in [-1, 1]."""

import torch
from torch import Tensor

from noise2map.codecs import DepthCodec


class DepthRange:
    """Metric depth by the project's `DepthCodec`, or relative depth in [0, 1].

    Args:
        min_depth: nearest depth in metres; None for relative depth (for example normalised disparity), which has no unit.
        max_depth: farthest depth in metres; None for relative depth.
        representation: ``"linear"`` or ``"log"``, of metric depth.
    """

    def __init__(self, min_depth: float | None, max_depth: float | None, representation: str) -> None:
        """Stores the range.

        Raises:
            ValueError: if only one bound is given, or the range is not one of `DepthCodec`.
        """
        if (min_depth is None) != (max_depth is None):
            raise ValueError(f"depth range is {min_depth}..{max_depth}; expected two bounds in metres, or none for relative depth")
        self.codec = None if min_depth is None or max_depth is None else DepthCodec(min_depth, max_depth, 1.0, representation)

    @property
    def metric(self) -> bool:
        """True if depth is in metres."""
        return self.codec is not None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DepthRange) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        if self.codec is None:
            return "relative depth in [0, 1]"
        return f"{self.codec.min_depth:g}..{self.codec.max_depth:g} m ({self.codec.representation})"

    def encode(self, depth: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Depth -> signal.

        Args:
            depth: ``(B, h, w)``, metres with 0 where there is none, or relative with NaN where there is none.
            valid: boolean mask ``(B, h, w)`` instead of that rule.

        Returns:
            Signal ``(B, 1, h, w)`` in [-1, 1], 0 where there is no depth, and the mask ``(B, 1, h, w)``.

        Raises:
            ValueError: if a valid depth is negative, NaN or infinite, or relative depth leaves [0, 1].
        """
        if self.codec is not None:
            mask = depth != 0 if valid is None else valid
            return self.codec.encode(depth, mask), mask.unsqueeze(1)
        mask = ~torch.isnan(depth) if valid is None else valid
        inside = (depth >= 0) & (depth <= 1)
        if bool((mask & ~inside).any()):
            example = depth[mask & ~inside].flatten()[0].item()
            raise ValueError(
                f"relative depth holds {example}; expected values in [0, 1], or a predictor with min_depth and max_depth"
            )
        return torch.where(mask, depth * 2 - 1, torch.zeros_like(depth)).unsqueeze(1), mask.unsqueeze(1)

    def decode(self, signal: Tensor) -> Tensor:
        """Signal ``(B, 1, h, w)``, clamped to [-1, 1] -> depth ``(B, h, w)`` in metres, or in [0, 1]."""
        if self.codec is not None:
            return self.codec.decode(signal)
        return signal.squeeze(1).clamp(-1, 1) / 2 + 0.5
