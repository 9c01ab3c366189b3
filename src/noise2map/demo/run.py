"""Runs the demo: predicts, scores, draws and writes everything that ``noise2map demo`` shows."""

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers

from noise2map.data.freedoom import load_samples
from noise2map.data.subsets import evenly_spaced
from noise2map.demo.bev import SHIPPED, open_bev_models, show_bev
from noise2map.demo.guidance import AUTO, open_generator, show_guided
from noise2map.demo.maps import Frame, StepScores, build_room, denoising_moments, predict_frames, score_frames, varied_frames
from noise2map.demo.page import (
    BEST,
    counted,
    frame_legend,
    frame_panel,
    frame_rows,
    hero_panel,
    paint_prediction,
    player_frames,
    risk_figure,
    room_cells,
    room_cloud,
    score_rows,
)
from noise2map.geometry import write_ply
from noise2map.inference.loading import pick_device
from noise2map.inference.predictor import Predictor
from noise2map.models.decoding import Dials
from noise2map.report.animation import Moment, denoising_frames, save_animation
from noise2map.report.html import Cloud, GalleryItem, Page
from noise2map.report.palettes import depth_range
from noise2map.report.panels import Cell, Panel, render
from noise2map.report.tables import text_table, write_csv
from noise2map.runs.files import check_writable, write_image

Say = Callable[[str], None]

# Shown first, for segmentation and for depth: scenes with much in view, picked by eye. The others are picked by rule.
FIRST_FRAMES = ("freedoom-test-000522", "freedoom-test-000936")


@dataclass(frozen=True)
class DemoJob:
    """What to show.

    Attributes:
        out: Folder to write to.
        segmentation_model: Name, folder or hub id.
        depth_model: Likewise.
        step_counts: Numbers of decoder calls to compare.
        depth_samples: Noise samples of a depth map: the spread of one sample at one step is nothing.
        frames: Frames shown per task.
        scored: Frames predicted and scored per task; those shown are among them.
        seed: Seed of the noise.
        device: As in ``pick_device``.
        hero: Where to write the README's picture, or None.
        bev_models: Models for bird's-eye-view maps, the one with most sensors last; ``("none",)`` for none.
        generator: What draws images, as of `open_generator`.
    """

    out: Path
    segmentation_model: str
    depth_model: str
    step_counts: tuple[int, ...]
    depth_samples: int
    frames: int
    scored: int
    seed: int
    device: str
    hero: Path | None = None
    bev_models: tuple[str, ...] = SHIPPED
    generator: str = AUTO


@dataclass
class _Act:
    """Everything of one task."""

    predictor: Predictor
    dials: Dials
    frames: list[Frame]
    moments: list[Moment]
    scores: list[StepScores]
    shown: list[Frame]


def run_demo(job: DemoJob, say: Say) -> Iterator[str]:
    """Make the demo; yields the lines to print: the tables of scores.

    Args:
        job: What to show.
        say: Told what is being done.

    Raises:
        OSError: If a model is missing or the folder cannot be written.
        ValueError: If a model is for another task.
    """
    check_writable(job.out)
    transformers.utils.logging.disable_progress_bar()
    device = pick_device(job.device)
    bev = open_bev_models(job.bev_models, job.device, say)
    generator = open_generator(job.generator, device, say)
    acts = {}
    for task, name in (("segmentation", job.segmentation_model), ("depth", job.depth_model)):
        predictor = Predictor.from_pretrained(name, device)
        if predictor.task != task:
            raise ValueError(f"model {name!r} is for {predictor.task}; expected one for {task}")
        acts[task] = _perform(job, predictor, say)
    say("drawing")
    page = Page("noise2map", "Dense maps by denoising: the image is read once, the map is refined as often as you like.")
    page.footer(
        f"noise2map demo, seed {job.seed}, on {device.type} ({platform.machine()}, {counted(torch.get_num_threads(), 'thread')}). "
        "Frames rendered from Freedoom (BSD 3-clause)."
    )
    for task, act in acts.items():
        _show_task(page, job, task, act)
    cloud, normals = _show_room(page, job, acts["segmentation"], acts["depth"])
    bev_lines = show_bev(page, bev, job.out, job.seed, say)
    if generator is not None:
        show_guided(page, generator, job.out, job.generator, job.depth_model, say)
    tables = _show_scores(page, job, acts) + bev_lines
    page.write(job.out / "index.html")
    if job.hero is not None:
        seg, depth = acts["segmentation"], acts["depth"]
        panel = hero_panel(
            (seg.shown[0], seg.predictor, seg.moments), (depth.shown[0], depth.predictor, depth.moments), normals, cloud
        )
        write_image(job.hero, render(panel, width=2040, theme="dark"), optimize=True)
    yield from tables


