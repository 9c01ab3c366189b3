"""The camera branch: image features, lifted into space along each pixel's ray and pooled in bird's-eye view."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from noise2map.models.bev.cameras import CameraRig
from noise2map.models.bev.configuration import Noise2MapBevConfig
from noise2map.models.bev.layers import ConvNormRelu, conv_norm_relu
from noise2map.models.bev.pooling import PoolingPlan, plan_pooling, pool
from noise2map.models.encoder import make_backbone

_SCALES = 3  # 1/8, 1/16 and 1/32
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
        with torch.no_grad():
            points = rig.unproject(self.frustum(size, rig.intrinsics.device))[0]
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
