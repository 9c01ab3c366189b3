"""Panels, tables and figures of the demo, from the frames, denoising steps, rooms and scores of :mod:`noise2map.demo.maps`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from noise2map.demo.maps import INTERVAL, Frame, PointCloudView, StepScores
from noise2map.inference.predictor import Predictor
from noise2map.report.animation import DenoisingStep, flips_so_far, noisy_images
from noise2map.report.canvas import ColorBar
from noise2map.report.html import Cloud
from noise2map.report.palettes import (
    INVALID_COLOR,
    colorize,
    colorize_depth,
    colorize_labels,
    colorize_normals,
    depth_range,
    legend_entries,
)
from noise2map.report.panels import Cell, Panel, depth_cell, depth_error_cell, label_error_cell, uncertainty_cell, uncertainty_limit
from noise2map.report.plots import Series, risk_coverage_plot
from noise2map.report.point_view import view_points
from noise2map.runs.words import counted
from noise2map.tasks import TASKS

BETTER_COLOR, WORSE_COLOR = (64, 200, 110), (240, 72, 60)
NEARER_COLOR, FARTHER_COLOR = (80, 150, 255), (255, 150, 40)

_CHANGE_MAP = "RdYlGn"

# The least end of a scale of uncertainty: below it the structure would be rounding noise.
LEAST_LIMIT = 0.01


def shared_limit(frames: Sequence[Frame]) -> float:
    """The end of one scale of uncertainty for all frames and numbers of steps, at least `LEAST_LIMIT`."""
    known = [p.uncertainty for frame in frames for p in frame.by_steps.values() if p.uncertainty is not None]
    return max(uncertainty_limit(*known), LEAST_LIMIT) if known else LEAST_LIMIT


@dataclass(frozen=True)
class FrameCells:
    """The cells of one frame.

    Attributes:
        truth: The true map.
        maps: Predictions, one for each number of steps; likewise the next two.
        errors: Against the truth.
        unsure: Uncertainty.
        last: What more steps change; of a single call, where the truth leaves the interval that the model states.
    """

    truth: Cell
    maps: list[Cell]
    errors: list[Cell]
    unsure: list[Cell]
    last: Cell


def frame_cells(frame: Frame, predictor: Predictor, limit: float) -> FrameCells:
    """Maps, errors and uncertainty of a frame; arguments as of `frame_rows`."""
    steps = sorted(frame.by_steps)
    predictions = [frame.by_steps[count] for count in steps]
    titles = [counted(count, "step") for count in steps]
    unsure = [uncertainty_of_frame(frame, count, limit) for count in steps]
    if predictor.has_classes:
        maps = [Cell(title, colorize_labels(p.labels, predictor.palette)) for p, title in zip(predictions, titles)]
        truth = Cell("truth", colorize_labels(frame.truth, predictor.palette))
        errors = [label_error_cell(frame.image, p.labels, frame.truth, f"errors, {title}") for p, title in zip(predictions, titles)]
        return FrameCells(truth, maps, errors, unsure, _label_change(frame, steps[0], steps[-1]))
    limits = depth_range(frame.truth)
    maps = [depth_cell(p.depth_m, title, limits) for p, title in zip(predictions, titles)]
    errors = [depth_error_cell(p.depth_m, frame.truth, f"error, {title}") for p, title in zip(predictions, titles)]
    truth = depth_cell(frame.truth, "truth", limits)
    last = _outside(frame, steps[0]) if len(steps) == 1 else None
    return FrameCells(truth, maps, errors, unsure, last or _depth_change(frame, steps[0], steps[-1]))


def frame_rows(frame: Frame, predictor: Predictor, limit: float) -> list[list[Cell]]:
    """Three rows: maps, errors and uncertainty, a column per number of steps; image, truth and change in the first.

    Of a single call two rows: image, map and truth above error, uncertainty and interval.

    Args:
        frame: The frame.
        predictor: What predicted it.
        limit: The end of the scale of uncertainty, from `shared_limit`.
    """
    image, cells = Cell("image", frame.image), frame_cells(frame, predictor, limit)
    if len(cells.maps) == 1:
        return [[image, *cells.maps, cells.truth], [*cells.errors, *cells.unsure, cells.last]]
    return [[image, *cells.maps], [cells.truth, *cells.errors], [cells.last, *cells.unsure]]


def uncertainty_of_frame(frame: Frame, steps: int, limit: float) -> Cell:
    """Uncertainty at a number of steps on the scale of `shared_limit`; blank where it is not defined."""
    uncertainty, title = frame.by_steps[steps].uncertainty, f"uncertainty, {counted(steps, 'step')}"
    if uncertainty is None:
        blank = np.broadcast_to(np.array(INVALID_COLOR, np.uint8), frame.image.shape).copy()
        return Cell(title, blank, note="needs 2 steps or samples")
    return replace(uncertainty_cell(uncertainty, title, limit), note=f"at most {float(uncertainty.max()):.1g}")


def _outside(frame: Frame, steps: int) -> Cell | None:
    """Where the truth lies outside of the interval; None where none was stated."""
    stated = frame.by_steps[steps].interval
    if "lower_m" not in stated:
        return None
    known = frame.truth > 0
    nearer, farther = known & (frame.truth < stated["lower_m"]), known & (frame.truth > stated["upper_m"])
    image = _dimmed(frame.image)
    image[nearer], image[farther] = NEARER_COLOR, FARTHER_COLOR
    inside = 1 - (nearer | farther)[known].mean()
    return Cell(f"{INTERVAL:.0%} interval", image, note=f"{inside:.1%} of truths inside")


def _dimmed(image: np.ndarray) -> np.ndarray:
    return (image.astype(np.float32).mean(axis=-1, keepdims=True) * 0.45).astype(np.uint8).repeat(3, axis=-1)


def _label_change(frame: Frame, few: int, many: int) -> Cell:
    """Where more steps made a wrong pixel right (green) or a right one wrong (red)."""
    before, after = frame.by_steps[few].labels, frame.by_steps[many].labels
    known = frame.truth != 255
    better = known & (before != frame.truth) & (after == frame.truth)
    worse = known & (before == frame.truth) & (after != frame.truth)
    image = _dimmed(frame.image)
    image[better], image[worse] = BETTER_COLOR, WORSE_COLOR
    return Cell(f"{few} → {many} steps", image, note=f"{better.sum()} better, {worse.sum()} worse")


def _depth_change(frame: Frame, few: int, many: int) -> Cell:
    """Change of the relative error by more steps: removed (green) or added (red)."""
    known = frame.truth > 0
    truth = np.where(known, frame.truth, 1.0)
    errors = [np.abs(frame.by_steps[count].depth_m - truth) / truth for count in (few, many)]
    gain = np.where(known, errors[0] - errors[1], np.nan)
    before, after = (float(error[known].mean()) for error in errors)
    image = colorize(gain, -0.1, 0.1, _CHANGE_MAP)
    return Cell(f"{few} → {many} steps", image, ColorBar(-0.1, 0.1, _CHANGE_MAP), note=f"mean error {before:.1%} → {after:.1%}")


def frame_legend(frame: Frame, predictor: Predictor) -> list[tuple[tuple[int, int, int], str]]:
    """The classes of truth and predictions; of depth what leaves an interval, if that is shown."""
    if not predictor.has_classes:
        outside = [(NEARER_COLOR, "truth is nearer"), (FARTHER_COLOR, "truth is farther")]
        return outside if any("lower_m" in p.interval for p in frame.by_steps.values()) else []
    shown = [frame.truth, *(p.labels for p in frame.by_steps.values() if p.labels is not None)]
    return legend_entries(shown, predictor.id2label, predictor.palette)


def frame_panel(frame: Frame, predictor: Predictor, limit: float) -> Panel:
    """The rows of a frame as one image; arguments as of `frame_rows`."""
    rows = frame_rows(frame, predictor, limit)
    cells = [cell for row in rows for cell in row]
    return Panel(cells, len(rows[0]), f"{frame.place}  ·  {frame.id}", frame_legend(frame, predictor))


def player_frames(frame: Frame, predictor: Predictor, sequence: Sequence[DenoisingStep]) -> list[list[Cell]]:
    """One row of cells per denoising step, at the resolution of the map decoder."""
    limits = depth_range(frame.truth) if predictor.in_metres else (1.0, 10.0)
    flips = flips_so_far(sequence) if predictor.has_classes else []
    limit = max(float(flips[-1].max()), 0.1) if flips else 1.0
    rows = []
    for index, (one, noisy) in enumerate(zip(sequence, noisy_images(sequence))):
        step = f"step {index + 1} of {len(sequence)}"
        row = [Cell("image", frame.image), Cell("noisy map", noisy, note=f"t = {one.t:.2f}")]
        if predictor.has_classes:
            row.append(Cell("prediction", paint_prediction(predictor, limits)(one.prediction), note=step))
            row.append(uncertainty_cell(flips[index], "changes so far", limit))
        else:
            cell = depth_cell(one.prediction[0], "prediction", limits)
            row += [Cell(cell.title, cell.image, cell.bar, step), _step_change(sequence, index)]
        rows.append(row)
    return rows


def _step_change(sequence: Sequence[DenoisingStep], index: int) -> Cell:
    now, before = sequence[index].prediction[0], sequence[max(index - 1, 0)].prediction[0]
    return uncertainty_cell(np.abs(np.log(now / before)), "change of this step", 0.1)


def paint_prediction(predictor: Predictor, limits_m: tuple[float, float]) -> Any:
    """A function from ``(K, h, w)`` logits or metres to ``(h, w, 3)`` uint8."""
    if predictor.has_classes:
        return lambda logits: colorize_labels(logits.argmax(axis=0), predictor.palette)
    return lambda metres: colorize_depth(metres[0], *limits_m)


def room_cells(frame: Frame, room: PointCloudView, steps: int) -> list[Cell]:
    """Image, depth, normals and true normals of a room."""
    depth_m = frame.by_steps[steps].depth_m
    return [
        Cell("image", frame.image),
        depth_cell(depth_m, f"depth, {counted(steps, 'step')}", depth_range(frame.truth)),
        Cell("its normals", colorize_normals(room.normals), note=f"{room.mean_angle_deg:.0f}° off on average"),
        Cell("true normals", colorize_normals(room.true_normals)),
    ]


def room_cloud(frame: Frame, room: PointCloudView, steps: int, labels: np.ndarray | None, palette: np.ndarray) -> Cloud:
    """The room's points, colored by image, classes, depth, normals and uncertainty."""
    prediction = frame.by_steps[steps]
    colors = {"image": frame.image}
    if labels is not None:
        colors["classes"] = colorize_labels(labels, palette)
    colors["depth"] = colorize_depth(prediction.depth_m, *depth_range(frame.truth))
    colors["normals"] = colorize_normals(room.normals)
    if prediction.uncertainty is not None:
        limit = max(uncertainty_limit(prediction.uncertainty), LEAST_LIMIT)
        colors["uncertainty"] = colorize(prediction.uncertainty, 0.0, limit)
    return Cloud.of_image(room.points_m, colors, float(frame.intrinsics[0]))


