"""Codec for depth maps: metres, linear or logarithmic, normalised to ``[-scale, scale]``."""

import math

import torch
from torch import Tensor

from noise2map.codecs.base import MapCodec


class DepthCodec(MapCodec):
    """Depth in metres <-> one channel in ``[-scale, scale]``.

    Invalid pixels (depth 0: missing, or sky) become 0, the middle of the range, so that nothing of what stands behind the mask
    reaches the signal.

    Args:
        min_depth: nearest depth of the range, metres, positive.
        max_depth: farthest depth of the range, metres.
        scale: largest absolute value of the signal (DDP uses 0.1 for depth).
        representation: ``"linear"`` (the paper's) or ``"log"`` (equal ratios are equal differences).
    """

    relative_std = 0.5

    def __init__(self, min_depth: float, max_depth: float, scale: float = 0.1, representation: str = "linear") -> None:
        """Stores the range.

        Raises:
            ValueError: if the range is empty or not positive, or the representation unknown.
        """
        super().__init__(1, scale)
        if not (0 < min_depth < max_depth and math.isfinite(max_depth)):
            raise ValueError(f"depth range is {min_depth}..{max_depth} m; expected 0 < min_depth < max_depth")
        if representation not in ("linear", "log"):
            raise ValueError(f"depth representation is {representation!r}; expected 'linear' or 'log'")
        self.min_depth, self.max_depth, self.representation = float(min_depth), float(max_depth), representation

    def normalise(self, depth_m: Tensor) -> Tensor:
        """Metres -> -1 at ``min_depth`` .. 1 at ``max_depth``, not clamped, any shape."""
        if self.representation == "log":
            low, high = math.log(self.min_depth), math.log(self.max_depth)
            depth_m = depth_m.clamp(min=torch.finfo(depth_m.dtype).tiny).log()
        else:
            low, high = self.min_depth, self.max_depth
        return (depth_m - low) / (high - low) * 2 - 1

    def encode(self, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """Depth -> signal.

        Args:
            target: depth in metres ``(B, h, w)``; 0 marks invalid pixels unless ``valid`` is given.
            valid: boolean mask ``(B, h, w)``.

        Returns:
            Signal ``(B, 1, h, w)``; valid depths outside the range are clamped to it, invalid pixels are 0.

        Raises:
            ValueError: if a valid depth is negative, NaN or infinite.
        """
        if valid is None:
            valid = target != 0
        check_depth(target, valid)
        signal = (self.normalise(target) * self.scale).clamp(-self.scale, self.scale)
        return torch.where(valid, signal, torch.zeros_like(signal)).unsqueeze(1)

    def decode(self, signal: Tensor) -> Tensor:
        """Signal ``(B, 1, h, w)`` -> metres ``(B, h, w)`` in ``[min_depth, max_depth]``."""
        position = (signal.squeeze(1) / self.scale).clamp(-1, 1) / 2 + 0.5
        if self.representation == "log":
            low, high = math.log(self.min_depth), math.log(self.max_depth)
            return (low + position * (high - low)).exp().clamp(self.min_depth, self.max_depth)
        return self.min_depth + position * (self.max_depth - self.min_depth)

    def encode_prediction(self, prediction: Tensor) -> Tensor:
        """Predicted metres ``(B, 1, h, w)`` -> signal ``(B, 1, h, w)``, clamped to the range."""
        return (self.normalise(prediction) * self.scale).clamp(-self.scale, self.scale)


def check_depth(depth_m: Tensor, valid: Tensor) -> None:
    """Refuses impossible depths among the valid pixels.

    Args:
        depth_m: metres, any shape.
        valid: boolean mask, same shape.

    Raises:
        ValueError: if a valid depth is negative, NaN or infinite, naming how many there are.
    """
    if not depth_m.is_floating_point():
        raise ValueError(f"depth has type {depth_m.dtype}; expected floating point metres")
    bad = valid & ~(torch.isfinite(depth_m) & (depth_m >= 0))
    count = int(bad.sum())
    if count:
        example = depth_m[bad].flatten()[0].item()
        raise ValueError(
            f"depth holds {count} impossible values such as {example} m; expected finite metres, 0 where there is no depth"
        )
