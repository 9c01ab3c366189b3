"""The LiDAR branch: points, voxels, sparse 3D convolutions, bird's-eye view."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from noise2map.models.bev.configuration import Noise2MapBevConfig
from noise2map.models.bev.sparse_conv import SiteNorm, Sites, SparseConv3d, Triple, rank_of, to_dense

_NORM = {"eps": 1e-3, "momentum": 0.01}  # published; not torch's default

_PADDINGS: tuple[Triple, ...] = ((1, 1, 1), (1, 1, 1), (1, 1, 0))

_OUT_KERNEL, _OUT_STRIDE = (1, 1, 3), (1, 1, 2)


def voxelise(
    points: Tensor, lower: Sequence[float], size: Sequence[float], shape: Triple, max_points: int, max_voxels: int
) -> tuple[Tensor, Tensor]:
    """Means of the points in each voxel; first come, first served.

    Points outside the grid are dropped, and so are those beyond ``max_points`` of their voxel and those of voxels beyond the first
    ``max_voxels``, in the order of the points.

    Args:
        points: ``(P, F)``, the first three columns x, y, z in metres.
        lower: lowest corner of the grid, metres.
        size: edges of a voxel, metres.
        shape: voxels along x, y, z.
        max_points: points that count in each voxel.
        max_voxels: voxels that count.

    Returns:
        Mean features ``(V, F)`` and voxel indices ``(V, 3)``, in the order of first appearance.
    """
    index = torch.floor((points[:, :3] - points.new_tensor(lower)) / points.new_tensor(size)).long()
    inside = ((index >= 0) & (index < index.new_tensor(shape))).all(-1)
    points, index = points[inside], index[inside]
    rank = rank_of(functional.pad(index, (1, 0)), shape)
    unique, voxel = torch.unique(rank, return_inverse=True)
    position = torch.arange(len(points), device=points.device)
    first = torch.full_like(unique, len(points)).scatter_reduce(0, voxel, position, "amin")
    appearance = first.argsort()
    place = torch.empty_like(appearance)
    place[appearance] = torch.arange(len(unique), device=points.device)
    voxel = place[voxel]  # voxels numbered by first appearance
    order = torch.sort(voxel, stable=True).indices
    starts = functional.pad(torch.bincount(voxel, minlength=len(unique)).cumsum(0), (1, 0))[:-1]
    turn = torch.empty_like(order)
    turn[order] = torch.arange(len(order), device=points.device) - starts[voxel[order]]
    kept = (turn < max_points) & (voxel < max_voxels)
    count = min(len(unique), max_voxels)
    sums = points.new_zeros(count, points.shape[1]).index_add(0, voxel[kept], points[kept])
    number = torch.bincount(voxel[kept], minlength=count).to(points.dtype)
    return sums / number[:, None], index[first[appearance[:count]]]


class SparseConvNorm(nn.Sequential):
    """Sparse convolution, batch normalisation over the active sites, ReLU."""

    def __init__(self, conv: SparseConv3d) -> None:
        super().__init__(conv, SiteNorm(conv.weight.shape[-1], **_NORM))

    def forward(self, features: Tensor, sites: Sites) -> tuple[Tensor, Sites]:
        """``(V, C_in)`` at sites -> ``(V', C_out)`` and its sites."""
        features, sites = self[0](features, sites)
        return functional.relu(self[1](features)), sites


class SparseResidualBlock(nn.Module):
    """Two submanifold convolutions and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = SparseConv3d(channels, channels), SiteNorm(channels, **_NORM)
        self.conv2, self.bn2 = SparseConv3d(channels, channels), SiteNorm(channels, **_NORM)

    def forward(self, features: Tensor, sites: Sites) -> tuple[Tensor, Sites]:
        """``(V, C)`` at sites -> the same."""
        x = functional.relu(self.bn1(self.conv1(features, sites)[0]))
        x = self.bn2(self.conv2(x, sites)[0])
        return functional.relu(x + features), sites


class LidarBranch(nn.Module):
    """Point clouds -> bird's-eye view. Parts are named as in the published sparse encoder."""

    def __init__(self, config: Noise2MapBevConfig) -> None:
        super().__init__()
        self.lower = (config.x_bounds[0], config.y_bounds[0], config.point_z_bounds[0])
        self.voxel_size, self.voxel_shape = tuple(config.voxel_size), config.voxel_shape
        self.point_features, self.max_points = config.point_features, config.max_points_per_voxel
        self.max_voxels = tuple(config.max_voxels)
        widths = list(config.lidar_channels)
        self.conv_input = SparseConvNorm(SparseConv3d(config.point_features, widths[0]))
        self.encoder_layers = nn.ModuleDict()
        for i, width in enumerate(widths):
            stage = nn.ModuleList([SparseResidualBlock(width), SparseResidualBlock(width)])
            if i + 1 < len(widths):
                stage.append(SparseConvNorm(SparseConv3d(width, widths[i + 1], stride=(2, 2, 2), padding=_PADDINGS[i])))
            self.encoder_layers[f"encoder_layer{i + 1}"] = stage
        self.conv_out = SparseConvNorm(SparseConv3d(widths[-1], widths[-1], _OUT_KERNEL, _OUT_STRIDE))
        height = self.voxel_shape[2] + 1  # the published grid has one slice more than voxels
        for padding in _PADDINGS:
            height = (height + 2 * padding[2] - 3) // 2 + 1
        slices = (height - _OUT_KERNEL[2]) // _OUT_STRIDE[2] + 1
        if slices < 1:
            raise ValueError(f"voxel_size gives {self.voxel_shape[2]} voxels along z; expected at least 32")
        self.out_channels = widths[-1] * slices

    def check(self, points: Sequence[Tensor]) -> None:
        """Refuses point clouds that cannot be used.

        Raises:
            ValueError: for another number of columns, NaN, or a cloud without any point inside the grid.
        """
        for i, cloud in enumerate(points):
            if cloud.ndim != 2 or cloud.shape[1] != self.point_features:
                raise ValueError(f"point cloud {i} has shape {tuple(cloud.shape)}; expected (P, {self.point_features})")
            if not bool(torch.isfinite(cloud).all()):
                raise ValueError(f"point cloud {i} holds NaN or infinite values; expected metres")
            shape = cloud.new_tensor(self.voxel_shape)
            index = (cloud[:, :3] - cloud.new_tensor(self.lower)) / cloud.new_tensor(self.voxel_size)
            if not bool(((index >= 0) & (index < shape)).all(-1).any()):
                upper = [low + n * size for low, n, size in zip(self.lower, self.voxel_shape, self.voxel_size)]
                raise ValueError(
                    f"point cloud {i} has none of its {len(cloud)} points inside the range {list(self.lower)} to "
                    f"{[round(u, 3) for u in upper]} m; expected a cloud in the LiDAR's frame"
                )

    def voxels(self, points: Sequence[Tensor]) -> tuple[Tensor, Sites]:
        """Point clouds, ``(P_i, F)`` each -> mean features ``(V, F)`` at their sites."""
        limit = self.max_voxels[0] if self.training else self.max_voxels[1]
        features, coordinates = [], []
        for i, cloud in enumerate(points):
            cloud = cloud.to(torch.promote_types(cloud.dtype, torch.float32))
            means, index = voxelise(cloud, self.lower, self.voxel_size, self.voxel_shape, self.max_points, limit)
            features.append(means)
            coordinates.append(functional.pad(index, (1, 0), value=i))
        shape = (*self.voxel_shape[:2], self.voxel_shape[2] + 1)
        ranks, order = rank_of(torch.cat(coordinates), shape).sort()
        return torch.cat(features)[order], Sites(ranks, shape, len(points))

    def forward(self, points: Sequence[Tensor]) -> Tensor:
        """Point clouds, ``(P_i, F)`` each -> ``(B, C, X, Y)``; channels are those of the encoder times its slices in height."""
        features, sites = self.voxels(points)
        features, sites = self.conv_input(features.to(self.conv_input[0].weight.dtype), sites)
        for stage in self.encoder_layers.values():
            for block in stage:
                features, sites = block(features, sites)
        features, sites = self.conv_out(features, sites)
        dense = to_dense(features, sites)  # (B, C, X, Y, Z)
        return dense.movedim(-1, 2).flatten(1, 2)
