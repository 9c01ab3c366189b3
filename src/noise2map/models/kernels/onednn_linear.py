"""Linear layers of inference on x86 CPUs through oneDNN, with what surrounds them fused in.

PyTorch hands float32 matrix products to MKL, which on processors of another maker runs at about half the rate of oneDNN; and
oneDNN can add the residual or apply GELU while a result is still in cache. The feed-forward block goes through the tokens in
blocks, so that its wide inner activation never leaves the cache. Everywhere else (gradients, autocast, other devices and types)
the functions are the plain PyTorch ones; the numbers are the same up to rounding. They are custom operators, so that
``torch.compile`` calls them as they are.
"""

import platform
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noise2map.models.kernels import exporting

# Tokens that go through the feed-forward block together: 8 MiB of inner activation at 1024 channels in float32.
_BLOCK = 2048

_linear_pointwise: Callable[..., Tensor] | None = None
if platform.machine().lower() in ("x86_64", "amd64") and torch.backends.mkldnn.is_available():
    _linear_pointwise = getattr(torch.ops.mkldnn, "_linear_pointwise", None)

# oneDNN multiplies bfloat16 only where the processor has instructions for it (AVX-512 or newer), and raises elsewhere.
_HAS_BFLOAT16 = _linear_pointwise is not None and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def available(x: Tensor, *parameters: Tensor | None) -> bool:
    """True if oneDNN can take over: x86 CPU, float32 (bfloat16 where it has it), no gradient to keep, no autocast, no export."""
    tensors = [x, *(parameter for parameter in parameters if parameter is not None)]
    return (
        _linear_pointwise is not None
        and (x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and _HAS_BFLOAT16))
        and x.numel() > 0
        and all(tensor.device.type == "cpu" and tensor.dtype == x.dtype for tensor in tensors)
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        and not torch.is_autocast_enabled("cpu")
        and not exporting()
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``, ``(..., C_in) -> (..., C_out)``."""
    if available(x, weight, bias):
        return onednn_linear(x, weight, bias, None)
    return F.linear(x, weight, bias)


def apply_linear(layer: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """``layer(x) (+ residual)``."""
    if _is_plain(layer) and available(x, layer.weight, layer.bias, residual):
        return onednn_linear(x, layer.weight, layer.bias, residual)
    y = layer(x)
    return y if residual is None else y + residual


def feed_forward(x: Tensor, linear_in: nn.Module, linear_out: nn.Module) -> Tensor:
    """``x + linear_out(gelu(linear_in(x)))``, ``(..., C) -> (..., C)``."""
    if _is_plain(linear_in) and _is_plain(linear_out):
        parameters = linear_in.weight, linear_in.bias, linear_out.weight, linear_out.bias
        if available(x, *parameters):
            return onednn_feed_forward(x, *parameters)
    return x + linear_out(F.gelu(linear_in(x)))


def _is_plain(layer: nn.Module) -> bool:
    """A linear layer that nobody has replaced by an adapter or is listening to."""
    return type(layer) is nn.Linear and not layer._forward_hooks and not layer._forward_pre_hooks


@torch.library.custom_op("noise2map::onednn_linear", mutates_args=())
def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """See `apply_linear`."""
    assert _linear_pointwise is not None
    # A weight that is a slice of columns would fall to the reference kernel, four orders of magnitude slower.
    x, weight = x.contiguous(), weight.contiguous()
    if residual is None:
        return _linear_pointwise(x, weight, bias, "none", [], "")
    return _linear_pointwise.binary(x, residual.contiguous(), weight, bias, "add")


@onednn_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("noise2map::onednn_feed_forward", mutates_args=())
def onednn_feed_forward(
    x: Tensor,
    weight_in: Tensor,
    bias_in: Tensor,
    weight_out: Tensor,
    bias_out: Tensor,
) -> Tensor:
    """See `feed_forward`."""
    assert _linear_pointwise is not None
    tokens = x.reshape(-1, x.shape[-1])
    result = torch.empty_like(tokens)
    for start in range(0, len(tokens), _BLOCK):
        block = tokens[start : start + _BLOCK]
        inner = _linear_pointwise(block, weight_in, bias_in, "gelu", [], "none")
        result[start : start + _BLOCK] = _linear_pointwise.binary(inner, block, weight_out, bias_out, "add")
    return result.view(x.shape)


@onednn_feed_forward.register_fake
def _(
    x: Tensor,
    weight_in: Tensor,
    bias_in: Tensor,
    weight_out: Tensor,
    bias_out: Tensor,
) -> Tensor:
    return x.new_empty(x.shape)
