"""Fast formulations, each checked against a plain one."""

import torch


def exporting() -> bool:
    """Whether `torch.export` is tracing: a graph for elsewhere holds plain operators alone, no formulation of our own."""
    is_exporting = getattr(torch.compiler, "is_exporting", None)  # releases before 2.7 cannot say, and need not
    return is_exporting is not None and bool(is_exporting())
