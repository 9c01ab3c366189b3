"""The demo's section on guided generation: the same seeds without guidance, with each kind, and with both."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from noise2map.demo.section import AUTO, NONE, DemoSection
from noise2map.generation.depth_reading import depth_probe
from noise2map.generation.evaluation.measurements import stack_images
from noise2map.generation.evaluation.page import DepthViews, add_clouds, seed_item, seed_rows
from noise2map.generation.evaluation.references import ReferenceImages
from noise2map.generation.loading import DEFAULT, camera_of, load_generator
from noise2map.generation.sampling import SamplingOptions
from noise2map.generation.sampling import draw as draw_seeds
from noise2map.guidance import DepthGuidedPipeline, GuidanceConfig
from noise2map.inference.depth_models import load_depth_model
from noise2map.metrics import PlausibilityScores
from noise2map.report.animation import save_animation
from noise2map.report.html import Page
from noise2map.report.palettes import depth_range
from noise2map.report.panels import Cell, Panel, depth_cell, render
from noise2map.report.tables import write_csv
from noise2map.runs.files import write_image
from noise2map.zoo import available_generators, label_of

logger = logging.getLogger(__name__)


# One image each; the denoising and the point clouds are those of the first.
FIRST_SEEDS = (8, 13, 3, 15)

# Half of what `sample` takes by default: the section is most of the demo's time.
STEPS = 25

# The settings whose denoising is shown.
FILMED = ("unguided", "both")

# The paper's, in the meaning that the generator was saved with.
SCALE = 40.0

# Steps of more signal than noise alone: guided in noisier ones, too, this generator's depth drifts away from that of real frames.
LOG_SNR = (0.0, math.inf)

SETTINGS = {
    "unguided": GuidanceConfig(),
    "consistency": GuidanceConfig.from_scales(SCALE, log_snr=LOG_SNR, on_nonfinite="skip"),
    "prior": GuidanceConfig.from_scales(0.0, SCALE, log_snr=LOG_SNR, on_nonfinite="skip"),
    "both": GuidanceConfig.from_scales(SCALE, SCALE, log_snr=LOG_SNR, on_nonfinite="skip"),
}

_REFERENCES = 16

_PROBE_TIMESTEP = 50


@dataclass(frozen=True)
class Trajectory:
    """The denoising of one image.

    Attributes:
        noisy: `(steps, H, W, 3)` uint8: what each step left.
        clean: `(steps, H, W, 3)` uint8: the image that the U-Net expected at each step.
        depth: `(steps, H, W)`: what the strong branch read at each step, in the predictor's unit.
    """

    noisy: np.ndarray
    clean: np.ndarray
    depth: np.ndarray


@dataclass(frozen=True)
class Drawn:
    """Images of one setting.

    Attributes:
        images: `(N, 3, H, W)` uint8, one for each seed.
        trajectory: Of the first; None where it was not asked for.
    """

    images: Tensor
    trajectory: Trajectory | None


def open_generator(name: str, device: torch.device) -> DepthGuidedPipeline | None:
    """The generator that the demo shows; None, with a warning, if there is none to show.

    Args:
        name: `"auto"` for the one that is shipped, `"none"`, or as of `load_generator`.
        device: Where to.

    Raises:
        OSError: If it is missing.
        ValueError: If it has no depth predictor in metres or no depth prior.
    """
    shipped = available_generators()
    if name == NONE:
        return None
    if name == AUTO and not shipped:
        logger.warning("no generator is shipped: guided generation is left out")
        return None
    diffusers.utils.logging.disable_progress_bar()
    pipe = load_generator(shipped[0] if name == AUTO else name, sampler=DEFAULT, device=device)
    for part in ("depth_predictor", "depth_prior"):
        if getattr(pipe, part) is None:
            raise ValueError(f"generator {name!r} has no {part}/ in its folder; the demo shows guidance and needs both parts")
    if not pipe.depth_predictor.depth_range.metric:
        raise ValueError(f"generator {name!r} has a predictor of relative depth; the demo shows metres")
    return pipe


class GuidanceSection(DemoSection):
    """The same seeds without guidance, with each kind, and with both."""

    title = "Guided generation"

    def __init__(self, pipe: DepthGuidedPipeline, name: str, depth_model: str) -> None:
        """Take a generator from `open_generator`.

        Args:
            pipe: The generator.
            name: As given to `open_generator`.
            depth_model: A depth model that judges the images, by name.
        """
        self.pipe, self.name, self.depth_model = pipe, name, depth_model

    def show(self, page: Page, out: Path) -> list[str]:
        """Draw, score and show; files go to `guided/`."""
        name = available_generators()[0] if self.name == AUTO else self.name
        label = label_of(name)
        pipe, depth_model = self.pipe, self.depth_model
        drawn = {setting: draw(pipe, one, FIRST_SEEDS, STEPS, film=setting in FILMED) for setting, one in SETTINGS.items()}
        estimator = load_depth_model(depth_model, pipe.device)
        if not estimator.metric:
            raise ValueError(f"depth model {depth_model!r} gives depth without a unit; the demo shows metres")
        side = drawn["unguided"].images.shape[-1]
        camera = torch.tensor(camera_of(name, side)[0])
        views = {setting: DepthViews(one.images, estimator, camera) for setting, one in drawn.items()}
        page.section(
            self.title,
            f"Images of {side} x {side} pixels, shown enlarged, that `{label}` draws from noise in {STEPS} steps, and the same "
            "noise with guidance: consistency guidance (DCG) moves the image so that two readings of its depth agree, prior "
            "guidance (DPG) so that a small diffusion model of depth finds it likely, both in the steps of more signal than noise. "
            "Depth and normals below are those that "
            f"`{label_of(depth_model)}` sees in the finished image; the number is how far the two readings differ. What a few "
            "seeds show, others need not: no gain of guidance is proven for this generator.",
        )
        rows, apart = _scores(
            pipe, {setting: (one.images, views[setting].depth) for setting, one in drawn.items()}, estimator, side
        )
        notes = [{setting: f"{values[place]:.1%} apart" for setting, values in apart.items()} for place in range(len(FIRST_SEEDS))]
        page.gallery([seed_item(views, place, seed, notes[place]) for place, seed in enumerate(FIRST_SEEDS)])
        folder = out / "guided"
        for place, seed in enumerate(FIRST_SEEDS):
            panel = Panel(
                [cell for row in seed_rows(views, place, notes[place]) for cell in row], len(views), f"{label}, seed {seed}"
            )
            write_image(folder / f"{seed:06d}.png", render(panel, width=900))
        page.table(rows, heading="How plausible the geometry is")
        write_csv(folder / "plausibility.csv", rows)
        page.text(
            f"Means of {len(FIRST_SEEDS)} images show what the numbers are, not what guidance does: `noise2map evaluate generator` "
            f"draws as many as that takes. The references are {_REFERENCES} frames of the test maps."
        )
        films = {setting: film for setting, one in drawn.items() if (film := one.trajectory) is not None}
        frames = trajectory_frames(films)
        page.player(frames, f"From noise to image and depth: seed {FIRST_SEEDS[0]}, without guidance and with both")
        images = [render(Panel(row, columns=3), width=660) for row in frames]
        save_animation(folder / "denoising.webp", images, duration_ms=200)
        ends = {setting: views[setting] for setting in FILMED}
        add_clouds(page, ends, FIRST_SEEDS[:1], folder / "clouds")
        return []


def draw(pipe: DepthGuidedPipeline, guidance: GuidanceConfig, seeds: tuple[int, ...], steps: int, *, film: bool = True) -> Drawn:
    """Images of seeds, and, if a film is asked for, the trajectory of the first one's denoising.

    A film reads depth in every step, also in those that nothing guides.
    """
    noisy, clean, depth = [], [], []

    def keep(tensors: dict[str, Tensor]) -> None:
        noisy.append(_bytes(tensors["latents"][:1]))
        clean.append(_bytes(tensors["pred_original_sample"][:1]))
        depth.append(pipe.depth_predictor.decode_depth(tensors["depth_signal"][:1].float()).cpu())

    options = SamplingOptions(num_inference_steps=steps)
    if not film:
        return Drawn(draw_seeds(pipe, seeds, options, guidance).images, None)
    names = ("latents", "pred_original_sample", "depth_signal")
    drawn = draw_seeds(pipe, seeds, options, guidance, on_step=keep, on_step_tensors=names)
    steps_kept = [torch.cat(kept).permute(0, 2, 3, 1).numpy() for kept in (noisy, clean)]
    return Drawn(drawn.images, Trajectory(*steps_kept, torch.cat(depth).numpy()))


def _bytes(signal: Tensor) -> Tensor:
    """Images in [-1, 1] -> uint8 on the CPU."""
    return ((signal.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def _scores(
    pipe: DepthGuidedPipeline, drawn: dict[str, tuple[Tensor, Tensor]], estimator: Any, side: int
) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """A row for each setting and one for real frames; and by setting, how far the readings of each image differ."""
    references = ReferenceImages("samples", side, _REFERENCES)
    frames = stack_images(references, range(len(references)))
    real = {"references": (frames, estimator(frames.to(pipe.device)).float().cpu())}
    probe, rows, apart = depth_probe(pipe, _PROBE_TIMESTEP), [], {}
    for name, (images, depth) in {**drawn, **real}.items():
        metric = PlausibilityScores()
        # Equal ids, equal noise: settings are compared under the same one.
        strong, weak = probe(images, [str(place) for place in range(len(images))])
        metric.update(images, depth, strong.cpu(), weak.cpu())
        found = {key: float(value) for key, value in metric.compute().items()}
        apart[name] = metric.per_image()[:, 0].tolist()
        rows.append(
            {
                "setting": name,
                "images": len(images),
                "readings differ %": 100 * found["disagreement"],
                "readings correlate": found["correlation"],
                "off a plane %": 100 * found["planarity_residual"],
                "edges on edges": found["edge_alignment"],
            }
        )
    return rows, apart


def trajectory_frames(trajectories: dict[str, Trajectory]) -> list[list[Cell]]:
    """One row of cells for each step: noisy image, expected image and depth of each way to draw."""
    count = len(next(iter(trajectories.values())).depth)
    limits = depth_range(*(one.depth[-1] for one in trajectories.values()))
    rows = []
    for index in range(count):
        row = []
        for name, one in trajectories.items():
            reading = depth_cell(one.depth[index], f"depth, {name}", limits)
            row.append(Cell(f"noisy, {name}", one.noisy[index], note=f"{index + 1}/{count}"))
            row.append(Cell(f"expected, {name}", one.clean[index]))
            row.append(reading)
        rows.append(row)
    return rows
