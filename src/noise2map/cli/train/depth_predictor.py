"""``noise2map train depth-predictor``: strong and weak depth predictors on the features of a generator."""

from pathlib import Path
from typing import Annotated, Any

import typer


def train_depth_predictor(
    generator: Annotated[str, typer.Option(help="Generator: shipped name, folder of a diffusers pipeline, or hub id.")],
    data: Annotated[str, typer.Option(help="Kind of data: freedoom, folder (images/ and maps/) or lsun.")] = "freedoom",
    root: Annotated[str, typer.Option(help="Folder of the pictures to learn from.")] = "data/freedoom/train",
    val_root: Annotated[str, typer.Option(help="Folder of the pictures to score on.")] = "data/freedoom/val",
    labels: Annotated[str, typer.Option(help="truth, or a depth model that labels: shipped name, folder or hub id.")] = "truth",
    val_labels: Annotated[str | None, typer.Option(help="What is scored against; default: as --labels.")] = None,
    counts: Annotated[str, typer.Option(help="Numbers of labelled pictures, e.g. 10,50,100,1000; final/ is the last.")] = "100",
    val_images: Annotated[int, typer.Option(help="Pictures to score on.")] = 100,
    steps: Annotated[int, typer.Option(help="Optimiser steps of each predictor.")] = 2000,
    batch_size: Annotated[int, typer.Option(help="Pictures of a step.")] = 8,
    timesteps: Annotated[str, typer.Option(help="Noise levels to score at.")] = "50,200,400,600,800",
    by_block: Annotated[bool, typer.Option(help="Also measure every decoder block alone.")] = True,
    strong: Annotated[str, typer.Option(help="Decoder blocks of the strong branch.")] = "2,4,5,6,7",
    weak: Annotated[str, typer.Option(help="Decoder blocks of the weak branch.")] = "6",
    min_depth: Annotated[float, typer.Option(help="Nearest depth, metres; not used with relative labels.")] = 0.5,
    max_depth: Annotated[float, typer.Option(help="Farthest depth, metres; the prior must have the same range.")] = 40.0,
    representation: Annotated[str, typer.Option(help="log or linear.")] = "log",
    missing: Annotated[str, typer.Option(help="Pixels without depth: far (sky), or ignore.")] = "far",
    depth_scale: Annotated[float, typer.Option(help="With --data folder: metres per unit of the maps.")] = 0.001,
    bf16: Annotated[bool, typer.Option("--bf16", help="Train under bfloat16 autocast; scores stay in float32.")] = False,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 for PyTorch's choice.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder to write to; an unfinished run is gone on with.")] = Path(
        "runs/depth-predictor"
    ),
) -> None:
    """Train depth predictors from a few labelled pictures, and measure what they know: by block, noise level, pictures.

    Writes images-N/ for each number of pictures, final/ (for guidance), accuracy.csv and plots.
    """
    from noise2map.evaluation.protocols import parse_counts

    numbers = tuple(sorted(parse_counts([counts], "counts")))
    levels = tuple(_whole_numbers(timesteps, "timesteps"))
    blocks = [tuple(_whole_numbers(text, name)) for text, name in ((strong, "strong"), (weak, "weak"))]
    for name, value in (("val-images", val_images), ("steps", steps), ("batch-size", batch_size)):
        if value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")

    import diffusers
    import torch
    from tqdm import tqdm

    from noise2map.generation.loading import load_generator
    from noise2map.inference.depth_models import load_depth_model
    from noise2map.inference.loading import pick_device
    from noise2map.runs.files import check_writable
    from noise2map.runs.provenance import provenance
    from noise2map.training.generators.depth_labels import TRUTH, choose, open_labelled, read_images
    from noise2map.training.generators.predictor_study import PredictorStudyOptions, run_predictor_study

    diffusers.utils.logging.disable_progress_bar()
    if threads:
        torch.set_num_threads(threads)
    place = pick_device(device)
    check_writable(out)
    pipe = load_generator(generator, device=place)
    size = pipe.unet.config.sample_size
    if not isinstance(size, int):
        raise ValueError(f"the generator's pictures are {size}; expected squares")
    sources = (labels, val_labels or labels)
    sets = [
        open_labelled(data, folder, split, source == TRUTH, depth_scale)
        for folder, split, source in zip((root, val_root), ("train", "val"), sources)
    ]
    chosen = [choose(len(sets[0]), numbers[-1], seed), choose(len(sets[1]), min(val_images, len(sets[1])), None)]
    labellers = {name: load_depth_model(name, place) for name in set(sources) - {TRUTH}}
    with tqdm(total=len(chosen[0]) + len(chosen[1]), desc="pictures", unit="picture") as bar:
        train, val = (
            read_images(dataset, indices, size, source, labellers.get(source), bar.update)
            for dataset, indices, source in zip(sets, chosen, sources)
        )
    if train.metric != val.metric:
        raise ValueError(f"{sources[0]} and {sources[1]} differ: one gives metres, the other relative depth; choose --val-labels")
    plan = PredictorStudyOptions(
        counts=numbers,
        steps=steps,
        batch_size=batch_size,
        timesteps=levels,
        probe=by_block,
        strong_blocks=blocks[0],
        weak_blocks=blocks[1],
        min_depth=min_depth if train.metric else None,
        max_depth=max_depth if train.metric else None,
        depth_representation=representation,
        missing=missing,
        bf16=bf16,
        seed=seed,
        source=f"{generator}; {data} {root}, {val_root}; {sources[0]}, {sources[1]}",
    )
    record = {"generator": generator, **provenance(place, torch.bfloat16 if bf16 else torch.float32, seed)}
    with tqdm(total=len(numbers) * steps, desc="train", unit="step") as bar:
        rows = run_predictor_study(pipe.unet, pipe.scheduler, train, val, out, plan, record, bar.update)
    print(_summary(rows, plan))
    print(f"predictor written to {out / 'final'}")


def _whole_numbers(text: str, name: str) -> list[int]:
    words = text.replace(" ", "").split(",")
    if not all(word.isdecimal() for word in words):
        raise ValueError(f"--{name} must be whole numbers such as 2,4,5, got {text!r}")
    return sorted({int(word) for word in words})


def _summary(rows: list[dict[str, Any]], plan: Any) -> str:
    from noise2map.report.tables import text_table

    both = {",".join(map(str, sorted(group))) for group in (plan.strong_blocks, plan.weak_blocks)}
    shown = [row for row in rows if row["images_trained"] == plan.counts[-1] and row["blocks"] in both]
    columns = ["timestep", "blocks", "delta1", "abs_rel", "l1"] if plan.max_depth is not None else ["timestep", "blocks", "l1"]
    return text_table(shown, columns)
