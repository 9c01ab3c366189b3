"""Lift-splat pooling as a segment sum of two factors, against a scatter of the volume that it stands for: time and memory."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from noise2map.bench.timing import IDENTITY, BenchOptions, in_own_process, name_of, send_peak, time_calls
from noise2map.models.bev import Noise2MapBevConfig
from noise2map.models.bev.camera import LiftSplat, PoolingPlan, plan_pooling, pool
from noise2map.models.bev.grid import Bounds
from noise2map.models.bev.rig import CameraRig
from noise2map.runs.provenance import provenance

METHODS = ("segment sum", "scatter")

STAGES = ("plan", "forward", "forward and backward")

_STRIDE = 8  # of the camera features, in pixels


@dataclass(frozen=True, kw_only=True)
class BevBenchOptions(BenchOptions):
    """Options of the pooling benchmark.

    Attributes:
        cameras: Of a ring, at even angles.
        width: Of an image, pixels.
        height: Of an image, pixels.
        channels: That a pixel spreads over depth.
        cells: Of the bird's-eye view along x and y, over 102.4 m.
        memory: Measure peak memory too, each method in its own process.
    """

    cameras: int
    width: int
    height: int
    channels: int
    cells: int
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
class Scene:
    """Points of a rig, what pooling has planned for them, and depth and context to pool."""

    points: Tensor
    plan: PoolingPlan
    grid: tuple[Bounds, Bounds, Bounds]
    depth: Tensor
    context: Tensor


def make_scene(options: BevBenchOptions, dtype: torch.dtype) -> Scene:
    """A ring of cameras above the grid, with random depth and context."""
    step = 102.4 / options.cells
    bounds = [-51.2, 51.2, step]
    sizes = {"image_size": [options.height, options.width], "num_cameras": options.cameras, "context_channels": options.channels}
    config = Noise2MapBevConfig(x_bounds=bounds, y_bounds=bounds, **sizes)
    lift = LiftSplat(config)
    h, w = options.height // _STRIDE, options.width // _STRIDE
    points = ring(options.cameras, options.width, options.height).unproject(lift.frustum((h, w)))[0].to(options.device)
    generator = torch.Generator().manual_seed(options.seed)
    depth = torch.randn(options.cameras, lift.depths, h, w, generator=generator).softmax(1).to(options.device, dtype)
    context = torch.randn(options.cameras, options.channels, h, w, generator=generator).to(options.device, dtype)
    return Scene(points, plan_pooling(points, config.grid), config.grid, depth, context)


def _calls(scene: Scene) -> dict[str, Callable[[], Any]]:
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


def run_bev_bench(options: BevBenchOptions) -> list[dict[str, Any]]:
    """One row for each type, method and stage, with the time of the scatter over its own; planning is once for a rig."""
    rows = []
    for dtype in options.dtypes:
        scene = make_scene(options, dtype)
        calls = _calls(scene)
        kind = name_of(dtype)
        times = time_calls(calls, options, kind)
        memory: dict[str, dict[str, float]] = {}
        if options.memory:
            memory = {key: _memory(options, dtype, key) for key in tqdm(calls, desc=f"{kind}, memory", unit="process")}
        for key, own in times.items():
            method, _, stage = key.partition("|")
            row: dict[str, Any] = {"size": f"{options.width}x{options.height}", "batch_size": 1, "cameras": options.cameras}
            row |= {"channels": options.channels, "cells": f"{options.cells}x{options.cells}"}
            row |= {"points": scene.points[..., 0].numel(), "stage": stage, "method": method, "ms": median(own)}
            usual = times.get(f"scatter|{stage}")
            row["scatter_over_this"] = median(b / a for a, b in zip(own, usual)) if usual else None
            row |= memory.get(key, {}) | {"rounds": options.rounds, "clock": options.clock}
            rows.append(row | provenance(options.device, dtype, options.seed))
    return rows


def _memory(options: BevBenchOptions, dtype: torch.dtype, key: str) -> dict[str, float]:
    """Peak of a call in MiB, in a process of its own; `working_mb` is what it added to the inputs.

    Raises:
        RuntimeError: If the process ended without an answer.
    """
    return in_own_process(_measure, (options, dtype, key, torch.get_num_threads()), key)


def _measure(sender: Connection, options: BevBenchOptions, dtype: torch.dtype, key: str, threads: int) -> None:
    torch.set_num_threads(threads)
    call = _calls(make_scene(options, dtype))[key]
    with suppress(OSError, AttributeError):  # glibc: what the scene's making has freed would hide what the call takes
        ctypes.CDLL(None).malloc_trim(0)
    send_peak(sender, call, options.device)


BEV_COLUMNS = {
    "type": "dtype",
    "method": "method",
    "stage": "stage",
    "ms": "ms",
    "scatter takes times": "scatter_over_this",
    "peak MiB": "peak_mb",
    "working MiB": "working_mb",
}

BEV_IDENTITY = ("cameras", "channels", "cells", "method", *IDENTITY)
