"""Which parameters get weight decay."""

import re
from collections.abc import Sequence

from torch import nn

# Patterns of the published runs, by our names. They match the word "norm" in the names of the public code, and in segmentation a
# rule for "head" wins over it: there the norms of the map decoder are decayed, and in both tasks so are all norms whose name lacks
# the word (pyramid, auxiliary head, stem and downsampling of ConvNeXt).
_BACKBONE_NORMS = r"^encoder\.backbone\.(swin\..*norm|hidden_states_norms\.|encoder\.stages\.\d+\.layers\.\d+\.layernorm\.)"
PUBLISHED_RULES = {
    "ddp-segmentation": [_BACKBONE_NORMS],
    "ddp-depth": [_BACKBONE_NORMS, r"relative_position_bias_table$", r"^decoder\.layers\.\d+\.(attention|ffn)_norm\."],
}

_UNDECAYED_MODULES = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm, nn.Embedding)


def decayed_parameters(model: nn.Module, no_decay: str | Sequence[str] = "norms") -> list[str]:
    """Names of the parameters that weight decay shrinks.

    Args:
        model: any module.
        no_decay: ``"norms"`` exempts normalisations, embedding tables, biases and every other vector or scalar (layer
            scales); ``"none"`` exempts nothing; ``"ddp-segmentation"`` and ``"ddp-depth"`` exempt what the published runs do
            (Swin and ConvNeXt); a list of regular expressions exempts the names that one of them matches (searched anywhere
            in the name).

    Raises:
        ValueError: for another string, a pattern that is not a regular expression, or a published rule that matches no norm of
            the model's backbone.
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
        if no_decay not in PUBLISHED_RULES:
            rules = ", ".join(map(repr, PUBLISHED_RULES))
            raise ValueError(f"no_decay is {no_decay!r}; expected 'norms', 'none', {rules} or a list of regular expressions")
        if not any(re.search(_BACKBONE_NORMS, name) for name in names):
            raise ValueError(f"no_decay is {no_decay!r}, which knows the norms of Swin and ConvNeXt; this model has neither")
        no_decay = PUBLISHED_RULES[no_decay]
    try:
        patterns = [re.compile(pattern) for pattern in no_decay]
    except re.error as error:
        raise ValueError(f"no_decay pattern {error.pattern!r} is not a regular expression: {error}") from None
    return [name for name in names if not any(pattern.search(name) for pattern in patterns)]
