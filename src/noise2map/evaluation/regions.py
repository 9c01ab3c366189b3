"""Regions that are scored apart: what can be seen in the input, and what cannot."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

REGIONS = ("visible", "hidden", "out_of_range")
"""Names of the regions; their places are the numbers of a bird's-eye view's visibility."""


def regions_of(sample: Mapping[str, Any]) -> dict[str, Tensor]:
    """Regions of a raw sample by name, bool ``(H, W)``; none where nothing says what is hidden.

    ``hidden`` ``(H, W)`` is True where the image was covered; ``visibility`` ``(X, Y)`` is 0 where a cell is seen, 1 where
    something stands before it, 2 where it is out of range.

    Raises:
        ValueError: If a visibility is none of these.
    """
    found: dict[str, Tensor] = {}
    if sample.get("hidden") is not None:
        hidden = torch.as_tensor(sample["hidden"]).bool()
        found = {"visible": ~hidden, "hidden": hidden}
    if sample.get("visibility") is not None:
        visibility = torch.as_tensor(sample["visibility"])
        if bool((visibility >= len(REGIONS)).any()):
            raise ValueError(f"sample {sample.get('id', '?')!r} has visibility {int(visibility.max())}; expected 0 to 2")
        found = {name: visibility == number for number, name in enumerate(REGIONS)}
    return found
