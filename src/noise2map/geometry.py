"""From depth to geometry: cameras, point clouds, normals, and files that 3D viewers open.

Conventions. Intrinsics are four numbers `fx, fy, cx, cy` in pixels, with `fx` and `fy` kept apart because pixels need
not be square. Pixel coordinates are continuous: column `j` covers `[j, j + 1]` and its centre is `j + 0.5`, so the
middle of an image `W` wide is `W / 2`, and resizing multiplies `fx` and `cx` by the same factor. The camera looks
along `+z`, `x` points right and `y` down; depth is `z`, in metres, and 0 or anything not finite means unknown.
"""

import json
import math
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from noise2map.runs.files import write_file

# ----------------------------------------------------------------------------------------------------------- cameras


def intrinsics_from_fov(horizontal_fov_deg: float, height: int, width: int, vertical_fov_deg: float | None = None) -> Tensor:
    """Intrinsics of a centred pinhole camera.

    Args:
        horizontal_fov_deg: Full horizontal field of view, degrees, in (0, 180).
        height: Height of the image, pixels.
        width: Width of the image, pixels.
        vertical_fov_deg: Full vertical field of view, degrees; square pixels where it is not given.

    Returns:
        `(4,)` float32: fx, fy, cx, cy in pixels.

    Raises:
        ValueError: If an angle is not inside (0, 180) or a size is not positive.
    """
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1 pixel, got {height} x {width}")
    for name, angle in (("horizontal", horizontal_fov_deg), ("vertical", vertical_fov_deg)):
        if angle is not None and not 0 < angle < 180:
            raise ValueError(f"{name} field of view must be between 0 and 180 degrees, got {angle}")
    fx = width / 2 / math.tan(math.radians(horizontal_fov_deg) / 2)
    fy = fx if vertical_fov_deg is None else height / 2 / math.tan(math.radians(vertical_fov_deg) / 2)
    return torch.tensor([fx, fy, width / 2, height / 2])


def _as_float(values: Tensor) -> Tensor:
    """Whole numbers as floats: those of a camera rarely stay whole."""
    return values if values.is_floating_point() else values.float()


