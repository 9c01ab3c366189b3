"""Camera geometry: known points, the published frustum, matrices that cannot work."""

import math

import pytest
import torch
from tiny_bev import camera_to_lidar

from noise2map.models.bev import CameraRig

INTRINSICS = torch.tensor([[50.0, 0, 40], [0, 60, 20], [0, 0, 1]])


def rig(yaws=(0.0,), image=None, lidar=None, dtype=torch.float64):
    poses = torch.stack([camera_to_lidar(yaw, (1.0, 2.0, 0.5)) for yaw in yaws])[None].to(dtype)
    matrices = INTRINSICS.expand(1, len(yaws), 3, 3).to(dtype)
    return CameraRig.create(matrices, poses, image, lidar)


def test_a_point_ahead_lands_where_the_pinhole_says():
    """2 m to the right, 10 m ahead and 1 m up of a camera at (1, 2, 0.5) that looks along y."""
    seen = rig().project(torch.tensor([[[3.0, 12.0, 1.5]]], dtype=torch.float64))
    torch.testing.assert_close(seen[0, 0, 0], torch.tensor([40 + 50 * 0.2, 20 - 60 * 0.1, 10.0], dtype=torch.float64))


def test_a_camera_turned_to_the_left_looks_along_minus_x():
    """At yaw 90 degrees its right is the LiDAR's forward."""
    seen = rig([90.0]).project(torch.tensor([[[1.0 - 10, 2.0 + 1, 0.5]]], dtype=torch.float64))
    torch.testing.assert_close(seen[0, 0, 0], torch.tensor([45.0, 20.0, 10.0], dtype=torch.float64))


def test_points_behind_have_negative_depth():
    assert rig().project(torch.tensor([[[1.0, -8.0, 0.5]]], dtype=torch.float64))[0, 0, 0, 2] == pytest.approx(-10)


def augmented():
    image = torch.eye(4, dtype=torch.float64)
    image[:2, :2] = torch.tensor([[-0.43, 0.03], [0.03, 0.42]])
    image[:2, 3] = torch.tensor([68.0, -15.0])
    lidar = torch.eye(4, dtype=torch.float64)
    lidar[:2, :2] = 1.06 * torch.tensor([[math.cos(0.3), math.sin(0.3)], [-math.sin(0.3), math.cos(0.3)]])
    lidar[:3, 3] = torch.tensor([0.6, -0.4, 0.1])
    return rig([0.0, 60.0], image.expand(1, 2, 4, 4), lidar[None])


def test_unproject_is_the_inverse_of_project():
    augmented_rig = augmented()
    pixels = torch.tensor([[3.0, 5.0, 2.0], [70.0, 31.0, 40.0], [20.0, 0.0, 7.5]], dtype=torch.float64)
    points = augmented_rig.unproject(pixels)
    assert points.shape == (1, 2, 3, 3)
    for camera in range(2):
        torch.testing.assert_close(augmented_rig.project(points[:, camera])[0, camera], pixels)


def test_augmentations_act_on_pixels_and_on_space():
    """The image's maps the plain pixel, the LiDAR's the plain point."""
    plain, moved = rig([0.0, 60.0]), augmented()
    pixel = torch.tensor([[33.0, 12.0, 9.0]], dtype=torch.float64)
    matrix = moved.image_augmentation[0, 0]
    there = torch.cat([(matrix[:2, :2] @ pixel[0, :2] + matrix[:2, 3]), pixel[0, 2:]])[None]
    expected = plain.unproject(pixel)[0, 0, 0] @ moved.lidar_augmentation[0, :3, :3].T + moved.lidar_augmentation[0, :3, 3]
    torch.testing.assert_close(moved.unproject(there)[0, 0, 0], expected)


def test_intrinsics_may_be_four_by_four():
    matrix = torch.eye(4).expand(1, 1, 4, 4).clone()
    matrix[..., :3, :3] = INTRINSICS
    assert torch.equal(CameraRig.create(matrix, torch.eye(4)[None, None]).intrinsics[0, 0], INTRINSICS)


def test_key_tells_rigs_apart():
    first, other = rig([0.0, 60.0]), augmented()
    assert first.key() == rig([0.0, 60.0]).key() != other.key() and len(first) == 1 and first.num_cameras == 2


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("intrinsics", lambda x: x * 0, "intrinsics is singular at index"),
        ("camera_to_lidar", lambda x: x * float("nan"), "camera_to_lidar holds NaN"),
        ("image_augmentation", lambda x: x[:, :1], "image_augmentation has shape"),
        ("lidar_augmentation", lambda x: x[0], "lidar_augmentation has shape"),
        ("intrinsics", lambda x: x[:, :1], r"intrinsics have shape .*expected \(1, 2, 3, 3\)"),
        ("camera_to_lidar", lambda x: x[0], "camera_to_lidar has shape"),
    ],
)
def test_impossible_matrices_are_refused(name, change, message):
    good = augmented()
    matrices = {key: getattr(good, key) for key in ("intrinsics", "camera_to_lidar", "image_augmentation", "lidar_augmentation")}
    matrices[name] = change(matrices[name])
    with pytest.raises(ValueError, match=message):
        CameraRig.create(**matrices)
