"""The process of a command: its threads and what it prints."""

import os
import sys


def share_processor() -> None:
    """On a busy machine, let idle OpenMP threads sleep instead of spinning.

    A thread that spins at a barrier for a partner that is not running takes the core the partner waits for: with more
    load than cores a decoder step was measured to take four to eight times longer. Must be set before torch is imported.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 0.75 * (os.cpu_count() or 1) and "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def hide_progress_of_files() -> None:
    """No bars of loading and writing weights between those of training."""
    from transformers.utils import logging

    logging.disable_progress_bar()
