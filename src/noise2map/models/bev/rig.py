"""The geometry of a camera rig: where a pixel of the network's image lies in space.

Conventions, here and nowhere else:

* a camera looks along +z, x points right and y down; depth is z, metres;
* pixel ``(u, v)`` is column and row; ``intrinsics`` belong to the **original** image, pixel = K X / z;
* ``image_augmentation`` maps an original pixel to one of the network's image: ``A[:2, :2] @ pixel + A[:2, 3]`` (resize, crop, flip,
  rotation; the third row is the identity);
* ``camera_to_lidar`` maps a point of the camera's frame to the LiDAR's frame of the key frame (nuScenes: x right, y forward, z up);
* ``lidar_augmentation`` maps a point of that frame to the frame of the map (rotation, scale, flip, translation).

Matrices are 4x4 and act on column vectors.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def in_full_precision(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The method without autocast: in bfloat16 a column times a depth of 1,000 px m is known to 4, and points leave their cells."""

    @functools.wraps(method)
    def exact(rig: "CameraRig", *args: Tensor) -> Tensor:
        if rig.intrinsics.device.type == "meta":  # tensors without data have no autocast to switch off
            return method(rig, *args)
        with torch.autocast(rig.intrinsics.device.type, enabled=False):
            return method(rig, *args)

    return exact


