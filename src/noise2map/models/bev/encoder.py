"""Sensors -> one bird's-eye-view feature map. Runs once for a sample, whatever is decoded from it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from noise2map.models.bev.camera import CameraBranch
from noise2map.models.bev.configuration import Noise2MapBevConfig
from noise2map.models.bev.layers import ResNetDecoder, SecondDecoder, conv_norm_relu
from noise2map.models.bev.lidar import LidarBranch
from noise2map.models.bev.rig import CameraRig


class BevEncoder(nn.Module):
    """The sensors' branches, their fusion and the convolutional decoder."""

    def __init__(self, config: Noise2MapBevConfig) -> None:
        super().__init__()
        self.size, self.sensor_dropout = config.feature_size, float(config.sensor_dropout)
        self.camera = CameraBranch(config) if "camera" in config.sensors else None
        self.lidar = LidarBranch(config) if "lidar" in config.sensors else None
        self.widths = {}  # channels of each sensor, cameras first
        if self.camera is not None:
            self.widths["camera"] = config.context_channels
        if self.lidar is not None:
            self.widths["lidar"] = self.lidar.out_channels
        channels = sum(self.widths.values())
        self.fuser: nn.Module | None = None
        if len(self.widths) > 1:
            self.fuser = nn.Sequential(*conv_norm_relu(channels, config.fuser_channels))
            channels = config.fuser_channels
        decoder = ResNetDecoder if config.bev_decoder == "resnet" else SecondDecoder
        stages, blocks = list(config.bev_decoder_channels), config.bev_decoder_blocks
        self.decoder = decoder(channels, stages, blocks, config.bev_neck_channels)

    def check(self, pixel_values: Tensor | None, rig: CameraRig | None, points: Sequence[Tensor] | None) -> int:
        """Refuses inputs that cannot be used, before any work; returns the batch size.

        Raises:
            ValueError: for a missing or unknown sensor, or a sensor's own reasons.
        """
        given = {"camera": pixel_values is not None, "lidar": points is not None}
        needed = {"camera": "pixel_values with camera matrices", "lidar": "points"}
        for sensor, present in given.items():
            if present and sensor not in self.widths:
                raise ValueError(
                    f"{needed[sensor]} given, but this model has no {sensor} branch; expected {' and '.join(self.widths)}"
                )
            optional = self.sensor_dropout > 0 and any(given.values())
            if not present and sensor in self.widths and not optional:
                raise ValueError(
                    f"{needed[sensor]} missing: this model needs {' and '.join(self.widths)} (only a model trained with "
                    f"sensor_dropout above 0 runs with one of two sensors)"
                )
        sizes = []
        if pixel_values is not None:
            self.camera.check(pixel_values, rig)
            sizes.append(len(pixel_values))
        if points is not None:
            self.lidar.check(points)
            sizes.append(len(points))
        if len(set(sizes)) != 1 or not sizes[0]:
            raise ValueError(f"pixel_values and points are those of {sizes} samples; expected the same number, at least 1")
        return sizes[0]

    def forward(self, pixel_values: Tensor | None, rig: CameraRig | None, points: Sequence[Tensor] | None) -> Tensor:
        """Features ``(B, C, X, Y)`` from images ``(B, N, 3, H, W)`` with their rig, point clouds ``(P_i, F)``, or both."""
        batch = self.check(pixel_values, rig, points)
        camera = None if pixel_values is None else self.camera(pixel_values, rig)
        return self._fused(camera, points, batch)

    def forward_taught(
        self, pixel_values: Tensor | None, rig: CameraRig | None, points: Sequence[Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Features as of `forward`, and the loss of the depth that the cameras predict, see `LiftSplat.depth_loss`.

        A model without a LiDAR branch takes the points as truth alone.

        Raises:
            ValueError: if images or points are missing, or inputs cannot be used.
        """
        if pixel_values is None or points is None:
            missing = "points" if points is None else "pixel_values with camera matrices"
            raise ValueError(f"{missing} missing: with depth_loss_weight above 0, training needs images and LiDAR points of them")
        measured = points if self.lidar is not None else None
        batch = self.check(pixel_values, rig, measured)
        if len(points) != batch:
            raise ValueError(f"points are those of {len(points)} samples, pixel_values of {batch}; expected the same number")
        features = self.camera.image_features(pixel_values)
        loss = self.camera.lift.depth_loss(features, rig, points)
        return self._fused(self.camera.lift(features, rig), measured, batch), loss

    def _fused(self, camera: Tensor | None, points: Sequence[Tensor] | None, batch: int) -> Tensor:
        maps = {} if camera is None else {"camera": camera}
        if points is not None:
            maps["lidar"] = self.lidar(points)
        if self.training and self.sensor_dropout > 0 and len(maps) > 1:
            maps = self._drop_sensors(maps, batch)
        known = next(iter(maps.values()))
        parts = [maps.get(name, known.new_zeros(batch, width, *self.size)) for name, width in self.widths.items()]
        x = parts[0] if self.fuser is None else self.fuser(torch.cat(parts, dim=1))
        return self.decoder(x)

    def _drop_sensors(self, maps: dict[str, Tensor], batch: int) -> dict[str, Tensor]:
        hidden = torch.rand(batch) < self.sensor_dropout
        chosen = torch.randint(len(maps), (batch,))  # at most one of them
        result = {}
        for i, (name, value) in enumerate(maps.items()):
            kept = ~(hidden & (chosen == i))
            result[name] = value * kept.to(value.device, value.dtype).view(-1, 1, 1, 1)
        return result
