"""Shared by all tests: nothing goes to the network, no display is needed, slow tests are asked for."""

import collections
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: more threads only wait, and two workers share the cores

import pytest


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


# The files that take longest, in falling order. Each runs on one worker: begun last, it would keep the others waiting.
LONGEST_FIRST = (
    "models/bev/test_golden_bev.py",
    "test_docs.py",
    "export/test_export.py",
    "inference/test_whole_image_memory.py",
    "training/test_distributed.py",
    "bench/test_bench_model.py",
    "training/test_official_launch.py",
    "generation/test_loading_generators.py",
)


def pytest_collection_modifyitems(config, items):
    tests = Path(__file__).parent
    places = {tests / name: place for place, name in enumerate(LONGEST_FIRST)}
    count = collections.Counter(item.path for item in items)
    items.sort(key=lambda item: (places.get(item.path, len(places)), -count[item.path]))
    if config.getoption("--slow") or config.getoption("-m"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: add --slow or -m slow"))
