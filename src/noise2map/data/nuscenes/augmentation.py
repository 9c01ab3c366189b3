"""Augmentation of images and points, and its matrices.

An image matrix maps an original pixel (column, row) to one of the network's image; a LiDAR matrix maps a point of the LiDAR's frame
to the augmented one. Both are 4x4.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from noise2map.data.nuscenes.dataset import NuScenesDataset

Matrix = NDArray[np.float32]
Box = tuple[int, int, int, int]  # left, upper, right, lower


def transform_image(
    image: Image.Image, scale: float, crop: Box, flip: bool = False, rotate_deg: float = 0.0
) -> tuple[Image.Image, Matrix]:
    """Resizes (bicubic), crops (black outside), mirrors and rotates about the centre (nearest), in this order.

    Args:
        image: RGB.
        scale: New size over old size.
        crop: Box of the resized image; its size is that of the result.
        flip: Mirror left and right.
        rotate_deg: Counter-clockwise.

    Returns:
        The image and its matrix ``(4, 4)`` float32.
    """
    size = int(image.width * scale), int(image.height * scale)
    image = image.resize(size, Image.Resampling.BICUBIC).crop(crop)
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rotate_deg:
        image = image.rotate(rotate_deg)
    return image, image_matrix(scale, crop, flip, rotate_deg)


def image_matrix(scale: float, crop: Box, flip: bool = False, rotate_deg: float = 0.0) -> Matrix:
    """The matrix of `transform_image`."""
    width, height = crop[2] - crop[0], crop[3] - crop[1]
    linear, shift = np.eye(2) * scale, -np.array(crop[:2], np.float64)
    if flip:
        mirror = np.diag([-1.0, 1.0])
        linear, shift = mirror @ linear, mirror @ shift + [width, 0]
    angle = math.radians(rotate_deg)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    center = np.array([width, height]) / 2
    matrix = np.eye(4, dtype=np.float32)
    matrix[:2, :2] = turn @ linear
    matrix[:2, 3] = turn @ (shift - center) + center
    return matrix


def evaluation_crop(size: tuple[int, int], scale: float, network_size: tuple[int, int]) -> Box:
    """Crop of a resized image ``size * scale`` to the network's size, centred across, at the bottom.

    Args:
        size: Width and height of the original image.
        scale: Of the resize.
        network_size: Height and width of the network's image.
    """
    width, height = int(size[0] * scale), int(size[1] * scale)
    left, top = max(0, width - network_size[1]) // 2, height - network_size[0]
    return left, top, left + network_size[1], top + network_size[0]


def lidar_matrix(
    scale: float = 1.0,
    angle_rad: float = 0.0,
    translation_m: tuple[float, float, float] = (0.0, 0.0, 0.0),
    mirror_x: bool = False,
    mirror_y: bool = False,
) -> Matrix:
    """LiDAR -> augmented LiDAR: turned (clockwise for positive angles), shifted, scaled, then mirrored."""
    cos, sin = math.cos(angle_rad), math.sin(angle_rad)
    matrix = np.eye(4)
    matrix[:3, :3] = scale * np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    matrix[:3, 3] = scale * np.array(translation_m)
    mirror = np.diag([-1.0 if mirror_x else 1.0, -1.0 if mirror_y else 1.0, 1.0, 1.0])
    return (mirror @ matrix).astype(np.float32)


@dataclass(frozen=True)
class BevAugmentation:
    """The published training augmentation: every image by itself, and the whole scene. A joint transform of raw samples.

    Attributes:
        dataset: Where the samples come from; it draws the map again for every turned scene.
        network_size: Height and width of the network's images.
        image_scale: Range of the images' scale.
        image_flip: Probability of mirroring an image.
        image_rotate_deg: Largest rotation of an image.
        scene_scale: Range of the scene's scale. The map is not scaled with it, as in the published code.
        scene_rotate_rad: Largest rotation of the scene.
        scene_shift_m: Standard deviation of its shift along each axis.
        scene_flip: Probability of mirroring the scene along each of x and y.
    """

    dataset: NuScenesDataset
    network_size: tuple[int, int] = (256, 704)
    image_scale: tuple[float, float] = (0.38, 0.55)
    image_flip: float = 0.5
    image_rotate_deg: float = 5.4
    scene_scale: tuple[float, float] = (0.9, 1.1)
    scene_rotate_rad: float = math.pi / 4
    scene_shift_m: float = 0.5
    scene_flip: float = 0.5

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The sample with ``image_augmentation`` ``(N, 4, 4)`` and ``lidar_augmentation`` ``(4, 4)``, all else moved with them."""
        result = dict(sample)
        if "images" in result:
            pairs = [self._image(image, rng) for image in result["images"]]
            result["images"] = [image for image, _ in pairs]
            result["image_augmentation"] = np.stack([matrix for _, matrix in pairs])
        scale, angle = rng.uniform(*self.scene_scale), rng.uniform(-self.scene_rotate_rad, self.scene_rotate_rad)
        x, y, z = rng.normal(0, self.scene_shift_m, 3)
        mirror_x, mirror_y = (bool(value) for value in rng.random(2) < self.scene_flip)
        turned = lidar_matrix(scale, angle, (x, y, z))
        matrix = lidar_matrix(scale, angle, (x, y, z), mirror_x, mirror_y)
        result["lidar_augmentation"] = matrix
        for key, draw in (("labels", "draw_labels"), ("visibility", "visibility")):
            if key in result:
                drawn = getattr(self.dataset, draw)(self.dataset.index_of(result["id"]), turned)
                result[key] = np.ascontiguousarray(drawn[..., :: -1 if mirror_x else 1, :: -1 if mirror_y else 1])
        if "points" in result:
            points = result["points"].copy()
            points[:, :3] = points[:, :3] @ matrix[:3, :3].T + matrix[:3, 3]
            result["points"] = points[rng.permutation(len(points))]  # which points of a full voxel count is up to their order
        return result

    def _image(self, image: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Matrix]:
        scale = rng.uniform(*self.image_scale)
        height, width = self.network_size
        left = int(rng.uniform(0, max(0, int(image.width * scale) - width)))
        top = int(image.height * scale) - height
        flip = bool(rng.random() < self.image_flip)
        angle = rng.uniform(-self.image_rotate_deg, self.image_rotate_deg)
        return transform_image(image, scale, (left, top, left + width, top + height), flip, angle)
