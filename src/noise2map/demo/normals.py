"""The demo's section of surface normals: shipped frames, beside the normals of their true depth."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from noise2map.data.freedoom import load_samples
from noise2map.demo.maps import Frame, predict_frames, varied_frames
from noise2map.demo.page import shared_limit, uncertainty_of_frame
from noise2map.demo.section import DemoSection
from noise2map.geometry import normals_from_depth
from noise2map.inference.predictor import Predictor
from noise2map.models.decoding import DecodingOptions
from noise2map.report.html import GalleryItem, Page
from noise2map.report.palettes import colorize_normals
from noise2map.report.panels import Cell, Panel, render
from noise2map.runs.files import write_image
from noise2map.runs.words import counted
from noise2map.tasks import TASKS
from noise2map.zoo import shipped_models

AUTO, NONE = "auto", "none"

_TASK = "normals"

_FLIP = np.array([1, -1, -1], np.float32)  # between the axes of cameras (y down, z forward) and those of the task (y up, z back)


def open_normals_model(name: str, device: torch.device) -> Predictor | None:
    """The model that the section shows; None if there is none.

    Args:
        name: ``"auto"`` for one that is shipped, if any; ``"none"``; or a shipped name, folder or hub id.
        device: Where to.

    Raises:
        OSError: If it is missing.
        ValueError: If it is for another task.
    """
    if name == AUTO:
        name = next((one.name for one in shipped_models() if one.task == TASKS[_TASK].name), NONE)
    if name == NONE:
        return None
    predictor = Predictor.from_pretrained(name, device)
    if predictor.task != TASKS[_TASK].name:
        raise ValueError(f"model {name!r} is for {predictor.task}; expected one for {_TASK}")
    return predictor


def true_normals(depth_m: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Normals of a true depth map in the axes of the task: x to the right, y up, z towards the viewer.

    Args:
        depth_m: Metres ``(H, W)``, 0 where unknown.
        intrinsics: fx, fy, cx, cy in pixels.

    Returns:
        Unit vectors ``(H, W, 3)`` float32; zero where depth is not known.
    """
    camera = torch.from_numpy(np.asarray(intrinsics, np.float32))
    return normals_from_depth(torch.from_numpy(depth_m), camera).numpy() * _FLIP


class NormalsSection(DemoSection):
    """Normals of frames at several step counts, beside those of the true depth."""

    title = "Surface normals"

    def __init__(self, predictor: Predictor, step_counts: Sequence[int], frames: int, seed: int) -> None:
        """Take a model from `open_normals_model`.

        Args:
            predictor: The model.
            step_counts: Numbers of decoder calls to compare.
            frames: How many to show.
            seed: With a frame's id it fixes the noise.
        """
        self.predictor, self.count, self.seed = predictor, frames, seed
        self.steps = tuple(step_counts) if predictor.model.config.diffusion else (1,)

    def show(self, page: Page, out: Path) -> list[str]:
        """A gallery, and a panel for each frame in ``normals/``; no scores."""
        dataset = load_samples("test", "depth")  # shipped frames have no maps of normals
        indices = varied_frames(dataset, self.count)
        frames, _ = predict_frames(self.predictor, dataset, indices, self.steps, DecodingOptions(average="last", seed=self.seed))
        limit = shared_limit(frames)
        page.section(
            self.title,
            f"The same weights and the same noise at {', '.join(map(str, self.steps))} steps; red is to the right, green up, "
            "blue towards the viewer. Shipped frames hold no maps of normals: those beside the predictions are worked out from the "
            "true depth, which is known to a centimeter, and the camera's intrinsics (`noise2map.geometry.normals_from_depth`). "
            "They are to look at, and no scores are taken against them.",
        )
        rows = [_rows(frame, limit) for frame in frames]
        page.gallery([GalleryItem(one.image, f"{one.place}  ·  {one.id}", cells, []) for one, cells in zip(frames, rows)])
        for frame, cells in zip(frames, rows):
            flat = [cell for row in cells for cell in row]
            panel = Panel(flat, len(cells[0]), f"{frame.place}  ·  {frame.id}")
            write_image(out / _TASK / f"{frame.id}.png", render(panel))
        return []


def _rows(frame: Frame, limit: float) -> list[list[Cell]]:
    """Two rows, maps and uncertainty, a column per number of steps; image and normals of the true depth in the first."""
    steps = sorted(frame.by_steps)
    maps = [Cell(counted(count, "step"), colorize_normals(frame.by_steps[count].map * _FLIP)) for count in steps]
    truth = Cell("of the true depth", colorize_normals(true_normals(frame.truth, frame.intrinsics) * _FLIP))
    return [[Cell("image", frame.image), *maps], [truth, *(uncertainty_of_frame(frame, count, limit) for count in steps)]]