def _perform(job: DemoJob, predictor: Predictor, say: Say) -> _Act:
    config, task = predictor.model.config, predictor.task
    dataset = load_samples("test", task)
    steps = job.step_counts if config.diffusion else (1,)
    samples = job.depth_samples if task == "depth" and config.diffusion else 1
    dials = Dials(ensemble_size=samples, average="last", seed=job.seed)
    first = FIRST_FRAMES if task == "segmentation" else FIRST_FRAMES[::-1]
    indices = varied_frames(dataset, max(job.frames, job.scored), first)
    say(f"{task}: {counted(len(indices), 'frame')} at {_and(steps)} steps")
    frames, seconds = predict_frames(predictor, dataset, indices, steps, dials)
    shown = [frames[index] for index in evenly_spaced(len(frames), job.frames, ends=True)]
    index = next(i for i in indices if dataset[i]["id"] == shown[0].id)
    course = denoising_moments(predictor, dataset[index]["image"], shown[0].id, max(steps), job.seed)
    return _Act(predictor, dials, frames, course, score_frames(predictor, frames, seconds), shown)


def _show_task(page: Page, job: DemoJob, task: str, act: _Act) -> None:
    predictor = act.predictor
    samples = act.dials.ensemble_size or 1
    what = "classes" if task == "segmentation" else "metres"
    page.section(
        task.capitalize(),
        f"Frames of maps that were not trained on. The same weights and the same noise at {_and(job.step_counts)} steps, "
        f"{counted(samples, 'noise sample')}; {what} against the truth, and where the model itself is unsure.",
    )
    page.gallery(
        [
            GalleryItem(frame.image, f"{frame.place}  ·  {frame.id}", frame_rows(frame, predictor), frame_legend(frame, predictor))
            for frame in act.shown
        ]
    )
    for frame in act.shown:
        write_image(job.out / task / f"{frame.id}.png", render(frame_panel(frame, predictor)))
    if act.moments:
        frame = act.shown[0]
        page.player(player_frames(frame, predictor, act.moments), f"The denoising of {frame.id}, step by step")
        paint = paint_prediction(predictor, depth_range(frame.truth) if task == "depth" else (1.0, 10.0))
        pictures = denoising_frames(frame.image, act.moments, paint)
        for suffix in (".webp", ".gif"):
            save_animation(job.out / f"denoising-{task}{suffix}", pictures)


def _and(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])


def _show_room(page: Page, job: DemoJob, seg: _Act, depth: _Act) -> tuple[Cloud, Cell]:
    frame, predictor = depth.shown[0], seg.predictor
    steps = max(frame.by_steps)
    labels = next((f.by_steps[max(f.by_steps)].labels for f in seg.frames if f.id == frame.id), None)
    sky = next((index for index, name in predictor.id2label.items() if name == "sky"), None)
    leave_out = np.zeros(frame.truth.shape, bool) if labels is None or sky is None else labels == sky
    metres = frame.by_steps[steps].depth_m
    assert metres is not None
    room = build_room(metres, frame.truth, frame.intrinsics, leave_out)
    cloud = room_cloud(frame, room, steps, labels, predictor.palette)
    page.section(
        "In three dimensions",
        "The predicted depth and the camera's intrinsics give points and surface normals; the predicted sky is left out. "
        "The points are in `room.ply`.",
    )
    cells = room_cells(frame, room, steps)
    page.cloud(cloud, f"{frame.place}  ·  {frame.id}", "drag to turn, wheel to come nearer")
    page.cells([cells])
    write_image(job.out / "normals.png", render(Panel(cells)))
    keep = np.isfinite(room.points_m).all(axis=-1)
    write_ply(
        job.out / "room.ply",
        torch.from_numpy(room.points_m[keep]),
        torch.from_numpy(frame.image[keep]),
        torch.from_numpy(room.normals[keep]),
    )
    return cloud, cells[2]


def _show_scores(page: Page, job: DemoJob, acts: dict[str, _Act]) -> list[str]:
    number = len(next(iter(acts.values())).frames)
    page.section(
        "Scores",
        f"On {number} shipped test frames chosen for variety, so not comparable with the scores in the models' cards, which "
        "are on 360 frames of the test maps (270 places for views from above). `error-AUROC`: how well the uncertainty finds "
        "the wrong pixels (0.5 is chance). `AUSE`: how much worse it ranks them than the error itself (0 is best).",
    )
    lines: list[str] = []
    for task, act in acts.items():
        config = act.predictor.model.config
        kind = config.uncertainty or act.predictor.model.default_uncertainty
        rows = score_rows(task, act.scores, kind, act.dials.ensemble_size or 1)
        heading = f"{task.capitalize()} ({number} frames; uncertainty: {kind.replace('_', ' ')})"
        page.table(rows, best=BEST, heading=heading)
        write_csv(job.out / f"scores-{task}.csv", rows)
        lines += ["", heading, text_table(rows, digits=3)]
    plots = [
        (risk_figure(task, act.scores[-1], "light"), risk_figure(task, act.scores[-1], "dark"))
        for task, act in acts.items()
        if act.scores[-1].uncertainties
    ]
    if plots:
        page.figures(plots, "If the most uncertain pixels are left out", "risk against coverage")
    page.section("Do it yourself")
    page.code(
        f"noise2map predict PHOTO_OR_FOLDER --model {job.segmentation_model} --steps auto --out maps\n"
        f"noise2map evaluate --model {job.depth_model} --steps 1,3,10,auto"
    )
    return lines
