"""Freed memory that stays with the process, so that the next step of a model does not fetch its pages anew."""

import ctypes
import os
import platform
import sys

OPT_OUT = "NOISE2MAP_KEEP_FREED_MEMORY"
"""Environment variable: with ``0`` the C library goes on as it likes."""

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_LARGEST = 2**31 - 1  # the settings are C ints

_kept: bool | None = None


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


def memory_is_kept() -> bool:
    """Whether this process keeps freed memory: whether `keep_freed_memory` was called and could do it."""
    return bool(_kept)


def _wanted() -> bool:
    return os.environ.get(OPT_OUT, "1") != "0" and sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc"


def _set_glibc() -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    # Large blocks come from the heap, too, where they can be used again, and the heap is not cut back at its end.
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _LARGEST))
    return all(mallopt(name, value) == 1 for name, value in settings)
