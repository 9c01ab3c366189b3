"""``noise2map demo``: maps, uncertainty and scores on shipped frames of held-out maps, as one HTML page."""

import sys
import time
from pathlib import Path

import typer

STEP_COUNTS = (1, 3, 10)
DEPTH_SAMPLES = 2


def demo(
    out: Path = typer.Option(Path("demo"), help="Folder to write to."),
    frames: int = typer.Option(6, help="Frames to show per task."),
    scored: int = typer.Option(12, help="Frames to predict and score, at most the 60 that are shipped."),
    seed: int = typer.Option(0, help="Seed of the noise."),
    segmentation_model: str = typer.Option("freedoom-segmentation-tiny", help="Shipped name, folder or hub id."),
    depth_model: str = typer.Option("freedoom-depth-tiny", help="Shipped name, folder or hub id."),
    bev_model: list[str] = typer.Option(
        ["freedoom-bev-camera-tiny", "freedoom-bev-fusion-tiny"],
        help="Likewise, for bird's-eye-view maps; may be given more than once, the one with LiDAR last; none: no such section.",
    ),
    generator: str = typer.Option(
        "auto", help="Shipped name, folder or hub id, with predictor and prior; auto: the shipped one, if any; none: leave it out."
    ),
    device: str = typer.Option("auto", help="auto, cpu, cuda, cuda:N or mps."),
    hero: Path | None = typer.Option(None, help="Also write the README's picture here."),
) -> None:
    """Show what the shipped models do on rooms they have never seen, at 1, 3 and 10 steps: one HTML page."""
    for name, value in (("--frames", frames), ("--scored", scored)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    began = time.perf_counter()
    _say("loading PyTorch and the models")
    from noise2map.demo.run import DemoJob, run_demo

    models = (segmentation_model, depth_model)
    job = DemoJob(out, *models, STEP_COUNTS, DEPTH_SAMPLES, frames, scored, seed, device, hero, tuple(bev_model), generator)
    for line in run_demo(job, _say):
        print(line)
    print(f"\nOpen {out / 'index.html'} in a browser. ({time.perf_counter() - began:.0f} s)")


def _say(text: str) -> None:
    print(f"noise2map demo: {text} ...", file=sys.stderr)
