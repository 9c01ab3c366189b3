"""Bilinear resizing: of predictions, the one rule of training, sampling and scoring, and of batches of images."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

STRIP_FLOATS = 4 * 2**20
"""How many floats of a map at full size are held at a time: few enough to stay near the processor while they are read."""


def resize_map(x: Tensor, *sizes: tuple[int, int]) -> Tensor:
    """Bilinear resize of ``(B, K, h, w)`` to one size after the other, pixel areas aligned, as in the published code."""
    for size in sizes:
        if x.shape[-2:] != size:
            # A head's scores lie pixel by pixel; for many channels that kernel takes four times as long as the one for planes.
            x = functional.interpolate(x.contiguous(), size=size, mode="bilinear", align_corners=False)
    return x


def resize_logits(logits: Tensor, *sizes: tuple[int, int], log_probabilities: bool = False) -> Tensor:
    """Class scores ``(B, K, h, w)`` at another size; logarithms of averaged probabilities are resized as probabilities."""
    if not log_probabilities:
        return resize_map(logits, *sizes)
    p, least = resize_map(logits.exp(), *sizes), torch.finfo(logits.dtype).tiny
    # In place where no gradient needs what was before: all classes at full size are the largest thing that there is.
    return p.clamp(min=least).log() if p.requires_grad else p.clamp_(min=least).log_()


def resized_strips(values: Tensor, *sizes: tuple[int, int], strip_floats: int = STRIP_FLOATS) -> Iterator[Tensor]:
    """`resize_map` a strip of rows at a time, for maps of many channels that would not fit in memory at full size.

    Args:
        values: ``(K, h, w)``.
        *sizes: heights and widths, to be brought to one after the other; maps in between are made by strips, too.
        strip_floats: How many floats a strip may hold.

    Yields:
        Rows ``(K, n, W)`` from the top down.
    """
    rows = sizes[-1][0] if sizes else values.shape[-2]
    pixels = max((height * width for height, width in sizes), default=values[0].numel())
    strip = max(1, strip_floats * rows // (len(values) * pixels))
    values = values.float().contiguous()
    for start in range(0, rows, strip):
        yield _resized_rows(values, sizes, start, min(start + strip, rows))


def _resized_rows(values: Tensor, sizes: Sequence[tuple[int, int]], start: int, stop: int) -> Tensor:
    """Rows ``start`` to ``stop`` of the resized map, ``(K, n, W)``; of what comes before it only the rows that they are made of."""
    if not sizes:
        return values[:, start:stop]
    *before, (height, width) = sizes
    source_height = before[-1][0] if before else values.shape[-2]
    position = ((torch.arange(start, stop, dtype=torch.float64) + 0.5) * (source_height / height) - 0.5).clamp(0, source_height - 1)
    above = position.floor().long()
    below = (above + 1).clamp(max=source_height - 1)
    first, last = int(above[0]), int(below[-1]) + 1
    source = _resized_rows(values, before, first, last)
    ratio, rest = divmod(height, source_height)
    if not rest:  # a part of the rows, enlarged by itself, has the very rows of the whole
        part = resize_map(source[None], ((last - first) * ratio, width))[0]
        return part[:, start - first * ratio : stop - first * ratio]
    wide = resize_map(source[None], (last - first, width))[0]
    weight = (position - above).to(wide)[None, :, None]
    return torch.lerp(wide[:, above - first], wide[:, below - first], weight)


class UncertainMaps:
    """What the outputs of all map models have in common: maps of uncertainty that can be brought to another size."""

    uncertainties: dict[str, Tensor] | None

    def uncertainties_at(
        self, *sizes: tuple[int, int], rows: Sequence[int] | None = None, kinds: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Maps of uncertainty at another size.

        What follows from the map itself is computed anew from the resized map, as the map is read there; counts and variances over
        steps or samples are resized.

        Args:
            *sizes: heights and widths, to be brought to one after the other.
            rows: images that are asked for; all by default.
            kinds: names that are asked for; all by default.

        Returns:
            Every kind that is defined for the run, by name, ``(b, H, W)`` in [0, 1].
        """
        known = self.uncertainties or {}
        wanted = [name for name in known if kinds is None or name in kinds]
        return {name: self._resized(known[name], sizes, rows).clamp(0, 1) for name in wanted}

    @staticmethod
    def _resized(value: Tensor, sizes: Sequence[tuple[int, int]], rows: Sequence[int] | None) -> Tensor:
        """Some maps ``(B, h, w)``, resized."""
        chosen = value if rows is None else value[list(rows)]
        return resize_map(chosen.unsqueeze(1).float(), *sizes).squeeze(1)


def normalized_pixels(images: Tensor, size: tuple[int, int], mean: Any, std: Any) -> Tensor:
    """Images `(B, 3, H, W)` uint8 resized and normalized, float32.

    Args:
        images: The images.
        size: Height and width after resizing.
        mean: Of each channel, of values in [0, 1].
        std: Likewise.
    """
    values = images.float() / 255
    if tuple(size) != tuple(images.shape[-2:]):
        values = functional.interpolate(values, size=size, mode="bilinear", align_corners=False, antialias=True)
    mean, std = (torch.tensor(x, device=images.device)[:, None, None] for x in (mean, std))
    return (values - mean) / std
