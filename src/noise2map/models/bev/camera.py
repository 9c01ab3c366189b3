"""The camera branch: image features lifted along each pixel's ray and pooled in bird's-eye view."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from noise2map.models.bev.configuration import Noise2MapBevConfig
from noise2map.models.bev.grid import Bounds
from noise2map.models.bev.layers import ConvNormRelu, conv_norm_relu
from noise2map.models.bev.rig import CameraRig
from noise2map.models.encoder import make_backbone

_SCALES = 3  # 1/8, 1/16 and 1/32

_NO_DEPTH = -1  # bin of a pixel that no beam met

_PLANS_KEPT = 8  # of the newest rigs, about 14 MB each for six cameras


class CameraNeck(nn.Module):
    """Feature pyramid that concatenates instead of adding; all but the coarsest scale are refined."""

    def __init__(self, in_channels: list[int], channels: int) -> None:
        super().__init__()
        above = [*[channels] * (len(in_channels) - 2), in_channels[-1]]
        sizes = list(zip(in_channels, above))
        self.lateral_convs = nn.ModuleList(ConvNormRelu(own + coarser, channels, 1) for own, coarser in sizes)
        self.fpn_convs = nn.ModuleList(ConvNormRelu(channels, channels, 3) for _ in sizes)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Backbone maps, fine to coarse -> the refined scales, fine to coarse."""
        refined: list[Tensor] = list(maps)
        for i in range(len(maps) - 2, -1, -1):
            size = maps[i].shape[-2:]
            coarser = functional.interpolate(refined[i + 1], size=size, mode="bilinear", align_corners=False)
            refined[i] = self.fpn_convs[i](self.lateral_convs[i](torch.cat([maps[i], coarser], dim=1)))
        return refined[:-1]


@dataclass(frozen=True)
class PoolingPlan:
    """Which point of the frustums of one rig falls into which cell. It changes only if the cameras move.

    Attributes:
        point: index of each kept point into ``(N, D, h, w)``, sorted by cell ``(P,)``, int32.
        pixel: index of its pixel into ``(N, h, w)``, ``(P,)``, int32.
        offsets: first kept point of each cell, and the number of all ``(Z*X*Y + 1,)``, int32; cells ordered z, x, y.
        shape: cells along z, x, y.
    """

    point: Tensor
    pixel: Tensor
    offsets: Tensor
    shape: tuple[int, int, int]

    def counts(self) -> Tensor:
        """Points in each cell ``(Z, X, Y)``."""
        return self.offsets.diff().view(self.shape)


