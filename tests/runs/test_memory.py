"""Freed memory is kept: counted in page faults, which a process has none of where its pages were kept."""

import subprocess
import sys

import pytest

from noise2map.runs import memory

COUNT = """
import resource
import torch
if {keep}:
    from noise2map import keep_freed_memory
    assert keep_freed_memory() == {expected}
torch.set_num_threads(1)
def work():
    torch.ones(24 * 2**20, dtype=torch.uint8)  # above the threshold up to which glibc learns to keep blocks by itself
    torch.ones(40 * 2**20, dtype=torch.uint8)
for _ in range(10):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep, expected=True, **environment):
    import os

    variables = {**os.environ, **environment}
    variables.pop("MALLOC_TRIM_THRESHOLD_", None)
    code = COUNT.format(keep=keep, expected=expected)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=variables).stdout)


@pytest.mark.skipif(not memory._wanted(), reason="glibc only")
def test_steps_of_a_process_that_keeps_its_memory_have_no_page_faults():
    usual, kept = faults(keep=False), faults(keep=True)
    assert kept < usual / 10


@pytest.mark.skipif(not memory._wanted(), reason="glibc only")
def test_it_can_be_switched_off():
    assert faults(keep=True, expected=False, NOISE2MAP_KEEP_FREED_MEMORY="0") > 10 * max(1, faults(keep=True))


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr(memory, "_kept", None)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory.keep_freed_memory() is False
    monkeypatch.setattr(memory, "_kept", None)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))  # musl
    assert memory.keep_freed_memory() is False


RELEASE = """
import ctypes
from noise2map.runs import memory

library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
blocks = [library.malloc(100_000) for _ in range(1000)]  # below the size from which blocks are mapped one by one
for block in blocks:
    ctypes.memset(block, 1, 100_000)
full = memory.resident_bytes()
for block in blocks[:-1]:  # the last one holds the heap's end where it is
    library.free(block)
print(full - memory.resident_bytes(), memory.release_freed_memory(2**20), full - memory.resident_bytes())
print(memory.release_freed_memory(2**30), full - memory.resident_bytes())
memory.keep_freed_memory()
print(memory.release_freed_memory(2**30))
"""


@pytest.mark.skipif(not memory._wanted(), reason="glibc only")
def test_freed_blocks_below_one_in_use_are_handed_back_before_a_large_tensor():
    found = subprocess.run([sys.executable, "-c", RELEASE], capture_output=True, text=True, check=True).stdout.split()
    before, small, after_small, large, after_large, kept = found
    assert (small, large, kept) == ("False", "True", "False")
    assert int(before) < 10e6 and int(after_small) < 10e6 < 90e6 < int(after_large)


@pytest.mark.skipif(not memory._wanted(), reason="glibc only")
def test_a_server_hands_back_what_its_process_keeps():
    # The blocks of the test above, in a process that keeps freed memory from its start.
    start = RELEASE[: RELEASE.index("print(full")]
    script = f"""{start.replace("full =", "memory.keep_freed_memory(); full =")}
kept = full - memory.resident_bytes()
print(kept, memory.hand_back_freed_memory(), full - memory.resident_bytes())
"""
    kept, said, after = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert said == "True" and int(kept) < 10e6 < 90e6 < int(after)
