"""The formulations of deformable sampling against each other, alone."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from noise2map.inference.bench import time_calls
from noise2map.inference.provenance import provenance
from noise2map.models.deformable_attention import FORMULATIONS, deformable_sample, pixel_grid

STAGES = ("inference", "compiled inference", "forward and backward")
# Eager indexing builds every sampled vector in memory, and compiled indexing scatters backward with atomic additions: both
# are seconds where the others take milliseconds, and nothing chooses them.
_HOPELESS = {("gather", "inference"), ("gather", "forward and backward")}


@dataclass(frozen=True)
class AttentionPlan:
    """What to measure; `rounds` and `clock` as in `BenchPlan`."""

    width: int
    height: int
    batch_size: int
    heads: int
    channels: int
    points: int
    dtypes: tuple[torch.dtype, ...]
    device: torch.device
    compile: bool = True
    rounds: int = 7
    clock: str = "wall"
    seed: int = 0


def _tensors(plan: AttentionPlan, dtype: torch.dtype) -> list[Tensor]:
    """Value, offsets of two pixels' spread, and weights."""
    generator = torch.Generator().manual_seed(plan.seed)
    queries = plan.batch_size, plan.height * plan.width, plan.heads, plan.points
    value = torch.randn(plan.batch_size, plan.height, plan.width, plan.heads, plan.channels, generator=generator)
    offsets = torch.randn(*queries, 2, generator=generator) * 2
    weights = torch.randn(queries, generator=generator).softmax(-1)
    return [tensor.to(plan.device, dtype) for tensor in (value, offsets, weights)]


def _calls(plan: AttentionPlan, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    grid = pixel_grid(plan.height, plan.width, plan.device)
    still = _tensors(plan, dtype)
    moving = [tensor.clone().requires_grad_() for tensor in still]
    upstream = torch.randn(plan.batch_size, plan.height * plan.width, plan.heads * plan.channels).to(plan.device, dtype)

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
            if (name, stage) not in _HOPELESS and (plan.compile or not stage.startswith("compiled")):
                calls[f"{name}|{stage}"] = found[stage]
    return calls


def run_attention_bench(plan: AttentionPlan, tick: Callable[[], Any] = lambda: None) -> list[dict[str, Any]]:
    """One row for each type, formulation and stage, with its speed relative to `grid_sample`."""
    rows = []
    for dtype in plan.dtypes:
        times = time_calls(_calls(plan, dtype), plan, tick)
        for key, own in times.items():
            formulation, _, stage = key.partition("|")
            usual = times[f"grid_sample|{stage}"]
            row = {"size": f"{plan.width}x{plan.height}", "batch_size": plan.batch_size, "heads": plan.heads}
            row |= {"channels": plan.channels, "points": plan.points, "stage": stage, "formulation": formulation}
            row |= {"ms": median(own), "grid_sample_over_this": median(b / a for a, b in zip(own, usual))}
            rows.append(row | {"rounds": plan.rounds, "clock": plan.clock} | provenance(plan.device, dtype, plan.seed))
    return rows


def expected_attention_ticks(plan: AttentionPlan) -> int:
    """How often `run_attention_bench` calls its `tick`."""
    per_round = len(STAGES) * 3 - len(_HOPELESS) - (0 if plan.compile else 3)
    return len(plan.dtypes) * (plan.rounds + 1) * per_round
