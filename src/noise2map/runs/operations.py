"""Floating-point operations of a call: a cost that is the same on every machine."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class _Operations(TorchDispatchMode):
    """Counts floating-point operations, forward and backward (PyTorch's own counter refuses ``autograd.grad`` to a leaf)."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet not in flop_registry and func is not torch.ops.prim.device.default:
            with self:  # attention is counted by its parts where it has no rule of its own
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if packet in flop_registry:
            self.total += flop_registry[packet](*args, **kwargs, out_val=result)
        return result


def count_operations(call: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products, convolutions and attentions of a call, backward passes in it included."""
    with _Operations() as operations:
        call()
    return operations.total
