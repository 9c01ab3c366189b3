"""``noise2map bench``: time and memory of a model, stage by stage."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from noise2map.cli import options
from noise2map.cli.options import CommandGroup, ImageSize

app = CommandGroup("Time and memory, stage by stage.")

Compile = Annotated[bool, typer.Option("--compile/--no-compile", help="Measure with torch.compile, too: it takes minutes.")]
Rounds = Annotated[int, typer.Option(min=1, help="Timed calls of everything; figures are medians.")]
Clock = Annotated[Literal["wall", "cpu"], typer.Option(help="cpu: time given to this process, for a machine with other jobs.")]
Both = Annotated[list[str] | None, options.words("Precisions. [default: float32,bfloat16]", options.DTYPES)]
One = Annotated[list[str] | None, options.words("Precisions. [default: float32]", options.DTYPES)]
Out = Annotated[Path, typer.Option(help="CSV file; rows of other measurements in it are kept.")]


@app.command("model")
def bench_model(
    model: Annotated[
        str, typer.Option(help="Preset (swin-t-ade20k, swin-t-kitti), shipped name, folder of a checkpoint, or hub id.")
    ] = "swin-t-ade20k",
    size: Annotated[ImageSize, options.size("Image size, multiples of 4.", multiple=4, least=32)] = "512x512",
    steps: Annotated[list[str] | None, options.numbers("Decoder calls. [default: 1,3]")] = None,
    dtype: Both = None,
    eager: Annotated[bool, typer.Option(help="Measure without compilation.")] = True,
    compile_: Compile = True,
    rounds: Rounds = 7,
    batch_size: options.BatchSize = 1,
    device: options.Device = "auto",
    threads: options.Threads = 0,
    clock: Clock = "wall",
    seed: options.Seed = 0,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, each stage in its own process.")] = True,
    export: Annotated[
        list[str] | None, typer.Option(metavar="FOLDER", help="Also an export of the model; programs for torch in it are run.")
    ] = None,
    refine_share: Annotated[list[str] | None, options.shares("Also later steps on shares of the tokens, e.g. 0.3,0.1.")] = None,
    out: Out = Path("results/bench_model.csv"),
) -> None:
    """Encoder, one step and whole runs, against grid_sample attention and the matrix products alone."""
    modes = [name for name, wanted in (("eager", eager), ("compiled", compile_)) if wanted]
    if not modes:
        raise ValueError("--no-eager and --no-compile together leave nothing to measure")
    from noise2map.bench.model import MODEL_COLUMNS, MODEL_IDENTITY, ModelBenchOptions, run_bench

    _run(
        run_bench,
        ModelBenchOptions(
            model=model,
            width=size.width,
            height=size.height,
            steps=tuple(steps or (1, 3)),
            modes=tuple(modes),
            batch_size=batch_size,
            memory=memory,
            refine_shares=tuple(refine_share or ()),
            exports=tuple(export or ()),
            **_common(dtype or ["float32", "bfloat16"], device, threads, rounds, clock, seed),
        ),
        out,
        MODEL_IDENTITY,
        MODEL_COLUMNS,
    )


@app.command("attention")
def bench_attention(
    size: Annotated[ImageSize, options.size("Size of the map in tokens.")] = "128x128",
    heads: Annotated[int, typer.Option(min=1, help="Attention heads.")] = 8,
    channels: Annotated[int, typer.Option(min=1, help="Channels of a head.")] = 32,
    points: Annotated[int, typer.Option(min=1, help="Points of a head.")] = 4,
    batch_size: Annotated[int, typer.Option(min=1, help="Maps at a time.")] = 1,
    dtype: Both = None,
    compile_: Compile = True,
    rounds: Rounds = 7,
    device: options.Device = "auto",
    threads: options.Threads = 0,
    clock: Clock = "wall",
    seed: options.Seed = 0,
    out: Out = Path("results/bench_attention.csv"),
) -> None:
    """The formulations of deformable sampling: inference, compiled inference, forward and backward."""
    from noise2map.bench.attention import ATTENTION_COLUMNS, ATTENTION_IDENTITY, AttentionBenchOptions, run_attention_bench

    _run(
        run_attention_bench,
        AttentionBenchOptions(
            width=size.width,
            height=size.height,
            batch_size=batch_size,
            heads=heads,
            channels=channels,
            points=points,
            compile=compile_,
            **_common(dtype or ["float32", "bfloat16"], device, threads, rounds, clock, seed),
        ),
        out,
        ATTENTION_IDENTITY,
        ATTENTION_COLUMNS,
    )


@app.command("guidance")
def bench_guidance(
    model: Annotated[
        str | None,
        typer.Option(help="A guided generator (shipped name or folder) with sizes of its own, not a U-Net of the published shape."),
    ] = None,
    channels: Annotated[int, typer.Option(min=1, help="Width of the finest level; the published LSUN-256 U-Net has 256.")] = 64,
    size: Annotated[int, typer.Option(min=32, help="Side of the images in pixels, a multiple of 32; 256 there.")] = 128,
    prior_size: Annotated[int, typer.Option(min=1, help="Side of the prior's depth maps in pixels.")] = 64,
    prior_channels: Annotated[int, typer.Option(min=0, help="Width of its finest level; 0 for an eighth of --channels.")] = 0,
    batch_size: options.BatchSize = 1,
    dtype: One = None,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Recompute the U-Net's activations.")] = False,
    rounds: Rounds = 7,
    device: options.Device = "auto",
    threads: options.Threads = 0,
    clock: Clock = "wall",
    seed: options.Seed = 0,
    out: Out = Path("results/bench_guidance.csv"),
) -> None:
    """A guided sampling step against an unguided one and against gradients taken naively."""
    from noise2map.bench.guidance import GUIDANCE_COLUMNS, GUIDANCE_IDENTITY, GuidanceBenchOptions, run_guidance_bench

    _run(
        run_guidance_bench,
        GuidanceBenchOptions(
            model=model,
            channels=channels,
            size=size,
            prior_size=prior_size,
            prior_channels=prior_channels,
            batch_size=batch_size,
            checkpointing=checkpointing,
            **_common(dtype or ["float32"], device, threads, rounds, clock, seed),
        ),
        out,
        GUIDANCE_IDENTITY,
        GUIDANCE_COLUMNS,
    )


@app.command("bev")
def bench_bev(
    cameras: Annotated[int, typer.Option(min=1, help="Cameras of the ring.")] = 6,
    size: Annotated[ImageSize, options.size("Image size, multiples of 32.", multiple=32, least=32)] = "704x256",
    channels: Annotated[int, typer.Option(min=1, help="Channels that a pixel spreads over depth.")] = 80,
    cells: Annotated[int, typer.Option(min=4, help="Cells of the bird's-eye view along x and y, a multiple of 4.")] = 256,
    dtype: One = None,
    rounds: Rounds = 7,
    device: options.Device = "auto",
    threads: options.Threads = 0,
    clock: Clock = "wall",
    seed: options.Seed = 0,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, each method in its own process.")] = True,
    out: Out = Path("results/bench_bev.csv"),
) -> None:
    """Lift-splat pooling as a segment sum, against a scatter of the whole frustum: time and memory."""
    from noise2map.bench.bev import BEV_COLUMNS, BEV_IDENTITY, BevBenchOptions, run_bev_bench

    _run(
        run_bev_bench,
        BevBenchOptions(
            cameras=cameras,
            width=size.width,
            height=size.height,
            channels=channels,
            cells=cells,
            memory=memory,
            **_common(dtype or ["float32"], device, threads, rounds, clock, seed),
        ),
        out,
        BEV_IDENTITY,
        BEV_COLUMNS,
    )


@app.command("gpu")
def bench_gpu(
    out: Annotated[Path, typer.Option(help="Folder for suite.csv and index.html; run again, it goes on.")],
    model: Annotated[str, typer.Option(help="Preset, shipped name, folder of a checkpoint, or hub id.")] = "swin-t-ade20k",
    minutes: Annotated[float, typer.Option(min=0.01, help="No part begins after them.")] = 9.0,
    compile_: Compile = True,
    rounds: Rounds = 7,
    device: options.Device = "auto",
    threads: options.Threads = 0,
    seed: options.Seed = 0,
    toy: Annotated[bool, typer.Option("--toy", help="Everything tiny: shows whether it runs, on a CPU too.")] = False,
) -> None:
    """A whole device in one call: agreement with the CPU, steps, training, guidance, pooling, throughput, memory."""
    from noise2map.bench.suite import COLUMNS, SuiteOptions, run_suite
    from noise2map.report.tables import text_table

    common = _common(["float32"], device, threads, rounds, "wall", seed)
    sizes = {"sizes": ((64, 64),), "batch_sizes": (1, 2), "training_batch": 2, "guided": ((32, 32),), "points": 2000} if toy else {}
    kept = {name: common[name] for name in ("device", "rounds", "seed")}
    rows = run_suite(SuiteOptions(model=model, minutes=minutes, compile=compile_, **kept, **sizes), out)
    print(text_table(rows, [name for name in COLUMNS if any(row.get(name) for row in rows)]))
    print(f"wrote {out / 'suite.csv'} and {out / 'index.html'}")


def _common(dtypes: list[str], device: str, threads: int, rounds: int, clock: str, seed: int) -> dict[str, Any]:
    """The fields of ``BenchOptions``; sets the number of threads."""
    import torch

    from noise2map.inference.loading import pick_device, pick_dtype

    if threads:
        torch.set_num_threads(threads)
    types = tuple(pick_dtype(name) for name in dtypes)
    return {"dtypes": types, "device": pick_device(device), "rounds": rounds, "clock": clock, "seed": seed}


def _run(
    bench: Callable[[Any], list[dict[str, Any]]], chosen: Any, out: Path, identity: Sequence[str], columns: dict[str, str]
) -> None:
    """Measure, add the rows to the file, print them."""
    from noise2map.report.tables import merge_rows, read_rows, titled_table

    read_rows(out, identity)  # a file that cannot take the rows is found before the work
    rows = bench(chosen)
    merge_rows(out, rows, identity)
    print(titled_table(rows, columns))
    print(f"wrote {out}")
