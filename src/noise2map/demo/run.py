"""Runs the demo: predicts, scores, draws and writes everything that ``noise2map demo`` shows."""

import logging
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

from noise2map.data.freedoom import load_samples
from noise2map.data.subsets import evenly_spaced
from noise2map.demo.bev import SHIPPED, BevSection, open_bev_models
from noise2map.demo.completion import CompletionSection, open_completion_model
from noise2map.demo.guidance import GuidanceSection, open_generator
from noise2map.demo.maps import Frame, StepScores, denoise_image, lift_frame, predict_frames, score_frames, varied_frames
from noise2map.demo.normals import NormalsSection
from noise2map.demo.page import (
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
    shared_limit,
)
from noise2map.demo.section import AUTO, DemoSection, open_model
from noise2map.geometry import write_ply
from noise2map.inference.loading import pick_device
from noise2map.inference.predictor import Predictor
from noise2map.models.decoding import DecodingOptions
from noise2map.report.animation import DenoisingStep, denoising_frames, save_animation
from noise2map.report.html import Cloud, GalleryItem, Page
from noise2map.report.palettes import depth_range
from noise2map.report.panels import Panel, render
from noise2map.report.tables import text_table, write_csv
from noise2map.runs.files import check_writable, encode_image, write_image
from noise2map.runs.output_folder import claim
from noise2map.runs.words import counted
from noise2map.tasks import TASKS

logger = logging.getLogger(__name__)

# Shown first, for segmentation and for depth: scenes with much in view, picked by eye. The others are picked by rule.
FIRST_FRAMES = ("freedoom-test-000522", "freedoom-test-000936")

