"""Pixels drawn from labelled images as a model sees them: one pass, and a few thousand pixels of each image in memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from noise2map.data.subsets import Subset
from noise2map.evaluation.evaluate import image_batches, sensor_batches
from noise2map.evaluation.opening import LoadedModel, ScoredData, open_labelled
from noise2map.models.decoding import DecodingOptions
from noise2map.tasks.base import Task
from noise2map.tasks.calibrating import Calibrator, DrawnPixels

_MOST_FLOATS = 64 * 2**20  # of all drawn pixels together, 256 MiB
_LEAST_PIXELS = 16


@dataclass
class DrawnImages:
    """Pixels of labelled images.

    Attributes:
        pixels: What the model stated at them, and the truth.
        ids: Ids of the images, in the order of the dataset.
        places: Where each was taken, None where nobody says.
    """

    pixels: DrawnPixels
    ids: list[str]
    places: list[str | None]

    def clusters(self, kind: str) -> list[str]:
        """The name of the group of each image: its own id, or its map.

        Raises:
            ValueError: If maps are asked for and the dataset does not say them.
        """
        if kind == "image":
            return self.ids
        if any(place is None for place in self.places):
            raise ValueError("the images do not say of which map they are; expected --cluster image")
        return [str(place) for place in self.places]


def open_images(
    task: Task,
    model: Any,
    processor: Any,
    name: str,
    dataset: str,
    root: Path | None,
    split: str | None,
    limit: int,
    cells: str = "visible",
) -> tuple[Any, str]:
    """Labelled images for a model, evenly spaced, and the name of their split.

    Args:
        task: The model's task.
        model: The model.
        processor: Its processor.
        name: What the model is called; its folder may say which images of a folder were trained on.
        dataset: Name of the dataset, see `open_dataset`; of ``folder`` those that were held out in training are taken.
        root: Its folder.
        split: Its split; None for the one that scores are published for.
        limit: At most so many; 0 for all.
        cells: ``"all"`` also takes cells that cannot be seen (freedoom-surround).

    Raises:
        OSError: If files are missing.
        ValueError: If there is nothing labelled, or classes differ from the model's.
    """
    chosen = ScoredData(dataset=dataset, root=root, split=split, cells=cells)
    opened = open_labelled(chosen, [LoadedModel(name, model, processor)])
    if not len(opened.datasets[0]):
        raise ValueError(f"the dataset holds no {task.things}; there is nothing to calibrate on")
    return Subset.evenly_spaced(opened.datasets[0], limit or None), opened.split


@torch.no_grad()
def draw_images(
    model: Any,
    processor: Any,
    task: Task,
    calibrator: Calibrator,
    dataset: Any,
    options: DecodingOptions,
    pixels: int = 2000,
    batch_size: int = 8,
    progress: Callable[[int], object] | None = None,
) -> DrawnImages:
    """Runs a model once over labelled images and keeps some pixels of each.

    Args:
        model: A map model; its own calibration is left aside.
        processor: Its processor.
        task: Its task.
        calibrator: Says what is kept of a pixel.
        dataset: Raw samples.
        options: How maps are decoded; with an image's id the seed also fixes its pixels.
        pixels: Most pixels of an image, fewer where all together would not fit in 256 MiB.
        batch_size: Images at a time.
        progress: Called with the number of images just done.

    Raises:
        ValueError: If an image has no map for the task.
    """
    batches = (image_batches if task.of_images else sensor_batches)(model, processor, dataset, batch_size)
    count, own = pixels, model.config.calibration
    drawn: dict[int, tuple[Any, Any]] = {}
    ids: dict[int, str] = {}
    places: dict[int, str | None] = {}
    model.config.calibration = None
    try:
        for batch in batches:
            batch.encode()
            found = calibrator.draw(batch.decode(options), batch.processed, batch.truths, batch.ids, count, options.seed)
            channels = found[0][0].shape[1]
            count = min(count, max(_LEAST_PIXELS, _MOST_FLOATS // (len(dataset) * channels)))
            drawn |= {index: (stated[:count], truth[:count]) for index, (stated, truth) in zip(batch.indices, found)}
            ids |= dict(zip(batch.indices, batch.ids))
            places |= dict(zip(batch.indices, batch.places))
            if progress is not None:
                progress(len(batch.ids))
    finally:
        model.config.calibration = own
    order = sorted(drawn)
    numbers = torch.cat([torch.full((len(drawn[index][0]),), place) for place, index in enumerate(order)])
    stated, truth = (torch.cat([drawn[index][part] for index in order]) for part in (0, 1))
    return DrawnImages(DrawnPixels(stated, truth, numbers), [ids[index] for index in order], [places[index] for index in order])


def group_numbers(names: Sequence[str], pixels: DrawnPixels) -> torch.Tensor:
    """Number of the group of each pixel ``(P,)``, of groups of images by name."""
    known = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([known[name] for name in names])[pixels.image]
