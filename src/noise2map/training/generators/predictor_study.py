"""Accuracy of depth from a U-Net's features: by decoder block, by noise level, by number of labelled images (DAG, Sec. 4)."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import UNet2DModel

from noise2map.guidance import DepthPredictor, decoder_blocks
from noise2map.guidance.depth_range import DepthRange
from noise2map.report.plots import Series, quality_plot, save_figure
from noise2map.report.tables import write_csv
from noise2map.runs.files import (
    content_checksum,
    json_values,
    settings_checksum,
    weights_checksum,
    write_json,
    writing_directory,
)
from noise2map.training.generators.depth_labels import LabelledImages
from noise2map.training.generators.depth_predictor import fit_depth_predictor, score_depth_predictor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACCURACY_FILE = "accuracy.csv"

SCORES_FILE = "scores.json"

FINAL = "final"


@dataclass(frozen=True, kw_only=True)
class PredictorStudyOptions:
    """Options of the training and scoring of predictors.

    Attributes:
        counts: numbers of labelled images, ascending; a predictor is trained for each.
        steps: optimizer steps of each.
        batch_size: images of a step.
        learning_rate: of Adam.
        timesteps: noise levels that are scored.
        probe: whether the largest predictor also has a branch for each decoder block.
        strong_blocks: of the strong branch.
        weak_blocks: of the weak branch.
        min_depth: nearest depth in metres; None for relative depth.
        max_depth: farthest depth in metres; None for relative depth.
        depth_representation: ``"log"`` or ``"linear"``.
        missing: pixels without depth are ``"far"`` (sky), or ``"ignore"``: they do not count.
        bf16: train under bfloat16 autocast; scores are always taken in float32.
        seed: of everything that is drawn.
    """

    counts: tuple[int, ...]
    steps: int = 2000
    batch_size: int = 8
    learning_rate: float = 1e-3
    timesteps: tuple[int, ...] = (50, 200, 400, 600, 800)
    probe: bool = True
    strong_blocks: tuple[int, ...] = (2, 4, 5, 6, 7)
    weak_blocks: tuple[int, ...] = (6,)
    min_depth: float | None = None
    max_depth: float | None = None
    depth_representation: str = "log"
    missing: str = "far"
    bf16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.counts or list(self.counts) != sorted(set(self.counts)) or self.counts[0] < 1:
            raise ValueError(f"counts are {self.counts}; expected ascending numbers of images, at least 1")
        if not self.timesteps or min(self.timesteps) < 0:
            raise ValueError(f"timesteps are {self.timesteps}; expected at least one, from 0 on")
        if self.missing not in ("far", "ignore"):
            raise ValueError(f"missing is {self.missing!r}; expected 'far' or 'ignore'")


def run_predictor_study(
    unet: UNet2DModel,
    scheduler: Any,
    train: LabelledImages,
    test: LabelledImages,
    out: Path,
    options: PredictorStudyOptions,
    record: dict[str, Any],
) -> list[dict[str, Any]]:
    """Train a predictor for each number of images, score all, write predictors, table and plots.

    Each finished predictor stays in ``out/images-N``; a run that was interrupted goes on with the next one. A predictor of other
    settings, weights, images or depth is not taken up. ``out/final`` is the one of the most images, without the branches that
    only measured.

    Args:
        unet: the generator's U-Net.
        scheduler: its scheduler.
        train: labelled images, at least as many as the largest count; a smaller count takes the first of them.
        test: images that are scored.
        out: folder to write to.
        options: how.
        record: what every row of the table says about the run.

    Returns:
        The rows of the table.

    Raises:
        ValueError: if sizes, blocks or numbers cannot work, or ``out`` holds predictors of another plan.
    """
    check_study(unet, scheduler, options)
    _check_counts(out, options)
    unet.eval().requires_grad_(False)
    rows: list[dict[str, Any]] = []
    known = {"generator": weights_checksum(unet), "scheduler": _scheduler_checksum(scheduler), "scored images": _content(test)}
    for count in options.counts:
        folder = out / f"images-{count:04d}"
        part = train.part(list(range(count)))
        probe = options.probe and count == options.counts[-1]
        plan = _comparable(replace(options, probe=probe)) | known | {"images": _content(part)}
        found = _finished(folder, plan)
        if found is None:
            found = _train_one(unet, scheduler, part, test, folder, plan, options)
        rows += [{"images_trained": count, "labels": train.source, "scored_against": test.source, **row, **record} for row in found]
    largest = DepthPredictor.from_pretrained(out / f"images-{options.counts[-1]:04d}")
    _write_folder(out / FINAL, without_probes(largest), {"plan": asdict(options), "record": record})
    write_csv(out / ACCURACY_FILE, rows)
    for name, figure in study_figures(rows, options).items():
        save_figure(out / f"{name}.png", figure)
    return rows


def check_study(unet: UNet2DModel, scheduler: Any, options: PredictorStudyOptions) -> None:
    """Refuses what cannot be trained on a generator, before images are read and labelled.

    Raises:
        ValueError: if it has no such time step or block, or the range of depth is none.
    """
    steps_of_process, blocks = int(scheduler.config.num_train_timesteps), decoder_blocks(unet)
    if max(options.timesteps) >= steps_of_process:
        raise ValueError(f"timesteps are {options.timesteps}; expected numbers below the process's {steps_of_process}")
    for name in ("strong_blocks", "weak_blocks"):
        unknown = [k for k in getattr(options, name) if k not in blocks]
        if unknown:
            raise ValueError(f"{name} are {getattr(options, name)}; expected decoder blocks of the U-Net, 0 to {max(blocks)}")
    if sorted(options.strong_blocks) == sorted(options.weak_blocks):
        raise ValueError(f"strong_blocks and weak_blocks are both {sorted(options.weak_blocks)}; expected different ones")
    DepthRange(options.min_depth, options.max_depth, options.depth_representation)


def _check_counts(out: Path, options: PredictorStudyOptions) -> None:
    """Refuse to write a table, plots and a final predictor over those of more predictors, which stay in the folder."""
    there = {int(path.parent.name.removeprefix("images-")) for path in out.glob(f"images-*/{SCORES_FILE}")}
    others = sorted(there - set(options.counts))
    if others:
        all_counts = ",".join(map(str, sorted(there | set(options.counts))))
        raise ValueError(
            f"{out} holds predictors of {', '.join(map(str, others))} images, too, and counts are {options.counts}; "
            f"name them all (--counts {all_counts}): those that are there are taken up; or choose another --out"
        )


def without_probes(predictor: DepthPredictor) -> DepthPredictor:
    """The same predictor with its strong and weak branches alone."""
    blocks = set(predictor.strong_blocks) | set(predictor.weak_blocks)
    config = {name: value for name, value in predictor.config.items() if not name.startswith("_")}
    config["probe_blocks"] = []
    config["block_channels"] = [[k, count] for k, count in sorted(predictor.channels.items()) if k in blocks]
    smaller = DepthPredictor(**config)
    given = predictor.state_dict()
    smaller.load_state_dict({name: given[name] for name in smaller.state_dict()})
    return smaller.eval()


def _train_one(
    unet: UNet2DModel,
    scheduler: Any,
    train: LabelledImages,
    test: LabelledImages,
    folder: Path,
    plan: dict[str, Any],
    options: PredictorStudyOptions,
) -> list[dict[str, Any]]:
    probes = probe_blocks(unet, options) if plan["probe"] else []
    if train.metric and options.missing == "far":
        train = train.with_far(float(options.max_depth or 0))
    fit = fit_depth_predictor(
        unet,
        train.images,
        train.depths,
        scheduler=scheduler,
        num_steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        bf16=options.bf16,
        seed=options.seed,
        progress=f"predictor of {len(train)} images",
        strong_blocks=options.strong_blocks,
        weak_blocks=options.weak_blocks,
        probe_blocks=probes,
        min_depth=options.min_depth,
        max_depth=options.max_depth,
        depth_representation=options.depth_representation,
    )
    rows = score_depth_predictor(
        unet, fit.predictor, test.images, test.depths, timesteps=options.timesteps, scheduler=scheduler, seed=options.seed
    )
    _write_folder(folder, fit.predictor, {"plan": plan, "rows": rows, "history": fit.history[:: max(1, options.steps // 200)]})
    return rows


def probe_blocks(unet: UNet2DModel, options: PredictorStudyOptions) -> list[list[int]]:
    """Blocks that have a branch of their own in the predictor of the most images, beside its strong and weak branch."""
    known = {tuple(sorted(options.strong_blocks)), tuple(sorted(options.weak_blocks))}
    return [[k] for k in decoder_blocks(unet) if (k,) not in known] if options.probe else []


def _comparable(options: PredictorStudyOptions) -> dict[str, Any]:
    """Settings that decide a predictor, as JSON has them; how many images others have does not matter."""
    return json.loads(json.dumps({name: value for name, value in asdict(options).items() if name != "counts"}))


def _scheduler_checksum(scheduler: Any) -> str:
    config = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    return settings_checksum({"kind": type(scheduler).__name__, **json_values(config)})


def _content(images: LabelledImages) -> str:
    """Checksum of images and depth themselves: wherever they lie, and whatever scale or model made the depth."""
    return content_checksum(value.contiguous().numpy().tobytes() for value in (images.images, images.depths))


def _finished(folder: Path, plan: dict[str, Any]) -> list[dict[str, Any]] | None:
    path = folder / SCORES_FILE
    if not path.is_file():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    before = stored["plan"]
    changed = [name for name, value in plan.items() if before.get(name) != value]
    if not plan["probe"] and "probe" in changed:  # it has more branches than are asked for now
        changed.remove("probe")
    if changed:
        raise ValueError(f"{folder} was trained with other settings ({', '.join(changed)}); choose another --out, or delete it")
    return stored["rows"]


def _write_folder(target: Path, predictor: DepthPredictor, scores: dict[str, Any]) -> None:
    with writing_directory(target) as folder:
        predictor.save_pretrained(folder)
        write_json(folder / SCORES_FILE, scores)


def study_figures(rows: Sequence[dict[str, Any]], options: PredictorStudyOptions) -> "dict[str, Figure]":
    """Plots of a study's rows: by block, by noise level, and by number of images where there are several."""
    metric = options.max_depth is not None
    score, label = ("delta1", "δ1") if metric else ("l1", "L1 of relative depth, signal in [-1, 1]")
    strong, weak = (",".join(map(str, sorted(blocks))) for blocks in (options.strong_blocks, options.weak_blocks))
    names = {strong: f"strong {{{strong}}}", weak: f"weak {{{weak}}}"}
    most = [row for row in rows if row["images_trained"] == options.counts[-1]]
    figures = {}
    single = sorted({int(row["blocks"]) for row in most if "," not in row["blocks"]})
    if len(single) > 1:
        series = {}
        for t in options.timesteps:
            values = {row["blocks"]: row[score] for row in most if row["timestep"] == t}
            series[f"t = {t}"] = Series(single, [values[str(k)] for k in single])
        title = f"Depth in single blocks, {options.counts[-1]} labelled images"
        figures["accuracy_by_block"] = quality_plot(series, "decoder block", label, title=title)
    by_time = {
        name: Series(options.timesteps, [row[score] for row in most if row["blocks"] == blocks]) for blocks, name in names.items()
    }
    title = f"Depth by noise level, {options.counts[-1]} labelled images"
    figures["accuracy_by_timestep"] = quality_plot(by_time, "time step", label, title=title)
    if len(options.counts) > 1:
        for one, word in (("delta1", "δ1"), ("abs_rel", "AbsRel")) if metric else (("l1", label),):
            series = {name: Series(options.counts, _mean_by_count(rows, options, blocks, one)) for blocks, name in names.items()}
            title = f"Depth by labelled images, mean of t = {', '.join(map(str, options.timesteps))}"
            figures[f"{one}_by_images"] = quality_plot(series, "labelled images", word, title=title, log_x=True)
    return figures


def _mean_by_count(rows: Sequence[dict[str, Any]], options: PredictorStudyOptions, blocks: str, score: str) -> list[float]:
    means = []
    for count in options.counts:
        values = [row[score] for row in rows if row["images_trained"] == count and row["blocks"] == blocks]
        means.append(float(torch.tensor(values).mean()))
    return means
