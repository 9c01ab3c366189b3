"""The page of an audit: a crop of each suspicious region in image, labels and the model's map."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from noise2map.audit.components import mask_of
from noise2map.audit.ranking import Ranking, Suspect
from noise2map.data.images import open_class_map
from noise2map.inference.predictor import Predictor
from noise2map.report.html import Page
from noise2map.report.palettes import colorize_labels, legend_entries
from noise2map.report.panels import Cell

OUTLINE, HALO = (255, 236, 40), (20, 20, 24)
_CROP_WIDTH = 320  # pixels that a crop is enlarged to, by whole pixels
_LEAST_CROP = 0.4  # of the image's sides: a region without its surroundings cannot be judged
_WINDOWS = 6
_PAIRS = 8

Box = tuple[int, int, int, int]


def crop_around(box: Box, size: tuple[int, int]) -> Box:
    """A part of an image with a box in its middle, as far as the image reaches.

    Args:
        box: Left, top, right, bottom in pixels, the latter two exclusive.
        size: Width and height of the image.

    Returns:
        A box of the image's proportions, at least two fifths of its sides, and half as much again as the given box where it can be.
    """
    around = 1.5 * max((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1])
    share = min(max(around, _LEAST_CROP), 1.0)
    ends = []
    for low, high, side in ((box[0], box[2], size[0]), (box[1], box[3], size[1])):
        length = max(1, round(share * side))
        start = min(max((low + high - length) // 2, 0), side - length)
        ends.append((start, start + length))
    return ends[0][0], ends[1][0], ends[0][1], ends[1][1]


def outlined(pixels: np.ndarray, mask: np.ndarray, box: Box) -> np.ndarray:
    """A crop, enlarged by whole pixels, with the outline of a region.

    Args:
        pixels: ``(H, W, 3)`` uint8.
        mask: The region ``(H, W)`` bool.
        box: The crop.

    Returns:
        ``(h, w, 3)`` uint8.
    """
    left, top, right, bottom = box
    scale = max(1, _CROP_WIDTH // (right - left))
    shown = pixels[top:bottom, left:right].repeat(scale, 0).repeat(scale, 1)
    inside = mask[top:bottom, left:right].repeat(scale, 0).repeat(scale, 1)
    thickness = max(1, shown.shape[1] // 160)
    inner = inside & _grown(~inside, thickness)
    outer = ~inside & _grown(inside, 1)
    shown[inner] = OUTLINE
    shown[outer] = HALO
    return shown


def _grown(mask: np.ndarray, radius: int) -> np.ndarray:
    """A mask and all pixels at most ``radius`` beside it in a row, a column or both."""
    padded = np.pad(mask, radius)
    rows, columns = mask.shape
    found = np.zeros_like(mask)
    for down in range(2 * radius + 1):
        for right in range(2 * radius + 1):
            found |= padded[down : down + rows, right : right + columns]
    return found


def _box_mask(box: Box, shape: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def _number(probability: float) -> str:
    return f"{probability:.2f}" if probability >= 0.01 else f"{probability:.1g}"


def words_of(suspect: Suspect, place: int, id2label: Mapping[int, str]) -> str:
    """What is said above a crop."""
    region = suspect.region
    model, label = (_number(math.exp(value)) for value in (region.log_model, region.log_label))
    said = f"{place}. {suspect.id}: labelled {id2label[region.label]}, the model says {id2label[region.model]}"
    return f"{said} ({model} against {label}); {region.area} px, score {suspect.score:.2f}"


def write_page(
    root: Path,
    ranking: Ranking,
    sample_of: Callable[[str], Mapping[str, Any]],
    predictor: Predictor,
    shown: int,
    uncertainty: str,
) -> None:
    """Write ``report.html``.

    Args:
        root: The output folder, with the model's maps.
        ranking: What was found.
        sample_of: Reads the raw sample of an id.
        predictor: The model, for names and colors of its classes.
        shown: The most regions to show.
        uncertainty: The kind of uncertainty that ranked what to label next.
    """
    names, palette = predictor.id2label, predictor.palette
    page = Page("Labels audited", f"{ranking.regions} suspicious regions in {len(ranking.images)} images.")
    page.section(
        "Suspicious regions",
        "Where the model contradicts the labels and is sure of it, the most suspicious first. Probabilities are geometric means of "
        "the region. The model may be the one that is wrong: look before you change a label.",
    )
    if not ranking.suspects:
        page.text("There is none: the model agrees with the labels.")
    for place, one in enumerate(ranking.suspects[:shown], 1):
        image, labels, found = _maps(root, one.id, sample_of)
        box = crop_around(one.region.box, (labels.shape[1], labels.shape[0]))
        mask = mask_of(one.region.runs, labels.shape)
        layers = {"image": image, "labels": colorize_labels(labels, palette), "the model's map": colorize_labels(found, palette)}
        cells = [Cell("image, whole", _marked(image, box))]
        cells += [Cell(title, outlined(pixels, mask, box)) for title, pixels in layers.items()]
        left, top, right, bottom = box
        crops = [labels[top:bottom, left:right], found[top:bottom, left:right]]
        page.cells([cells], words_of(one, place, names), legend_entries(crops, names, palette))
    if ranking.suspects:
        page.section("Which classes", f"Pairs of label and model among the first {len(ranking.suspects)} regions.")
        pairs = Counter((names[one.region.label], names[one.region.model]) for one in ranking.suspects)
        page.table([{"label": label, "model": model, "regions": count} for (label, model), count in pairs.most_common(_PAIRS)])
    page.section(
        "What to label next",
        f"The images that the model is least sure of (mean {uncertainty.replace('_', ' ')}), each with its most uncertain window.",
    )
    for row in ranking.next[:_WINDOWS]:
        image, labels, found = _maps(root, row["image"], sample_of)
        window = (row["left"], row["top"], row["right"], row["bottom"])
        layers = {"image": image, "labels": colorize_labels(labels, palette), "the model's map": colorize_labels(found, palette)}
        heading = f"{row['rank']}. {row['image']}: {row['uncertainty']:.3f}, in the window {row['window_uncertainty']:.3f}"
        page.cells([[Cell(title, _marked(pixels, window)) for title, pixels in layers.items()]], heading)
    page.footer("suspects.csv, images.csv and label_next.csv beside this page hold all of it.")
    page.write(root / "report.html")


def _maps(root: Path, name: str, sample_of: Callable[[str], Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image ``(H, W, 3)``, labels ``(H, W)`` and the model's map ``(H, W)``."""
    sample = sample_of(name)
    return np.asarray(sample["image"].convert("RGB")), np.asarray(sample["labels"]), open_class_map(root / "maps" / f"{name}.png")


def _marked(pixels: np.ndarray, box: Box) -> np.ndarray:
    """The whole image, at most 640 pixels wide, with a box."""
    width = pixels.shape[1]
    if width > 640:
        height = max(1, round(pixels.shape[0] * 640 / width))
        factor = 640 / width
        pixels = np.asarray(Image.fromarray(pixels).resize((640, height), Image.Resampling.BOX))
        left, top, right, bottom = (round(side * factor) for side in box)
        box = (left, top, right, bottom)
    whole = (0, 0, pixels.shape[1], pixels.shape[0])
    return outlined(pixels, _box_mask(box, (pixels.shape[0], pixels.shape[1])), whole)