def resize_intrinsics(intrinsics: Tensor, old_size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Intrinsics `(..., 4)` after the image was resized from `(H, W)` to `(H, W)`."""
    if min(*old_size, *new_size) < 1:
        raise ValueError(f"sizes must be at least 1 pixel, got {old_size} and {new_size}")
    y, x = new_size[0] / old_size[0], new_size[1] / old_size[1]
    intrinsics = _as_float(intrinsics)
    return intrinsics * intrinsics.new_tensor([x, y, x, y])


def crop_intrinsics(intrinsics: Tensor, top: float, left: float) -> Tensor:
    """Intrinsics `(..., 4)` after the first `top` rows and `left` columns were cut away (negative: padded)."""
    intrinsics = _as_float(intrinsics)
    return intrinsics - intrinsics.new_tensor([0.0, 0.0, left, top])


def flip_intrinsics(intrinsics: Tensor, width: int) -> Tensor:
    """Intrinsics `(..., 4)` after the image was mirrored left to right."""
    fx, fy, cx, cy = intrinsics.unbind(-1)
    return torch.stack([fx, fy, width - cx, cy], dim=-1)


def intrinsics_matrix(intrinsics: Tensor) -> Tensor:
    """The 3x3 matrices `(..., 3, 3)` that map camera points to homogeneous pixel coordinates."""
    fx, fy, cx, cy = intrinsics.unbind(-1)
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    rows = [torch.stack(row, dim=-1) for row in ([fx, zero, cx], [zero, fy, cy], [zero, zero, one])]
    return torch.stack(rows, dim=-2)


def pixel_rays(intrinsics: Tensor, height: int, width: int) -> Tensor:
    """Directions through the pixel centres, scaled to `z = 1`.

    Args:
        intrinsics: `(..., 4)` fx, fy, cx, cy in pixels.
        height: Rows.
        width: Columns.

    Returns:
        `(..., H, W, 3)` in the dtype of `intrinsics`.

    Raises:
        ValueError: If the last axis is not 4 or a focal length is not positive.
    """
    if intrinsics.shape[-1:] != (4,):
        raise ValueError(f"intrinsics must be (..., 4): fx, fy, cx, cy; got shape {tuple(intrinsics.shape)}")
    if not bool((intrinsics[..., :2] > 0).all()):
        raise ValueError(f"focal lengths must be positive, got fx, fy = {intrinsics[..., :2].tolist()}")
    fx, fy, cx, cy = (value[..., None] for value in intrinsics.unbind(-1))
    x = (torch.arange(width, dtype=intrinsics.dtype, device=intrinsics.device) + 0.5 - cx) / fx  # (..., W)
    y = (torch.arange(height, dtype=intrinsics.dtype, device=intrinsics.device) + 0.5 - cy) / fy  # (..., H)
    shape = (*x.shape[:-1], height, width)
    grid = [x[..., None, :].expand(shape), y[..., :, None].expand(shape), x.new_ones(shape)]
    return torch.stack(grid, dim=-1)


# -------------------------------------------------------------------------------------------------------- geometry


def known_depth(depth_m: Tensor, valid: Tensor | None = None) -> Tensor:
    """Where depth is known: finite, positive, and in `valid` `(..., H, W)` where that is given."""
    known = torch.isfinite(depth_m) & (depth_m > 0)
    return known if valid is None else known & valid.bool()


def _camera(depth_m: Tensor, intrinsics: Tensor | Sequence[float]) -> Tensor:
    if depth_m.ndim < 2:
        raise ValueError(f"depth must be (..., H, W), got shape {tuple(depth_m.shape)}")
    # Half precision cannot tell neighbouring pixels of a wide image apart, and whole numbers cut a focal length off.
    return torch.as_tensor(intrinsics, dtype=torch.promote_types(depth_m.dtype, torch.float32), device=depth_m.device)


def point_cloud(depth_m: Tensor, intrinsics: Tensor | Sequence[float]) -> Tensor:
    """Points in camera coordinates, one for each pixel.

    Args:
        depth_m: Depth along the optical axis `(..., H, W)`, metres.
        intrinsics: `(4,)`, or `(..., 4)` with the leading axes of the depth.

    Returns:
        `(..., H, W, 3)`, metres; the origin where depth is unknown (:func:`known_depth` tells which).

    Raises:
        ValueError: If the shapes do not fit or a focal length is not positive.
    """
    rays = pixel_rays(_camera(depth_m, intrinsics), *depth_m.shape[-2:])
    return rays * torch.where(known_depth(depth_m), depth_m, 0)[..., None]


def _slope(values: Tensor, known: Tensor, jump: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Derivative of `values` `(..., H, W)` along an axis by the neighbours that belong to the same surface.

    Returns:
        The derivative per pixel, and where it exists.
    """
    size = values.shape[dim]
    step = values.diff(dim=dim)
    both = known.narrow(dim, 0, size - 1) & known.narrow(dim, 1, size - 1)
    # A one-sided difference is as exact as a central one on a plane; across an edge it is the only right one.
    smooth = both & ~jump
    pad = list(values.shape)
    pad[dim] = 1
    nothing, zeros = torch.zeros(pad, dtype=torch.bool, device=values.device), values.new_zeros(pad)
    forward, backward = torch.cat([step, zeros], dim), torch.cat([zeros, step], dim)

    def average(mask: Tensor) -> tuple[Tensor, Tensor]:
        ahead, behind = torch.cat([mask, nothing], dim), torch.cat([nothing, mask], dim)
        number = ahead.to(values.dtype) + behind.to(values.dtype)
        return (torch.where(ahead, forward, 0) + torch.where(behind, backward, 0)) / number.clamp_min(1), number > 0

    within, has_within = average(smooth)
    across, has_across = average(both)
    return torch.where(has_within, within, across), has_across


def normals_from_depth(
    depth_m: Tensor, intrinsics: Tensor | Sequence[float], edge: float = 0.1, valid: Tensor | None = None
) -> Tensor:
    """Unit surface normals, facing the camera.

    The inverse depth of a plane `n . p = d` is linear in the pixel coordinates, `1/z = (n . ray) / d`, so its finite
    differences give the plane exactly, at any slant: with `w = 1/z` and `u, v` in pixels,
    `n ~ (fx dw/du, fy dw/dv, w - (u - cx) dw/du - (v - cy) dw/dv)`. Neighbours across a depth edge are left out where
    there is one on the same surface.

    Args:
        depth_m: Depth along the optical axis `(..., H, W)`, metres.
        intrinsics: `(4,)`, or `(..., 4)` with the leading axes of the depth.
        edge: Two neighbours whose depths differ by more than this share of the smaller one lie across an edge.
        valid: Further mask of known depth `(..., H, W)`.

    Returns:
        `(..., H, W, 3)` unit vectors in camera coordinates (`z` mostly negative); zero where depth is unknown or a
        pixel has no known neighbour in a row or in a column.

    Raises:
        ValueError: If the shapes do not fit, a focal length is not positive or `edge` is not positive.
    """
    if not edge > 0:
        raise ValueError(f"edge must be positive, got {edge}")
    camera = _camera(depth_m, intrinsics)
    rays = pixel_rays(camera, *depth_m.shape[-2:])
    known = known_depth(depth_m, valid)
    depth = torch.where(known, depth_m, 1)
    inverse = 1 / depth
    slopes, exists = [], known
    for dim in (-1, -2):
        size = depth.shape[dim]
        near = torch.minimum(depth.narrow(dim, 0, size - 1), depth.narrow(dim, 1, size - 1))
        slope, has_slope = _slope(inverse, known, depth.diff(dim=dim).abs() > edge * near, dim)
        slopes.append(slope)
        exists = exists & has_slope
    focal_x, focal_y = camera[..., 0, None, None], camera[..., 1, None, None]
    x, y = focal_x * slopes[0], focal_y * slopes[1]
    normal = torch.stack([x, y, inverse - rays[..., 0] * x - rays[..., 1] * y], dim=-1)
    # By construction n . ray = w > 0: this is the side that faces away from the camera.
    normal = -normal / normal.norm(dim=-1, keepdim=True)
    return torch.where(exists[..., None], normal, 0)


# ----------------------------------------------------------------------------------------------------------- files


def _write(path: str | os.PathLike[str], parts: Sequence[bytes]) -> None:
    """Write a file whole or not at all, into a directory that is there: a mistyped path should not make one."""
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"no directory {Path(path).parent} to write {Path(path).name} into")
    write_file(path, lambda file: file.writelines(parts))


