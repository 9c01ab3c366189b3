"""Pictures that a U-Net draws while it trains: the same seeds at every look, so that progress can be seen."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from matplotlib import colormaps
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from noise2map.diffusion import image_generator
from noise2map.runs.run_directory import SAMPLES_DIRECTORY
from noise2map.training.maps.samples import compose_grid


@torch.no_grad()
def draw_pictures(unet: UNet2DModel, scheduler: DDPMScheduler, count: int, steps: int, seed: int) -> Tensor:
    """DDPM samples ``(count, C, h, w)`` in [-1, 1] on the CPU; a picture depends on the seed and its number.

    Fresh noise at each step takes errors of a half-trained network away that deterministic steps would pile up.
    """
    sampler = DDPMScheduler.from_config(scheduler.config)
    sampler.set_timesteps(steps)
    size, reference = unet.config.sample_size, unet.conv_in.weight
    shape = (unet.config.in_channels, *((size, size) if isinstance(size, int) else size))
    generators = [image_generator(seed, f"sample {index}") for index in range(count)]
    sample = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(reference)
    for timestep in sampler.timesteps:
        predicted = unet(sample, timestep).sample
        sample = sampler.step(predicted.float(), timestep, sample.float(), generator=generators).prev_sample.to(reference)
    return sample.float().clamp(-1, 1).cpu()


def picture_rows(samples: Tensor, columns: int) -> list[list[np.ndarray]]:
    """Signals ``(N, 3 or 1, h, w)`` in [-1, 1] as rows of RGB pictures ``(h, w, 3)`` uint8; depth near bright."""
    unit = samples.numpy() / 2 + 0.5
    if samples.shape[1] == 1:
        pictures = [(colormaps["magma_r"](one[0])[..., :3] * 255).astype(np.uint8) for one in unit]
    else:
        pictures = [np.rint(one.transpose(1, 2, 0) * 255).astype(np.uint8) for one in unit]
    return [pictures[start : start + columns] for start in range(0, len(pictures), columns)]


class DrawnSamplesCallback(TrainerCallback):
    """Writes ``samples/step-N.png`` after every evaluation, drawn with the averaged weights.

    Args:
        count: pictures.
        steps: steps of the sampler.
        seed: seed of the start noise.
    """

    def __init__(self, count: int, steps: int, seed: int = 0) -> None:
        self.count, self.steps, self.seed = count, steps, seed

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the picture of this step."""
        if not state.is_world_process_zero or not self.count:
            return
        model = kwargs["model"]
        samples = draw_pictures(model.unet, model.scheduler, self.count, self.steps, self.seed)
        columns = max(1, int(np.ceil(np.sqrt(self.count))))
        directory = Path(args.output_dir) / SAMPLES_DIRECTORY
        directory.mkdir(parents=True, exist_ok=True)
        temporary = directory / f".step-{state.global_step}.tmp"
        compose_grid(picture_rows(samples, columns)).save(temporary, format="PNG")
        temporary.replace(directory / f"step-{state.global_step:06d}.png")
