"""Memory of the process: how much, in words and bytes, and that which is freed and stays for the next step of a model."""

import ctypes
import math
import os
import platform
import re
import sys
from pathlib import Path

OPT_OUT = "NOISE2MAP_KEEP_FREED_MEMORY"
"""Environment variable: with ``0`` the C library goes on as it likes."""

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_LARGEST = 2**31 - 1  # the settings are C ints

_LARGE = 64 * 2**20  # bytes of a tensor that is worth making room for

_kept: bool | None = None

_LACK_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")  # CUDA and MPS, Windows, Linux

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(text: str | int) -> int:
    """``"2GiB"``, ``"512 MB"``, ``"1.5g"`` or a number as bytes.

    Raises:
        ValueError: If it is no amount of memory.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", str(text).strip().lower())
    amount = 0.0 if found is None or found[2] not in _UNITS else float(found[1]) * _UNITS[found[2]]
    if not 1 <= amount < math.inf:
        raise ValueError(f"memory is {text!r}; expected an amount such as 2GiB, 512MiB or 4GB")
    return round(amount)


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was not enough, of the CPU or an accelerator: PyTorch's is a `RuntimeError`."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(words in text for words in _LACK_OF_MEMORY))


def resident_bytes() -> int:
    """Memory that the process has now (Linux); 0 where it cannot be known."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0


def keep_freed_memory() -> bool:
    """Makes the C library of this process keep the memory that tensors give back, instead of returning it to the system.

    On a CPU every step of a model allocates and frees the same tens of megabytes; pages that are handed back come again as page
    faults, which take about a fifth of a step. Linux with glibc only, elsewhere nothing happens; the process holds on to the most
    that it ever needed. `Predictor`, training and the commands call this; call it before loops of your own over a model. Nothing
    happens at import, and nothing if the environment variable ``NOISE2MAP_KEEP_FREED_MEMORY`` is ``0``.

    Returns:
        Whether freed memory is kept from now on.
    """
    global _kept
    if _kept is None:
        _kept = _wanted() and _set_glibc()
    return _kept


def release_freed_memory(before: int) -> bool:
    """Hands memory that tensors gave back on to the system, unless this process keeps it (`keep_freed_memory`).

    Between blocks that are in use the heap holds many that are free, into which a large tensor does not fit: it comes on top of
    them. To call before the largest one of a run, and not in a loop: the pages come again as page faults. Linux with glibc only.

    Args:
        before: bytes of that tensor; for less than 64 MiB nothing happens, for it would take longer than making the tensor.

    Returns:
        Whether anything was handed on.
    """
    return before >= _LARGE and not _kept and hand_back_freed_memory()


def hand_back_freed_memory() -> bool:
    """Hands all memory that nothing uses on to the system, also where this process keeps it (`keep_freed_memory`).

    For servers, every now and then: among results that stay for a while, free blocks become ever more. Linux with glibc only.

    Returns:
        Whether anything was handed on.
    """
    if not _has_glibc():
        return False
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return False
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return trim(0) == 1


def memory_is_kept() -> bool:
    """Whether this process keeps freed memory: whether `keep_freed_memory` was called and could do it."""
    return bool(_kept)


def _wanted() -> bool:
    return os.environ.get(OPT_OUT, "1") != "0" and _has_glibc()


def _has_glibc() -> bool:
    return sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc"


def _set_glibc() -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    # Large blocks come from the heap, too, where they can be used again, and the heap is not cut back at its end.
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _LARGEST))
    return all(mallopt(name, value) == 1 for name, value in settings)
