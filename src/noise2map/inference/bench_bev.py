"""Lift-splat pooling as a segment sum of two factors, against a scatter of the volume that it stands for: time and memory."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import torch
from torch import Tensor

from noise2map.inference.bench import time_calls
from noise2map.inference.bench_memory import MIB, in_own_process, read_peak, reset_peak
from noise2map.inference.provenance import provenance
from noise2map.models.bev import Noise2MapBevConfig
from noise2map.models.bev.camera_branch import LiftSplat
from noise2map.models.bev.cameras import CameraRig
from noise2map.models.bev.grid import Bounds
from noise2map.models.bev.pooling import PoolingPlan, plan_pooling, pool

METHODS = ("segment sum", "scatter")
STAGES = ("plan", "forward", "forward and backward")
_STRIDE = 8  # of the camera features, in pixels


@dataclass(frozen=True)
class BevPlan:
    """What to measure; `rounds` and `clock` as in `BenchPlan`.

    Attributes:
        cameras: Of a ring, at even angles.
        width: Of an image, pixels.
        height: Of an image, pixels.
        channels: That a pixel spreads over depth.
        cells: Of the bird's-eye view along x and y, over 102.4 m.
        dtypes: Types of depth and context.
        device: Where.
        rounds: Timed calls of everything.
        clock: ``"wall"`` or ``"cpu"``.
        seed: Of depth and context.
        memory: Measure peak memory too, each method in its own process.
    """

    cameras: int
    width: int
    height: int
    channels: int
    cells: int
    dtypes: tuple[torch.dtype, ...]
    device: torch.device
    rounds: int = 7
    clock: str = "wall"
    seed: int = 0
    memory: bool = True


def ring(cameras: int, width: int, height: int) -> CameraRig:
    """Cameras 1.5 m up at even angles, 70 degrees wide, level; of one sample."""
    focal = width / 2 / math.tan(math.radians(35))
    intrinsics = torch.tensor([[focal, 0, width / 2], [0, focal, height * 0.6], [0, 0, 1]]).expand(1, cameras, 3, 3)
    poses = []
    for index in range(cameras):
        yaw = 2 * math.pi * index / cameras
        turn = torch.tensor([[math.cos(yaw), -math.sin(yaw), 0.0], [math.sin(yaw), math.cos(yaw), 0.0], [0.0, 0.0, 1.0]])
        pose = torch.eye(4)
        pose[:3, :3] = turn @ torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # x right, y forward, z up
        pose[2, 3] = 1.5 - 1.84
        poses.append(pose)
    return CameraRig.create(intrinsics, torch.stack(poses)[None])


def scatter(points: Tensor, depth: Tensor, context: Tensor, grid: tuple[Bounds, Bounds, Bounds]) -> Tensor:
    """The plain way: multiply depth and context out to a volume, find each point's cell, add it there.

    Args:
        points: ``(N, D, h, w, 3)``, metres.
        depth: ``(N, D, h, w)``.
        context: ``(N, C, h, w)``.
        grid: axes x, y and z.

    Returns:
        ``(Z*C, X, Y)``, as `pool`.
    """
    volume = depth.unsqueeze(-1) * context.movedim(1, -1).unsqueeze(1)  # (N, D, h, w, C)
    lower, step = (points.new_tensor([getattr(axis, name) for axis in grid]) for name in ("lower", "step"))
    count = [axis.count for axis in grid]
    index = ((points - lower) / step).long().view(-1, 3)
    kept = ((index >= 0) & (index < index.new_tensor(count))).all(-1)
    x, y, z = index[kept].unbind(-1)
    sums = volume.new_zeros(count[2] * count[0] * count[1], volume.shape[-1])
    sums = sums.index_add(0, (z * count[0] + x) * count[1] + y, volume.reshape(-1, volume.shape[-1])[kept])
    return sums.view(count[2], count[0], count[1], -1).permute(0, 3, 1, 2).reshape(-1, count[0], count[1])


@dataclass(frozen=True)
class _Scene:
    points: Tensor
    plan: PoolingPlan
    grid: tuple[Bounds, Bounds, Bounds]
    depth: Tensor
    context: Tensor


def _scene(plan: BevPlan, dtype: torch.dtype) -> _Scene:
    step = 102.4 / plan.cells
    bounds = [-51.2, 51.2, step]
    sizes = {"image_size": [plan.height, plan.width], "num_cameras": plan.cameras, "context_channels": plan.channels}
    config = Noise2MapBevConfig(x_bounds=bounds, y_bounds=bounds, **sizes)
    lift = LiftSplat(config)
    h, w = plan.height // _STRIDE, plan.width // _STRIDE
    points = ring(plan.cameras, plan.width, plan.height).unproject(lift.frustum((h, w)))[0].to(plan.device)
    generator = torch.Generator().manual_seed(plan.seed)
    depth = torch.randn(plan.cameras, lift.depths, h, w, generator=generator).softmax(1).to(plan.device, dtype)
    context = torch.randn(plan.cameras, plan.channels, h, w, generator=generator).to(plan.device, dtype)
    return _Scene(points, plan_pooling(points, config.grid), config.grid, depth, context)


def _calls(scene: _Scene) -> dict[str, Callable[[], Any]]:
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "segment sum": lambda depth, context: pool(scene.plan, depth, context),
        "scatter": lambda depth, context: scatter(scene.points, depth, context, scene.grid),
    }
    moving = [scene.depth.clone().requires_grad_(), scene.context.clone().requires_grad_()]

    def forward(function: Callable[[Tensor, Tensor], Tensor]) -> None:
        with torch.no_grad():
            function(scene.depth, scene.context)

    def training(function: Callable[[Tensor, Tensor], Tensor]) -> None:
        out = function(*moving)
        torch.autograd.grad(out, moving, torch.ones_like(out))

    calls: dict[str, Callable[[], Any]] = {"segment sum|plan": lambda: plan_pooling(scene.points, scene.grid)}
    for name, function in functions.items():
        calls[f"{name}|forward"] = lambda function=function: forward(function)
        calls[f"{name}|forward and backward"] = lambda function=function: training(function)
    return calls


def run_bev_bench(plan: BevPlan, tick: Callable[[], Any] = lambda: None) -> list[dict[str, Any]]:
    """One row for each type, method and stage, with the time of the scatter over its own; planning is once for a rig."""
    rows = []
    for dtype in plan.dtypes:
        scene = _scene(plan, dtype)
        calls = _calls(scene)
        times = time_calls(calls, plan, tick)
        for key, own in times.items():
            method, _, stage = key.partition("|")
            row: dict[str, Any] = {"size": f"{plan.width}x{plan.height}", "batch_size": 1, "cameras": plan.cameras}
            row |= {"channels": plan.channels, "cells": f"{plan.cells}x{plan.cells}", "points": scene.points[..., 0].numel()}
            row |= {"stage": stage, "method": method, "ms": median(own)}
            usual = times.get(f"scatter|{stage}")
            row["scatter_over_this"] = median(b / a for a, b in zip(own, usual)) if usual else None
            if plan.memory:
                row |= _memory(plan, dtype, key)
                tick()
            rows.append(row | {"rounds": plan.rounds, "clock": plan.clock} | provenance(plan.device, dtype, plan.seed))
    return rows


def expected_bev_ticks(plan: BevPlan) -> int:
    """How often `run_bev_bench` calls its `tick`."""
    calls = 1 + 2 * len(METHODS)
    return len(plan.dtypes) * calls * (plan.rounds + 1 + plan.memory)


def largest_difference(plan: BevPlan) -> float:
    """How far the two methods are apart on the plan's scene, relative to the largest value."""
    scene = _scene(plan, torch.float32)
    ours, plain = pool(scene.plan, scene.depth, scene.context), scatter(scene.points, scene.depth, scene.context, scene.grid)
    return float((ours - plain).abs().max() / plain.abs().max())


