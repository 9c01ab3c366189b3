"""Base class of codecs: a map in physical units or class ids <-> a signal in ``[-scale, scale]`` that diffusion can corrupt."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class MapCodec(nn.Module, ABC):
    """Translates between maps and signals.

    The scale sets the signal-to-noise ratio: the smaller it is, the less of the map survives a given noise level, and the more
    the decoder must rely on the image (DDP, Sec. 3.3).

    Attributes:
        channels: channels of the signal.
        scale: largest absolute value of the signal.
        relative_std: standard deviation of typical signals as a share of the scale.
    """

    relative_std = 1.0

    def __init__(self, channels: int, scale: float) -> None:
        """Stores the sizes.

        Raises:
            ValueError: if ``scale`` is not a positive number.
        """
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale is {scale!r}; expected a positive number")
        self.channels = channels
        self.scale = float(scale)

    @abstractmethod
    def encode(self, target: Tensor) -> Tensor:
        """Map ``(B, h, w)`` or ``(B, K, h, w)`` -> signal ``(B, C, h, w)`` in ``[-scale, scale]``."""

    @abstractmethod
    def decode(self, signal: Tensor) -> Tensor:
        """Signal ``(B, C, h, w)`` -> the map whose encoding is nearest."""

    @abstractmethod
    def encode_prediction(self, prediction: Tensor) -> Tensor:
        """Prediction of the model (logits or metres, ``(B, K, h, w)``) -> signal ``(B, C, h, w)``."""

    def encode_readout(self, readout: Tensor, *further: Tensor) -> Tensor:
        """`encode_prediction` by its former name."""
        return self.encode_prediction(readout, *further)
