"""Maps by steps, and their uncertainty beside their errors (DDP, Fig. 3)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from noise2map.ablation.scoring import Frames
from noise2map.data.subsets import evenly_spaced
from noise2map.models.decoding import DecodingOptions
from noise2map.models.resizing import resize_logits
from noise2map.report.palettes import class_palette, colorize_labels, legend_entries
from noise2map.report.panels import Cell, Panel, label_error_cell, render, uncertainty_cell, uncertainty_limit
from noise2map.tasks import task_of

IMAGES = 3
"""Images that are drawn, evenly spaced over those that are scored."""

_KIND = "step_flip"  # what the paper counts: how often the prediction of a pixel changes between steps


@torch.no_grad()
def draw_maps(named: Sequence[tuple[str, Any]], frames: Frames, steps: Sequence[int]) -> dict[str, Image.Image]:
    """Draws maps of some images.

    Args:
        named: label and model of each decoder that takes steps.
        frames: what was scored.
        steps: numbers of decoder calls; the last one's uncertainty is drawn.

    Returns:
        ``"ablation_steps_maps"``: an image, its truth and its maps in a row for each image and decoder;
        ``"ablation_steps_uncertainty"``: errors and changes between steps.
    """
    shown = evenly_spaced(len(frames), IMAGES)
    samples = {index: frames.sample(index) for index in shown}
    found = {name: _decode(model, frames, steps, shown) for name, model in named}
    names = named[0][1].config.id2label
    palette = class_palette(names, named[0][1].config.palette)
    truths = {index: task_of(named[0][1]).truth(sample).numpy() for index, sample in samples.items()}
    maps, doubts = [], []
    limit = uncertainty_limit(*(kinds for decoded in found.values() for _, kinds in decoded.values()))
    for index in shown:
        image = np.asarray(samples[index]["image"].convert("RGB"))
        doubts.append(Cell("image", image))
        for name, _ in named:
            labels, changed = found[name][index]
            maps += [Cell(name, image), Cell("truth", colorize_labels(truths[index], palette))]
            maps += [Cell(f"{n} step{'s' * (n > 1)}", colorize_labels(labels[n], palette)) for n in steps]
            doubts.append(label_error_cell(image, labels[steps[-1]], truths[index], name))
            doubts.append(uncertainty_cell(changed, "changes", limit))
    legend = legend_entries([*truths.values()], names, palette)
    return {
        "ablation_steps_maps": render(Panel(maps, columns=2 + len(steps), heading="Maps by decoder calls", legend=legend), 1400),
        "ablation_steps_uncertainty": render(
            Panel(
                doubts,
                columns=1 + 2 * len(named),
                heading=f"Errors after {steps[-1]} steps, and share of steps that changed a pixel",
            ),
            1800,
        ),
    }


def _decode(
    model: Any, frames: Frames, steps: Sequence[int], indices: Sequence[int]
) -> dict[int, tuple[dict[int, np.ndarray], np.ndarray]]:
    """Class ids for each number of steps, and changes between the steps of the last, at the size of the truth."""
    found = {}
    for batch in frames.batches(model):
        rows = [row for row, index in enumerate(batch.indices) if index in indices]
        if not rows:
            continue
        batch.encode()
        outputs = {count: batch.decode(DecodingOptions(num_inference_steps=count)) for count in steps}
        for row in rows:
            size = (int(batch.truths[row].shape[-2]), int(batch.truths[row].shape[-1]))
            labels = {
                count: resize_logits(output.logits[row : row + 1].float(), batch.processed, size).argmax(1)[0].cpu().numpy()
                for count, output in outputs.items()
            }
            changed = outputs[steps[-1]].uncertainties_at(batch.processed, size, rows=[row], kinds=[_KIND])[_KIND][0]
            found[batch.indices[row]] = labels, changed.cpu().numpy()
    return found
