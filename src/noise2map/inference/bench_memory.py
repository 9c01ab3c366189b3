"""Peak memory of one stage, each measured in a process of its own: a high-water mark cannot be lowered within one."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from noise2map.inference.bench import BenchPlan

MIB = 2**20


def peak_memory(plan: BenchPlan, dtype: torch.dtype, mode: str, stage: str) -> dict[str, float]:
    """Peak of a stage in MiB.

    Returns:
        `peak_mb`: of the process (CPU: resident, with Python and libraries; CUDA: allocated); `working_mb`: what the stage
        added to what was there before its first call, weights included. Compilation itself does not count: the stage has run once.

    Raises:
        RuntimeError: If the process ended without an answer, for instance because it was killed for its memory.
    """
    return in_own_process(_measure, (plan, dtype, mode, stage, torch.get_num_threads()), f"{mode} {stage}")


def in_own_process(measure: Callable[..., None], arguments: tuple[Any, ...], name: str) -> Any:
    """What `measure(sender, *arguments)` sends from a fresh process.

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


def _measure(sender: Connection, plan: BenchPlan, dtype: torch.dtype, mode: str, stage: str, threads: int) -> None:
    from noise2map.inference.bench import build_model, compiled, stage_calls

    torch.set_num_threads(threads)
    with torch.no_grad():
        model = build_model(plan.model, plan.device, dtype, plan.seed)
        if mode == "compiled":
            model = compiled(model)
        call = stage_calls(model, plan, [stage])[stage]
        if mode == "compiled":
            call()
        before = reset_peak(plan.device)
        call()
        peak = read_peak(plan.device)
    sender.send({"peak_mb": round(peak / MIB, 1), "working_mb": round((peak - before) / MIB, 1)})


def reset_peak(device: torch.device) -> float:
    """Bytes in use now, from which the high-water mark starts again where the system allows it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    status = _process_status()
    if "VmRSS" in status:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM := VmRSS
        return status["VmRSS"]
    return _highest_resident()


def read_peak(device: torch.device) -> float:
    """The high-water mark, in bytes, since `reset_peak` where the system allows it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    return _process_status().get("VmHWM", _highest_resident())


def _process_status() -> dict[str, Any]:
    """Fields of Linux' process status that are sizes, in bytes; empty on other systems."""
    path = Path("/proc/self/status")
    if not path.exists():
        return {}
    fields = (line.split() for line in path.read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in fields if words[-1] == "kB"}


def _highest_resident() -> float:
    import resource  # not on Windows, where /proc is missing too

    value = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(value if sys.platform == "darwin" else value * 1024)
