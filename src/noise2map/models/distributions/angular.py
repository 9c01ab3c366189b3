"""Directions that scatter about a mean one, by their angle: what the Laplace distribution is on the line."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from noise2map.codecs.normals import unit_vectors
from noise2map.diffusion.fields import smooth_field

# Halvings of the interval in which an angle or a concentration is looked for.
_HALVINGS = 32
# Concentrations between which one is looked for: expected angles of 90 and 0.03 degrees.
_LOG_CONCENTRATIONS = (-6.0, 8.0)


def angle_between(first: Tensor, second: Tensor, dim: int = 1) -> Tensor:
    """Angle of unit vectors in radians, exact for small angles too, where the arc cosine of their product is not."""
    cross = torch.linalg.cross(first, second, dim=dim)
    return torch.atan2(cross.norm(dim=dim), (first * second).sum(dim))


def expected_angle(concentration: Tensor) -> Tensor:
    """Expected angle in radians from the mean direction, for concentrations of any shape; 0 (certain) to pi/2 (uniform)."""
    opposite = torch.exp(-math.pi * concentration)
    return 2 * concentration / (concentration.square() + 1) + math.pi * opposite / (1 + opposite)


def resultant_length(concentration: Tensor) -> Tensor:
    """Length of the mean of unit vectors, for concentrations of any shape; 0 (uniform) to 1 (all the same)."""
    square, opposite = concentration.square(), torch.exp(-math.pi * concentration)
    return (square + 1) / (square + 4) * (1 - opposite) / (1 + opposite)


def concentration_of(length: Tensor) -> Tensor:
    """Inverse of `resultant_length`, found numerically; within `_LOG_CONCENTRATIONS`."""
    low, high = (torch.full_like(length, bound) for bound in _LOG_CONCENTRATIONS)
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        below = resultant_length(middle.exp()) < length
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (0.5 * (low + high)).exp()


@dataclass
class AngularDistribution:
    """A distribution of directions at every pixel, its density falling exponentially with the angle from the mean direction.

    Bae, Budvytis & Cipolla (2021), "Estimating and exploiting the aleatoric uncertainty in surface normal estimation", eq. 9: the
    angular von Mises-Fisher distribution, ``p(n) = (k² + 1) exp(-k angle) / (2 pi (1 + exp(-k pi)))``.

    Attributes:
        directions: unit vectors ``(B, 3, h, w)``.
        concentrations: ``k``, per radian, ``(B, h, w)``, positive.
    """

    directions: Tensor
    concentrations: Tensor

    @classmethod
    def from_prediction(cls, prediction: Tensor) -> "AngularDistribution":
        """Reads directions and the inverse of the concentrations ``(B, 4, h, w)``; the former need not have length one."""
        return cls(unit_vectors(prediction[:, :3]), 1 / prediction[:, 3])

    def negative_log_likelihood(self, normals: Tensor) -> Tensor:
        """In nats, of unit vectors ``(B, 3, h, w)`` -> ``(B, h, w)``."""
        k = self.concentrations
        normaliser = torch.log1p(k.square()) - torch.log1p(torch.exp(-math.pi * k)) - math.log(2 * math.pi)
        return k * angle_between(self.directions, normals) - normaliser

    def cumulative(self, angle: Tensor) -> Tensor:
        """Probability of a smaller angle from the mean direction, radians ``(B, h, w)`` -> ``(B, h, w)``."""
        k = self.concentrations
        tail = torch.exp(-k * angle) * (torch.cos(angle) + k * torch.sin(angle))
        return (1 - tail) / (1 + torch.exp(-math.pi * k))

    def cone(self, level: float) -> Tensor:
        """Angle from the mean direction, degrees ``(B, h, w)``, within which ``level`` of the probability lies.

        Raises:
            ValueError: if the level is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"level is {level!r}; expected a probability between 0 and 1, such as 0.9")
        return torch.rad2deg(self._angle_of(torch.full_like(self.concentrations, level)))

    def _angle_of(self, probability: Tensor) -> Tensor:
        """Inverse of `cumulative`, found numerically; ``(..., B, h, w)``."""
        low = torch.zeros_like(probability)
        high = torch.full_like(low, math.pi)
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            below = self.cumulative(middle) < probability
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return 0.5 * (low + high)

    def sample(self, count: int, smoothness: float, generators: Sequence[torch.Generator | None]) -> Tensor:
        """Maps of unit vectors ``(B, R, 3, h, w)`` that follow the distribution at every pixel and vary smoothly over the map.

        Two smooth fields of normal noise are a vector in the tangent plane of every direction: its angle says whereto the direction
        is turned, and its length, whose distribution is known, how far.

        Args:
            count: R.
            smoothness: see `smooth_field`.
            generators: one for each of the B images.
        """
        height, width = self.concentrations.shape[-2:]
        plane = smooth_field((count, 2), (height, width), smoothness, generators).to(self.directions)
        square = plane.square().sum(2)  # (B, R, h, w); half of it is exponential
        turned = self._angle_of(-torch.expm1(-0.5 * square).movedim(1, 0)).movedim(0, 1)
        toward = (plane / square.sqrt().clamp(min=1e-12)[:, :, None]).unsqueeze(3)  # (B, R, 2, 1, h, w)
        tangent = (toward * tangents(self.directions)[:, None]).sum(2)
        return unit_vectors(torch.cos(turned)[:, :, None] * self.directions[:, None] + torch.sin(turned)[:, :, None] * tangent, 2)


def tangents(directions: Tensor) -> Tensor:
    """Two unit vectors ``(B, 2, 3, h, w)`` at right angles to unit vectors ``(B, 3, h, w)`` and to each other.

    Continuous but for the direction straight away from the viewer (Duff et al. 2017, "Building an orthonormal basis, revisited").
    """
    x, y, z = directions.unbind(1)
    sign = torch.where(z < 0, -1.0, 1.0).to(z)
    a = -1 / (sign + z)
    b = x * y * a
    first = torch.stack([1 + sign * x.square() * a, sign * b, -sign * x], 1)
    second = torch.stack([b, sign + y.square() * a, -y], 1)
    return torch.stack([first, second], 1)
