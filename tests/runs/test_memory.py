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
