"""Samples of what a model does while it trains: image | truth | prediction at several step counts | uncertainty."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from noise2map.models.decoding import DecodingOptions
from noise2map.report.palettes import class_palette, legend_entries
from noise2map.report.panels import Cell, Panel, render, uncertainty_cell
from noise2map.runs.files import write_image
from noise2map.runs.run_directory import SAMPLES_DIRECTORY
from noise2map.tasks import task_of
from noise2map.training.batches import MapCollator

_AROUND = 235  # grey level around an image that is smaller than the largest


@torch.no_grad()
def sample_cells(
    model: Any, processor: Any, samples: Sequence[dict[str, Any]], steps: Sequence[int], seed: int, palette: np.ndarray
) -> list[list[Cell]]:
    """One row for each sample: image, truth, prediction at each step count, and the last one's uncertainty where it is defined.

    Args:
        model: a map model in evaluation mode.
        processor: its image processor.
        samples: raw samples.
        steps: numbers of decoder calls.
        seed: seed of the start noise.
        palette: ``(K, 3)`` uint8 colors of the classes (segmentation).
    """
    task = task_of(model)
    rows: list[list[Cell]] = []
    for sample in samples:
        features = task.encode(model, MapCollator(processor, task)([sample]))
        truth = task.truth(sample)
        size = tuple(truth.shape[-2:])
        image = np.asarray(sample["image"].convert("RGB").resize(size[::-1]))
        row = [Cell(str(sample["id"]), image), Cell("truth", task.paint(truth, truth, palette))]
        for count in steps:
            outputs = DecodingOptions(num_inference_steps=count, seed=seed).decode(model, features, [str(sample["id"])])
            painted = task.paint(task.maps(outputs, processor, [size])[0], truth, palette)
            row.append(Cell(f"{count} step{'s' * (count > 1)}", painted))
        if outputs.uncertainty is not None:  # one call of one sample has none in depth
            uncertainty = processor.post_process_uncertainty(outputs, target_sizes=[size])[0]
            row.append(uncertainty_cell(uncertainty.float().cpu().numpy(), limit=1.0))
        rows.append(row)
    return rows


def sample_panel(
    model: Any, processor: Any, samples: Sequence[dict[str, Any]], steps: Sequence[int], seed: int, palette: Any = None
) -> Image.Image:
    """The rows of :func:`sample_cells` as one image with titles and, for classes, a legend; in the colors of reports."""
    task = task_of(model)
    names = {int(index): str(name) for index, name in model.config.id2label.items()} if task.has_classes else {}
    if palette is not None and len(palette):
        colors = np.asarray(palette)
    else:
        colors = class_palette(names) if names else np.zeros((0, 3), np.uint8)
    rows = sample_cells(model, processor, samples, steps, seed, colors)
    legend = legend_entries([task.truth(sample).numpy() for sample in samples], names, colors) if names else []
    size = tuple(max(row[0].image.shape[axis] for row in rows) for axis in (0, 1))
    cells = [replace(cell, image=_on_canvas(cell.image, size)) for row in rows for cell in row]
    return render(Panel(cells, len(rows[0]), legend=legend))


def _on_canvas(image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """An image ``(h, w, 3)`` in the top left corner of a grey one ``(H, W, 3)``."""
    if image.shape[:2] == size:
        return image
    canvas = np.full((*size, 3), _AROUND, np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas


class SampleGridCallback(TrainerCallback):
    """Writes ``samples/step-N.png`` after every evaluation, with the averaged weights that were evaluated.

    Args:
        samples: raw samples, one row each.
        processor: the model's image processor.
        steps: numbers of decoder calls.
        seed: seed of the start noise.
        palette: ``(K, 3)`` uint8 colors of the classes.
    """

    def __init__(
        self, samples: Sequence[dict[str, Any]], processor: Any, steps: Sequence[int], seed: int = 0, palette: Any = None
    ) -> None:
        self.samples, self.processor, self.steps, self.seed, self.palette = samples, processor, steps, seed, palette

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the panel of this step."""
        if not state.is_world_process_zero or not self.samples:
            return
        panel = sample_panel(kwargs["model"], self.processor, self.samples, self.steps, self.seed, self.palette)
        write_image(Path(args.output_dir) / SAMPLES_DIRECTORY / f"step-{state.global_step:06d}.png", panel)
