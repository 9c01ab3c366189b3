"""``noise2map bench``: time and memory of a model, stage by stage."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Time and memory, stage by stage.", rich_markup_mode=None)


@app.callback()
def _root() -> None:
    """Time and memory, stage by stage."""


@app.command()
def model(
    model: Annotated[
        str, typer.Option(help="Preset (swin-t-ade20k, swin-t-kitti), shipped name, folder of a checkpoint, or hub id.")
    ] = "swin-t-ade20k",
    size: Annotated[str, typer.Option(help="Image size, WIDTHxHEIGHT, multiples of 4.")] = "512x512",
    steps: Annotated[list[str] | None, typer.Option(help="Decoder calls, e.g. 1,3. [default: 1,3]")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16, float16. [default: float32,bfloat16]")] = None,
    eager: Annotated[bool, typer.Option(help="Measure without compilation.")] = True,
    compile: Annotated[bool, typer.Option(help="Measure with torch.compile (needs a C++ compiler on CPU).")] = True,
    rounds: Annotated[int, typer.Option(help="Timed calls of everything; figures are medians.")] = 7,
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 for PyTorch's choice.")] = 0,
    clock: Annotated[str, typer.Option(help="wall, or cpu: time given to this process, for a machine with other jobs.")] = "wall",
    seed: Annotated[int, typer.Option(help="Of image, noise and a preset's weights.")] = 0,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, each stage in its own process.")] = True,
    out: Annotated[Path, typer.Option(help="CSV file; rows of other runs in it are kept.")] = Path("results/bench_model.csv"),
) -> None:
    """Time encoder, one step and whole runs, against grid_sample attention and the matrix products alone."""
    from noise2map.inference.protocols import parse_choices, parse_counts

    counts = parse_counts(steps or ["1,3"], "steps")
    dtypes = parse_choices(dtype or ["float32,bfloat16"], "dtype", ("float32", "bfloat16", "float16"))
    modes = [name for name, wanted in (("eager", eager), ("compiled", compile)) if wanted]
    if not modes:
        raise ValueError("--no-eager and --no-compile together leave nothing to measure")
    parse_choices([clock], "clock", ("wall", "cpu"))
    for name, value, least in (("rounds", rounds, 1), ("batch-size", batch_size, 1), ("threads", threads, 0)):
        if value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")
    width, height = _parse_size(size)

    import torch
    from tqdm import tqdm

    from noise2map.inference.bench import BenchPlan, expected_ticks, run_bench
    from noise2map.inference.bench_table import format_table, merge_rows, read_rows
    from noise2map.inference.loading import pick_device, pick_dtype

    read_rows(out)  # a file that cannot take the rows is found before the work
    if threads:
        torch.set_num_threads(threads)
    plan = BenchPlan(
        model=model,
        width=width,
        height=height,
        steps=tuple(counts),
        dtypes=tuple(pick_dtype(name) for name in dtypes),
        modes=tuple(modes),
        device=pick_device(device),
        rounds=rounds,
        batch_size=batch_size,
        clock=clock,
        seed=seed,
        memory=memory,
    )
    with tqdm(total=expected_ticks(plan), desc="bench", unit="call") as bar:
        rows = run_bench(plan, bar.update)
    merge_rows(out, rows)
    print(format_table(rows))
    print(f"wrote {out}")


def _parse_size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()) or any(int(side) < 32 or int(side) % 4 for side in (width, height)):
        raise ValueError(f"--size must be WIDTHxHEIGHT in multiples of 4, at least 32, e.g. 512x512, got {text!r}")
    return int(width), int(height)
