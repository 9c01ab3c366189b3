"""A tiny generator with predictor and prior on disk, and tiny map models to measure its images with."""

import sys
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler
from transformers import ConvNextConfig

from noise2map.models import (
    Noise2MapConfig,
    Noise2MapForDepthEstimation,
    Noise2MapForSemanticSegmentation,
    Noise2MapImageProcessor,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "guidance"))
from tiny_guidance import tiny_predictor, tiny_prior, tiny_unet

METRIC = {"min_depth": 0.5, "max_depth": 40.0}
FEATURES = 16  # of the tiny segmentation model's last stage


def save_generator(root: Path) -> dict[str, Path]:
    """Folders `generator` (a DDPMPipeline of 16x16 px), `predictor`, `prior` and `prior-4px`, metric."""
    unet = tiny_unet()
    paths = {name: root / name for name in ("generator", "predictor", "prior", "prior-4px")}
    DDPMPipeline(unet, DDPMScheduler(clip_sample=True)).save_pretrained(paths["generator"])
    tiny_predictor(unet, **METRIC).save_pretrained(paths["predictor"])
    tiny_prior(**METRIC).save_pretrained(paths["prior"])
    small = tiny_prior(seed=3, **METRIC)
    coarse = type(small)(unet_config={**small.config.unet_config, "sample_size": 4}, **METRIC)
    coarse.save_pretrained(paths["prior-4px"])
    return paths


def save_map_models(root: Path) -> dict[str, Path]:
    """Folders `segmentation` and `depth` of map models with 16 features in the last stage."""
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = ConvNextConfig(hidden_sizes=[8, 8, 16, FEATURES], depths=[1, 1, 1, 1], out_features=stages)
    sizes = {"hidden_size": 16, "group_norm_groups": 4, "decoder_layers": 1, "decoder_attention_heads": 4}
    sizes |= {"decoder_ffn_dim": 16, "time_embed_dim": 16, "use_auxiliary_head": False, "backbone_config": backbone}
    torch.manual_seed(0)
    models = {
        "segmentation": Noise2MapForSemanticSegmentation(Noise2MapConfig(**sizes, num_labels=3)),
        "depth": Noise2MapForDepthEstimation(Noise2MapConfig(**sizes, **METRIC, time_input="time")),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
        Noise2MapImageProcessor(size={"height": 32, "width": 32}).save_pretrained(root / name)
    return {name: root / name for name in models}
