"""The demo's section of completion: part of an image is covered, and the model says what may be behind."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from noise2map.data.freedoom import load_samples
from noise2map.data.transforms.covering import cover
from noise2map.demo.maps import varied_frames
from noise2map.demo.section import DemoSection, open_model
from noise2map.diffusion import image_generator
from noise2map.inference.predictor import Predictor
from noise2map.models.resizing import resize_map
from noise2map.report.animation import denoising_steps
from noise2map.report.html import GalleryItem, Page
from noise2map.report.palettes import colorize_labels, legend_entries
from noise2map.report.panels import Cell, Panel, render, uncertainty_cell, uncertainty_limit
from noise2map.runs.files import write_image

_TASK = "segmentation"
_MARK = "completion"  # in the names of models that were trained on covered images
# Guesses are smooth draws of the single call that further calls denoise: as good as guesses by many more calls from pure noise.
# The film has those, in which every step can be seen.
CALLS, SAMPLES, FILM_STEPS = 3, 4, 10
# What is covered, as shares of height and width: the middle of a room, where floor, walls and things meet.
_ROWS, _COLUMNS = (0.22, 0.9), (0.3, 0.78)


def open_completion_model(name: str, device: torch.device) -> Predictor | None:
    """The model that the section shows, as of `open_model`: one that was trained on covered images.

    Raises:
        OSError: If it is missing.
        ValueError: If it is for another task, or was trained without diffusion and has no samples to show.
    """
    predictor = open_model(name, _TASK, device, _MARK)
    if predictor is not None and not predictor.model.config.diffusion:
        raise ValueError(f"model {name!r} was trained without diffusion; expected one for {_TASK} that has samples to show")
    return predictor


@dataclass
class Completion:
    """An image with a part covered, and what may be behind.

    Attributes:
        id: Its id in the dataset.
        place: The map it was rendered in.
        image: As it was, ``(H, W, 3)`` uint8.
        covered: As the model saw it.
        hidden: What was covered, ``(H, W)`` bool.
        truth: Class ids ``(H, W)`` uint8, 255 unknown.
        likely: Most likely class of each pixel by one call, ``(H, W)``.
        doubt: Entropy of that call, ``(H, W)`` in [0, 1].
        samples: Class ids of whole maps ``(R, H, W)``, each by `CALLS` calls.
    """

    id: str
    place: str
    image: np.ndarray
    covered: np.ndarray
    hidden: np.ndarray
    truth: np.ndarray
    likely: np.ndarray
    doubt: np.ndarray
    samples: np.ndarray


def covered_middle(height: int, width: int) -> np.ndarray:
    """The part that the section covers, ``(H, W)`` bool."""
    hidden = np.zeros((height, width), bool)
    rows, columns = ([round(share * side) for share in shares] for shares, side in ((_ROWS, height), (_COLUMNS, width)))
    hidden[rows[0] : rows[1], columns[0] : columns[1]] = True
    return hidden


@torch.no_grad()
def complete(predictor: Predictor, sample: Any, place: str, seed: int) -> Completion:
    """Covers the middle of an image and draws what may be behind.

    Args:
        predictor: The model.
        sample: A raw sample with ``image``, ``labels`` and ``id``.
        place: The map it was rendered in.
        seed: With the id it fixes the noise.
    """
    covered = cover(sample, covered_middle(sample["image"].height, sample["image"].width))
    model = predictor.model
    pixels = _pixels(predictor, covered["image"])
    generator = [image_generator(seed, str(sample["id"]))]
    once = model(pixel_values=pixels, sampling="one_pass", generator=generator)
    options: dict[str, Any] = {"num_inference_steps": CALLS, "ensemble_size": SAMPLES, "sampling": "field"}
    run = model(pixel_values=pixels, generator=generator, output_samples=True, **options)
    # The processor may have changed the size.
    size = (sample["image"].height, sample["image"].width)
    return Completion(
        str(sample["id"]),
        place,
        np.asarray(sample["image"]),
        np.asarray(covered["image"]),
        covered["hidden"],
        np.asarray(sample["labels"]),
        resize_map(once.logits, size)[0].argmax(0).cpu().numpy(),
        resize_map(once.uncertainties["entropy"][:, None].float(), size)[0, 0].cpu().numpy(),
        resize_map(run.samples[0], size).argmax(1).cpu().numpy(),
    )


@torch.no_grad()
def unfold(predictor: Predictor, one: Completion, seed: int) -> np.ndarray:
    """A map that becomes definite: class ids after each of `FILM_STEPS` calls from pure noise, ``(FILM_STEPS, h, w)``.

    Args:
        predictor: The model.
        one: The covered image.
        seed: With the id it fixes the noise.
    """
    run = predictor.model(
        pixel_values=_pixels(predictor, one.covered),
        num_inference_steps=FILM_STEPS,
        sampling="diffusion",
        generator=[image_generator(seed, one.id)],
        output_steps=True,
    )
    return np.stack([step.prediction.argmax(0) for step in denoising_steps(run.steps)])


def _pixels(predictor: Predictor, image: Any) -> torch.Tensor:
    return predictor.processor(images=image, return_tensors="pt")["pixel_values"].to(predictor.model.device)


class CompletionSection(DemoSection):
    """Images with a part covered: what is likely there, where the model doubts, and whole maps that may be true.

    Attributes:
        example: Of the first frame: as the model saw it, three guesses, the truth, the doubt.
    """

    title = "Behind a cover"

    def __init__(self, predictor: Predictor, frames: int, seed: int) -> None:
        """Take a model from `open_completion_model`.

        Args:
            predictor: The model.
            frames: How many to show.
            seed: With a frame's id it fixes the noise.
        """
        self.predictor, self.count, self.seed = predictor, frames, seed
        self.example: Panel | None = None

    def show(self, page: Page, out: Path) -> list[str]:
        """A gallery, a panel for each frame in ``completion/``, and a map becoming definite step by step."""
        dataset = load_samples("test", _TASK)
        indices = varied_frames(dataset, self.count)
        found = [complete(self.predictor, dataset[i], dataset.records[i]["map"], self.seed) for i in indices]
        page.section(
            self.title,
            "Part of each image is covered before the model sees it. One call says how likely each class is in each pixel, and "
            "so where the model doubts. A draw from that by noise that is smooth over the map, and "
            f"{CALLS - 1} further calls that mend it, make one whole map; other noise makes another: they agree where the image "
            "decides, and differ behind the cover. None of them is the truth; a good model's are about as far from it as from "
            f"each other. The film below has a map of {FILM_STEPS} calls from pure noise.",
        )
        limit = uncertainty_limit(*(one.doubt for one in found))
        rows = [self.rows(one, limit) for one in found]
        cells = [*rows[0][0][:4], Cell("truth", rows[0][1][1].image), Cell("doubt of one call", rows[0][1][3].image)]
        self.example = Panel(cells, len(cells), legend=self._legend(found[0].truth, *found[0].samples[:3]))
        heads = [f"{one.place}  ·  {one.id}" for one in found]
        legend = self._legend(*(one.truth for one in found))
        page.gallery([self._item(one, head, cells, legend) for one, head, cells in zip(found, heads, rows)])
        page.player(self._film(found[0]), f"One map of {found[0].id}, step by step")
        for one, head, cells in zip(found, heads, rows):
            panel = Panel([cell for row in cells for cell in row], len(cells[0]), head, legend)
            write_image(out / _MARK / f"{one.id}.png", render(panel))
        return []

    def rows(self, one: Completion, limit: float) -> list[list[Cell]]:
        """Two rows of cells: what the model saw and four maps that may be true; what was there, and what one call says.

        Args:
            one: The frame.
            limit: End of the scale of doubt.
        """
        drawn = [Cell(f"guess {index + 1}", self._paint(ids)) for index, ids in enumerate(one.samples)]
        wrong = np.where((one.likely != one.truth) & (one.truth != 255) & one.hidden, 1.0, 0.0)
        below = [
            Cell("image", one.image),
            Cell("its classes", self._paint(one.truth)),
            Cell("most likely", self._paint(one.likely)),
            uncertainty_cell(one.doubt, "doubt", limit),
            replace(uncertainty_cell(wrong, "errors behind", 1.0), bar=None),
        ]
        return [[Cell("covered", one.covered), *drawn], below]

    def _paint(self, ids: np.ndarray) -> np.ndarray:
        return colorize_labels(ids, self.predictor.palette)

    def _legend(self, *maps: np.ndarray) -> list[Any]:
        return legend_entries(maps, self.predictor.id2label, self.predictor.palette)

    def _item(self, one: Completion, head: str, cells: list[list[Cell]], legend: list[Any]) -> GalleryItem:
        return GalleryItem(one.covered, head, cells, legend)

    def _film(self, one: Completion) -> list[list[Cell]]:
        seen, truth = Cell("covered", one.covered), Cell("its classes", self._paint(one.truth))
        by_steps = enumerate(unfold(self.predictor, one, self.seed))
        maps = [Cell("map", self._paint(ids), note=f"step {step + 1} of {FILM_STEPS}") for step, ids in by_steps]
        return [[seen, found, truth] for found in maps]