@dataclass(frozen=True)
class CameraRig:
    """N cameras of each of B samples.

    Attributes:
        intrinsics: ``(B, N, 3, 3)``, pixels.
        camera_to_lidar: ``(B, N, 4, 4)``.
        image_augmentation: ``(B, N, 4, 4)``.
        lidar_augmentation: ``(B, 4, 4)``.
    """

    intrinsics: Tensor
    camera_to_lidar: Tensor
    image_augmentation: Tensor
    lidar_augmentation: Tensor

    @classmethod
    def create(
        cls,
        intrinsics: Tensor,
        camera_to_lidar: Tensor,
        image_augmentation: Tensor | None = None,
        lidar_augmentation: Tensor | None = None,
    ) -> "CameraRig":
        """A checked rig.

        Args:
            intrinsics: ``(B, N, 3, 3)``, or ``(B, N, 4, 4)`` with the matrix in its upper left corner.
            camera_to_lidar: ``(B, N, 4, 4)``.
            image_augmentation: ``(B, N, 4, 4)``; the identity if not given.
            lidar_augmentation: ``(B, 4, 4)``; the identity if not given. Of several types all become the most precise one.

        Raises:
            ValueError: if shapes do not belong together, a number is not finite or a matrix cannot be inverted.
        """
        if camera_to_lidar.ndim != 4 or camera_to_lidar.shape[-2:] != (4, 4):
            raise ValueError(f"camera_to_lidar has shape {tuple(camera_to_lidar.shape)}; expected (B, N, 4, 4)")
        batch, cameras = camera_to_lidar.shape[:2]
        if intrinsics.shape[:2] != (batch, cameras) or tuple(intrinsics.shape[2:]) not in ((3, 3), (4, 4)):
            raise ValueError(f"intrinsics have shape {tuple(intrinsics.shape)}; expected ({batch}, {cameras}, 3, 3)")
        given = (intrinsics, camera_to_lidar, image_augmentation, lidar_augmentation)
        dtype = functools.reduce(torch.promote_types, (one.dtype for one in given if one is not None), torch.float32)
        identity = torch.eye(4, dtype=dtype, device=camera_to_lidar.device)
        if image_augmentation is None:
            image_augmentation = identity.expand(batch, cameras, 4, 4)
        if lidar_augmentation is None:
            lidar_augmentation = identity.expand(batch, 4, 4)
        matrices = (intrinsics[..., :3, :3], camera_to_lidar, image_augmentation, lidar_augmentation)
        rig = cls(*(matrix.to(dtype) for matrix in matrices))
        expected = {"image_augmentation": (batch, cameras, 4, 4), "lidar_augmentation": (batch, 4, 4)}
        for name, shape in expected.items():
            if tuple(getattr(rig, name).shape) != shape:
                raise ValueError(f"{name} has shape {tuple(getattr(rig, name).shape)}; expected {shape}")
        rig._check()
        return rig

    def _check(self) -> None:
        for name in ("intrinsics", "camera_to_lidar", "image_augmentation", "lidar_augmentation"):
            matrix = getattr(self, name)
            if not bool(torch.isfinite(matrix).all()):
                raise ValueError(f"{name} holds NaN or infinite values; expected camera matrices")
            determinant = torch.linalg.det(matrix[..., :3, :3].double()).abs()
            if bool((determinant < 1e-12).any()):
                where = (determinant < 1e-12).nonzero()[0].tolist()
                raise ValueError(f"{name} is singular at index {where}; expected a matrix that can be inverted")

    @property
    def num_cameras(self) -> int:
        """Cameras of each sample."""
        return self.camera_to_lidar.shape[1]

    def __len__(self) -> int:
        return self.camera_to_lidar.shape[0]

    def __getitem__(self, index: int) -> "CameraRig":
        """The rig of one sample, still with a batch axis."""
        rows = slice(index, index + 1)
        matrices = (self.intrinsics, self.camera_to_lidar, self.image_augmentation, self.lidar_augmentation)
        return CameraRig(*(matrix[rows] for matrix in matrices))

    def cloned(self) -> "CameraRig":
        """The same matrices in memory of their own."""
        matrices = (self.intrinsics, self.camera_to_lidar, self.image_augmentation, self.lidar_augmentation)
        return CameraRig(*(matrix.clone() for matrix in matrices))

    def key(self) -> bytes:
        """Equal for equal matrices."""
        matrices = (self.intrinsics, self.camera_to_lidar, self.image_augmentation, self.lidar_augmentation)
        return b"".join(matrix.detach().cpu().contiguous().numpy().tobytes() for matrix in matrices)

    @in_full_precision
    def unproject(self, pixels: Tensor) -> Tensor:
        """Pixels with depth -> points of the map's frame.

        The order of the operations is the published one, so that points fall into the same cells in float32.

        Args:
            pixels: ``(..., 3)``: column and row in the network's image, depth in metres; the same for every camera.

        Returns:
            ``(B, N, ..., 3)``, metres.
        """
        shape = pixels.shape
        batch, cameras = self.camera_to_lidar.shape[:2]
        points = pixels.reshape(1, 1, -1, 3).to(self.intrinsics.dtype)
        shift = self.image_augmentation[..., :3, 3] * self.image_augmentation.new_tensor([1.0, 1.0, 0.0])
        points = points - shift[:, :, None]
        points = _apply(torch.inverse(self.image_augmentation[..., :3, :3]), points)
        points = torch.cat([points[..., :2] * points[..., 2:], points[..., 2:]], dim=-1)
        to_lidar = self.camera_to_lidar[..., :3, :3] @ torch.inverse(self.intrinsics)
        points = _apply(to_lidar, points) + self.camera_to_lidar[:, :, None, :3, 3]
        points = _apply(self.lidar_augmentation[:, None, :3, :3].expand(-1, cameras, -1, -1), points)
        points = points + self.lidar_augmentation[:, None, None, :3, 3]
        return points.reshape(batch, cameras, *shape)

    @in_full_precision
    def project(self, points: Tensor) -> Tensor:
        """Points of the map's frame -> pixels with depth; the inverse of `unproject`.

        Args:
            points: ``(B, P, 3)``, metres.

        Returns:
            ``(B, N, P, 3)``: column and row in the network's image and depth; a point is seen if its depth is positive and
            its pixel inside the image.
        """
        whole = torch.cat([points, torch.ones_like(points[..., :1])], dim=-1)[:, None, :, :, None]
        into_camera = torch.inverse(self.lidar_augmentation[:, None] @ self.camera_to_lidar)
        camera = (into_camera[:, :, None] @ whole)[..., :3, :]
        image = (self.intrinsics[:, :, None] @ camera).squeeze(-1)
        depth = image[..., 2:]
        pixel = torch.cat([image[..., :2] / depth, depth], dim=-1)
        pixel = (self.image_augmentation[:, :, None, :3, :3] @ pixel.unsqueeze(-1)).squeeze(-1)
        return pixel + self.image_augmentation[:, :, None, :3, 3] * pixel.new_tensor([1.0, 1.0, 0.0])


def _apply(matrix: Tensor, points: Tensor) -> Tensor:
    """Matrices ``(B, N, 3, 3)`` on points ``(B, N, P, 3)``."""
    return points @ matrix.transpose(-1, -2)
