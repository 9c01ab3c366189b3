"""Enlarging class scores without holding them at full size: 150 classes of a 12-megapixel photo would be 7 GB."""

import torch
from torch import Tensor
from torch.nn import functional

_STRIP_FLOATS = 16 * 2**20


def resized_argmax(logits: Tensor, size: tuple[int, int], strip_floats: int = _STRIP_FLOATS) -> Tensor:
    """Class map at another size: bilinear enlargement and argmax, one strip of rows after the other.

    Args:
        logits: ``(K, h, w)``.
        size: ``(H, W)`` of the map.
        strip_floats: How many floats a strip may hold.

    Returns:
        Class ids ``(H, W)`` int64, equal to ``interpolate(..., mode="bilinear", align_corners=False).argmax(0)``.
    """
    classes, height, _ = logits.shape
    rows, columns = size
    wide = functional.interpolate(logits[None].float(), size=(height, columns), mode="bilinear", align_corners=False)[0]
    if rows == height:
        return wide.argmax(0)
    position = ((torch.arange(rows, dtype=torch.float64) + 0.5) * (height / rows) - 0.5).clamp(0, height - 1)
    above = position.floor().long()
    below = (above + 1).clamp(max=height - 1)
    weight = (position - above).to(wide)[None, :, None]
    labels = torch.empty(size, dtype=torch.long, device=logits.device)
    strip = max(1, strip_floats // (classes * columns))
    for start in range(0, rows, strip):
        part = slice(start, start + strip)
        blended = torch.lerp(wide[:, above[part]], wide[:, below[part]], weight[:, part])
        labels[part] = blended.argmax(0)
    return labels
