"""Codec for maps of surface normals: unit vectors scaled into ``[-scale, scale]``."""

import torch
from torch import Tensor

from noise2map.codecs.base import MapCodec

_LENGTH_TOLERANCE = 0.02  # what the rounding of half precision and of 8 bits does to a unit vector


class NormalsCodec(MapCodec):
    """Unit vectors <-> three channels in ``[-scale, scale]``.

    Axes are those of diffusers' ``MarigoldNormalsPipeline``: x to the right, y up, z towards the viewer. The codec itself does not
    care. Unknown pixels are zero vectors and stay zero, the middle of the range.

    Args:
        scale: length of an encoded vector.
    """

    def __init__(self, scale: float = 0.1) -> None:
        """Stores the scale.

        Raises:
            ValueError: if ``scale`` is not a positive number.
        """
        super().__init__(3, scale)

    def encode(self, target: Tensor) -> Tensor:
        """Unit vectors ``(B, 3, h, w)``, zero where unknown -> signal ``(B, 3, h, w)``.

        Raises:
            ValueError: if a vector is neither zero nor of length one.
        """
        check_normals(target)
        return target * self.scale

    def decode(self, signal: Tensor) -> Tensor:
        """Signal ``(B, 3, h, w)`` -> unit vectors ``(B, 3, h, w)``; zero where the signal is."""
        return unit_vectors(signal)

    def encode_prediction(self, prediction: Tensor) -> Tensor:
        """Predicted unit vectors ``(B, 3, h, w)`` -> signal ``(B, 3, h, w)``."""
        return prediction * self.scale


def unit_vectors(vectors: Tensor, dim: int = 1) -> Tensor:
    """Vectors at length one, any shape with the three components along ``dim``; zero where they are zero."""
    smallest = torch.finfo(vectors.dtype).tiny
    return vectors / vectors.norm(dim=dim, keepdim=True).clamp(min=smallest)


def check_normals(normals: Tensor) -> None:
    """Refuses what is no map of normals.

    Args:
        normals: ``(B, 3, H, W)``, unit vectors, zero where unknown.

    Raises:
        ValueError: for another shape or type, or vectors that are neither zero nor of length one, naming how many there are.
    """
    if normals.ndim != 4 or normals.shape[1] != 3:
        raise ValueError(f"normals have shape {tuple(normals.shape)}; expected (B, 3, H, W)")
    if not normals.is_floating_point():
        raise ValueError(f"normals have type {normals.dtype}; expected floating point unit vectors")
    length = normals.float().norm(dim=1)
    bad = ~((length == 0) | ((length - 1).abs() <= _LENGTH_TOLERANCE))  # NaN is bad
    count = int(bad.sum())
    if count:
        raise ValueError(
            f"normals hold {count} vectors of a length such as {length[bad][0].item():.4g}; expected 1, or 0 for unknown"
        )