# One score of a task in words: key, name, factor, unit.
_VERDICTS = {"segmentation": ("mIoU", "mIoU", 100.0, " %"), "depth": ("abs_rel", "the mean relative error", 100.0, " %")}


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Options of the demo.

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
        hero: Where to write the README's image, or None.
        bev_models: Models for bird's-eye-view maps, the one with most sensors last; ``("none",)`` for none.
        generator: What draws images, as of `open_generator`.
        normals_model: As of `open_model`.
        completion_model: As of `open_completion_model`.
        overwrite: Replace a demo of other settings, and write among foreign files.
    """

    out: Path
    segmentation_model: str
    depth_model: str
    step_counts: tuple[int, ...] = (1, 3, 10)
    depth_samples: int = 2
    frames: int = 6
    scored: int = 12
    seed: int = 0
    device: str = "auto"
    hero: Path | None = None
    bev_models: tuple[str, ...] = SHIPPED
    generator: str = AUTO
    normals_model: str = AUTO
    completion_model: str = AUTO
    overwrite: bool = False

    @property
    def settings(self) -> dict[str, object]:
        """Settings that decide the content of the files."""
        return {"command": "demo", **{key: value for key, value in asdict(self).items() if key not in _NOT_SETTINGS}}


_NOT_SETTINGS = ("out", "device", "hero", "overwrite")


def run_demo(options: DemoOptions) -> list[str]:
    """Make the demo.

    Args:
        options: What to show.

    Returns:
        The lines to print: the tables of scores.

    Raises:
        OSError: If a model is missing or the folder cannot be written.
        ValueError: If a model is for another task, or the folder holds something else.
    """
    if options.hero is not None:
        if options.hero.is_dir():
            raise IsADirectoryError(f"hero is {str(options.hero)!r}, a folder; expected a file such as hero.png")
        encode_image(Image.new("RGB", (1, 1)), options.hero.suffix)  # a suffix of no format is refused before the work
        check_writable(options.hero.parent)
    with claim(options.out, options.settings, overwrite=options.overwrite):
        return _make(options)


def _make(options: DemoOptions) -> list[str]:
    transformers.utils.logging.disable_progress_bar()
    device = pick_device(options.device)
    bev = open_bev_models(options.bev_models, options.device)
    generator = open_generator(options.generator, device)
    normals = open_model(options.normals_model, "normals", device)
    completion = open_completion_model(options.completion_model, device)
    segmentation, depth = MapSection(options, "segmentation", device), MapSection(options, "depth", device)
    cloud = CloudSection(segmentation, depth)
    sections: list[DemoSection] = [segmentation, depth, cloud]
    if normals is not None:
        sections.append(NormalsSection(normals, options.step_counts, options.frames, options.seed, options.scored))
    behind = None if completion is None else CompletionSection(completion, max(1, options.frames // 2), options.seed)
    sections += [behind] if behind is not None else []
    sections += [BevSection(bev, options.seed)] * bool(bev)
    if generator is not None:
        sections.append(GuidanceSection(generator, options.generator, options.depth_model))
    sections.append(ScoreSection(options, (segmentation, depth)))
    page = Page(
        "noise2map",
        "Dense maps by denoising: the image is read once, the map in as many steps as are asked for. Where all is seen, more "
        "steps change next to nothing; behind a cover they make whole maps. Each section says how much.",
    )
    page.footer(
        f"noise2map demo, seed {options.seed}, on {device.type} ({platform.machine()}, "
        f"{counted(torch.get_num_threads(), 'thread')}). Frames rendered from Freedoom (BSD 3-clause)."
    )
    lines = []
    for section in sections:
        logger.info("demo: %s ...", section.title.lower())
        lines += section.show(page, options.out)
    page.write(options.out / "index.html")
    if options.hero is not None:
        panel = hero_panel(segmentation.example, depth.example, cloud.cloud, behind.example if behind is not None else None)
        write_image(options.hero, render(panel, width=2040, theme="dark"), optimize=True)
    return lines


class MapSection(DemoSection):
    """Class maps or depth of frames at several step counts, and one denoising step by step."""

    def __init__(self, options: DemoOptions, task: str, device: torch.device) -> None:
        """Load the model of a task.

        Raises:
            OSError: If it is missing.
            ValueError: If it is for another task.
        """
        name = options.segmentation_model if TASKS[task].has_classes else options.depth_model
        self.predictor = Predictor.from_pretrained(name, device)
        if self.predictor.task != task:
            raise ValueError(f"model {name!r} is for {self.predictor.task}; expected one for {task}")
        diffuses = self.predictor.model.config.diffusion
        self.title, self.task, self.options = task.capitalize(), task, options
        self.steps = options.step_counts if diffuses else (1,)
        self.samples = options.depth_samples if TASKS[task].in_metres and diffuses else 1
        self.frames: list[Frame] = []
        self.shown: list[Frame] = []
        self.scores: list[StepScores] = []
        self.trajectory: list[DenoisingStep] = []

    @property
    def example(self) -> tuple[Frame, Predictor, Sequence[DenoisingStep]]:
        """The first frame shown, its predictor, and its denoising."""
        return self.shown[0], self.predictor, self.trajectory

    def show(self, page: Page, out: Path) -> list[str]:
        """Frames in a gallery and as panels, the denoising of the first as a player and as animations."""
        self._predict()
        predictor, limit = self.predictor, shared_limit(self.shown)
        page.section(self.title, self._text())
        page.gallery(
            [
                GalleryItem(
                    frame.image,
                    f"{frame.place}  ·  {frame.id}",
                    frame_rows(frame, predictor, limit),
                    frame_legend(frame, predictor),
                )
                for frame in self.shown
            ]
        )
        for frame in self.shown:
            write_image(out / self.task / f"{frame.id}.png", render(frame_panel(frame, predictor, limit)))
        if self.trajectory:
            frame = self.shown[0]
            page.player(player_frames(frame, predictor, self.trajectory), f"The denoising of {frame.id}, step by step")
            paint = paint_prediction(predictor, depth_range(frame.truth) if TASKS[self.task].in_metres else (1.0, 10.0))
            images = denoising_frames(frame.image, self.trajectory, paint)
            for suffix in (".webp", ".gif"):
                save_animation(out / f"denoising-{self.task}{suffix}", images)
        return []

    def _predict(self) -> None:
        options, dataset = self.options, load_samples("test", self.task)
        first = FIRST_FRAMES if TASKS[self.task].has_classes else FIRST_FRAMES[::-1]
        indices = varied_frames(dataset, max(options.frames, options.scored), first)
        decoding = DecodingOptions(ensemble_size=self.samples, average="last", seed=options.seed)
        self.frames, seconds = predict_frames(self.predictor, dataset, indices, self.steps, decoding)
        self.shown = [self.frames[index] for index in evenly_spaced(len(self.frames), options.frames, ends=True)]
        index = next(i for i in indices if dataset[i]["id"] == self.shown[0].id)
        image = dataset[index]["image"]
        self.trajectory = denoise_image(self.predictor, image, self.shown[0].id, max(self.steps), options.seed)
        self.scores = score_frames(self.predictor, self.frames, seconds)

    def _text(self) -> str:
        what = "classes" if TASKS[self.task].has_classes else "meters"
        key, name, factor, unit = _VERDICTS[self.task]
        scores = [f"{factor * one.scores[key]:.1f}{unit} at {counted(one.steps, 'step')}" for one in self.scores]
        ends = scores[:1] + scores[-1:] * (len(scores) > 1)
        verdict = f"Over {counted(len(self.frames), 'frame')} {name} is {' and '.join(ends)}"
        if len(self.steps) == 1:
            how = f"One call of the decoder; {what} against the truth, and how far off the model itself takes them to be"
        else:
            how = (
                f"The same weights and the same noise at {_and(self.steps)} steps, {counted(self.samples, 'noise sample')}; {what} "
                "against the truth, and where the model itself is unsure, all on one scale"
            )
        return f"Frames of maps that were not trained on. {how}. {verdict}."


def _and(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])


class CloudSection(DemoSection):
    """The first depth map as a point cloud with normals.

    Attributes:
        cloud: The cloud.
    """

    title = "In three dimensions"
    cloud: Cloud

    def __init__(self, segmentation: MapSection, depth: MapSection) -> None:
        self.segmentation, self.depth = segmentation, depth

    def show(self, page: Page, out: Path) -> list[str]:
        """The cloud, its normals beside the true ones, and ``room.ply``."""
        frame, predictor = self.depth.shown[0], self.segmentation.predictor
        steps = max(frame.by_steps)
        labels = next((f.by_steps[max(f.by_steps)].labels for f in self.segmentation.frames if f.id == frame.id), None)
        sky = next((index for index, name in predictor.id2label.items() if name == "sky"), None)
        leave_out = np.zeros(frame.truth.shape, bool) if labels is None or sky is None else labels == sky
        depth_m = frame.by_steps[steps].depth_m
        assert depth_m is not None
        room = lift_frame(depth_m, frame.truth, frame.intrinsics, leave_out)
        self.cloud = room_cloud(frame, room, steps, labels, predictor.palette)
        page.section(
            self.title,
            "The predicted depth and the camera's intrinsics give points and surface normals; the predicted sky is left out. "
            "The points are in `room.ply`.",
        )
        cells = room_cells(frame, room, steps)
        page.cloud(self.cloud, f"{frame.place}  ·  {frame.id}", "drag to turn, wheel to come nearer")
        page.cells([cells])
        write_image(out / "normals.png", render(Panel(cells)))
        keep = np.isfinite(room.points_m).all(axis=-1)
        write_ply(
            out / "room.ply",
            torch.from_numpy(room.points_m[keep]),
            torch.from_numpy(frame.image[keep]),
            torch.from_numpy(room.normals[keep]),
        )
        return []


class ScoreSection(DemoSection):
    """Tables of scores, risk against coverage, and what to run next."""

    title = "Scores"

    def __init__(self, options: DemoOptions, sections: Sequence[MapSection]) -> None:
        self.options, self.sections = options, sections

    def show(self, page: Page, out: Path) -> list[str]:
        """A table for each task, on the page, as CSV and as lines."""
        number = len(self.sections[0].frames)
        page.section(
            self.title,
            f"On {counted(number, 'shipped test frame')} chosen for variety, so not comparable with the scores in the models' "
            "cards, which are on 360 frames of the test maps (270 places for views from above); differences of a few tenths mean "
            "nothing here. `error-AUROC`: how well the uncertainty finds the wrong pixels (0.5 is chance). `AUSE`: how much worse "
            "it ranks them than the error itself (0 is best).",
        )
        lines: list[str] = []
        for one in self.sections:
            config = one.predictor.model.config
            kind = config.uncertainty or one.predictor.model.default_uncertainty
            rows = score_rows(one.task, one.scores, kind, one.samples)
            heading = f"{one.title} ({counted(number, 'frame')}; uncertainty: {kind.replace('_', ' ')})"
            page.table(rows, heading=heading)
            write_csv(out / f"scores-{one.task}.csv", rows)
            lines += ["", heading, text_table(rows, digits=3)]
        plots = [
            (risk_figure(one.task, one.scores[-1], "light"), risk_figure(one.task, one.scores[-1], "dark"))
            for one in self.sections
            if one.scores[-1].uncertainties
        ]
        if plots:
            page.figures(plots, "If the most uncertain pixels are left out", "risk against coverage")
        page.section("Do it yourself")
        page.code(
            f"noise2map predict PHOTO_OR_FOLDER --model {self.options.segmentation_model} --out maps\n"
            f"noise2map evaluate --model {self.options.segmentation_model} --steps 1,3,10"
        )
        return lines
