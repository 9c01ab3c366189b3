"""Scores of depth maps against what holds in any built room, seen by a known camera that looks level.

No reference set is needed, and no alignment: depth is in metres and intrinsics are known. Freedoom's rooms keep these laws by
construction, but for sprites, which float, and ledges, on which the camera may stand. What real frames score under the same depth
estimator says how much of a departure is the estimator's.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from noise2map.metrics.plausibility import inverse_depth
from noise2map.metrics.room_geometry.floor import WINDOW, camera_rays, fit_floor, patch_normals

EYE_HEIGHT_M = 41 / 32
"""Height of Freedoom's camera above the floor it stands on: 41 units of the engine, 32 of which are a metre."""

ROOM_SCORES = ("floor_height_m", "floor_at_eye", "floor_share", "horizon_deg", "roll_deg", "upright_share", "order_share")
"""Columns of :func:`room_scores`."""

_HEIGHT_WITHIN = 0.1
_UPRIGHT_DEG = 10.0
_NEARER = 0.02  # by how much depth may grow away from the horizon: noise is no law broken


def upright_share(normals: Tensor) -> Tensor:
    """Share of surfaces that are upright or level, within 10 degrees.

    Args:
        normals: Unit vectors `(B, H, W, 3)`, y along the vertical; NaN unknown.

    Returns:
        `(B,)` in 0..1; NaN without a known normal. Normals of random direction have 0.19.
    """
    vertical = torch.rad2deg(torch.asin(normals[..., 1].abs().clamp(max=1)))  # 0 for a wall, 90 for a floor
    kept = ((vertical < _UPRIGHT_DEG) | (vertical > 90 - _UPRIGHT_DEG)).double()
    return torch.where(vertical.isnan(), torch.nan, kept).flatten(1).nanmean(1)


def order_share(inverse: Tensor, below: int) -> Tensor:
    """Share of vertical neighbours in which the one farther from the horizon is not the farther one.

    A column of pixels below the horizon sees a floor with things that stand on it, and nearer ones hide farther ones: going
    down, depth never grows. Above the horizon it never grows going up. It holds for every scene without overhangs, whatever its
    layout.

    Args:
        inverse: Inverse depth `(B, H, W)`, NaN unknown.
        below: First row below the horizon.

    Returns:
        `(B,)` in 0..1: of the neighbours of known depth on one side of the horizon, those whose depth does not grow by more than
        2 %; NaN where there are none. Depth without any order has 0.5.
    """
    lower, upper = inverse[:, below:], inverse[:, :below].flip(1)
    ratios = torch.cat([one[:, :-1] / one[:, 1:] for one in (lower, upper)], dim=1)  # of depth: outer to inner
    return torch.where(ratios.isnan(), torch.nan, (ratios <= 1 + _NEARER).double()).flatten(1).nanmean(1)


def room_scores(
    depth_m: Tensor,
    intrinsics: Tensor | Sequence[float],
    far_m: float | None = None,
    eye_height_m: float = EYE_HEIGHT_M,
) -> dict[str, Tensor]:
    """All scores of depth maps, image by image.

    Args:
        depth_m: `(B, H, W)` along the optical axis, metres; 0 or anything not finite is unknown, such as sky.
        intrinsics: `fx, fy, cx, cy` in pixels, one camera for all images; it looks level.
        far_m: Depth at which an estimator caps what it sees, sky above all: such pixels and farther ones are left out.
        eye_height_m: Height of the camera above the floor, metres.

    Returns:
        The names of `ROOM_SCORES` to `(B,)` float64 on the device of the depth, NaN where undefined:

        - `floor_height_m`: height of the camera above the floor, metres; undefined without a floor.
        - `floor_at_eye`: 1 where that is `eye_height_m` within 10 %, 0 where it is not or no floor is found; undefined only
          where no depth is known. Its mean is a share of images.
        - `floor_share`: share of pixels on the floor, 0..1.
        - `horizon_deg`: angle between the floor's vanishing line and the camera's horizon in the middle column, 0..90 degrees.
        - `roll_deg`: slope of the vanishing line, 0..90 degrees.
        - `upright_share`, `order_share`: see :func:`upright_share` and :func:`order_share`.

    Raises:
        ValueError: If depth is not `(B, H, W)` of at least 3 x 3 pixels, intrinsics are not four numbers with positive focal
            lengths, or a length is not positive.
    """
    if depth_m.ndim != 3 or min(depth_m.shape[1:]) < WINDOW:
        raise ValueError(f"depth must be (B, H, W) of at least {WINDOW} x {WINDOW} pixels, got shape {tuple(depth_m.shape)}")
    camera = torch.as_tensor(intrinsics, dtype=torch.float64, device=depth_m.device)
    if camera.shape != (4,) or not bool(torch.isfinite(camera).all()) or not bool((camera[:2] > 0).all()):
        raise ValueError(f"intrinsics must be fx, fy, cx, cy in pixels with positive focal lengths, got {camera.tolist()}")
    for name, length in (("eye_height_m", eye_height_m), ("far_m", far_m)):
        if length is not None and not length > 0:
            raise ValueError(f"{name} must be positive, got {length}")
    inverse, rays = inverse_depth(depth_m, far_m), camera_rays(camera, *depth_m.shape[1:])
    normals = patch_normals(inverse, rays)
    floor = fit_floor(inverse, rays, normals)
    at_eye = ((floor.height_m / eye_height_m - 1).abs() < _HEIGHT_WITHIN).double()
    nothing = inverse.isnan().flatten(1).all(1)
    columns = (
        floor.height_m,
        torch.where(nothing, torch.nan, at_eye),
        torch.where(nothing, torch.nan, floor.share),
        floor.horizon_deg.abs(),
        floor.roll_deg.abs(),
        upright_share(normals),
        order_share(inverse, int((rays[:, 0, 1] <= 0).sum())),
    )
    return dict(zip(ROOM_SCORES, columns, strict=True))
