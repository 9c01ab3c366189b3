"""The floor of a depth map: the level plane below the horizon that most pixels lie on.

With rays `(x, y, 1)` through the pixels, `x` to the right and `y` down, the inverse depth of a plane is `a x + b y + c`: linear, as
seen by any pinhole camera. `(a, b, c)` is normal to the plane and `1 / |(a, b, c)|` its distance from the camera; where `a x + b y
+ c = 0`, it vanishes. So one least-squares fit gives height, horizon and roll.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from noise2map.metrics.plausibility import patch_planes

WINDOW = 3  # side of the patches whose normals are taken, pixels
PLANAR = 0.02  # a patch has a normal if it departs from a plane by less than this share of its inverse depth
NEARLY_LEVEL_DEG = 35.0  # patches steeper than this are no floor, however much the camera is tilted
SUPPORT = 0.02  # share of the image's pixels below which a plane is no floor
_INLIER = 0.1
_ROUNDS = 6
_NEAREST_M, _FARTHEST_M, _LEVELS = 0.25, 16.0, 128  # heights at which the floor is looked for, in equal ratios
_SMOOTHED = 5  # neighbouring heights, ±8 %


class FloorPlane(NamedTuple):
    """Floors of B depth maps, `(B,)` float64 each; NaN where there is none, but for `share`.

    Attributes:
        height_m: Distance of the camera from the plane, in the unit of the depth.
        horizon_deg: Angle of the plane's vanishing line below the optical axis, in the middle column, in (-90, 90): 0 where the
            camera looks level, positive where the plane vanishes below the camera's horizon.
        roll_deg: Angle of the vanishing line in the image, in (-90, 90), positive where its right end is lower.
        share: Of all pixels, those that lie on the plane within a tenth of their depth, 0 to 1.
    """

    height_m: Tensor
    horizon_deg: Tensor
    roll_deg: Tensor
    share: Tensor


def camera_rays(intrinsics: Tensor, height: int, width: int) -> Tensor:
    """Directions `(H, W, 3)` float64 through the pixel centers, scaled to `z = 1`; x right, y down."""
    fx, fy, cx, cy = intrinsics.double()
    places = [torch.arange(size, dtype=torch.float64, device=intrinsics.device) + 0.5 for size in (height, width)]
    y, x = torch.meshgrid((places[0] - cy) / fy, (places[1] - cx) / fx, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], dim=-1)


def patch_normals(inverse: Tensor, rays: Tensor) -> Tensor:
    """Unit normals `(B, H, W, 3)` float64 of patches around the pixels, facing away from the camera.

    Args:
        inverse: Inverse depth `(B, H, W)`, NaN unknown.
        rays: `(H, W, 3)`, see `camera_rays`.

    Returns:
        NaN at the border, and where the patch holds something unknown or no plane.
    """
    patches = patch_planes(inverse, WINDOW)
    rim = WINDOW // 2
    inner = rays[rim:-rim, rim:-rim]
    a = patches.across / (rays[0, 1, 0] - rays[0, 0, 0])
    b = patches.down / (rays[1, 0, 1] - rays[0, 0, 1])
    plane = torch.stack([a, b, patches.mean - a * inner[..., 0] - b * inner[..., 1]], dim=-1)
    normals = plane / plane.norm(dim=-1, keepdim=True)
    normals = torch.where((patches.residual < PLANAR)[..., None], normals, torch.nan)
    return functional.pad(normals, (0, 0, rim, rim, rim, rim), value=torch.nan)


def fit_floor(inverse: Tensor, rays: Tensor, normals: Tensor) -> FloorPlane:
    """Robust fit of the floor.

    Pixels below the camera's horizon whose surface is nearly level are candidates. Where most of them lie at one height (in
    ratios, within 8 %), a level plane begins; it is fitted anew to the candidates within a tenth of its depth, six times, by
    least squares of the relative error of inverse depth, and may tilt.

    Args:
        inverse: Inverse depth `(B, H, W)` float64, NaN unknown.
        rays: `(H, W, 3)`, see `camera_rays`.
        normals: `(B, H, W, 3)`, see `patch_normals`.

    Returns:
        The floors; there is none where less than 2 % of the pixels lie on the plane.
    """
    below = int((rays[:, 0, 1] <= 0).sum())
    rays, inverse, level = rays[below:].flatten(0, 1), inverse[:, below:].flatten(1), normals[:, below:, :, 1].flatten(1)
    candidates = level > math.cos(math.radians(NEARLY_LEVEL_DEG))  # false where unknown
    # By division the plane's equation becomes a regression on 1, and its residual the relative error.
    rows = torch.where(candidates[..., None], rays / torch.where(candidates, inverse, 1)[..., None], 0)  # (B, L, 3)
    plane = torch.zeros(len(inverse), 3, dtype=torch.float64, device=inverse.device)
    plane[:, 1] = 1 / _commonest_height(rows[..., 1], candidates)
    near = torch.zeros_like(candidates)
    for _ in range(_ROUNDS):
        near = _close(rows, plane) & candidates
        chosen = torch.where(near[..., None], rows, 0)
        squares = chosen.mT @ chosen  # (B, 3, 3)
        # Barely held to where it was, which decides what too few pixels leave open.
        hold = 1e-9 * squares.diagonal(dim1=1, dim2=2).sum(1) + 1e-12
        held = squares + hold[:, None, None] * torch.eye(3, dtype=torch.float64, device=inverse.device)
        plane = torch.linalg.solve(held, chosen.sum(1) + hold[:, None] * plane)
    share = (_close(rows, plane) & candidates).sum(1).double() / (rays.shape[0] + below * normals.shape[2])
    a, b, c = plane.unbind(1)
    found = (share >= SUPPORT) & (b > 0)
    values = 1 / plane.norm(dim=1), torch.rad2deg(torch.atan(-c / b)), torch.rad2deg(torch.atan(-a / b))
    height, horizon, roll = (torch.where(found, value, torch.nan) for value in values)
    return FloorPlane(height, horizon, roll, share)


def _close(rows: Tensor, plane: Tensor) -> Tensor:
    """Pixels `(B, L)` whose inverse depth a plane `(B, 3)` gives within a tenth."""
    return ((rows @ plane[..., None])[..., 0] - 1).abs() < _INLIER


def _commonest_height(heights: Tensor, candidates: Tensor) -> Tensor:
    """The height `(B,)` that most candidates share, of heights `(B, L)` below the camera."""
    span = math.log(_FARTHEST_M / _NEAREST_M)
    level = (torch.log((heights / _NEAREST_M).clamp(min=1e-6)) / span * _LEVELS).floor().long()
    counted = (candidates & (level >= 0) & (level < _LEVELS)).double()
    counts = torch.zeros(len(heights), _LEVELS, dtype=torch.float64, device=heights.device)
    counts = counts.scatter_add(1, level.clamp(0, _LEVELS - 1), counted)
    smooth = functional.avg_pool1d(counts[:, None], _SMOOTHED, 1, _SMOOTHED // 2)[:, 0]
    return _NEAREST_M * torch.exp((smooth.argmax(1).double() + 0.5) / _LEVELS * span)