def _memory(plan: BevPlan, dtype: torch.dtype, key: str) -> dict[str, float]:
    """Peak of a call in MiB, in a process of its own; `working_mb` is what it added to the inputs.

    Raises:
        RuntimeError: If the process ended without an answer.
    """
    return in_own_process(_measure, (plan, dtype, key, torch.get_num_threads()), key)


def _measure(sender: Connection, plan: BevPlan, dtype: torch.dtype, key: str, threads: int) -> None:
    torch.set_num_threads(threads)
    call = _calls(_scene(plan, dtype))[key]
    with suppress(OSError, AttributeError):  # glibc: what the scene's making has freed would hide what the call takes
        ctypes.CDLL(None).malloc_trim(0)
    before = reset_peak(plan.device)
    call()
    peak = read_peak(plan.device)
    sender.send({"peak_mb": round(peak / MIB, 1), "working_mb": round((peak - before) / MIB, 1)})


BEV_COLUMNS = {
    "type": "dtype",
    "method": "method",
    "stage": "stage",
    "ms": "ms",
    "scatter takes times": "scatter_over_this",
    "peak MiB": "peak_mb",
    "working MiB": "working_mb",
}
BEV_IDENTITY: Sequence[str] = (
    *("cameras", "channels", "cells", "method"),
    *("size", "batch_size", "device", "threads", "dtype", "stage", "clock"),
)
