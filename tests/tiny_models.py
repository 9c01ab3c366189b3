"""Models small enough to train and sample in a fraction of a second."""

import functools

import torch
from transformers import ConvNextConfig, DINOv3ConvNextConfig, HieraConfig, ResNetConfig, SwinConfig

from noise2map.models import Noise2MapConfig, Noise2MapForDepthEstimation, Noise2MapForSemanticSegmentation

STAGES = ["stage1", "stage2", "stage3", "stage4"]
WIDTHS, DEPTHS = [8, 16, 24, 32], [1, 1, 1, 1]

BACKBONES = {
    "swin": lambda: SwinConfig(embed_dim=8, depths=DEPTHS, num_heads=[1, 2, 2, 4], window_size=4, out_features=STAGES),
    "convnext": lambda: ConvNextConfig(hidden_sizes=WIDTHS, depths=DEPTHS, out_features=STAGES),
    "resnet": lambda: ResNetConfig(embedding_size=8, hidden_sizes=WIDTHS, depths=DEPTHS, layer_type="basic", out_features=STAGES),
    "hiera": lambda: HieraConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], image_size=[64, 64], out_features=STAGES
    ),
    "dinov3_convnext": lambda: DINOv3ConvNextConfig(hidden_sizes=WIDTHS, depths=DEPTHS, out_features=STAGES),
}

SMALL = {
    "hidden_size": 16,
    "group_norm_groups": 4,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_n_points": 2,
    "decoder_ffn_dim": 24,
    "time_embed_dim": 20,
    "auxiliary_channels": 12,
}


def tiny_config(backbone="convnext", **fields):
    fields = {**SMALL, "num_labels": 5, **fields}
    return Noise2MapConfig(backbone_config=BACKBONES[backbone](), **fields)


def tiny_segmenter(backbone="convnext", seed=0, **fields):
    torch.manual_seed(seed)
    return Noise2MapForSemanticSegmentation(tiny_config(backbone, **fields)).eval()


def tiny_depth_model(backbone="convnext", seed=0, **fields):
    torch.manual_seed(seed)
    fields = {"map_scale": 0.1, "time_input": "time", "min_depth": 0.5, "max_depth": 20.0, **fields}
    return Noise2MapForDepthEstimation(tiny_config(backbone, **fields)).eval()


@functools.cache
def images(batch_size=1, height=64, width=64, seed=0):
    return torch.randn(batch_size, 3, height, width, generator=torch.Generator().manual_seed(seed))


def class_map(batch_size=1, height=64, width=64, num_labels=5, seed=1):
    """Blocks of classes with a corner of unknown pixels, int64."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, num_labels, (batch_size, -(-height // 8), -(-width // 8)), generator=generator)
    labels = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :height, :width].clone()
    labels[:, :5, :7] = 255
    return labels


def depth_map(batch_size=1, height=64, width=64, seed=1):
    """Metres in 0.6..19.6 with a corner of invalid pixels (0), float32."""
    depth_m = torch.rand(batch_size, height, width, generator=torch.Generator().manual_seed(seed)) * 19 + 0.6
    depth_m[:, :5, :7] = 0
    return depth_m
