"""Which parameters get weight decay."""

import re
from collections.abc import Sequence

from torch import nn

_UNDECAYED_MODULES = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm, nn.Embedding)


def decayed_parameters(model: nn.Module, no_decay: str | Sequence[str] = "norms") -> list[str]:
    """Names of the parameters that weight decay shrinks.

    Args:
        model: any module.
        no_decay: ``"norms"`` exempts normalisations, embedding tables, biases and every other vector or scalar (layer
            scales); ``"none"`` exempts nothing; a list of regular expressions exempts the names that one of them matches
            (searched anywhere in the name).

    Raises:
        ValueError: for another string, or a pattern that is not a regular expression.
    """
    names = [name for name, _ in model.named_parameters()]
    if no_decay == "none":
        return names
    if no_decay == "norms":
        exempt = {
            f"{prefix}.{name}" if prefix else name
            for prefix, module in model.named_modules()
            for name, parameter in module.named_parameters(recurse=False)
            if isinstance(module, _UNDECAYED_MODULES) or parameter.ndim < 2
        }
        return [name for name in names if name not in exempt]
    if isinstance(no_decay, str):
        raise ValueError(f"no_decay is {no_decay!r}; expected 'norms', 'none' or a list of regular expressions")
    try:
        patterns = [re.compile(pattern) for pattern in no_decay]
    except re.error as error:
        raise ValueError(f"no_decay pattern {error.pattern!r} is not a regular expression: {error}") from None
    return [name for name in names if not any(pattern.search(name) for pattern in patterns)]
