"""Tiny U-Nets, predictors and priors."""

import torch
from diffusers import UNet2DModel

from noise2map.guidance import DepthPredictor, DepthPrior

BLOCKS = (2, 4, 5, 6, 7)


def tiny_unet(seed: int = 0, **config) -> UNet2DModel:
    """9 decoder blocks; blocks 6.. have no attention."""
    torch.manual_seed(seed)
    defaults = {
        "sample_size": 16,
        "block_out_channels": (8, 8, 16),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return UNet2DModel(**{**defaults, **config}).eval()


def tiny_predictor(unet: UNet2DModel, seed: int = 1, **config) -> DepthPredictor:
    torch.manual_seed(seed)
    defaults = {"hidden_sizes": (8, 4), "time_embed_dim": 8, "useful_timesteps": (0, 1000)}
    return DepthPredictor.for_unet(unet, **{**defaults, **config}).eval()


def tiny_prior(seed: int = 2, **config) -> DepthPrior:
    torch.manual_seed(seed)
    unet_config = {
        "sample_size": 8,
        "block_out_channels": (4, 8),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return DepthPrior(unet_config=unet_config, **config).eval()


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]