def score_rows(task: str, results: Sequence[StepScores], kind: str, samples: int) -> list[dict[str, Any]]:
    """One row per number of steps: quality of the map, quality of its uncertainty of a kind, time."""
    rows = []
    for result in results:
        scores = result.scores
        row: dict[str, Any] = {"steps": result.steps, "samples": samples}
        if TASKS[task].has_classes:
            row |= {f"{name} %": 100 * scores[name] for name in ("mIoU", "mAcc", "aAcc")}
        else:
            row |= {"δ1 %": 100 * scores["delta1"], "AbsRel": scores["abs_rel"], "RMSE m": scores["rmse"], "SILog": scores["silog"]}
        found = result.uncertainties[kind].compute() if kind in result.uncertainties else {}
        for title, name in (("error-AUROC", "auroc"), ("AUSE", "ause")):
            row[title] = float(found[name]) if name in found else None
        row["ms / image"] = 1000 * result.seconds
        rows.append(row)
    return rows


def risk_figure(task: str, result: StepScores, theme: str) -> Any:
    """Risk against coverage for every kind of uncertainty at one number of steps."""
    curves = {}
    for kind, scores in result.uncertainties.items():
        coverage, risk = scores.risk_coverage_curve()
        curves[kind.replace("_", " ")] = Series(coverage.tolist(), risk.tolist())
    return risk_coverage_plot(curves, title=f"{task.capitalize()}, {counted(result.steps, 'step')}", theme=theme)


