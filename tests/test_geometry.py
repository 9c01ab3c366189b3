"""Geometry against analytic planes and spheres; written files are parsed back byte by byte."""

import json
import math
import os
import struct

import pytest
import torch

from noise2map import geometry as g

CAMERA = torch.tensor([80.0, 96.0, 79.0, 61.5], dtype=torch.float64)  # non-square pixels, off-centre
HEIGHT, WIDTH = 120, 160


def _plane_depth(normal: torch.Tensor, offset_m: float) -> torch.Tensor:
    """Depth of the plane `normal . p = offset` in every pixel."""
    rays = g.pixel_rays(CAMERA, HEIGHT, WIDTH)
    return offset_m / (rays @ normal)


def _unit(*values: float) -> torch.Tensor:
    vector = torch.tensor(values, dtype=torch.float64)
    return vector / vector.norm()


# ----------------------------------------------------------------------------------------------------------- cameras


def test_field_of_view_reaches_the_picture_border():
    fx, fy, cx, cy = g.intrinsics_from_fov(90, 120, 160).tolist()
    assert (fx, fy, cx, cy) == pytest.approx((80, 80, 80, 60))
    assert math.degrees(2 * math.atan(80 / fx)) == pytest.approx(90)
    _, fy, _, _ = g.intrinsics_from_fov(90, 120, 160, vertical_fov_deg=60).tolist()
    assert math.degrees(2 * math.atan(60 / fy)) == pytest.approx(60, abs=1e-4)


def test_projection_survives_resize_crop_and_flip():
    """A point keeps its place in the picture whatever is done to both."""
    point = torch.tensor([0.4, -0.3, 2.0], dtype=torch.float64)

    def pixel(intrinsics: torch.Tensor) -> torch.Tensor:
        projected = g.intrinsics_matrix(intrinsics) @ point
        return projected[:2] / projected[2]

    u, v = pixel(CAMERA).tolist()
    assert pixel(g.resize_intrinsics(CAMERA, (120, 160), (60, 320))).tolist() == pytest.approx([2 * u, v / 2])
    assert pixel(g.crop_intrinsics(CAMERA, top=10, left=-3)).tolist() == pytest.approx([u + 3, v - 10])
    point[0] = -point[0]
    assert pixel(g.flip_intrinsics(CAMERA, 160)).tolist() == pytest.approx([160 - u, v])


def test_rays_pass_through_pixel_centres():
    rays = g.pixel_rays(CAMERA, HEIGHT, WIDTH)
    projected = rays @ g.intrinsics_matrix(CAMERA).T
    assert torch.allclose(projected[..., 0], (torch.arange(WIDTH, dtype=torch.float64) + 0.5).expand(HEIGHT, WIDTH))
    assert torch.allclose(projected[..., 1], (torch.arange(HEIGHT, dtype=torch.float64) + 0.5)[:, None])
    batch = torch.stack([CAMERA, 2 * CAMERA])
    assert torch.equal(g.pixel_rays(batch, 4, 5)[1], g.pixel_rays(2 * CAMERA, 4, 5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: g.intrinsics_from_fov(180, 10, 10), "horizontal field of view .* 180"),
        (lambda: g.intrinsics_from_fov(60, 10, 10, 0), "vertical field of view"),
        (lambda: g.intrinsics_from_fov(60, 0, 10), "at least 1 pixel"),
        (lambda: g.resize_intrinsics(CAMERA, (0, 10), (5, 5)), "at least 1 pixel"),
        (lambda: g.pixel_rays(torch.ones(3), 4, 4), "fx, fy, cx, cy"),
        (lambda: g.pixel_rays(torch.tensor([-1.0, 1, 0, 0]), 4, 4), "positive"),
        (lambda: g.point_cloud(torch.ones(4), CAMERA), r"\(\.\.\., H, W\)"),
        (lambda: g.normals_from_depth(torch.ones(4, 4), CAMERA, edge=0), "edge"),
    ],
)
def test_impossible_cameras_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---------------------------------------------------------------------------------------------------------- geometry


def test_points_lie_on_the_plane_and_keep_their_depth():
    normal = _unit(0.3, -0.5, 0.8)
    depth = _plane_depth(normal, 3.0)
    points = g.point_cloud(depth, CAMERA)
    assert torch.allclose(points @ normal, torch.full_like(depth, 3.0))
    assert torch.equal(points[..., 2], depth)


def test_points_of_unknown_depth_are_the_origin():
    depth = torch.tensor([[1.0, 0.0], [torch.inf, torch.nan]])
    points = g.point_cloud(depth, [1.0, 1.0, 1.0, 1.0])
    assert (points[g.known_depth(depth)] != 0).all() and g.known_depth(depth).sum() == 1
    assert (points[~g.known_depth(depth)] == 0).all()


