"""Interleaved timing of calls, and peak memory of one stage in a process of its own."""

from __future__ import annotations

import logging
import multiprocessing
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from noise2map.runs.memory import memory_is_kept
from noise2map.runs.peak_memory import read_peak, reset_peak

logger = logging.getLogger(__name__)

MIB = 2**20
# Two rows that agree in these, and in what a benchmark adds, are the same measurement; the newer one stays.
IDENTITY = ("size", "batch_size", "device", "threads", "dtype", "stage", "clock")


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of every benchmark.

    Attributes:
        dtypes: Types to run in.
        device: Where.
        rounds: Timed calls of everything; figures are medians over them.
        clock: `"wall"`, or `"cpu"`: the time this process was given, all threads together, which other jobs do not enter.
        seed: Of everything that is drawn.
    """

    dtypes: tuple[torch.dtype, ...]
    device: torch.device
    rounds: int = 7
    clock: str = "wall"
    seed: int = 0


def machine_facts(device: torch.device) -> dict[str, Any]:
    """What a time depends on beside the device's name: the processor, its widest instructions, and whether freed memory is kept.

    Returns:
        ``cpu``, a model such as ``"AMD EPYC"``; ``instructions``, such as ``"AVX512 AMX"``; ``memory_kept``, see
        `noise2map.keep_freed_memory`.
    """
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    known = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = known.get("flags", "").split()
    matrix = [word for word, flag in (("BF16", "avx512_bf16"), ("AMX", "amx_bf16")) if flag in flags]
    instructions = " ".join([torch.backends.cpu.get_cpu_capability(), *matrix])
    return {"cpu": known.get("model name", platform.processor()), "instructions": instructions, "memory_kept": memory_is_kept()}


def name_of(dtype: torch.dtype) -> str:
    """``torch.float32`` -> ``"float32"``."""
    return str(dtype).removeprefix("torch.")


def time_calls(calls: dict[str, Callable[[], Any]], options: BenchOptions, what: str = "bench") -> dict[str, list[float]]:
    """Milliseconds of every call in every round, the calls taking turns, with a progress bar.

    A first round warms up (compiles, where something is compiled) and does not count; how long it took is logged.

    Args:
        calls: Name -> call.
        options: Rounds, clock and device.
        what: Title of the progress bar.
    """
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    found: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    with tqdm(total=len(calls) * (options.rounds + 1), desc=what, unit="call") as bar:
        for round_index in range(options.rounds + 1):
            for name, call in calls.items():
                bar.set_postfix_str(name if round_index else f"first call of {name}")
                _finish(options.device)
                start = clock()
                call()
                _finish(options.device)
                if round_index:
                    found[name].append((clock() - start) * 1000)
                bar.update()
            if not round_index:
                logger.info("%s: first calls (compiling, warming up) took %.0f s", what, time.perf_counter() - began)
    return found


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def in_own_process(measure: Callable[..., None], arguments: tuple[Any, ...], name: str) -> Any:
    """Result that `measure(sender, *arguments)` sends from a fresh process.

    Raises:
        RuntimeError: If the process ended without an answer, for instance because it was killed for its memory.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(sender, *arguments), daemon=True)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the process measuring the memory of {name} ended with code {process.exitcode}") from None
    finally:
        process.join()


def send_peak(sender: Connection, call: Callable[[], Any], device: torch.device) -> None:
    """Send what a call takes, in MiB.

    `peak_mb`: of the process (CPU: resident, with Python and libraries; CUDA: allocated); `working_mb`: what the call added to
    what was there before it.
    """
    before = reset_peak(device)
    call()
    peak = read_peak(device)
    sender.send({"peak_mb": round(peak / MIB, 1), "working_mb": round((peak - before) / MIB, 1)})