Example = tuple[Frame, Predictor, Sequence[DenoisingStep]]


def hero_panel(segmentation: Example, depth: Example, cloud: Cloud, guesses: Panel | None = None) -> Panel:
    """The image at the top of the README: a row of classes, one of depth, and one of what may be behind a cover.

    Args:
        segmentation: A frame, its predictor and the trajectory of its denoising.
        depth: Likewise.
        cloud: The depth as a point cloud.
        guesses: Six cells of an image with a part covered, with its classes, if a model of completion is at hand.
    """
    frame, predictor, _ = segmentation
    height, width = frame.image.shape[:2]
    view = view_points(
        cloud.points_m, cloud.colors["image"], size=(width * 2, height * 2), focal_px=cloud.focal_px, yaw_deg=14, pitch_deg=10
    )
    points = Cell("point cloud", np.asarray(Image.fromarray(view).resize((width, height), Image.Resampling.BOX)))
    cells = [*_hero_row(segmentation)[:6], *_hero_row(depth)[:5], points, *(guesses.cells if guesses is not None else ())]
    legend = [*frame_legend(frame, predictor), *(guesses.legend if guesses is not None else ())]
    return Panel(cells, columns=6, legend=[entry for index, entry in enumerate(legend) if entry not in legend[:index]])


def _hero_row(example: Example) -> list[Cell]:
    """Image, noise if there was any, map, truth, uncertainty, interval where there was none, errors."""
    frame, predictor, trajectory = example
    height, width = frame.image.shape[:2]
    found = frame_cells(frame, predictor, shared_limit([frame]))
    cells = [Cell("image", frame.image)]
    if trajectory:
        noise = Image.fromarray(noisy_images(trajectory)[0]).resize((width, height), Image.Resampling.NEAREST)
        cells.append(Cell("noise", np.asarray(noise)))
    what = "classes" if predictor.has_classes else "depth"
    cells += [Cell(f"{what}, {counted(max(frame.by_steps), 'step')}", found.maps[-1].image), Cell("truth", found.truth.image)]
    cells.append(Cell("uncertainty", found.unsure[-1].image))
    cells += [] if trajectory else [Cell(found.last.title, found.last.image)]
    return [*cells, Cell("errors", found.errors[-1].image)]
