"""A tiny raw data set, a tiny real model and its processor; a few thousand parameters, a step takes milliseconds."""

import numpy as np
import torch
from PIL import Image
from transformers import ResNetConfig

from noise2map import Noise2MapConfig, Noise2MapForDepthEstimation, Noise2MapForSemanticSegmentation, Noise2MapImageProcessor

SIZE = (48, 32)  # width, height
CLASSES = {0: "floor", 1: "wall", 2: "sky"}


class RawSamples:
    """Pictures whose colour gives the class and whose row gives the depth."""

    id2label = CLASSES
    palette = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]], dtype=np.uint8)

    def __init__(self, length, seed=0):
        self.length, self.seed = length, seed

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        rng = np.random.default_rng([self.seed, index])
        width, height = SIZE
        labels = np.zeros((height, width), dtype=np.uint8)
        labels[: rng.integers(8, height - 8)] = 1
        labels[:, : rng.integers(8, width - 8)] = 2
        image = self.palette[labels].astype(np.int64) + rng.integers(0, 40, size=(height, width, 1))
        labels[0, 0] = 255
        depth_m = np.repeat(np.linspace(9, 1, height, dtype=np.float32)[:, None], width, axis=1)
        valid = labels != 2
        return {
            "image": Image.fromarray(image.astype(np.uint8)),
            "labels": labels,
            "depth_m": np.where(valid, depth_m, 0).astype(np.float32),
            "valid": valid,
            "intrinsics": np.array([32, 38.4, 24, 16], dtype=np.float32),
            "id": f"{self.seed}-{index}",
        }


def tiny_config(**fields):
    backbone = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    sizes = {
        "backbone_config": backbone,
        "hidden_size": 16,
        "group_norm_groups": 4,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_n_points": 2,
        "decoder_ffn_dim": 16,
        "time_embed_dim": 16,
        "auxiliary_channels": 8,
        "map_scale": 0.1,
    }
    return Noise2MapConfig(**{**sizes, **fields})


def tiny_model(task="segmentation", **fields):
    torch.manual_seed(0)
    if task == "depth":
        return Noise2MapForDepthEstimation(tiny_config(min_depth=0.5, max_depth=10.0, **fields))
    return Noise2MapForSemanticSegmentation(tiny_config(id2label=CLASSES, **fields))


def tiny_processor():
    return Noise2MapImageProcessor(do_resize=False)
