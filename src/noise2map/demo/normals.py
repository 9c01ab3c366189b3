"""The demo's section of surface normals: shipped frames beside the normals of their true depth, scores, a denoising."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from noise2map.data.freedoom import load_samples
from noise2map.data.subsets import evenly_spaced
from noise2map.demo.maps import Frame, denoise_image, predict_frames, varied_frames
from noise2map.demo.page import shared_limit, uncertainty_of_frame
from noise2map.demo.section import DemoSection
from noise2map.geometry import normals_from_depth
from noise2map.inference.predictor import Predictor
from noise2map.metrics import UncertaintyScores
from noise2map.metrics.normals import ANGLE_THRESHOLDS, NORMALS_SCORES, NormalsScores, angular_error, normals_valid
from noise2map.models.decoding import DecodingOptions
from noise2map.report.animation import DenoisingStep, denoising_frames, noisy_images, save_animation
from noise2map.report.html import GalleryItem, Page
from noise2map.report.palettes import colorize_normals
from noise2map.report.panels import Cell, Panel, render, uncertainty_cell
from noise2map.report.tables import text_table, write_csv
from noise2map.runs.files import write_image
from noise2map.runs.words import counted

_TASK = "normals"

_SHOWN_DEGREES = 10.0  # by which a step turns a normal, at the bright end

_FLIP = np.array([1, -1, -1], np.float32)  # between the axes of cameras (y down, z forward) and those of the task (y up, z back)


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
    """Normals of frames at several step counts, beside those of the true depth; scores, and one denoising step by step."""

    title = "Surface normals"

    def __init__(self, predictor: Predictor, step_counts: Sequence[int], frames: int, seed: int, scored: int = 0) -> None:
        """Take a model from `open_model`.

        Args:
            predictor: The model.
            step_counts: Numbers of decoder calls to compare.
            frames: How many to show.
            seed: With a frame's id it fixes the noise.
            scored: How many to score; those shown are among them.
        """
        self.predictor, self.count, self.seed, self.scored = predictor, frames, seed, max(frames, scored)
        self.steps = tuple(step_counts) if predictor.model.config.diffusion else (1,)

    def show(self, page: Page, out: Path) -> list[str]:
        """A gallery, scores, the denoising of the first frame, and a panel for each frame in ``normals/``."""
        dataset = load_samples("test", "depth")  # shipped frames have no maps of normals
        indices = varied_frames(dataset, self.scored)
        decoding = DecodingOptions(average="last", seed=self.seed)
        frames, seconds = predict_frames(self.predictor, dataset, indices, self.steps, decoding)
        for frame in frames:
            frame.truth = true_normals(frame.truth, frame.intrinsics)
        shown = [frames[index] for index in evenly_spaced(len(frames), self.count, ends=True)]
        limit = shared_limit(shown)
        page.section(
            self.title,
            f"{_how(self.steps)}; red is to the right, green up, "
            "blue towards the viewer. Shipped frames hold no maps of normals: those beside the predictions and in the scores "
            "are worked out from the true depth, which is known to a centimeter, and the camera's intrinsics "
            "(`noise2map.geometry.normals_from_depth`); far away they are good to a few degrees.",
        )
        rows = [_rows(frame, limit) for frame in shown]
        page.gallery([GalleryItem(one.image, f"{one.place}  ·  {one.id}", cells, []) for one, cells in zip(shown, rows)])
        for frame, cells in zip(shown, rows):
            flat = [cell for row in cells for cell in row]
            panel = Panel(flat, len(cells[0]), f"{frame.place}  ·  {frame.id}")
            write_image(out / _TASK / f"{frame.id}.png", render(panel))
        self._show_denoising(page, out, shown[0], next(dataset[i]["image"] for i in indices if dataset[i]["id"] == shown[0].id))
        table = [self._scores(frames, steps, seconds[steps]) for steps in self.steps]
        heading = f"{self.title} ({counted(len(frames), 'frame')}, against normals of the true depth)"
        page.table(table, heading=heading)
        write_csv(out / f"scores-{_TASK}.csv", table)
        return ["", heading, text_table(table, digits=3)]

    def _show_denoising(self, page: Page, out: Path, frame: Frame, image: Any) -> None:
        sequence = denoise_image(self.predictor, image, frame.id, max(self.steps), self.seed)
        if not sequence:
            return
        page.player(_player_rows(frame, sequence), f"The denoising of {frame.id}, step by step")
        images = denoising_frames(frame.image, sequence, _paint, classes=False)
        for suffix in (".webp", ".gif"):
            save_animation(out / f"denoising-{_TASK}{suffix}", images)

    def _scores(self, frames: Sequence[Frame], steps: int, seconds: float) -> dict[str, Any]:
        """Angles in degrees, shares within the usual ones, and how well the uncertainty finds the error."""
        maps, unsure = NormalsScores(), UncertaintyScores("continuous")
        for frame in frames:
            prediction = frame.by_steps[steps]
            vectors = [torch.from_numpy(np.ascontiguousarray(one)).movedim(-1, 0)[None] for one in (prediction.map, frame.truth)]
            maps.update(*vectors)
            if prediction.uncertainty is not None:
                error = angular_error(*vectors).float()
                doubt = torch.from_numpy(prediction.uncertainty)[None]
                unsure.update(doubt, error, error >= ANGLE_THRESHOLDS[0], normals_valid(vectors[1]))
        found = {name: float(value) for name, value in maps.compute().items()}
        has_doubt = any(frame.by_steps[steps].uncertainty is not None for frame in frames)
        doubts = unsure.compute() if has_doubt else {}
        return {
            "steps": steps,
            **{f"{name.replace('_', ' ')} °": found[name] for name in NORMALS_SCORES[:2]},
            **{f"< {limit:g}° %": 100 * found[name] for limit, name in zip(ANGLE_THRESHOLDS, NORMALS_SCORES[2:])},
            "error-AUROC": float(doubts["auroc"]) if doubts else None,
            "AUSE": float(doubts["ause"]) if doubts else None,
            "ms / image": 1000 * seconds,
        }


def _how(steps: Sequence[int]) -> str:
    if len(steps) == 1:
        return f"{counted(steps[0], 'call').capitalize()} of the decoder"
    return f"The same weights and the same noise at {', '.join(map(str, steps))} steps"


def _rows(frame: Frame, limit: float) -> list[list[Cell]]:
    """Two rows, maps and uncertainty, a column per number of steps; image and normals of the true depth in the first.

    Of a single call one row.
    """
    steps = sorted(frame.by_steps)
    maps = [Cell(counted(count, "step"), colorize_normals(frame.by_steps[count].map * _FLIP)) for count in steps]
    truth = Cell("of the true depth", colorize_normals(frame.truth * _FLIP))
    image, unsure = Cell("image", frame.image), [uncertainty_of_frame(frame, count, limit) for count in steps]
    return [[image, *maps, truth, *unsure]] if len(steps) == 1 else [[image, *maps], [truth, *unsure]]


def _paint(vectors: np.ndarray) -> np.ndarray:
    """Normals ``(3, h, w)`` of the task in colors ``(h, w, 3)``."""
    return colorize_normals(np.moveaxis(vectors, 0, -1) * _FLIP)


def _player_rows(frame: Frame, sequence: Sequence[DenoisingStep]) -> list[list[Cell]]:
    """One row of cells per denoising step; the last shows by how much the step turned each normal."""
    rows = []
    for index, (one, noisy) in enumerate(zip(sequence, noisy_images(sequence))):
        now, before = (torch.from_numpy(np.ascontiguousarray(step.prediction))[None] for step in (one, sequence[max(index - 1, 0)]))
        turned = angular_error(now, before)[0].numpy()
        rows.append(
            [
                Cell("image", frame.image),
                Cell("noisy map", noisy, note=f"t = {one.t:.2f}"),
                Cell("prediction", _paint(one.prediction), note=f"step {index + 1} of {len(sequence)}"),
                uncertainty_cell(turned, "degrees of this step", _SHOWN_DEGREES),
            ]
        )
    return rows
