"""The most memory that a piece of work takes."""

import sys
from pathlib import Path
from typing import Any

import torch


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
