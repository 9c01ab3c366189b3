"""Depth of finished images, read off the features of the generator itself."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noise2map.diffusion import add_noise, image_generator, tables_from_betas
from noise2map.guidance import DepthGuidedPipeline, UNetFeatureTap
from noise2map.runs.files import content_checksum, json_values, settings_checksum, weights_checksum

DepthProbe = Callable[[Tensor, Sequence[str]], tuple[Tensor, Tensor]]
"""Images `(B, 3, H, W)` uint8 and their ids -> strong and weak depth signal `(B, 1, h, w)`."""


def depth_probe(pipe: DepthGuidedPipeline, timestep: int = 50, seed: int = 0) -> DepthProbe:
    """A reader of the depth of finished or real images from the generator's features.

    An image is noised to one time step, with noise that follows from its id, and goes through the U-Net once.

    Args:
        pipe: The generator with its predictor.
        timestep: How noisy.
        seed: Of the noise.

    Returns:
        A function of images `(B, 3, H, W)` uint8 and ids that gives two signals `(B, 1, h, w)`, nominally in [-1, 1]: of the
        strong and of the weak branch.

    Raises:
        ValueError: If there is no predictor, or it cannot read depth at that noise.
    """
    predictor = pipe.depth_predictor
    if predictor is None:
        raise ValueError("reading depth from features needs a depth predictor")
    tables = tables_from_betas(pipe.scheduler.betas)
    last = tables.last_step(predictor.config.min_log_snr)
    if not 0 <= timestep <= last:
        raise ValueError(f"timestep is {timestep}; expected one in which the features carry depth, 0 to {last}")
    alpha, sigma = tables.alpha_sigma(torch.tensor(timestep))

    @torch.no_grad()
    def probe(images: Tensor, ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        signal = images.to(pipe.device).float() / 127.5 - 1
        noise = torch.stack([torch.randn(signal.shape[1:], generator=image_generator(seed, one)) for one in ids])
        noisy = add_noise(signal, noise.to(signal), alpha.to(signal), sigma.to(signal)).to(pipe.unet.dtype)
        with UNetFeatureTap(pipe.unet, predictor.blocks) as tap:
            pipe.unet(noisy, timestep)
        return predictor(tap.features, timestep), predictor(tap.features, timestep, predictor.weak_blocks)

    return probe


def disagreement(
    pipe: DepthGuidedPipeline, images: Sequence[np.ndarray], timestep: int, *, batch_size: int = 16, seed: int = 0
) -> Tensor:
    """How far the two branches disagree on finished or real images that are noised to one level.

    Args:
        pipe: The generator with its predictor.
        images: `(H, W, 3)` uint8, at the size of the generator's.
        timestep: At which to read.
        batch_size: Images at a time.
        seed: Of the noise, with an image's place in the list.

    Returns:
        `(N,)` float64, the mean square over pixels of the difference of the two signals.

    Raises:
        ValueError: As of `depth_probe`.
    """
    probe, found = depth_probe(pipe, timestep, seed), []
    for start in range(0, len(images), batch_size):
        part = range(start, min(start + batch_size, len(images)))
        batch = torch.stack([torch.from_numpy(np.array(images[index])).permute(2, 0, 1) for index in part])
        strong, weak = probe(batch, [str(index) for index in part])
        found.append((strong.double() - weak.double()).square().flatten(1).mean(1).cpu())
    return torch.cat(found)


def real_disagreement(
    pipe: DepthGuidedPipeline, images: Sequence[np.ndarray], timesteps: Sequence[int], *, batch_size: int = 16, seed: int = 0
) -> tuple[tuple[float, float], ...]:
    """The `disagreement` of real images by noise level: what `ConsistencyLoss` may aim at.

    Args:
        pipe: As of `disagreement`.
        images: Likewise, real ones.
        timesteps: At which to read, rising.
        batch_size: Images at a time.
        seed: Of the noise.

    Returns:
        Time step and mean over the images, to three digits: the rounding of a batch's size must not decide what an image is.
    """
    means = [disagreement(pipe, images, step, batch_size=batch_size, seed=seed).mean().item() for step in timesteps]
    return tuple((float(step), float(f"{mean:.3g}")) for step, mean in zip(timesteps, means))


def probe_name(pipe: DepthGuidedPipeline, timestep: int) -> str:
    """Tells probes apart: U-Net and predictor, weights and configuration, noise levels of the process, time step."""
    levels = content_checksum([pipe.scheduler.betas.float().cpu().numpy().tobytes()])
    parts = [f"{weights_checksum(one)} {_config_checksum(one)}" for one in (pipe.unet, pipe.depth_predictor)]
    return f"{' '.join(parts)} {levels} {timestep}"


def _config_checksum(part: Any) -> str:
    return settings_checksum(json_values({name: value for name, value in part.config.items() if not name.startswith("_")}))
