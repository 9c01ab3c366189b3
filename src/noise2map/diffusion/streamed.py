"""Fields of noise too large to hold, of which parts are drawn anew when they are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

_BLOCK = 16  # normal numbers that PyTorch makes at a time on a CPU: 8 pairs (Box & Muller 1958)
_MOST_STATES = 4096  # of a field; a state of the generator takes 5 kB
_SHORTEST_STRETCH = 2**14


@dataclass
class _Field:
    """One draw: where it begins, and how to find what is in its middle.

    Attributes:
        shape: ``(R, C, h, w)``.
        stretch: Numbers between two states of the generator.
        states: The generator's states at the beginnings of the stretches.
        end: The last numbers, which PyTorch draws in their own way.
        kept: Rows that were asked for last, ``(top, bottom)`` and the values.
    """

    shape: tuple[int, int, int, int]
    stretch: int
    states: list[Tensor] = field(default_factory=list)
    end: Tensor = field(default_factory=lambda: torch.zeros(0))
    kept: tuple[tuple[int, int], Tensor] | None = None

    @property
    def count(self) -> int:
        """Numbers of the field."""
        return torch.Size(self.shape).numel()


class StreamedNoise:
    """The fields that `draw_noise` would draw one after the other from a generator, without holding them.

    The value of a cell depends on the generator and the shape of the field alone: however a map is cut into tiles, and if it is not
    cut at all, a cell has the same noise. A field is drawn once to find its end and remember the generator's state along the way;
    rows that are asked for are drawn again from the state before them.

    Args:
        generator: On the CPU; it is left as it is.

    Raises:
        ValueError: if the generator is on another device.
    """

    def __init__(self, generator: torch.Generator) -> None:
        if generator.device.type != "cpu":
            raise ValueError(
                f"the generator is on {generator.device}; expected one on the CPU, whose draws can be repeated in parts"
            )
        self._generator = torch.Generator().set_state(generator.get_state())
        self._fields: list[_Field] = []

    def rows(self, index: int, shape: Sequence[int], top: int, bottom: int, keep: bool = True) -> Tensor:
        """Some rows of a field.

        Args:
            index: Which draw of the generator it is, from 0 on; those before it must have been asked for.
            shape: Of the whole field, ``(R, C, h, w)``.
            top: First row.
            bottom: Last row, excluded.
            keep: Hold them until others of the field are asked for.

        Returns:
            ``(R, C, bottom - top, w)`` float32, equal to ``draw_noise(shape, [generator])[0, :, :, top:bottom]`` of that draw.

        Raises:
            ValueError: if fields are asked for out of order or with another shape, or there are no such rows.
        """
        samples, channels, height, width = shape
        if index > len(self._fields):
            raise ValueError(f"field {index} is asked for after {len(self._fields)}; expected them one after the other")
        if not 0 <= top < bottom <= height:
            raise ValueError(f"rows {top} to {bottom} of a field of {height}; expected some within it")
        if index == len(self._fields):
            self._fields.append(self._drawn((samples, channels, height, width)))
        found = self._fields[index]
        if found.shape != tuple(shape):
            raise ValueError(f"field {index} has shape {found.shape}; it is asked for with {tuple(shape)}")
        if found.kept is not None and found.kept[0] == (top, bottom):
            return found.kept[1]
        planes = [
            self._numbers(found, (plane * height + top) * width, (bottom - top) * width) for plane in range(samples * channels)
        ]
        values = torch.stack(planes).view(samples, channels, bottom - top, width)
        if keep:
            found.kept = (top, bottom), values
        return values

    def _drawn(self, shape: tuple[int, int, int, int]) -> _Field:
        """Goes through a field from the generator's present state to its end."""
        count = torch.Size(shape).numel()
        stretch = max(_SHORTEST_STRETCH, -(-count // (_MOST_STATES * _BLOCK)) * _BLOCK)
        found = _Field(shape, stretch)
        if count < _BLOCK:  # numbers of so short a draw are made one by one
            found.end = torch.randn(count, generator=self._generator)
            return found
        whole = count // _BLOCK * _BLOCK
        for start in range(0, whole, stretch):
            found.states.append(self._generator.get_state())
            torch.randn(min(stretch, whole - start), generator=self._generator)
        if count > whole:
            # What does not fill a block is drawn, and thrown away for a last block that overlaps the one before.
            torch.rand(count - whole, generator=self._generator)
            found.end = torch.randn(_BLOCK, generator=self._generator)
        return found

    def _numbers(self, found: _Field, start: int, count: int) -> Tensor:
        """Numbers ``start`` to ``start + count`` of a field, flat."""
        out = torch.empty(count)
        whole = found.count // _BLOCK * _BLOCK if found.count >= _BLOCK else 0
        generator = torch.Generator()
        last = min(start + count, whole)
        for place in range(start // found.stretch, -(-last // found.stretch) if start < last else 0):
            first = place * found.stretch
            generator.set_state(found.states[place])
            drawn = torch.randn(min(found.stretch, whole - first), generator=generator)
            low, high = max(start, first), min(last, first + len(drawn))
            out[low - start : high - start] = drawn[low - first : high - first]
        first = max(start, found.count - len(found.end))
        if len(found.end) and first < start + count:
            skipped = found.count - len(found.end)
            out[first - start :] = found.end[first - skipped : start + count - skipped]
        return out
