"""The formulations of deformable sampling against each other, alone."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from noise2map.bench.timing import IDENTITY, BenchOptions, name_of, time_calls
from noise2map.models.kernels.deformable_attention import FORMULATIONS, deformable_sample, pixel_grid
from noise2map.runs.provenance import provenance

ATTENTION_IDENTITY = ("heads", "channels", "points", "formulation", *IDENTITY)
ATTENTION_COLUMNS = {
    "type": "dtype",
    "stage": "stage",
    "formulation": "formulation",
    "ms": "ms",
    "faster than grid_sample by": "grid_sample_over_this",
}
STAGES = ("inference", "compiled inference", "forward and backward")

# Eager indexing builds every sampled vector in memory, and compiled indexing scatters backward with atomic additions: both
# are seconds where the others take milliseconds, and nothing chooses them.
_SKIPPED = {("gather", "inference"), ("gather", "forward and backward")}


@dataclass(frozen=True, kw_only=True)
class AttentionBenchOptions(BenchOptions):
    """Options of the attention benchmark: size of the map in tokens, heads, channels and points of a head."""

    width: int
    height: int
    batch_size: int
    heads: int
    channels: int
    points: int
    compile: bool = True


def _tensors(options: AttentionBenchOptions, dtype: torch.dtype) -> list[Tensor]:
    """Value, offsets of two pixels' spread, and weights."""
    generator = torch.Generator().manual_seed(options.seed)
    queries = options.batch_size, options.height * options.width, options.heads, options.points
    value = torch.randn(options.batch_size, options.height, options.width, options.heads, options.channels, generator=generator)
    offsets = torch.randn(*queries, 2, generator=generator) * 2
    weights = torch.randn(queries, generator=generator).softmax(-1)
    return [tensor.to(options.device, dtype) for tensor in (value, offsets, weights)]


def _calls(options: AttentionBenchOptions, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    grid = pixel_grid(options.height, options.width, options.device)
    still = _tensors(options, dtype)
    moving = [tensor.clone().requires_grad_() for tensor in still]
    upstream = torch.randn(options.batch_size, options.height * options.width, options.heads * options.channels).to(
        options.device, dtype
    )

    def inference(function: Callable[..., Tensor], formulation: str) -> None:
        with torch.no_grad():
            function(*still, formulation, grid)

    def training(formulation: str) -> None:
        torch.autograd.grad(deformable_sample(*moving, formulation, grid), moving, upstream)

    calls: dict[str, Callable[[], Any]] = {}
    for name in FORMULATIONS[1:]:
        compiled = torch.compile(deformable_sample, fullgraph=True, dynamic=False)
        found: dict[str, Callable[[], Any]] = {
            "inference": lambda name=name: inference(deformable_sample, name),
            "compiled inference": lambda name=name, compiled=compiled: inference(compiled, name),
            "forward and backward": lambda name=name: training(name),
        }
        for stage in STAGES:
            if (name, stage) not in _SKIPPED and (options.compile or not stage.startswith("compiled")):
                calls[f"{name}|{stage}"] = found[stage]
    return calls


def run_attention_bench(options: AttentionBenchOptions) -> list[dict[str, Any]]:
    """One row for each type, formulation and stage, with its speed relative to `grid_sample`."""
    rows = []
    for dtype in options.dtypes:
        times = time_calls(_calls(options, dtype), options, name_of(dtype))
        for key, own in times.items():
            formulation, _, stage = key.partition("|")
            usual = times[f"grid_sample|{stage}"]
            row = {"size": f"{options.width}x{options.height}", "batch_size": options.batch_size, "heads": options.heads}
            row |= {"channels": options.channels, "points": options.points, "stage": stage, "formulation": formulation}
            row |= {"ms": median(own), "grid_sample_over_this": median(b / a for a, b in zip(own, usual))}
            rows.append(row | {"rounds": options.rounds, "clock": options.clock} | provenance(options.device, dtype, options.seed))
    return rows