def _vertices(points: Tensor, colors: Tensor | None, normals: Tensor | None) -> list[Tensor | None]:
    """Flatten to `(N, 3)` on the CPU and check: float32 points, uint8 colors, float32 normals."""
    if points.shape[-1:] != (3,) or points.numel() == 0:
        raise ValueError(f"points must be (..., 3) and at least one, got shape {tuple(points.shape)}")
    for name, values in (("colors", colors), ("normals", normals)):
        if values is not None and values.shape != points.shape:
            raise ValueError(f"{name} must have the shape of points {tuple(points.shape)}, got {tuple(values.shape)}")
    if colors is not None and colors.dtype != torch.uint8:
        raise ValueError(f"colors must be uint8 in 0..255, got {colors.dtype}")
    if not bool(torch.isfinite(points).all()):
        raise ValueError("points must be finite; leave out the pixels of unknown depth first")
    flat = [None if v is None else v.detach().cpu().reshape(-1, 3) for v in (points, colors, normals)]
    return [v if v is None or v.dtype == torch.uint8 else v.float() for v in flat]


def _bytes(rows: Tensor) -> Tensor:
    """The memory of each row as uint8, `(N, bytes)`; little-endian on every platform that torch runs on."""
    return rows.contiguous().view(torch.uint8)


