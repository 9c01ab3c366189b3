"""Tiny recipes of generators and priors, and data for them: a U-Net of a few thousand parameters on 16 px pictures."""

import numpy as np
from PIL import Image

UNET = {
    "block_out_channels": [4, 8],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}


def write_pictures(root, count=7, size=(28, 20)):
    """Two flat colours side by side."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        values = np.zeros((size[1], size[0], 3), np.uint8)
        values[:, : size[0] // 2], values[:, size[0] // 2 :] = rng.integers(0, 255, (2, 3))
        Image.fromarray(values).save(root / f"{index}.png")
    return root


def write_depths(root, count=7, size=(28, 20)):
    """Millimetres, 1 to 9 m from top to bottom; the top row is not known."""
    root.mkdir(parents=True)
    for index in range(count):
        depth = np.repeat(np.linspace(9000, 1000 + index, size[1])[:, None], size[0], axis=1).astype(np.uint16)
        depth[0] = 0
        Image.fromarray(depth).save(root / f"{index}.png")
    return root


def recipe_dict(root, target="image", **train):
    """A recipe as nested mappings."""
    return {
        "data": {"name": "folder", "train": str(root), "val": None, "hold_out_every": 3, "size": 16},
        "model": {"target": target, "unet": UNET, "min_depth": 0.5, "max_depth": 10.0},
        "optim": {"lr": 1e-3},
        "schedule": {"policy": "constant", "warmup_iterations": 0},
        "train": {
            "iterations": 4,
            "batch_size": 2,
            "log_every": 1,
            "save_every": 2,
            "eval_every": 4,
            "sample_images": 2,
            "sample_steps": 2,
            "ema_half_life_images": 8.0,
            "threads": 1,
            **train,
        },
    }