@pytest.mark.parametrize("normal", [_unit(0, 0, 1), _unit(0.3, -0.5, 0.8), _unit(-0.6, 0.1, 0.9), _unit(0.05, 0.99, 0.75)])
def test_normals_are_exact_on_planes_up_to_the_border(normal):
    depth = _plane_depth(normal, 2.5)
    known = g.known_depth(depth)
    found = g.normals_from_depth(depth, CAMERA)
    # Where the plane is behind the camera or a pixel is alone, there is none.
    has_normal = found.norm(dim=-1) > 0
    assert (has_normal & ~known).sum() == 0
    assert has_normal.double().mean() > 0.99 * known.double().mean()
    assert torch.allclose(found[has_normal], -normal.expand(int(has_normal.sum()), 3), atol=1e-9)


def test_normals_of_a_sphere():
    """Second-order accurate on a curved surface: half the pixel size, a quarter of the error."""
    centre, radius = torch.tensor([0.1, -0.2, 4.0], dtype=torch.float64), 1.0
    errors = []
    for factor in (1, 2):
        camera = g.resize_intrinsics(CAMERA, (1, 1), (factor, factor))
        rays = g.pixel_rays(camera, HEIGHT * factor, WIDTH * factor)
        a, b = rays.square().sum(-1), rays @ centre
        root = b.square() - a * (centre.square().sum() - radius**2)
        depth = torch.where(root > 0, (b - root.clamp_min(0).sqrt()) / a, 0)
        true = (rays * depth[..., None] - centre) / radius
        inner = (depth > 0) & ((rays * true).sum(-1) / a.sqrt() < -0.7)  # away from the rim
        found = g.normals_from_depth(depth, camera)
        assert torch.allclose(found[inner].norm(dim=-1), torch.ones(int(inner.sum()), dtype=torch.float64))
        angle = (found[inner] * true[inner]).sum(-1).clamp(-1, 1).acos()
        errors.append(angle.max().item())
    assert errors[0] < math.radians(1)
    assert errors[1] < errors[0] / 3


def test_normals_do_not_bleed_across_a_depth_edge():
    floor, wall = _unit(0.0, 0.9, 0.4), _unit(0.2, 0.0, 1.0)
    depth = _plane_depth(wall, 2.0)
    behind = _plane_depth(floor, 9.0)
    right = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    right[:, 90:] = True
    depth = torch.where(right, behind, depth)
    visible = (~right) | ((behind > 3) & (behind < 40))
    found = g.normals_from_depth(depth, CAMERA, valid=visible)
    expected = -torch.where(right[..., None], floor, wall)
    has_normal = found.norm(dim=-1) > 0
    assert has_normal[:, 85:95].sum() > 800
    assert torch.allclose(found[has_normal], expected[has_normal], atol=1e-9)


def test_normals_of_holes_and_lonely_pixels():
    depth = torch.full((5, 5), 2.0)
    depth[0, 1] = depth[1, 0] = 0  # cuts off the corner
    found = g.normals_from_depth(depth, [10.0, 10.0, 2.5, 2.5])
    assert found[0, 1].tolist() == [0, 0, 0] and found[0, 0].tolist() == [0, 0, 0]
    assert torch.allclose(found[1:, 1:], torch.tensor([0.0, 0.0, -1.0]))
    assert (g.normals_from_depth(torch.ones(1, 5), [10.0, 10.0, 2.5, 0.5]) == 0).all()


def test_batches_equal_single_maps():
    depths = torch.stack([_plane_depth(_unit(0.1, 0.2, 1), 2.0), _plane_depth(_unit(-0.3, 0.2, 1), 5.0)])
    cameras = torch.stack([CAMERA, 1.5 * CAMERA])
    for function in (g.point_cloud, g.normals_from_depth):
        both = function(depths, cameras)
        for i in range(2):
            assert torch.equal(both[i], function(depths[i], cameras[i]))


# ------------------------------------------------------------------------------------------------------------- files


def _cloud(n: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(n, 3, generator=generator)
    colors = torch.randint(256, (n, 3), generator=generator, dtype=torch.uint8)
    return points, colors, torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1)


@pytest.mark.parametrize("with_colors", [True, False])
@pytest.mark.parametrize("with_normals", [True, False])
def test_ply_is_read_back(tmp_path, with_colors, with_normals):
    points, colors, normals = _cloud()
    path = tmp_path / "cloud.ply"
    g.write_ply(path, points, colors if with_colors else None, normals if with_normals else None)
    header, _, body = path.read_bytes().partition(b"end_header\n")
    lines = header.decode("ascii").splitlines()
    assert lines[:3] == ["ply", "format binary_little_endian 1.0", "element vertex 7"]
    properties = [line.split()[1:] for line in lines if line.startswith("property")]
    record = struct.Struct("<" + "".join({"float": "f", "uchar": "B"}[kind] for kind, _ in properties))
    names = [name for _, name in properties]
    rows = [dict(zip(names, values)) for values in record.iter_unpack(body)]
    assert len(rows) == 7
    for row, point, color, normal in zip(rows, points, colors, normals):
        assert [row["x"], row["y"], row["z"]] == point.tolist()
        if with_colors:
            assert [row["red"], row["green"], row["blue"]] == color.tolist()
        if with_normals:
            assert [row["nx"], row["ny"], row["nz"]] == normal.tolist()
    assert ("red" in names, "nx" in names) == (with_colors, with_normals)


