"""``noise2map convert``: official checkpoints -> folders that ``from_pretrained`` reads."""

from pathlib import Path
from typing import Any, Optional

import typer

_ALIGNED_STEPS = 10  # the published self-aligned runs are tested with

app = typer.Typer(no_args_is_help=True, help="Official checkpoints to this library's format.", rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Official checkpoints to this library's format."""


@app.command()
def ddp(
    checkpoint: str = typer.Argument(
        ..., help="Official checkpoint (.pth), its tensors (.safetensors), or a file on the hub: yfji/DDP-Weight:FILE."
    ),
    out: Path = typer.Option(..., "--out", help="New folder for the converted model."),
    max_depth: Optional[float] = typer.Option(  # noqa: UP045
        None, help="Farthest depth in metres: 80 for KITTI, 10 for NYU. [default: as the file says, else 80]"
    ),
    steps: Optional[int] = typer.Option(  # noqa: UP045
        None, help="Default number of steps. [default: as the file says, else 3, or 10 if self-aligned]"
    ),
    self_aligned: Optional[bool] = typer.Option(  # noqa: UP045
        None, "--self-aligned/--not-self-aligned", help="Weights of a self-aligned run. [default: as the file says, else not]"
    ),
) -> None:
    """Converts an official DDP segmentation, depth or bird's-eye-view checkpoint; code in the file is never run.

    Sizes are read off the shapes; steps, averaging, depth range, names and colours of classes off the file's meta data, if any.
    Writes config.json, model.safetensors, preprocessor_config.json and conversion.json, which says what became of every key.
    """
    from noise2map.convert import load_official_ddp
    from noise2map.models import Noise2MapBevProcessor, Noise2MapImageProcessor
    from noise2map.runs.files import write_json, writing_directory

    if out.exists() and (not out.is_dir() or any(out.iterdir())):  # before the long work
        raise ValueError(f"--out {out} exists and is not an empty folder; expected a new one")
    given = {"num_inference_steps": steps, "max_depth": max_depth, "self_aligned": self_aligned}
    if steps is None and self_aligned:
        given["num_inference_steps"] = _ALIGNED_STEPS
    model = load_official_ddp(checkpoint, **{name: value for name, value in given.items() if value is not None})
    _name_classes(model.config)
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
    report = model.conversion_report
    with writing_directory(out, replace=False) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        document = {"source": checkpoint, "settings": report.settings, "used": report.used, "dropped": report.dropped}
        write_json(folder / "conversion.json", document)
    typer.echo(f"{out}: {type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters, {report.summary()}")
    typer.echo(_describe(model.config, is_depth))


def _name_classes(config: Any) -> None:
    """Names and colours of ADE20K's 150 or Cityscapes' 19 classes, where the checkpoint has none."""
    from noise2map.data.ade20k_classes import CLASSES as ADE20K
    from noise2map.data.cityscapes import CLASSES as CITYSCAPES

    table = {150: ADE20K, 19: CITYSCAPES}.get(config.num_labels)
    if table is None or config.model_type != "noise2map":
        return
    if config.id2label == {index: f"LABEL_{index}" for index in range(config.num_labels)}:
        config.id2label = {index: entry[0] for index, entry in enumerate(table)}
        config.label2id = {name: index for index, name in config.id2label.items()}
    if config.palette is None:
        config.palette = ["#{:02x}{:02x}{:02x}".format(*entry[-1]) for entry in table]


def _describe(config: Any, is_depth: bool) -> str:
    """The settings that a user may want to set otherwise."""
    steps = (
        f"{config.num_inference_steps} steps by default, average over {config.average!r}" + ", self-aligned" * config.self_aligned
    )
    if is_depth:
        return f"depth from {config.min_depth:g} to {config.max_depth:g} m; {steps}"
    names = [config.id2label[index] for index in range(min(3, config.num_labels))]
    return f"{config.num_labels} classes ({', '.join(names)}, ...); {steps}"
