"""``noise2map bench``: time and memory of a model, stage by stage."""

from pathlib import Path
from typing import Annotated

import typer

from noise2map.cli.words import SpreadCommand

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Time and memory, stage by stage.", rich_markup_mode=None)


@app.callback()
def _root() -> None:
    """Time and memory, stage by stage."""


Types = Annotated[list[str] | None, typer.Option(help="float32, bfloat16, float16. [default: float32,bfloat16]")]
Compile = Annotated[bool, typer.Option("--compile/--no-compile", help="Measure with torch.compile (on CPU: a C++ compiler).")]
Rounds = Annotated[int, typer.Option(help="Timed calls of everything; figures are medians.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 for PyTorch's choice.")]
Clock = Annotated[str, typer.Option(help="wall, or cpu: time given to this process, for a machine with other jobs.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn.")]
Out = Annotated[Path, typer.Option(help="CSV file; rows of other measurements in it are kept.")]


@app.command("model", cls=SpreadCommand)
def bench_model(
    model: Annotated[
        str, typer.Option(help="Preset (swin-t-ade20k, swin-t-kitti), shipped name, folder of a checkpoint, or hub id.")
    ] = "swin-t-ade20k",
    size: Annotated[str, typer.Option(help="Image size, WIDTHxHEIGHT, multiples of 4.")] = "512x512",
    steps: Annotated[list[str] | None, typer.Option(help="Decoder calls, e.g. 1,3. [default: 1,3]")] = None,
    dtype: Types = None,
    eager: Annotated[bool, typer.Option(help="Measure without compilation.")] = True,
    compile_: Compile = True,
    rounds: Rounds = 7,
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 1,
    device: Device = "auto",
    threads: Threads = 0,
    clock: Clock = "wall",
    seed: Seed = 0,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, each stage in its own process.")] = True,
    out: Out = Path("results/bench_model.csv"),
) -> None:
    """Encoder, one step and whole runs, against grid_sample attention and the matrix products alone."""
    from noise2map.inference.protocols import parse_counts

    counts = parse_counts(steps or ["1,3"], "steps")
    modes = [name for name, wanted in (("eager", eager), ("compiled", compile_)) if wanted]
    if not modes:
        raise ValueError("--no-eager and --no-compile together leave nothing to measure")
    _check_numbers({"rounds": (rounds, 1), "batch-size": (batch_size, 1), "threads": (threads, 0)})
    width, height = _parse_size(size, multiple=4, least=32)
    names = _type_names(dtype)
    _check_clock(clock)

    import torch
    from tqdm import tqdm

    from noise2map.inference.bench import BenchPlan, expected_ticks, run_bench
    from noise2map.inference.bench_table import MODEL_COLUMNS, MODEL_IDENTITY, format_table, merge_rows, read_rows
    from noise2map.inference.loading import pick_device, pick_dtype

    read_rows(out, MODEL_IDENTITY)  # a file that cannot take the rows is found before the work
    if threads:
        torch.set_num_threads(threads)
    plan = BenchPlan(
        model=model,
        width=width,
        height=height,
        steps=tuple(counts),
        dtypes=tuple(pick_dtype(name) for name in names),
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
    merge_rows(out, rows, MODEL_IDENTITY)
    print(format_table(rows, MODEL_COLUMNS))
    print(f"wrote {out}")


@app.command("attention", cls=SpreadCommand)
def bench_attention(
    size: Annotated[str, typer.Option(help="Size of the map, WIDTHxHEIGHT tokens.")] = "128x128",
    heads: Annotated[int, typer.Option(help="Attention heads.")] = 8,
    channels: Annotated[int, typer.Option(help="Channels of a head.")] = 32,
    points: Annotated[int, typer.Option(help="Points of a head.")] = 4,
    batch_size: Annotated[int, typer.Option(help="Maps at a time.")] = 1,
    dtype: Types = None,
    compile_: Compile = True,
    rounds: Rounds = 7,
    device: Device = "auto",
    threads: Threads = 0,
    clock: Clock = "wall",
    seed: Seed = 0,
    out: Out = Path("results/bench_attention.csv"),
) -> None:
    """The formulations of deformable sampling: inference, compiled inference, forward and backward."""
    numbers = {"rounds": rounds, "batch-size": batch_size, "heads": heads, "channels": channels, "points": points}
    _check_numbers({name: (value, 1) for name, value in numbers.items()} | {"threads": (threads, 0)})
    width, height = _parse_size(size, multiple=1, least=1)
    names = _type_names(dtype)
    _check_clock(clock)

    import torch
    from tqdm import tqdm

    from noise2map.inference.bench_attention import AttentionPlan, expected_attention_ticks, run_attention_bench
    from noise2map.inference.bench_table import ATTENTION_COLUMNS, ATTENTION_IDENTITY, format_table, merge_rows, read_rows
    from noise2map.inference.loading import pick_device, pick_dtype

    read_rows(out, ATTENTION_IDENTITY)
    if threads:
        torch.set_num_threads(threads)
    plan = AttentionPlan(
        width=width,
        height=height,
        batch_size=batch_size,
        heads=heads,
        channels=channels,
        points=points,
        dtypes=tuple(pick_dtype(name) for name in names),
        device=pick_device(device),
        compile=compile_,
        rounds=rounds,
        clock=clock,
        seed=seed,
    )
    with tqdm(total=expected_attention_ticks(plan), desc="bench", unit="call") as bar:
        rows = run_attention_bench(plan, bar.update)
    merge_rows(out, rows, ATTENTION_IDENTITY)
    print(format_table(rows, ATTENTION_COLUMNS))
    print(f"wrote {out}")


@app.command("guidance")
def bench_guidance(
    channels: Annotated[int, typer.Option(help="Width of the finest level; the published LSUN-256 U-Net has 256.")] = 64,
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels, a multiple of 32; 256 there.")] = 128,
    prior_size: Annotated[int, typer.Option(help="Side of the prior's depth maps in pixels.")] = 64,
    prior_channels: Annotated[int, typer.Option(help="Width of its finest level; 0 for an eighth of --channels.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Pictures at a time.")] = 1,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16, float16. [default: float32]")] = None,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Recompute the U-Net's activations.")] = False,
    rounds: Rounds = 7,
    device: Device = "auto",
    threads: Threads = 0,
    clock: Clock = "wall",
    seed: Seed = 0,
    out: Out = Path("results/bench_guidance.csv"),
) -> None:
    """A guided sampling step against an unguided one and against gradients taken without care."""
    numbers = {"rounds": rounds, "batch-size": batch_size, "channels": channels, "size": size, "prior-size": prior_size}
    _check_numbers(
        {name: (value, 1) for name, value in numbers.items()} | {"threads": (threads, 0), "prior-channels": (prior_channels, 0)}
    )
    names = _type_names(dtype or ["float32"])
    _check_clock(clock)

    import torch
    from tqdm import tqdm

    from noise2map.inference.bench_guidance import (
        GUIDANCE_COLUMNS,
        GUIDANCE_IDENTITY,
        GuidancePlan,
        expected_guidance_ticks,
        run_guidance_bench,
    )
    from noise2map.inference.bench_table import format_table, merge_rows, read_rows
    from noise2map.inference.loading import pick_device, pick_dtype

    read_rows(out, GUIDANCE_IDENTITY)
    if threads:
        torch.set_num_threads(threads)
    plan = GuidancePlan(
        channels=channels,
        size=size,
        prior_size=prior_size,
        prior_channels=prior_channels,
        batch_size=batch_size,
        dtypes=tuple(pick_dtype(name) for name in names),
        device=pick_device(device),
        checkpointing=checkpointing,
        rounds=rounds,
        clock=clock,
        seed=seed,
    )
    with tqdm(total=expected_guidance_ticks(plan), desc="bench", unit="call") as bar:
        rows = run_guidance_bench(plan, bar.update)
    merge_rows(out, rows, GUIDANCE_IDENTITY)
    shown = {title: name for title, name in GUIDANCE_COLUMNS.items() if any(row[name] is not None for row in rows)}
    print(format_table(rows, shown))
    print(f"wrote {out}")


