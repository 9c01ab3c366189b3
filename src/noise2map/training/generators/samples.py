"""Images that a U-Net draws while it trains, of the same seeds each time."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from noise2map.diffusion import image_generator
from noise2map.guidance.scheduler_step import set_timesteps
from noise2map.report.palettes import DEPTH_MAP, colorize
from noise2map.report.panels import image_grid
from noise2map.runs.files import write_image
from noise2map.runs.run_directory import SAMPLES_DIRECTORY


@torch.no_grad()
def draw_images(unet: UNet2DModel, scheduler: DDPMScheduler, count: int, steps: int, seed: int) -> Tensor:
    """DDPM samples ``(count, C, h, w)`` in [-1, 1] on the CPU; an image depends on the seed and its number.

    Fresh noise at each step takes errors of a half-trained network away that deterministic steps would pile up.
    """
    sampler = DDPMScheduler.from_config(scheduler.config)
    set_timesteps(sampler, steps)
    size, reference = unet.config.sample_size, unet.conv_in.weight
    shape = (unet.config.in_channels, *((size, size) if isinstance(size, int) else size))
    generators = [image_generator(seed, f"sample {index}") for index in range(count)]
    sample = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(reference)
    for timestep in sampler.timesteps:
        predicted = unet(sample, timestep).sample
        sample = sampler.step(predicted.float(), timestep, sample.float(), generator=generators).prev_sample.to(reference)
    return sample.float().clamp(-1, 1).cpu()


def paint_samples(samples: Tensor, columns: int) -> list[list[np.ndarray]]:
    """Signals ``(N, 3 or 1, h, w)`` in [-1, 1] as rows of RGB images ``(h, w, 3)`` uint8; depth in the colors of reports."""
    unit = samples.numpy() / 2 + 0.5
    if samples.shape[1] == 1:
        images = [colorize(one[0], 0.0, 1.0, DEPTH_MAP) for one in unit]
    else:
        images = [np.rint(one.transpose(1, 2, 0) * 255).astype(np.uint8) for one in unit]
    return [images[start : start + columns] for start in range(0, len(images), columns)]


class DrawnSamplesCallback(TrainerCallback):
    """Writes ``samples/step-N.png`` after every evaluation, drawn with the averaged weights.

    Args:
        count: images.
        steps: steps of the sampler.
        seed: seed of the start noise.
    """

    def __init__(self, count: int, steps: int, seed: int = 0) -> None:
        self.count, self.steps, self.seed = count, steps, seed

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the images of this step."""
        if not state.is_world_process_zero or not self.count:
            return
        model = kwargs["model"]
        samples = draw_images(model.unet, model.scheduler, self.count, self.steps, self.seed)
        columns = max(1, int(np.ceil(np.sqrt(self.count))))
        name = f"step-{state.global_step:06d}.png"
        write_image(Path(args.output_dir) / SAMPLES_DIRECTORY / name, image_grid(paint_samples(samples, columns)))