def write_ply(path: str | os.PathLike[str], points: Tensor, colors: Tensor | None = None, normals: Tensor | None = None) -> None:
    """Write a point cloud as binary little-endian PLY, in camera coordinates (x right, y down, z forward).

    Args:
        path: Output file; replaced as a whole.
        points: `(..., 3)`, metres, finite.
        colors: RGB of each point, uint8, same shape.
        normals: Unit normals of each point, same shape.

    Raises:
        ValueError: If shapes or dtypes do not fit, or a point is not finite.
        OSError: If the file cannot be written.
    """
    xyz, rgb, normal = _vertices(points, colors, normals)
    assert xyz is not None
    properties, columns = [f"float {axis}" for axis in "xyz"], [_bytes(xyz)]
    if normal is not None:
        properties += [f"float n{axis}" for axis in "xyz"]
        columns.append(_bytes(normal))
    if rgb is not None:
        properties += [f"uchar {name}" for name in ("red", "green", "blue")]
        columns.append(rgb)
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(xyz)}"]
    lines += [f"property {name}" for name in properties]
    header = "\n".join([*lines, "end_header", ""])
    _write(path, [header.encode("ascii"), torch.cat(columns, dim=1).numpy().tobytes()])


def _linear_light(colors: Tensor) -> Tensor:
    """SRGB bytes `(N, 3)` to linear 16-bit RGBA `(N, 4)` as int32: what glTF means by vertex colors.

    Sixteen bits, because a byte of linear light has almost no levels left for dark images.
    """
    srgb = colors.float() / 255
    linear = torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    levels = (linear * 65535).round().to(torch.int32)
    return torch.cat([levels, torch.full((len(levels), 1), 65535, dtype=torch.int32)], dim=1)


def write_glb(path: str | os.PathLike[str], points: Tensor, colors: Tensor | None = None, normals: Tensor | None = None) -> None:
    """Write a point cloud as binary glTF 2.0 (GLB), which browsers and 3D programs open.

    glTF has y up and looks along -z, so y and z change sign on the way out.

    Args:
        path: Output file; replaced as a whole.
        points: `(..., 3)` in camera coordinates, metres, finite.
        colors: sRGB of each point, uint8, same shape.
        normals: Unit normals of each point, same shape.

    Raises:
        ValueError: If shapes or dtypes do not fit, or a point is not finite.
        OSError: If the file cannot be written.
    """
    xyz, rgb, normal = _vertices(points, colors, normals)
    assert xyz is not None
    to_gltf = torch.tensor([1.0, -1.0, -1.0])
    xyz = xyz * to_gltf
    # name, bytes of each vertex (a multiple of 4, as glTF asks), component type, element type
    attributes = [("POSITION", _bytes(xyz), 5126, "VEC3")]
    if normal is not None:
        attributes.append(("NORMAL", _bytes(normal * to_gltf), 5126, "VEC3"))
    if rgb is not None:
        # The two low bytes of each int32 are the little-endian uint16.
        linear = _bytes(_linear_light(rgb)).view(-1, 4, 4)[..., :2].reshape(-1, 8)
        attributes.append(("COLOR_0", linear, 5123, "VEC4"))
    views, accessors, parts, offset = [], [], [], 0
    for index, (_, rows, component, kind) in enumerate(attributes):
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": rows.numel(), "target": 34962})
        accessors.append({"bufferView": index, "componentType": component, "count": len(rows), "type": kind})
        parts.append(rows.contiguous().numpy().tobytes())
        offset += rows.numel()
    accessors[0] |= {"min": xyz.amin(0).tolist(), "max": xyz.amax(0).tolist()}
    if rgb is not None:
        accessors[-1]["normalized"] = True
    primitive = {"attributes": {name: i for i, (name, *_) in enumerate(attributes)}, "mode": 0, "material": 0}
    document = {
        "asset": {"version": "2.0", "generator": "noise2map"},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        # The image's light is already in the colors.
        "materials": [{"extensions": {"KHR_materials_unlit": {}}, "pbrMetallicRoughness": {"metallicFactor": 0}}],
        "buffers": [{"byteLength": offset}],
        "bufferViews": views,
        "accessors": accessors,
    }
    text = json.dumps(document, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 4)
    length = 12 + 8 + len(text) + 8 + offset
    head = struct.pack("<4sIIII", b"glTF", 2, length, len(text), 0x4E4F534A)  # "JSON"
    _write(path, [head, text, struct.pack("<II", offset, 0x004E4942), *parts])  # "BIN\0"