@app.command("bev", cls=SpreadCommand)
def bench_bev(
    cameras: Annotated[int, typer.Option(help="Cameras of the ring.")] = 6,
    size: Annotated[str, typer.Option(help="Image size, WIDTHxHEIGHT, multiples of 32.")] = "704x256",
    channels: Annotated[int, typer.Option(help="Channels that a pixel spreads over depth.")] = 80,
    cells: Annotated[int, typer.Option(help="Cells of the bird's-eye view along x and y, a multiple of 4.")] = 256,
    dtype: Types = None,
    rounds: Rounds = 7,
    device: Device = "auto",
    threads: Threads = 0,
    clock: Clock = "wall",
    seed: Seed = 0,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, each method in its own process.")] = True,
    out: Out = Path("results/bench_bev.csv"),
) -> None:
    """Lift-splat pooling as a segment sum, against a scatter of the whole frustum: time and memory."""
    numbers = {"cameras": (cameras, 1), "channels": (channels, 1), "cells": (cells, 4), "rounds": (rounds, 1)}
    _check_numbers(numbers | {"threads": (threads, 0)})
    width, height = _parse_size(size, multiple=32, least=32)
    names = _type_names(dtype or ["float32"])
    _check_clock(clock)

    import torch
    from tqdm import tqdm

    from noise2map.inference import bench_bev as bench
    from noise2map.inference.bench_table import format_table, merge_rows, read_rows
    from noise2map.inference.loading import pick_device, pick_dtype

    read_rows(out, bench.BEV_IDENTITY)
    if threads:
        torch.set_num_threads(threads)
    types = tuple(pick_dtype(name) for name in names)
    plan = bench.BevPlan(cameras, width, height, channels, cells, types, pick_device(device), rounds, clock, seed, memory)
    with tqdm(total=bench.expected_bev_ticks(plan), desc="bench", unit="call") as bar:
        rows = bench.run_bev_bench(plan, bar.update)
    merge_rows(out, rows, bench.BEV_IDENTITY)
    print(format_table(rows, bench.BEV_COLUMNS))
    print(f"wrote {out}")


def _type_names(words: list[str] | None) -> list[str]:
    from noise2map.inference.protocols import parse_choices

    return parse_choices(words or ["float32,bfloat16"], "dtype", ("float32", "bfloat16", "float16"))


def _check_clock(clock: str) -> None:
    if clock not in ("wall", "cpu"):
        raise ValueError(f"--clock must be wall or cpu, got {clock!r}")


def _check_numbers(numbers: dict[str, tuple[int, int]]) -> None:
    for name, (value, least) in numbers.items():
        if value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")


def _parse_size(text: str, multiple: int, least: int) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) >= least and int(side) % multiple == 0 for side in sides):
        what = f"multiples of {multiple}, at least {least}" if multiple > 1 else "whole numbers"
        raise ValueError(f"--size must be WIDTHxHEIGHT in {what}, e.g. 512x512, got {text!r}")
    return int(sides[0]), int(sides[1])
