"""An official DDP checkpoint -> a folder that ``from_pretrained`` reads: model, processor, names of classes, report of the keys."""

from pathlib import Path
from typing import Any

from noise2map.convert.ddp import load_official_ddp
from noise2map.data.ade20k_classes import CLASSES as ADE20K
from noise2map.data.cityscapes import CLASSES as CITYSCAPES
from noise2map.models import (
    MapModel,
    Noise2MapBevProcessor,
    Noise2MapForBevSegmentation,
    Noise2MapForDepthEstimation,
    Noise2MapImageProcessor,
)
from noise2map.runs.files import write_json, writing_directory


def convert_ddp(
    checkpoint: str,
    out: Path,
    max_depth: float | None = None,
    steps: int | None = None,
    self_aligned: bool | None = None,
) -> str:
    """Convert an official checkpoint into a new folder that appears whole.

    Args:
        checkpoint: A file here, or OWNER/NAME:FILE on the hub.
        out: The folder.
        max_depth: Farthest depth in metres; by default as the file says, else 80.
        steps: Default number of steps; by default as the file says, else 3, or 10 if self-aligned.
        self_aligned: Whether the weights are of a self-aligned run; by default as the file says, else not.

    Returns:
        What was made, in two lines.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If it is not one, or ``out`` is there and not an empty folder.
    """
    check_new_folder(out)
    given = {"num_inference_steps": steps, "max_depth": max_depth, "self_aligned": self_aligned}
    model = load_official_ddp(checkpoint, **{name: value for name, value in given.items() if value is not None})
    _name_classes(model.config)
    report = model.conversion_report
    with writing_directory(out) as folder:
        model.save_pretrained(folder)
        _processor(model).save_pretrained(folder)
        document = {"source": checkpoint, "settings": report.settings, "used": report.used, "dropped": report.dropped}
        write_json(folder / "conversion.json", document)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return f"{out}: {type(model).__name__}, {parameters:,} parameters, {report.summary()}\n{_describe(model)}"


def check_new_folder(out: Path) -> None:
    """Refuse a path that is there and not an empty folder.

    Raises:
        ValueError: If it is.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out} exists and is not an empty folder; expected a new one")


def _processor(model: MapModel) -> Noise2MapBevProcessor | Noise2MapImageProcessor:
    """That of the published tests: ADE20K keeps the ratio up to 2048 x 512, Cityscapes up to 2048 x 1024, depth its size."""
    if isinstance(model, Noise2MapForBevSegmentation):
        return Noise2MapBevProcessor(model.config.image_size)
    if isinstance(model, Noise2MapForDepthEstimation):
        return Noise2MapImageProcessor(do_resize=False)
    is_ade20k = model.config.num_labels == len(ADE20K)
    size = {"shortest_edge": 512 if is_ade20k else 1024, "longest_edge": 2048}
    return Noise2MapImageProcessor(size=size, do_reduce_labels=is_ade20k)


def _name_classes(config: Any) -> None:
    """Names and colors of ADE20K's 150 or Cityscapes' 19 classes, where the checkpoint has none."""
    table = {len(ADE20K): ADE20K, len(CITYSCAPES): CITYSCAPES}.get(config.num_labels)
    if table is None or config.model_type != "noise2map":
        return
    if config.id2label == {index: f"LABEL_{index}" for index in range(config.num_labels)}:
        config.id2label = {index: entry[0] for index, entry in enumerate(table)}
        config.label2id = {name: index for index, name in config.id2label.items()}
    if config.palette is None:
        config.palette = ["#{:02x}{:02x}{:02x}".format(*entry[-1]) for entry in table]


def _describe(model: MapModel) -> str:
    """The settings that a user may want to set otherwise."""
    config = model.config
    aligned = ", self-aligned" * config.self_aligned
    steps = f"{config.num_inference_steps} steps by default, average over {config.average!r}{aligned}"
    if isinstance(model, Noise2MapForDepthEstimation):
        return f"depth from {config.min_depth:g} to {config.max_depth:g} m; {steps}"
    names = [config.id2label[index] for index in range(min(3, config.num_labels))]
    return f"{config.num_labels} classes ({', '.join(names)}, ...); {steps}"
