"""``noise2map train depth-predictor``: opens a generator, labelled images and a depth model, and runs the study on them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch

from noise2map.data.opening import open_dataset
from noise2map.generation.loading import load_generator
from noise2map.inference.depth_models import load_depth_model
from noise2map.inference.loading import pick_device
from noise2map.report.tables import text_table
from noise2map.runs.output_folder import locked
from noise2map.runs.provenance import provenance
from noise2map.training.generators.depth_labels import TRUTH, LabelledImages, choose, read_images
from noise2map.training.generators.predictor_study import SCORES_FILE, PredictorStudyOptions, check_study, run_predictor_study


@dataclass(frozen=True, kw_only=True)
class PredictorTrainingOptions:
    """Options of the training of depth predictors, see ``noise2map train depth-predictor --help``.

    Attributes:
        model: the generator: shipped name, folder of a diffusers pipeline, or hub id.
        out: folder to write to.
        study: how predictors are trained and scored; depth bounds are not used with relative labels.
        data: kind of data.
        root: folder of the images to learn from.
        val_root: folder of the images to score on.
        labels: ``"truth"``, or a depth model that labels.
        val_labels: what is scored against; None for the same.
        val_images: images to score on.
        depth_scale: metres per unit of a folder's maps.
        threads: CPU threads; 0 for PyTorch's choice.
        device: device by name.
    """

    model: str
    out: Path
    study: PredictorStudyOptions
    data: str = "freedoom"
    root: str = "data/freedoom/train"
    val_root: str = "data/freedoom/val"
    labels: str = TRUTH
    val_labels: str | None = None
    val_images: int = 100
    depth_scale: float = 0.001
    threads: int = 0
    device: str = "auto"


def train_predictors(options: PredictorTrainingOptions) -> list[dict[str, Any]]:
    """Train and score depth predictors, see `run_predictor_study`.

    Returns:
        The rows of the table.

    Raises:
        OSError: if a model, a folder or a file is missing, or another process writes to ``out``.
        ValueError: if sizes, blocks, numbers or kinds of labels cannot work, or ``out`` holds files of something else.
    """
    with locked(options.out):
        visible = [path for path in options.out.iterdir() if not path.name.startswith(".")]
        if visible and not any(options.out.glob(f"*/{SCORES_FILE}")):
            raise ValueError(f"{options.out} holds files, but no depth predictor of this command; choose another --out")
        return _train(options)


def _train(options: PredictorTrainingOptions) -> list[dict[str, Any]]:
    diffusers.utils.logging.disable_progress_bar()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    pipe = load_generator(options.model, device=device)
    size = pipe.unet.config.sample_size
    if not isinstance(size, int):
        raise ValueError(f"the generator's images are {size}; expected squares")
    study = options.study
    check_study(pipe.unet, pipe.scheduler, study)
    train, val = _read(options, size, device)
    if not train.metric:
        study = replace(study, min_depth=None, max_depth=None)
    dtype = torch.bfloat16 if study.bf16 else torch.float32
    record = {"generator": options.model, **provenance(device, dtype, study.seed)}
    return run_predictor_study(pipe.unet, pipe.scheduler, train, val, options.out, study, record)


def _read(options: PredictorTrainingOptions, size: int, device: torch.device) -> tuple[LabelledImages, LabelledImages]:
    """The images to learn from and those to score on, center crops of the generator's size."""
    sources = (options.labels, options.val_labels or options.labels)
    lsun = options.data == "lsun"  # the others are folders of one split each, or of all
    train, val = (
        open_dataset(
            options.data,
            root if lsun or not Path(root, split).is_dir() else Path(root, split),
            split if lsun else None,
            "depth" if source == TRUTH else "image",
            depth_scale=options.depth_scale,
        )
        for root, split, source in zip((options.root, options.val_root), ("train", "val"), sources)
    )
    chosen = (
        choose(len(train), options.study.counts[-1], options.study.seed),
        choose(len(val), min(options.val_images, len(val)), None),
    )
    labellers = {name: load_depth_model(name, device) for name in set(sources) - {TRUTH}}
    read = [
        read_images(dataset, indices, size, source, labellers.get(source))
        for dataset, indices, source in zip((train, val), chosen, sources)
    ]
    if read[0].metric != read[1].metric:
        raise ValueError(f"{sources[0]} and {sources[1]} differ: one gives metres, the other relative depth; choose --val-labels")
    return read[0], read[1]


def summary(rows: list[dict[str, Any]], study: PredictorStudyOptions) -> str:
    """Scores of the strong and the weak branch of the predictor of the most images, as a table."""
    both = {",".join(map(str, sorted(group))) for group in (study.strong_blocks, study.weak_blocks)}
    shown = [row for row in rows if row["images_trained"] == study.counts[-1] and row["blocks"] in both]
    metric = any("delta1" in row for row in shown)
    return text_table(shown, ["timestep", "blocks", "delta1", "abs_rel", "l1"] if metric else ["timestep", "blocks", "l1"])
