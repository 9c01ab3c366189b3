"""``noise2map convert``: official checkpoints -> folders that ``from_pretrained`` reads."""

import json
import tempfile
from pathlib import Path
from typing import Optional

import typer

app = typer.Typer(no_args_is_help=True, help="Official checkpoints to this library's format.", rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Official checkpoints to this library's format."""


@app.command()
def ddp(
    checkpoint: Path = typer.Argument(..., help="Official checkpoint (.pth) or its tensors (.safetensors)."),
    out: Path = typer.Option(..., "--out", help="New folder for the converted model."),
    max_depth: Optional[float] = typer.Option(None, help="Farthest depth in metres: 80 for KITTI (default), 10 for NYU."),  # noqa: UP045
    steps: int = typer.Option(3, help="Default number of steps; 10 for self-aligned weights."),
) -> None:
    """Converts an official DDP segmentation, depth or bird's-eye-view checkpoint; code in the file is never run.

    Writes config.json, model.safetensors, preprocessor_config.json and conversion.json, which says what became of every key.
    """
    from noise2map.convert import load_official_ddp
    from noise2map.models import Noise2MapBevProcessor, Noise2MapImageProcessor

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out} exists and is not an empty folder; expected a new one")
    overrides: dict[str, float | int] = {"num_inference_steps": steps}
    if max_depth is not None:
        overrides["max_depth"] = max_depth
    model = load_official_ddp(checkpoint, **overrides)
    processor: Noise2MapBevProcessor | Noise2MapImageProcessor
    is_depth = type(model).__name__.endswith("DepthEstimation")
    # The published test protocols: ADE20K keeps the ratio up to 2048 x 512, Cityscapes up to 2048 x 1024, depth is not resized.
    if "BevSegmentation" in type(model).__name__:
        processor = Noise2MapBevProcessor(model.config.image_size)
    elif is_depth:
        processor = Noise2MapImageProcessor(do_resize=False)
    else:
        shortest = 512 if model.config.num_labels == 150 else 1024
        processor = Noise2MapImageProcessor(
            size={"shortest_edge": shortest, "longest_edge": 2048}, do_reduce_labels=model.config.num_labels == 150
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    report = model.conversion_report
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        folder = Path(scratch) / "model"
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        (folder / "conversion.json").write_text(json.dumps({"used": report.used, "dropped": report.dropped}, indent=1) + "\n")
        if out.is_dir():
            out.rmdir()
        folder.rename(out)
    typer.echo(f"{out}: {type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters, {report.summary()}")
