"""A bird's-eye-view model small enough to train and sample in a fraction of a second, and a rig for it."""

import math

import torch
from transformers import SwinConfig

from noise2map.models import Noise2MapBevConfig, Noise2MapBevProcessor, Noise2MapForBevSegmentation

CAMERAS = 2
IMAGE_SIZE = (32, 64)
ROOM_LAYERS = ("walkable", "door", "step", "ledge", "liquid", "wall")
CAMERA_AXES = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # camera right, down, forward in the LiDAR's frame


def tiny_config(sensors=("camera",), **fields):
    lidar = "lidar" in sensors
    backbone = SwinConfig(
        embed_dim=8,
        depths=[1] * 4,
        num_heads=[1, 1, 2, 2],
        window_size=4,
        drop_path_rate=0.0,
        out_features=["stage2", "stage3", "stage4"],
    )
    defaults = {
        "backbone_config": backbone,
        "sensors": list(sensors),
        "hidden_size": 16,
        "group_norm_groups": 4,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "decoder_n_points": 2,
        "decoder_ffn_dim": 24,
        "time_embed_dim": 20,
        "num_cameras": CAMERAS,
        "image_size": list(IMAGE_SIZE),
        "camera_neck_channels": 8,
        "context_channels": 4,
        "depth_bounds": [1.0, 9.0, 1.0],
        "x_bounds": [-8.0, 8.0, 1.0],
        "y_bounds": [-8.0, 8.0, 1.0],
        "map_x_bounds": [-6.0, 6.0, 1.0],
        "map_y_bounds": [-6.0, 6.0, 0.75],
        "voxel_size": [0.25, 0.25, 0.2],
        "lidar_channels": [4, 4, 6, 8],
        "fuser_channels": 8,
        "bev_neck_channels": 8,
        "bev_decoder_channels": [8, 12] if lidar else [8, 8, 12],
        "bev_decoder_blocks": 1,
        "map_scale": 0.1,
    }
    return Noise2MapBevConfig(**{**defaults, **fields})


def tiny_bev(sensors=("camera",), seed=0, **fields):
    torch.manual_seed(seed)
    return Noise2MapForBevSegmentation(tiny_config(sensors, **fields)).eval()


def save_room_bev(folder, sensors):
    """A checkpoint, not trained, for places seen all around: their layers, 16 x 16 cells over 25.6 m."""
    grid = {"x_bounds": [-16.0, 16.0, 2.0], "y_bounds": [-16.0, 16.0, 2.0], "voxel_size": [0.5, 0.5, 0.2]}
    grid |= {"map_x_bounds": [-12.8, 12.8, 1.6], "map_y_bounds": [-12.8, 12.8, 1.6]}
    labels = {"id2label": dict(enumerate(ROOM_LAYERS)), "label2id": {name: index for index, name in enumerate(ROOM_LAYERS)}}
    tiny_bev(sensors, num_cameras=6, seed=3, **grid, **labels).save_pretrained(folder)
    Noise2MapBevProcessor(list(IMAGE_SIZE), 0.5, sweeps=0).save_pretrained(folder)


def camera_to_lidar(yaw_deg, position=(0.0, 0.0, 0.0)):
    """A camera that looks along LiDAR y (forward) at yaw 0; positive yaws turn it to the left."""
    yaw = math.radians(yaw_deg)
    turn = torch.tensor([[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1.0]])
    matrix = torch.eye(4)
    matrix[:3, :3] = turn @ CAMERA_AXES
    matrix[:3, 3] = torch.tensor(position)
    return matrix


def rig_inputs(batch_size=1):
    intrinsics = torch.tensor([[30.0, 0, 32], [0, 30, 16], [0, 0, 1]])
    poses = torch.stack([camera_to_lidar(0, (0.0, 0.5, 0.2)), camera_to_lidar(90)])
    return {
        "intrinsics": intrinsics.expand(batch_size, CAMERAS, 3, 3).clone(),
        "camera_to_lidar": poses.expand(batch_size, -1, -1, -1).clone(),
    }


def inputs(sensors=("camera",), batch_size=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch = {}
    if "camera" in sensors:
        batch["pixel_values"] = torch.randn(batch_size, CAMERAS, 3, *IMAGE_SIZE, generator=generator)
        batch |= rig_inputs(batch_size)
    if "lidar" in sensors:
        spread = torch.tensor([7.0, 7.0, 2.0, 100.0, 0.5])
        clouds = [(torch.rand(200 + 50 * i, 5, generator=generator) * 2 - 1) * spread for i in range(batch_size)]
        batch["points"] = clouds
    return batch


def select(batch, index):
    """One sample of a batch."""
    return {key: value[index : index + 1] for key, value in batch.items()}


def labels(batch_size=1, seed=1, shape=(12, 16)):
    generator = torch.Generator().manual_seed(seed)
    blocks = (torch.rand(batch_size, 6, shape[0] // 4, shape[1] // 4, generator=generator) < 0.4).long()
    return blocks.repeat_interleave(4, 2).repeat_interleave(4, 3)


def generators(batch_size, seed=0):
    return [torch.Generator().manual_seed(seed + i) for i in range(batch_size)]