@pytest.mark.parametrize("full", [True, False])
def test_glb_is_read_back(tmp_path, full):
    points, colors, normals = _cloud()
    colors[0] = torch.tensor([0, 255, 10], dtype=torch.uint8)
    path = tmp_path / "cloud.glb"
    g.write_glb(path, points, *((colors, normals) if full else ()))
    data = path.read_bytes()
    magic, version, length, json_length, json_type = struct.unpack_from("<4sIIII", data)
    assert (magic, version, length, json_type) == (b"glTF", 2, len(data), 0x4E4F534A)
    document = json.loads(data[20 : 20 + json_length])
    binary_length, binary_type = struct.unpack_from("<II", data, 20 + json_length)
    binary = data[28 + json_length :]
    assert json_length % 4 == 0 and binary_length % 4 == 0 and binary_type == 0x004E4942
    assert binary_length == len(binary) == document["buffers"][0]["byteLength"]
    primitive = document["meshes"][0]["primitives"][0]
    assert primitive["mode"] == 0
    formats = {(5126, "VEC3"): "<3f", (5123, "VEC4"): "<4H"}

    def attribute(name: str) -> list[tuple]:
        accessor = document["accessors"][primitive["attributes"][name]]
        view = document["bufferViews"][accessor["bufferView"]]
        assert view["byteOffset"] % 4 == 0 and accessor["count"] == 7
        chunk = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        return list(struct.iter_unpack(formats[accessor["componentType"], accessor["type"]], chunk))

    expected = points * torch.tensor([1.0, -1.0, -1.0])
    assert attribute("POSITION") == [tuple(row) for row in expected.tolist()]
    accessor = document["accessors"][primitive["attributes"]["POSITION"]]
    assert accessor["min"] == expected.amin(0).tolist() and accessor["max"] == expected.amax(0).tolist()
    assert set(primitive["attributes"]) == ({"POSITION", "NORMAL", "COLOR_0"} if full else {"POSITION"})
    if full:
        assert attribute("NORMAL") == [tuple(row) for row in (normals * torch.tensor([1.0, -1.0, -1.0])).tolist()]
        # sRGB 10/255 is in the straight part of the curve: linear = 10/255/12.92
        assert attribute("COLOR_0")[0] == (0, 65535, round(10 / 255 / 12.92 * 65535), 65535)
        middle = attribute("COLOR_0")[3][1] / 65535
        assert middle == pytest.approx(((int(colors[3, 1]) / 255 + 0.055) / 1.055) ** 2.4, abs=1e-4)


@pytest.mark.parametrize("write", [g.write_ply, g.write_glb])
def test_bad_clouds_are_refused(write, tmp_path):
    points, colors, normals = _cloud()
    path = tmp_path / "cloud"
    for arguments, message in [
        ((torch.zeros(0, 3),), "at least one"),
        ((torch.zeros(4, 2),), r"\(\.\.\., 3\)"),
        ((points, colors[:3]), "colors must have the shape"),
        ((points, colors.float()), "uint8"),
        ((points, colors, normals[:, :2]), "normals must have the shape"),
        ((points * torch.nan,), "finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            write(path, *arguments)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write(tmp_path / "nowhere" / "cloud", points)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [g.write_ply, g.write_glb])
def test_a_failed_write_leaves_the_old_file(write, tmp_path, monkeypatch):
    points, *_ = _cloud()
    path = tmp_path / "cloud"
    path.write_bytes(b"before")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space"):
        write(path, points)
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["cloud"]


def test_maps_may_be_written_without_flattening(tmp_path):
    depth = _plane_depth(_unit(0, 0, 1), 2.0)
    points = g.point_cloud(depth, CAMERA)
    g.write_ply(tmp_path / "room.ply", points, normals=g.normals_from_depth(depth, CAMERA))
    assert f"element vertex {HEIGHT * WIDTH}\n".encode() in (tmp_path / "room.ply").read_bytes()


def test_whole_numbers_and_half_precision_lose_nothing():
    whole = torch.tensor([500, 500, 320, 240])
    assert g.resize_intrinsics(whole, (480, 640), (240, 320)).tolist() == [250, 250, 160, 120]
    assert g.crop_intrinsics(whole, 0.5, 0.5).tolist() == [500, 500, 319.5, 239.5]
    depth, camera = torch.full((2, 600), 2), (500.5, 500.5, 300.0, 1.0)
    expected = g.point_cloud(depth.float(), camera)
    assert torch.equal(g.point_cloud(depth, camera), expected)
    rough = g.point_cloud(depth.bfloat16(), camera)  # 2 m is exact
    assert torch.equal(rough.float(), expected) and len(rough[0, :, 0].unique()) == 600
    assert torch.allclose(g.normals_from_depth(depth, camera).double(), g.normals_from_depth(depth.double(), camera), atol=1e-6)
