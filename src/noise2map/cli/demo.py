"""``noise2map demo``: maps, uncertainty and scores on shipped frames of held-out maps, as one HTML page."""

import logging
import time
from pathlib import Path
from typing import Annotated

import typer

from noise2map.cli import options

logger = logging.getLogger(__name__)


def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("demo"),
    frames: Annotated[int, typer.Option(min=1, help="Frames to show per task.")] = 6,
    scored: Annotated[int, typer.Option(min=1, help="Frames to predict and score, at most the 60 that are shipped.")] = 12,
    seed: options.Seed = 0,
    segmentation_model: Annotated[str, typer.Option(help="Shipped name, folder or hub id.")] = "freedoom-segmentation-tiny",
    depth_model: Annotated[str, typer.Option(help="Shipped name, folder or hub id.")] = "freedoom-depth-laplace-tiny",
    bev_model: Annotated[
        list[str] | None,
        typer.Option(
            help="Likewise, for bird's-eye-view maps; may be given more than once, the one with LiDAR last; none: no such section. "
            "[default: both shipped ones]"
        ),
    ] = None,
    normals_model: Annotated[
        str, typer.Option(help="Likewise, for surface normals; auto: a shipped one, if any; none: no such section.")
    ] = "auto",
    completion_model: Annotated[
        str, typer.Option(help="Likewise, of classes behind a cover; auto: a shipped one, if any; none: no such section.")
    ] = "auto",
    generator: Annotated[
        str,
        typer.Option(
            help="Shipped name, folder or hub id, with depth predictor and prior; auto: the shipped one, if any; none: left out."
        ),
    ] = "auto",
    device: options.Device = "auto",
    hero: Annotated[Path | None, typer.Option(help="Also write the README's image here.")] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Show what the shipped models do on rooms they have never seen, at 1, 3 and 10 steps: one HTML page."""
    began = time.perf_counter()
    logger.info("demo: loading PyTorch and the models ...")
    from noise2map.demo.run import DemoOptions, run_demo

    bev = {} if not bev_model else {"bev_models": tuple(bev_model)}
    chosen = DemoOptions(
        out=out,
        segmentation_model=segmentation_model,
        depth_model=depth_model,
        frames=frames,
        scored=scored,
        seed=seed,
        device=device,
        hero=hero,
        generator=generator,
        normals_model=normals_model,
        completion_model=completion_model,
        overwrite=overwrite,
        **bev,
    )
    print("\n".join(run_demo(chosen)))
    print(f"\nOpen {out / 'index.html'} in a browser. ({time.perf_counter() - began:.0f} s)")
