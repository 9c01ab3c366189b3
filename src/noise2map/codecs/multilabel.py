"""Codec for maps of non-exclusive layers (bird's-eye-view maps): the mean of one embedding for each layer (DDP, BEV task)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from noise2map.codecs.base import MapCodec


class MultiLabelCodec(MapCodec):
    """K binary layers <-> one learnt signal.

    A table holds a row for "absent" (row 0, shared) and one for each layer (row k + 1). A pixel's signal is the mean of its K
    rows, squashed by a sigmoid: ``(2 sigmoid(mean) - 1) * scale``.

    Args:
        num_labels: number of layers K.
        channels: channels of the signal.
        scale: largest absolute value of the signal.
        threshold: a layer is present where its predicted probability is above this.
    """

    def __init__(self, num_labels: int, channels: int, scale: float = 0.01, threshold: float = 0.5) -> None:
        """Makes a table ``(K + 1, C)`` drawn from N(0, 1).

        Raises:
            ValueError: if there is no layer or the threshold is not a probability.
        """
        super().__init__(channels, scale)
        if num_labels < 1:
            raise ValueError(f"num_labels is {num_labels!r}; expected at least 1")
        if not 0 < threshold < 1:
            raise ValueError(f"threshold is {threshold!r}; expected a probability between 0 and 1")
        self.num_labels, self.threshold = num_labels, threshold
        self.embedding = nn.Embedding(num_labels + 1, channels)

    def encode(self, target: Tensor) -> Tensor:
        """Layers ``(B, K, h, w)`` of 0 and 1 -> signal ``(B, C, h, w)``.

        Raises:
            ValueError: if there is another number of layers or a value that is neither 0 nor 1.
        """
        if target.ndim != 4 or target.shape[1] != self.num_labels:
            raise ValueError(f"layers have shape {tuple(target.shape)}; expected (B, {self.num_labels}, h, w)")
        if not bool(((target == 0) | (target == 1)).all()):
            raise ValueError("layers hold values other than 0 and 1; expected one binary mask for each layer")
        return self._encode_rows(target)

    def _encode_rows(self, present: Tensor) -> Tensor:
        rows = present.long() * torch.arange(1, self.num_labels + 1, device=present.device)[:, None, None]
        mean = functional.embedding(rows, self.embedding.weight).mean(1).movedim(-1, 1)
        return (mean.sigmoid() * 2 - 1) * self.scale

    def decode(self, signal: Tensor) -> Tensor:
        """Signal ``(B, C, h, w)`` -> layers ``(B, K, h, w)`` of 0 and 1, by least squares on the unsquashed signal.

        Exact for a clean signal if the K differences between a layer's row and the absent row are linearly independent (K <= C).
        """
        table = self.embedding.weight.double()
        total = torch.logit((signal.double() / self.scale + 1) / 2, eps=1e-9).movedim(1, -1) * self.num_labels
        differences = table[1:] - table[:1]
        share = (total - self.num_labels * table[0]) @ torch.linalg.pinv(differences)
        return (share > 0.5).long().movedim(-1, 1)

    def encode_prediction(self, prediction: Tensor) -> Tensor:
        """Logits ``(B, K, h, w)`` -> signal of the layers whose probability exceeds the threshold ``(B, C, h, w)``."""
        return self._encode_rows(prediction.sigmoid() > self.threshold)


class BinaryLayersCodec(MapCodec):
    """K binary layers <-> K channels: ``scale`` where a layer is present, ``-scale`` where not.

    Args:
        num_labels: number of layers K.
        scale: largest absolute value of the signal.
        threshold: a layer is present where its predicted probability is above this.
    """

    def __init__(self, num_labels: int, scale: float = 1.0, threshold: float = 0.5) -> None:
        """Stores the sizes.

        Raises:
            ValueError: if there is no layer or the threshold is not a probability.
        """
        super().__init__(num_labels, scale)
        if num_labels < 1:
            raise ValueError(f"num_labels is {num_labels!r}; expected at least 1")
        if not 0 < threshold < 1:
            raise ValueError(f"threshold is {threshold!r}; expected a probability between 0 and 1")
        self.num_labels, self.threshold = num_labels, threshold

    def encode(self, target: Tensor) -> Tensor:
        """Layers ``(B, K, h, w)`` of 0 and 1, or probabilities in between -> signal ``(B, K, h, w)``.

        Raises:
            ValueError: if there is another number of layers or a value outside [0, 1].
        """
        if target.ndim != 4 or target.shape[1] != self.num_labels:
            raise ValueError(f"layers have shape {tuple(target.shape)}; expected (B, {self.num_labels}, h, w)")
        if not bool(((target >= 0) & (target <= 1)).all()):
            raise ValueError("layers hold values outside [0, 1]; expected one mask for each layer")
        return (target.to(torch.promote_types(target.dtype, torch.float32)) * 2 - 1) * self.scale

    def decode(self, signal: Tensor) -> Tensor:
        """Signal ``(B, K, h, w)`` -> layers ``(B, K, h, w)`` of 0 and 1."""
        return (signal > 0).long()

    def encode_prediction(self, prediction: Tensor) -> Tensor:
        """Logits ``(B, K, h, w)`` -> signal of the layers whose probability exceeds the threshold."""
        return self.encode((prediction.sigmoid() > self.threshold).float())