class LiftSplat(nn.Module):
    """Predicts a depth distribution for each pixel, spreads its features over it and sums them up by cell."""

    def __init__(self, config: Noise2MapBevConfig) -> None:
        super().__init__()
        self.grid = config.grid
        self.image_size = tuple(config.image_size)
        lower, upper, step = config.depth_bounds
        self.depth_range = (lower, upper, step)
        self.depths = len(torch.arange(lower, upper, step))
        self.context_channels = config.context_channels
        self.depthnet = nn.Conv2d(config.camera_neck_channels, self.depths + config.context_channels, 1)
        channels = config.context_channels
        pooled = channels * self.grid[2].count
        self.downsample = nn.Sequential(
            *conv_norm_relu(pooled, channels), *conv_norm_relu(channels, channels, stride=2), *conv_norm_relu(channels, channels)
        )
        self._plans: OrderedDict[bytes, PoolingPlan] = OrderedDict()

    def frustum(self, size: tuple[int, int], device: torch.device | None = None) -> Tensor:
        """Column, row (of the network's image) and depth of every point that is lifted, ``(D, h, w, 3)``.

        The corner pixels of the feature map sit on the corner pixels of the image, as in the published code.
        """
        depth = torch.arange(*self.depth_range, device=device, dtype=torch.float32)
        v = torch.linspace(0, self.image_size[0] - 1, size[0], device=device, dtype=torch.float32)
        u = torch.linspace(0, self.image_size[1] - 1, size[1], device=device, dtype=torch.float32)
        d, v, u = torch.meshgrid(depth, v, u, indexing="ij")
        return torch.stack([u, v, d], dim=-1)

    def plan(self, rig: CameraRig, size: tuple[int, int]) -> PoolingPlan:
        """The pooling plan of one sample's rig for feature maps of a size; remembered while cameras do not move."""
        key = rig.key() + repr((size, str(rig.intrinsics.device))).encode()
        if key in self._plans:
            self._plans.move_to_end(key)
            return self._plans[key]
        with torch.inference_mode(False), torch.no_grad():  # it outlives this call: a training step may use it next
            points = rig.cloned().unproject(self.frustum(size, rig.intrinsics.device))[0]
            plan = plan_pooling(points, self.grid)
        self._plans[key] = plan
        if len(self._plans) > _PLANS_KEPT:
            self._plans.popitem(last=False)
        return plan

    def lift(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``(M, C, h, w)`` -> probability of each depth ``(M, D, h, w)`` and context ``(M, C', h, w)``, float32."""
        x = self.depthnet(features)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return x[:, : self.depths].softmax(1), x[:, self.depths :]

    def depth_loss(self, features: Tensor, rig: CameraRig, points: Sequence[Tensor]) -> Tensor:
        """Cross entropy of the predicted depths where LiDAR measured one (BEVDepth, Li et al. 2023, has a binary one).

        Args:
            features: camera features ``(B, N, C, h, w)``.
            rig: their cameras.
            points: a point cloud for each sample ``(P_i, F)``, in the frame of the map.

        Returns:
            A scalar, the mean over the pixels whose depth is known and among those that are lifted; 0 if there is none.
        """
        lower, _, step = self.depth_range
        depth_m = nearest_depths(rig, points, (features.shape[-2], features.shape[-1]), self.image_size)
        nearest = ((depth_m - lower) / step).round().long()
        known = (depth_m > 0) & (nearest >= 0) & (nearest < self.depths)
        scores = self.depthnet(features.flatten(0, 1))[:, : self.depths]
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        truth = torch.where(known, nearest, _NO_DEPTH).flatten(0, 1)
        total = functional.cross_entropy(scores, truth, ignore_index=_NO_DEPTH, reduction="sum")
        return total / known.sum().clamp(min=1)

    def forward(self, features: Tensor, rig: CameraRig) -> Tensor:
        """Camera features ``(B, N, C, h, w)`` -> bird's-eye view ``(B, C', X / 2, Y / 2)``."""
        batch = features.shape[0]
        depth, context = (part.unflatten(0, (batch, -1)) for part in self.lift(features.flatten(0, 1)))
        size = (features.shape[-2], features.shape[-1])
        pooled = torch.stack([pool(self.plan(rig[i], size), depth[i], context[i]) for i in range(batch)])
        return self.downsample(pooled.to(features.dtype))


class CameraBranch(nn.Module):
    """Six images and their geometry -> bird's-eye view."""

    def __init__(self, config: Noise2MapBevConfig) -> None:
        super().__init__()
        self.num_cameras, self.image_size = config.num_cameras, tuple(config.image_size)
        self.backbone = make_backbone(config.backbone_config, _SCALES)
        self.neck = CameraNeck(list(self.backbone.channels), config.camera_neck_channels)
        self.lift = LiftSplat(config)

    def check(self, pixel_values: Tensor, rig: CameraRig | None) -> None:
        """Refuses images that do not belong to the rig.

        Raises:
            ValueError: for another number of cameras, another size, or matrices for another number of images.
        """
        expected = (self.num_cameras, 3, *self.image_size)
        if pixel_values.ndim != 5 or tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(
                f"pixel_values have shape {tuple(pixel_values.shape)}; expected (B, N, 3, H, W) = (B, {str(expected)[1:]}"
            )
        if rig is None:
            raise ValueError("camera matrices are missing; expected intrinsics and camera_to_lidar beside pixel_values")
        if (len(rig), rig.num_cameras) != tuple(pixel_values.shape[:2]):
            raise ValueError(
                f"camera matrices are those of {len(rig)} x {rig.num_cameras} images; expected "
                f"{pixel_values.shape[0]} x {pixel_values.shape[1]}, like pixel_values"
            )

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Images ``(B, N, 3, H, W)`` -> features at 1/8 of the size ``(B, N, C, h, w)``."""
        maps = list(self.backbone(pixel_values.flatten(0, 1)).feature_maps)
        return self.neck(maps)[0].unflatten(0, (pixel_values.shape[0], -1))

    def forward(self, pixel_values: Tensor, rig: CameraRig) -> Tensor:
        """Normalised images ``(B, N, 3, H, W)`` -> ``(B, C, X / 2, Y / 2)``."""
        return self.lift(self.image_features(pixel_values), rig)


def plan_pooling(points: Tensor, grid: tuple[Bounds, Bounds, Bounds]) -> PoolingPlan:
    """Sorts frustum points by cell.

    The index of a cell is the coordinate in cells **truncated toward zero**, as in the published code, not rounded down: points up
    to one cell below the grid count as its first cell. Weights were trained with it.

    Args:
        points: ``(N, D, h, w, 3)``, metres in the map's frame.
        grid: axes x, y and z.
    """
    _, depths, height, width, _ = points.shape
    lower = points.new_tensor([axis.lower + axis.step / 2 for axis in grid])  # the centre of the first cell
    step = points.new_tensor([axis.step for axis in grid])
    index = ((points.reshape(-1, 3) - (lower - step / 2)) / step).long()
    count_x, count_y, count_z = (axis.count for axis in grid)
    kept = ((index >= 0) & (index < index.new_tensor([count_x, count_y, count_z]))).all(-1)
    point = kept.nonzero().squeeze(1)
    x, y, z = index[point].unbind(-1)
    cell = (z * count_x + x) * count_y + y
    cell, order = torch.sort(cell, stable=True)
    point = point[order]
    counts = torch.bincount(cell, minlength=count_z * count_x * count_y)
    offsets = functional.pad(counts.cumsum(0), (1, 0))
    area = height * width
    pixel = point // (depths * area) * area + point % area
    return PoolingPlan(point.int(), pixel.int(), offsets.int(), (count_z, count_x, count_y))


def nearest_depths(rig: CameraRig, points: Sequence[Tensor], size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """Depth of the nearest point that a beam met in each pixel of the feature maps, as `LiftSplat.frustum` places them.

    Only points of the key frame count (age 0): what was read before it may have moved.

    Args:
        rig: the cameras.
        points: a point cloud for each sample ``(P_i, F)``: x, y, z in the frame of the map, metres; if F > 4, age in fifth place.
        size: height and width of the feature maps.
        image_size: height and width of the network's images.

    Returns:
        ``(B, N, h, w)``, metres; 0 where no point is seen.
    """
    height, width = size
    rows_per_pixel, columns_per_pixel = (height - 1) / (image_size[0] - 1), (width - 1) / (image_size[1] - 1)
    found = []
    for index, cloud in enumerate(points):
        fresh = cloud[cloud[:, 4] == 0] if cloud.shape[1] > 4 else cloud
        u, v, depth = rig[index].project(fresh[None, :, :3].to(rig.intrinsics))[0].unbind(-1)  # each (N, P)
        column, row = (u * columns_per_pixel).round(), (v * rows_per_pixel).round()
        seen = (depth > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        cell = torch.where(seen, row * width + column, 0).long()
        nearest = depth.new_full((len(depth), height * width), torch.inf)
        nearest.scatter_reduce_(1, cell, torch.where(seen, depth, torch.inf), "amin")
        found.append(torch.where(nearest.isfinite(), nearest, 0).unflatten(1, size))
    return torch.stack(found)


def pool(plan: PoolingPlan, depth: Tensor, context: Tensor) -> Tensor:
    """Sum of depth x context over the points of each cell.

    Args:
        plan: from `plan_pooling`.
        depth: probability of each depth ``(N, D, h, w)``.
        context: features ``(N, C, h, w)``, of the same type.

    Returns:
        ``(Z*C, X, Y)``; an empty cell is 0.
    """
    weight = depth.reshape(-1).index_select(0, plan.point)
    table = context.movedim(1, -1).flatten(0, 2)
    # A bag is a cell: a segment sum of weighted rows of the table.
    sums = functional.embedding_bag(
        plan.pixel, table, plan.offsets, mode="sum", per_sample_weights=weight, include_last_offset=True
    )
    count_z, count_x, count_y = plan.shape
    return sums.view(count_z, count_x, count_y, -1).permute(0, 3, 1, 2).reshape(-1, count_x, count_y)
