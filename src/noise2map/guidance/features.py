"""Reads the activations of a U-Net's decoder, counted as ADM counts its output blocks (DAG, Sec. 3.2).

With ``R`` residual blocks for each level of the encoder, the decoder has ``R + 1`` for each level, deepest level first; block
``k`` is the ``k``-th of them, together with what follows it: its attention, and the upsampling at the end of a level.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

STRONG_BLOCKS = (2, 4, 5, 6, 7)

WEAK_BLOCKS = (6,)

_UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")


@dataclass(frozen=True)
class DecoderBlock:
    """Where the activation of one decoder block is found.

    Attributes:
        name: path of the module whose output it is.
        module: the module.
        channels: its channels.
    """

    name: str
    module: nn.Module
    channels: int


def decoder_blocks(unet: UNet2DModel) -> dict[int, DecoderBlock]:
    """All decoder blocks of a U-Net by ADM index.

    The output of block ``k`` is that of the last of its modules: the upsampler if it ends a level, else the attention (which
    includes the residual) if the level has one, else the residual block. The last block of a level therefore has the next
    level's size.

    Raises:
        ValueError: if it is not a `UNet2DModel`, or has decoder blocks of a kind that this rule does not describe.
    """
    if not isinstance(unet, UNet2DModel):
        raise ValueError(f"the U-Net is a {type(unet).__name__}; expected a diffusers UNet2DModel")
    blocks: dict[int, DecoderBlock] = {}
    for i, up in enumerate(unet.up_blocks):
        if type(up).__name__ not in _UP_BLOCKS:
            raise ValueError(f"decoder block {i} is a {type(up).__name__}; expected one of {', '.join(_UP_BLOCKS)}")
        attentions = getattr(up, "attentions", None)
        for j, resnet in enumerate(up.resnets):
            part, module = f"resnets.{j}", resnet
            if attentions is not None:
                part, module = f"attentions.{j}", attentions[j]
            if j == len(up.resnets) - 1 and up.upsamplers is not None:
                part, module = "upsamplers.0", up.upsamplers[0]
            blocks[len(blocks)] = DecoderBlock(f"up_blocks.{i}.{part}", module, resnet.out_channels)
    return blocks


def block_channels(unet: UNet2DModel, blocks: Iterable[int]) -> dict[int, int]:
    """Channels of the given decoder blocks, in ascending order of the blocks.

    Raises:
        ValueError: naming the blocks that the U-Net lacks.
    """
    found = decoder_blocks(unet)
    return {k: found[k].channels for k in check_blocks(blocks, len(found))}


def check_blocks(blocks: Iterable[int], count: int) -> tuple[int, ...]:
    """The blocks in ascending order.

    Raises:
        ValueError: if there are none, one is repeated, or one lies outside ``0..count - 1``.
    """
    chosen = tuple(blocks)
    if not chosen or len(set(chosen)) != len(chosen):
        raise ValueError(f"blocks are {chosen}; expected at least one, each once")
    missing = [k for k in chosen if isinstance(k, bool) or not isinstance(k, int) or not 0 <= k < count]
    if missing:
        raise ValueError(f"the U-Net has decoder blocks 0..{count - 1}; it lacks the requested {missing}")
    return tuple(sorted(chosen))


def channels_last_on_cpu(unet: UNet2DModel) -> None:
    """Lays the weights of a U-Net on a CPU out with the channels last, so that activations are so, too.

    Convolutions are faster so, and equal up to rounding. Elsewhere nothing changes.
    """
    if unet.device.type == "cpu":
        unet.to(memory_format=torch.channels_last)


class UNetFeatureTap:
    """Context manager that reads decoder activations of every forward pass of a U-Net.

    ```python
    with UNetFeatureTap(unet, blocks=(2, 4, 5, 6, 7)) as tap:
        noise = unet(x_t, t).sample
    tap.features[6]                        # (B, C, h, w)
    ```

    The activations are those of the last forward pass and belong to its graph. Recomputation by gradient checkpointing is not
    a forward pass and changes nothing. The hooks are removed when the context ends, also by an error.

    Attributes:
        features: block index -> activation ``(B, C(k), H(k), W(k))``, in ascending order.
    """

    def __init__(self, unet: UNet2DModel, blocks: Iterable[int] = STRONG_BLOCKS, *, grad_until: int | None = None) -> None:
        """Chooses the blocks; nothing is hooked before the context is entered.

        Args:
            unet: any `UNet2DModel`.
            blocks: ADM indices of the decoder blocks to read.
            grad_until: last block that needs a graph. What follows it runs without one, the output included, which saves its
                activation memory: at 256 px the decoder after block 7 holds two thirds of a U-Net's operations and its largest
                maps.

        Raises:
            ValueError: if the U-Net lacks a block.
        """
        points = decoder_blocks(unet)
        self.unet = unet
        self.blocks = check_blocks(blocks, len(points))
        self.grad_until = None if grad_until is None else check_blocks([grad_until], len(points))[0]
        self.features: dict[int, Tensor] = {}
        self._points = points
        self._handles: list[RemovableHandle] = []
        self._running = False
        self._had_grad: bool | None = None

    def __enter__(self) -> "UNetFeatureTap":
        """Hooks the U-Net."""
        if self._handles:
            raise RuntimeError("this feature tap is open already")
        try:
            self._handles.append(self.unet.register_forward_pre_hook(self._begin))
            self._handles.append(self.unet.register_forward_hook(self._end, always_call=True))
            for k in self.blocks:
                self._handles.append(self._points[k].module.register_forward_hook(self._reader(k)))
            if self.grad_until is not None:
                self._handles.append(self._points[self.grad_until].module.register_forward_hook(self._stop_grad))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Removes the hooks."""
        self.close()

    def close(self) -> None:
        """Removes the hooks; the features read so far stay."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._running = False

    def _begin(self, module: nn.Module, args: Any) -> None:
        self.features = {}
        self._running = True
        self._had_grad = None

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running = False
        if self._had_grad is not None:
            torch.set_grad_enabled(self._had_grad)
            self._had_grad = None

    def _reader(self, k: int) -> Any:
        def read(module: nn.Module, args: Any, output: Tensor) -> None:
            if self._running:
                self.features[k] = output

        return read

    def _stop_grad(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if self._running:
            self._had_grad = torch.is_grad_enabled()
            torch.set_grad_enabled(False)


_VALUES = 32


def unet_signature(unet: UNet2DModel) -> list[float]:
    """Weights of the first and the last convolution, evenly spaced: 64 numbers."""
    parts = []
    for layer in (unet.conv_in, unet.conv_out):
        flat = layer.weight.detach().flatten().float().cpu()
        parts.append(flat[torch.linspace(0, flat.numel() - 1, _VALUES).long()])
    return [round(value, 6) for value in torch.cat(parts).tolist()]


def signature_distance(first: Sequence[float], second: Sequence[float]) -> float:
    """Length of the difference, relative to the length of the first: 0 for the same weights, about 1.4 for unrelated ones.

    Raises:
        ValueError: if the lengths differ.
    """
    a, b = torch.tensor(list(first)), torch.tensor(list(second))
    if a.shape != b.shape:
        raise ValueError(f"signatures have {a.numel()} and {b.numel()} numbers; expected the same")
    return ((a - b).norm() / a.norm().clamp(min=1e-12)).item()
