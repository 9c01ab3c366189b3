"""Pictures of what a model does while it trains: image | truth | prediction at several step counts | uncertainty."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from noise2map.models.decoding import DecodingOptions
from noise2map.report.palettes import colorize
from noise2map.runs.run_directory import SAMPLES_DIRECTORY
from noise2map.tasks import task_of
from noise2map.training.batches import MapCollator

_GAP_PX = 4


def compose_grid(rows: Sequence[Sequence[np.ndarray]]) -> Image.Image:
    """Rows of RGB pictures to one picture with thin white gaps; the pictures ``(H, W, 3)`` of a row have one size."""
    heights = [row[0].shape[0] for row in rows]
    widths = [len(row) * (row[0].shape[1] + _GAP_PX) - _GAP_PX for row in rows]
    sheet = np.full((sum(heights) + (len(rows) - 1) * _GAP_PX, max(widths), 3), 255, dtype=np.uint8)
    top = 0
    for height, row in zip(heights, rows):
        width = row[0].shape[1]
        for column, picture in enumerate(row):
            left = column * (width + _GAP_PX)
            sheet[top : top + height, left : left + width] = picture
        top += height + _GAP_PX
    return Image.fromarray(sheet)


@torch.no_grad()
def sample_grid(
    model: nn.Module, processor: Any, samples: Sequence[dict[str, Any]], steps: Sequence[int], seed: int, palette: Any = None
) -> Image.Image:
    """One row for each sample: image, truth, prediction at each step count, and the last one's uncertainty where it is defined.

    Args:
        model: a map model in evaluation mode.
        processor: its image processor.
        samples: raw samples.
        steps: numbers of decoder calls.
        seed: seed of the start noise.
        palette: ``(K, 3)`` uint8 colours of the classes (segmentation).
    """
    task = task_of(model)
    colours = np.asarray(palette) if palette is not None else _default_palette(model)
    rows: list[list[np.ndarray]] = []
    for sample in samples:
        features = task.encode(model, MapCollator(processor, task)([sample]))
        truth = task.truth(sample)
        size = tuple(truth.shape[-2:])
        row = [np.asarray(sample["image"].convert("RGB").resize(size[::-1])), task.paint(truth, truth, colours)]
        for count in steps:
            outputs = DecodingOptions(num_inference_steps=count, seed=seed).decode(model, features, [str(sample["id"])])
            row.append(task.paint(task.maps(outputs, processor, [size])[0], truth, colours))
        if outputs.uncertainty is not None:  # one call of one sample has none in depth
            uncertainty = processor.post_process_uncertainty(outputs, target_sizes=[size])[0]
            row.append(colorize(uncertainty.float().cpu().numpy(), 0.0, 1.0))
        rows.append(row)
    return compose_grid(rows)


def _default_palette(model: nn.Module) -> np.ndarray:
    count = max(int(getattr(model.config, "num_labels", 1)), 1)
    return (colormaps["turbo"](np.linspace(0.05, 0.95, count))[:, :3] * 255).astype(np.uint8)


class SampleGridCallback(TrainerCallback):
    """Writes ``samples/step-N.png`` after every evaluation, with the averaged weights that were evaluated.

    Args:
        samples: raw samples, one row each.
        processor: the model's image processor.
        steps: numbers of decoder calls.
        seed: seed of the start noise.
        palette: ``(K, 3)`` uint8 colours of the classes.
    """

    def __init__(
        self, samples: Sequence[dict[str, Any]], processor: Any, steps: Sequence[int], seed: int = 0, palette: Any = None
    ) -> None:
        self.samples, self.processor, self.steps, self.seed, self.palette = samples, processor, steps, seed, palette

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the picture of this step."""
        if not state.is_world_process_zero or not self.samples:
            return
        directory = Path(args.output_dir) / SAMPLES_DIRECTORY
        directory.mkdir(parents=True, exist_ok=True)
        grid = sample_grid(kwargs["model"], self.processor, self.samples, self.steps, self.seed, self.palette)
        temporary = directory / f".step-{state.global_step}.tmp"
        grid.save(temporary, format="PNG")
        temporary.replace(directory / f"step-{state.global_step:06d}.png")
