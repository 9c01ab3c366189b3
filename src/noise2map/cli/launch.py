"""The process of a command: allocator settings and threads."""

import os
import sys
from pathlib import Path


def share_processor() -> None:
    """On a busy machine, let idle OpenMP threads sleep instead of spinning.

    A thread that spins at a barrier for a partner that is not running takes the core the partner waits for: with more
    load than cores a decoder step was measured to take four to eight times longer. Must be set before torch is imported.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 0.75 * (os.cpu_count() or 1) and "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_freed_memory(threads: int = 0) -> None:
    """On Linux with glibc, start the command again with an allocator that keeps freed memory.

    A fifth of a step on the CPU is page faults else. Does nothing the second time, or where the command line is not what was
    started.

    Args:
        threads: CPU threads of the new process; 0 for PyTorch's choice.
    """
    settings = {"MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_MMAP_MAX_": "0", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    started_by_console = Path(sys.argv[0]).name == "noise2map"
    if not sys.platform.startswith("linux") or not started_by_console or "MALLOC_TRIM_THRESHOLD_" in os.environ:
        return
    environment = {**os.environ, **settings}
    if threads:
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def hide_progress_of_files() -> None:
    """No bars of loading and writing weights between those of training."""
    from transformers.utils import logging

    logging.disable_progress_bar()
