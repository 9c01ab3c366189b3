"""Configuration of the bird's-eye-view models: the sensors, the grids and the sizes of both branches."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from noise2map.models.bev.grid import Bounds
from noise2map.models.configuration import Noise2MapConfig, refuse_with_value_error

# nuScenes' map task: six layers that may overlap, in the published order.
BEV_LAYERS = ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area", "divider")
SENSORS = ("camera", "lidar")
_LIDAR_STRIDE = 8  # of the sparse encoder, in voxels
_CAMERA_STRIDE = 2  # of the convolutions after pooling, in cells


@refuse_with_value_error
@strict
class Noise2MapBevConfig(Noise2MapConfig):
    r"""Configuration of `Noise2MapForBevSegmentation`: a `Noise2MapConfig` with a section on sensors and grids.

    The defaults are the published camera model. Every `bounds` is lower, upper and step in metres.

    Args:
        sensors (`list[str]`, defaults to `["camera"]`): `"camera"`, `"lidar"` or both.
        sensor_dropout (`float`, defaults to 0): With both sensors, the probability that a training sample loses one of them;
            above 0 the model also runs with either sensor missing.
        num_cameras (`int`, defaults to 6): Cameras of the rig.
        image_size (`list[int]`, defaults to `[256, 704]`): Height and width of the network's images, pixels.
        camera_neck_channels (`int`, defaults to 256): Channels of the camera features.
        context_channels (`int`, defaults to 80): Channels that a pixel lifts into space.
        depth_bounds (`list[float]`, defaults to `[1, 60, 0.5]`): Depths that a pixel's features are spread over.
        x_bounds (`list[float]`, defaults to `[-51.2, 51.2, 0.4]`): Pooling grid along LiDAR x; the features have half its cells.
        y_bounds (`list[float]`, defaults to `[-51.2, 51.2, 0.4]`): The same along y.
        z_bounds (`list[float]`, defaults to `[-10, 10, 20]`): The same along z; each slice gets channels of its own.
        map_x_bounds (`list[float]`, defaults to `[-50, 50, 0.5]`): Grid of the map along x.
        map_y_bounds (`list[float]`, defaults to `[-50, 50, 0.5]`): Grid of the map along y.
        voxel_size (`list[float]`, defaults to `[0.1, 0.1, 0.2]`): LiDAR voxels, metres along x, y, z.
        point_z_bounds (`list[float]`, defaults to `[-5, 3]`): Heights of the LiDAR points used; x and y are those of the grid.
        point_features (`int`, defaults to 5): Numbers for each point, the first three being its position.
        max_points_per_voxel (`int`, defaults to 10): Later points of a voxel are dropped.
        max_voxels (`list[int]`, defaults to `[90000, 120000]`): Most voxels in training and at inference; later ones are dropped.
        lidar_channels (`list[int]`, defaults to `[16, 32, 64, 128]`): Widths of the sparse encoder's stages.
        fuser_channels (`int`, defaults to 256): Width after the two sensors are fused.
        bev_decoder (`str`, *optional*): `"resnet"` (published with cameras) or `"second"` (published with LiDAR, and the
            default with it).
        bev_decoder_channels (`list[int]`, *optional*): Its stages: `[160, 320, 640]` or `[128, 256]` by default.
        bev_decoder_blocks (`int`, *optional*): Residual blocks (2) or further convolutions (5) of each stage.
        bev_neck_channels (`int`, defaults to 256): Width of its output, for each stage in the case of `"second"`.
        focal_gamma (`float`, defaults to 2): Weight of hard cells in the loss.
        depth_loss_weight (`float`, defaults to 0): Weight of the loss that teaches cameras the depth that LiDAR measured (BEVDepth,
            Li et al. 2023). Above 0 the model needs `points` in training, whatever its sensors, and nothing more afterwards.
    """

    model_type = "noise2map-bev"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="swin",
            init_kwargs={"out_features": ["stage2", "stage3", "stage4"], "drop_path_rate": 0.3},
        ),
    }

    backbone_config: dict | PreTrainedConfig | None = None
    decoder_layers: int = 5
    average: str = "steps"
    sensors: list[str] | tuple[str, ...] = ("camera",)
    sensor_dropout: float | int = 0.0
    num_cameras: int = 6
    image_size: list[int] | tuple[int, ...] = (256, 704)
    camera_neck_channels: int = 256
    context_channels: int = 80
    depth_bounds: list[float | int] | tuple[float | int, ...] = (1.0, 60.0, 0.5)
    x_bounds: list[float | int] | tuple[float | int, ...] = (-51.2, 51.2, 0.4)
    y_bounds: list[float | int] | tuple[float | int, ...] = (-51.2, 51.2, 0.4)
    z_bounds: list[float | int] | tuple[float | int, ...] = (-10.0, 10.0, 20.0)
    map_x_bounds: list[float | int] | tuple[float | int, ...] = (-50.0, 50.0, 0.5)
    map_y_bounds: list[float | int] | tuple[float | int, ...] = (-50.0, 50.0, 0.5)
    voxel_size: list[float | int] | tuple[float | int, ...] = (0.1, 0.1, 0.2)
    point_z_bounds: list[float | int] | tuple[float | int, ...] = (-5.0, 3.0)
    point_features: int = 5
    max_points_per_voxel: int = 10
    max_voxels: list[int] | tuple[int, ...] = (90000, 120000)
    lidar_channels: list[int] | tuple[int, ...] = (16, 32, 64, 128)
    fuser_channels: int = 256
    bev_decoder: str | None = None
    bev_decoder_channels: list[int] | tuple[int, ...] | None = None
    bev_decoder_blocks: int | None = None
    bev_neck_channels: int = 256
    focal_gamma: float | int = 2.0
    depth_loss_weight: float | int = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        """Fills in what depends on the sensors and checks every field.

        Raises:
            ValueError: for a field that does not exist or a value that cannot work.
        """
        if self.bev_decoder is None:
            self.bev_decoder = "second" if "lidar" in self.sensors else "resnet"
        resnet = self.bev_decoder == "resnet"
        if self.bev_decoder_channels is None:
            self.bev_decoder_channels = (160, 320, 640) if resnet else (128, 256)
        if self.bev_decoder_blocks is None:
            self.bev_decoder_blocks = 2 if resnet else 5
        if self.id2label is None and not self.label2id and "num_labels" not in kwargs:
            kwargs["id2label"] = dict(enumerate(BEV_LAYERS))
            kwargs["label2id"] = {name: index for index, name in enumerate(BEV_LAYERS)}
        super().__post_init__(**kwargs)

    @property
    def training_sensors(self) -> tuple[str, ...]:
        """What a training sample holds: the sensors, and LiDAR where it teaches cameras depth."""
        taught = ("lidar",) if self.depth_loss_weight and "lidar" not in self.sensors else ()
        return (*self.sensors, *taught)

    @property
    def grid(self) -> tuple[Bounds, Bounds, Bounds]:
        """The pooling grid along x, y and z."""
        return Bounds(*self.x_bounds), Bounds(*self.y_bounds), Bounds(*self.z_bounds)

    @property
    def map_grid(self) -> tuple[Bounds, Bounds]:
        """The grid of the map along x and y."""
        return Bounds(*self.map_x_bounds), Bounds(*self.map_y_bounds)

    @property
    def feature_size(self) -> tuple[int, int]:
        """Cells of the features and of the diffusion along x and y."""
        x, y, _ = self.grid
        return x.count // _CAMERA_STRIDE, y.count // _CAMERA_STRIDE

    @property
    def feature_channels(self) -> int:
        """Channels of the features that the map decoder sees."""
        return self.bev_neck_channels * (1 if self.bev_decoder == "resnet" else len(self.bev_decoder_channels))

    @property
    def voxel_shape(self) -> tuple[int, int, int]:
        """Voxels along x, y and z."""
        bounds = (self.x_bounds[:2], self.y_bounds[:2], self.point_z_bounds)
        return tuple(round((upper - lower) / size) for (lower, upper), size in zip(bounds, self.voxel_size))

    def check(self) -> None:
        """Refuses values that cannot work.

        Raises:
            ValueError: naming the field, its value and what was expected.
        """
        super().check()
        if self.upsampling != "bilinear":
            raise ValueError(f"upsampling is {self.upsampling!r}; expected 'bilinear': the map has a grid of its own")
        if self.map_encoding == "analog_bits":
            raise ValueError("map_encoding is 'analog_bits', of classes that exclude each other; expected another of layers")
        if not self.sensors or set(self.sensors) - set(SENSORS) or len(set(self.sensors)) != len(self.sensors):
            raise ValueError(f"sensors is {list(self.sensors)!r}; expected 'camera', 'lidar' or both")
        if self.bev_decoder not in ("resnet", "second"):
            raise ValueError(f"bev_decoder is {self.bev_decoder!r}; expected 'resnet' or 'second'")
        if not 0 <= self.sensor_dropout < 1:
            raise ValueError(f"sensor_dropout is {self.sensor_dropout!r}; expected a probability below 1")
        if not 0 <= self.depth_loss_weight < float("inf"):
            raise ValueError(f"depth_loss_weight is {self.depth_loss_weight!r}; expected 0 or more")
        if self.depth_loss_weight and "camera" not in self.sensors:
            raise ValueError(f"depth_loss_weight is {self.depth_loss_weight!r} without a camera to teach; expected 0")
        for name in ("x_bounds", "y_bounds", "z_bounds", "map_x_bounds", "map_y_bounds", "depth_bounds"):
            _check_bounds(name, getattr(self, name))
        lengths = {"image_size": 2, "voxel_size": 3, "point_z_bounds": 2, "max_voxels": 2, "lidar_channels": 4}
        for name, length in lengths.items():
            if len(getattr(self, name)) != length:
                raise ValueError(f"{name} is {list(getattr(self, name))!r}; expected {length} numbers")
        if "camera" in self.sensors and any(side < 32 or side % 32 for side in self.image_size):
            raise ValueError(f"image_size is {list(self.image_size)!r}; expected height and width that are multiples of 32")
        if any(cells.count % (2 * _CAMERA_STRIDE) for cells in self.grid[:2]):
            raise ValueError(f"x_bounds and y_bounds give {[c.count for c in self.grid[:2]]} cells; expected multiples of 4")
        for name, inner, outer in (
            ("map_x_bounds", self.map_x_bounds, self.x_bounds),
            ("map_y_bounds", self.map_y_bounds, self.y_bounds),
        ):
            if inner[0] < outer[0] or inner[1] > outer[1]:
                raise ValueError(f"{name} {list(inner)!r} reach beyond the features' {list(outer[:2])!r} m")
        if "lidar" in self.sensors:
            cells = tuple(count // _LIDAR_STRIDE for count in self.voxel_shape[:2])
            if cells != self.feature_size or any(count % _LIDAR_STRIDE for count in self.voxel_shape[:2]):
                raise ValueError(
                    f"voxel_size {list(self.voxel_size)!r} gives {self.voxel_shape[:2]} voxels, {_LIDAR_STRIDE} for each cell; "
                    f"expected {_LIDAR_STRIDE} times the {self.feature_size} cells of the features"
                )


def _check_bounds(name: str, value: Any) -> None:
    if len(value) != 3 or not value[0] < value[1] or not value[2] > 0:
        raise ValueError(f"{name} is {list(value)!r}; expected [lower, upper, step] in metres")
    if abs((value[1] - value[0]) / value[2] - Bounds(*value).count) > 1e-6:
        raise ValueError(f"{name} is {list(value)!r}; expected a whole number of steps between lower and upper")
