"""Codecs for class maps: one-hot, analog bits and learnt class embedding (DDP, Sec. 3.3, "Label encoding").

All three are a table of codes, one row for each class and a last one for the ignore label; they differ in how the table comes
about.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from noise2map.codecs.base import MapCodec


class CategoricalCodec(MapCodec):
    """Base of the class-map codecs.

    Args:
        num_labels: number of classes K.
        channels: channels of the signal.
        scale: largest absolute value of the signal.
        ignore_index: label of unknown pixels; encoded as row K of the table.
    """

    def __init__(self, num_labels: int, channels: int, scale: float, ignore_index: int) -> None:
        """Stores the sizes.

        Raises:
            ValueError: if there is no class, or the ignore label is one of the classes.
        """
        if num_labels < 1:
            raise ValueError(f"num_labels is {num_labels!r}; expected at least 1")
        if 0 <= ignore_index < num_labels:
            raise ValueError(f"ignore_index {ignore_index} is one of the {num_labels} class ids; expected another value")
        super().__init__(channels, scale)
        self.num_labels = num_labels
        self.ignore_index = ignore_index

    @classmethod
    def create(cls, num_labels: int, width: int, scale: float, ignore_index: int) -> "CategoricalCodec":
        """A codec whose signal is at most ``width`` channels wide where the encoding leaves the number open."""
        return cls(num_labels, scale=scale, ignore_index=ignore_index)  # type: ignore[call-arg]

    @abstractmethod
    def codes(self) -> Tensor:
        """Table of codes ``(K + 1, C)`` in ``[-scale, scale]``; row K stands for the ignore label."""

    def encode(self, target: Tensor, codes: Tensor | None = None) -> Tensor:
        """Class ids -> signal.

        Args:
            target: ids ``(B, h, w)``, integers in ``[0, K)`` or the ignore label.
            codes: the table, if it was computed before (it does not change between the steps of a run).

        Returns:
            Signal ``(B, C, h, w)``.

        Raises:
            ValueError: if an id is neither a class nor the ignore label.
        """
        self.check(target)
        rows = torch.where(target.long() == self.ignore_index, self.num_labels, target.long())
        return self._look_up(rows, codes)

    def check(self, target: Tensor) -> None:
        """Refuses labels that cannot be encoded.

        Args:
            target: ids, any shape.

        Raises:
            ValueError: if an id is neither a class nor the ignore label.
        """
        if target.is_floating_point():
            raise ValueError(f"labels have type {target.dtype}; expected integer class ids")
        ids = target.long()  # a byte may not hold the ignore label
        bad = ((ids < 0) | (ids >= self.num_labels)) & (ids != self.ignore_index)
        if bool(bad.any()):
            example = int(ids[bad][0])
            raise ValueError(f"labels hold class id {example}; expected 0..{self.num_labels - 1} or {self.ignore_index} (ignore)")

    def _look_up(self, rows: Tensor, codes: Tensor | None) -> Tensor:
        table = self.codes() if codes is None else codes
        return functional.embedding(rows, table).movedim(-1, 1)

    def decode(self, signal: Tensor) -> Tensor:
        """Signal ``(B, C, h, w)`` -> id of the nearest code ``(B, h, w)``; the ignore label where its code is nearest."""
        codes = self.codes().to(signal.dtype) / self.scale
        scaled = signal.movedim(1, -1) / self.scale
        distance = codes.square().sum(-1) - 2 * scaled @ codes.T
        rows = distance.argmin(-1)
        return torch.where(rows == self.num_labels, self.ignore_index, rows)

    def encode_prediction(self, prediction: Tensor, codes: Tensor | None = None) -> Tensor:
        """Logits ``(B, K, h, w)`` -> code of the most likely class ``(B, C, h, w)``."""
        return self._look_up(prediction.argmax(1), codes)


class ClassEmbeddingCodec(CategoricalCodec):
    """Learnt embedding of each class, squashed by a sigmoid: ``(2 sigmoid(table) - 1) * scale``. DDP's default."""

    def __init__(self, num_labels: int, channels: int, scale: float = 0.01, ignore_index: int = 255) -> None:
        """Makes a table ``(K + 1, C)`` drawn from N(0, 1)."""
        super().__init__(num_labels, channels, scale, ignore_index)
        self.embedding = nn.Embedding(num_labels + 1, channels)

    @classmethod
    def create(cls, num_labels: int, width: int, scale: float, ignore_index: int) -> "ClassEmbeddingCodec":
        """A codec whose signal is ``width`` channels wide."""
        return cls(num_labels, width, scale, ignore_index)

    def codes(self) -> Tensor:
        """Table of codes ``(K + 1, C)``, differentiable with respect to the embedding."""
        return (self.embedding.weight.sigmoid() * 2 - 1) * self.scale


class FixedCodec(CategoricalCodec):
    """A codec whose table is computed, not learnt, and so is not part of a checkpoint."""

    def __init__(self, num_labels: int, channels: int, scale: float, ignore_index: int) -> None:
        """Makes the table."""
        super().__init__(num_labels, channels, scale, ignore_index)
        self.register_buffer("table", self.make_table(), persistent=False)
        self.table: Tensor

    @abstractmethod
    def make_table(self) -> Tensor:
        """Codes of -1 and 1, ``(K + 1, C)``."""

    def codes(self) -> Tensor:
        """Table of codes ``(K + 1, C)``."""
        return self.table * self.scale


class OneHotCodec(FixedCodec):
    """One channel for each class: +1 for the pixel's class, -1 elsewhere; the ignore label is -1 in every channel."""

    def __init__(self, num_labels: int, scale: float = 0.01, ignore_index: int = 255) -> None:
        """Makes the table ``(K + 1, K)``."""
        super().__init__(num_labels, num_labels, scale, ignore_index)

    def make_table(self) -> Tensor:
        """Codes of -1 and 1, ``(K + 1, K)``."""
        return torch.eye(self.num_labels + 1)[:, : self.num_labels] * 2 - 1


class AnalogBitsCodec(FixedCodec):
    """Class id as a binary number with digits in {-1, 1}, least significant first (Chen et al. 2023, "Analog Bits").

    The ignore label takes the number K, so there are ``ceil(log2(K + 1))`` channels.
    """

    def __init__(self, num_labels: int, scale: float = 0.01, ignore_index: int = 255) -> None:
        """Makes the table ``(K + 1, ceil(log2(K + 1)))``."""
        super().__init__(num_labels, max(1, num_labels.bit_length()), scale, ignore_index)

    def make_table(self) -> Tensor:
        """Codes of -1 and 1, ``(K + 1, ceil(log2(K + 1)))``."""
        digits = (torch.arange(self.num_labels + 1)[:, None] >> torch.arange(self.channels)) & 1
        return digits.float() * 2 - 1
