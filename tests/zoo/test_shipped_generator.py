"""The shipped generator's parts, on frames of maps that none of them was trained on."""

import numpy as np
import pytest
import torch
from PIL import Image

from noise2map import zoo
from noise2map.data.freedoom import load_samples
from noise2map.guidance import DepthGuidedPipeline, UNetFeatureTap

SIDE = 64
SKY_M = 40.0


@pytest.fixture(scope="module")
def pipe():
    return DepthGuidedPipeline.from_pretrained(zoo.zoo_path("freedoom-generator-64"))


@pytest.fixture(scope="module")
def frames():
    """Center crops of shipped test frames: images `(N, 3, 64, 64)` in [-1, 1] and depth `(N, 64, 64)`, metres."""
    samples = load_samples("test", "depth")
    images, depths = [], []
    for index in range(0, len(samples), 6):
        sample = samples[index]
        width, height = sample["image"].size
        left = (width - height) // 2
        square = sample["image"].crop((left, 0, left + height, height)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        images.append(torch.from_numpy(np.array(square)).permute(2, 0, 1) / 127.5 - 1)
        depth = np.where(sample["valid"], sample["depth_m"], SKY_M).astype(np.float32)[:, left : left + height]
        depths.append(torch.from_numpy(np.array(Image.fromarray(depth).resize((SIDE, SIDE), Image.Resampling.NEAREST))))
    return torch.stack(images), torch.stack(depths)


def noised(pipe, images, timestep):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return pipe.scheduler.add_noise(images, noise, torch.tensor([timestep]))


@torch.no_grad()
def test_unet_removes_noise_from_frames(pipe, frames):
    images, _ = frames
    alpha = pipe.scheduler.alphas_cumprod[300]
    noisy = noised(pipe, images, 300)
    velocity = pipe.unet(noisy, 300).sample  # the shipped scheduler's prediction type
    found = alpha.sqrt() * noisy - (1 - alpha).sqrt() * velocity
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    smoothed = torch.nn.functional.avg_pool2d(noisy / alpha.sqrt(), 5, 1, 2, count_include_pad=False)
    error, of_smoothing = (found - images).square().mean(), (smoothed - images).square().mean()
    assert error < 0.5 * of_smoothing and error < 0.15 * images.var()


@torch.no_grad()
def test_predictor_reads_depth_at_low_and_high_noise_and_its_strong_branch_better(pipe, frames):
    images, depth = frames
    predictor = pipe.depth_predictor.eval()
    predictor.check_unet(pipe.unet)
    constant = (depth / depth.median() - 1).abs().median()
    for timestep in (50, 600):
        with UNetFeatureTap(pipe.unet, blocks=predictor.blocks) as tap:
            pipe.unet(noised(pipe, images, timestep), timestep)
        errors, correlations = [], []
        for blocks in (predictor.strong_blocks, predictor.weak_blocks):
            found = predictor.decode_depth(predictor(tap.features, timestep, blocks))
            errors.append((found / depth - 1).abs().median())
            correlations.append(np.corrcoef(found.log().flatten(), depth.log().flatten())[0, 1])
        assert errors[0] < 0.8 * errors[1] and errors[0] < 0.6 * constant, timestep
        assert correlations[0] > correlations[1] + 0.05 and correlations[0] > 0.6, timestep


@torch.no_grad()
def test_prior_prefers_depth_maps_the_right_way_up(pipe, frames):
    _, depth = frames
    prior = pipe.depth_prior.eval()
    signal = prior.resize(pipe.depth_predictor.encode_depth(depth)[0])
    shuffled = signal.flatten(1)[:, torch.randperm(SIDE**2, generator=torch.Generator().manual_seed(0))].view_as(signal)
    noise = torch.randn(signal.shape, generator=torch.Generator().manual_seed(0))
    losses = [
        float(prior.loss(maps, torch.full((len(maps),), 400), noise, "mean").mean()) for maps in (signal, signal.flip(2), shuffled)
    ]
    assert losses[0] < 0.95 * losses[1] < 0.5 * losses[2]
