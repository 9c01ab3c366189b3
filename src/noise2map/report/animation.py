"""The denoising as moving images: the noisy map, what the model reads in it, and where it changed its mind."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from noise2map.report.palettes import DEPTH_MAP, colorize
from noise2map.report.panels import Cell, Panel, render, uncertainty_cell
from noise2map.runs.files import write_bytes


@dataclass(frozen=True)
class DenoisingStep:
    """One denoising step of one image, as arrays.

    Attributes:
        t: Time told to the model, 1 (noise) .. 0.
        noisy: The noisy map that went in, ``(C, h, w)``.
        prediction: What came out, ``(K, h, w)``: logits, or metres with K = 1.
    """

    t: float
    noisy: np.ndarray
    prediction: np.ndarray


def denoising_steps(steps: Sequence[Any], index: int = 0) -> list[DenoisingStep]:
    """Take one image out of a list of ``noise2map.diffusion.Step``.

    Args:
        steps: Objects with ``t``, ``x_t`` ``(N, C, h, w)`` and ``prediction`` ``(N, K, h, w)`` or ``(N, h, w)``.
        index: Which of the N maps.

    Returns:
        One :class:`DenoisingStep` per step.

    Raises:
        ValueError: If there is no step.
    """
    if not steps:
        raise ValueError("there is no denoising step to draw; ask the model for output_steps=True")
    found = []
    for step in steps:
        prediction = _array(step.prediction[index])
        found.append(DenoisingStep(float(step.t), _array(step.x_t[index]), np.atleast_3d(prediction.T).T))
    return found


def _array(tensor: Any) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def noisy_images(sequence: Sequence[DenoisingStep], clean: np.ndarray | None = None) -> list[np.ndarray]:
    """Paint noisy maps so that structure shows as soon as there is some.

    A signal of one channel goes through the color map of depth. One of many is projected to three colors along the
    main directions of the clean signal, which are those that tell classes apart. Every image is scaled by its own
    spread: the noise at the start is a hundred times stronger than the map.

    Args:
        sequence: The steps of one image.
        clean: The encoded clean map ``(C, h, w)``; by default the last noisy one, which is almost clean.

    Returns:
        ``(h, w, 3)`` uint8 arrays, one per step.
    """
    clean = sequence[-1].noisy if clean is None else clean
    channels = clean.shape[0]
    if channels == 1:
        return [_normalised_depth(step.noisy[0]) for step in sequence]
    flat = clean.reshape(channels, -1) - clean.reshape(channels, -1).mean(axis=1, keepdims=True)
    _, vectors = np.linalg.eigh(flat @ flat.T)
    axes = vectors[:, ::-1][:, :3].T  # (<= 3, C), the strongest first
    axes *= np.sign(axes.sum(axis=1, keepdims=True) + 1e-12)  # the sign of an eigenvector is arbitrary: fix it
    axes = np.concatenate([axes, np.zeros((3 - axes.shape[0], channels), axes.dtype)])
    images = []
    for step in sequence:
        colors = np.moveaxis(np.tensordot(axes, step.noisy, axes=1), 0, -1)
        colors = colors - np.median(colors, axis=(0, 1))
        colors = colors / (2.2 * max(float(colors.std()), 1e-12))
        images.append(np.round(np.clip(colors * 0.5 + 0.5, 0, 1) * 255).astype(np.uint8))
    return images


def _normalised_depth(signal: np.ndarray) -> np.ndarray:
    low, high = np.percentile(signal, [2, 98])
    return colorize(signal, float(low), float(max(high, low + 1e-9)), DEPTH_MAP)


def flips_so_far(sequence: Sequence[DenoisingStep]) -> list[np.ndarray]:
    """Class changes of each pixel up to each step, as a fraction of all possible changes.

    Returns:
        ``(h, w)`` floats in [0, 1], one per step; all zero at the first.
    """
    classes = [step.prediction.argmax(axis=0) for step in sequence]
    counts, total = [np.zeros(classes[0].shape)], max(len(classes) - 1, 1)
    for before, after in pairwise(classes):
        counts.append(counts[-1] + (before != after))
    return [count / total for count in counts]


def denoising_frames(
    image: np.ndarray,
    sequence: Sequence[DenoisingStep],
    paint: Callable[[np.ndarray], np.ndarray],
    *,
    theme: str = "light",
    width: int = 1400,
    classes: bool | None = None,
) -> list[Image.Image]:
    """Draw one panel per step: the image, the noisy map, the prediction and, for classes, the changes so far.

    Args:
        image: ``(H, W, 3)`` uint8.
        sequence: The steps of the image, from :func:`denoising_steps`.
        paint: Turns a prediction ``(K, h, w)`` into ``(h, w, 3)`` uint8, e.g. argmax and palette.
        theme: ``"light"`` or ``"dark"``.
        width: The width to aim at, in pixels.
        classes: Whether the channels of a prediction are scores of classes; by default if there are several.

    Returns:
        RGB images of one size.
    """
    size = (image.shape[1], image.shape[0])
    classes = sequence[0].prediction.shape[0] > 1 if classes is None else classes
    flips = flips_so_far(sequence) if classes else []
    limit = max(float(flips[-1].max()), 0.1) if classes else 1.0
    frames = []
    for index, (step, noisy) in enumerate(zip(sequence, noisy_images(sequence))):
        cells = [
            Cell("image", image),
            Cell("noisy map", _enlarge(noisy, size), note=f"t = {step.t:.2f}"),
            Cell("prediction", _enlarge(paint(step.prediction), size), note=f"step {index + 1} of {len(sequence)}"),
        ]
        if classes:
            flip_cell = uncertainty_cell(flips[index], "changes so far", limit)
            cells.append(Cell(flip_cell.title, _enlarge(flip_cell.image, size)))
        frames.append(render(Panel(cells, columns=len(cells)), width, theme))
    return frames


def _enlarge(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.NEAREST))


def save_animation(
    path: str | os.PathLike[str], frames: Sequence[Image.Image], duration_ms: int = 500, hold_ms: int = 2000
) -> None:
    """Write an endless animation at once.

    Args:
        path: ``.gif`` (shown everywhere, 256 colors a frame) or ``.webp`` (all colors, smaller).
        frames: RGB images of one size.
        duration_ms: How long each frame stays.
        hold_ms: How long the last one stays.

    Raises:
        ValueError: If there is no frame, sizes differ, or the suffix is another one.
        OSError: If the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".gif", ".webp"):
        raise ValueError(f"an animation is written as .gif or .webp, got {os.fspath(path)!r}")
    if not frames or len({frame.size for frame in frames}) != 1:
        raise ValueError(f"an animation needs frames of one size, got {sorted({frame.size for frame in frames})}")
    write_bytes(path, animation_bytes(frames, suffix, duration_ms, hold_ms))


def animation_bytes(frames: Sequence[Image.Image], suffix: str, duration_ms: int = 500, hold_ms: int = 2000) -> bytes:
    """The bytes of an animation, see :func:`save_animation`."""
    durations = [duration_ms] * (len(frames) - 1) + [hold_ms]
    buffer = BytesIO()
    if suffix == ".gif":
        paletted = [frame.quantize(256, dither=Image.Dither.NONE) for frame in frames]
        paletted[0].save(buffer, "GIF", save_all=True, append_images=paletted[1:], duration=durations, loop=0, disposal=2)
    else:
        frames[0].save(
            buffer, "WEBP", save_all=True, append_images=list(frames[1:]), duration=durations, loop=0, quality=82, method=3
        )
    return buffer.getvalue()
