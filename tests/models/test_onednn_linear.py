"""oneDNN's linear layers equal PyTorch's, and step aside where they cannot serve."""

import platform

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from noise2map.models import Noise2MapConfig
from noise2map.models.kernels import onednn_linear as fast_linear
from noise2map.models.kernels.onednn_linear import apply_linear, available, feed_forward, linear
from noise2map.models.map_decoder import MapDecoder

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}
# Asked of PyTorch, not of the module: what the module leaves out must fail here, not be skipped.
HAS_ONEDNN = (
    platform.machine().lower() in ("x86_64", "amd64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
needs_onednn = pytest.mark.skipif(not HAS_ONEDNN, reason="no oneDNN for this processor")


def tensors(rows, inner, columns, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = (rows, inner), (columns, inner), (columns,), (rows, columns)
    scales = 1, inner**-0.5, 1, 1
    return [(torch.randn(shape, generator=generator) * scale).to(dtype) for shape, scale in zip(shapes, scales)]


def layer(inner, columns, dtype=torch.float32, bias=True):
    torch.manual_seed(columns)
    return nn.Linear(inner, columns, bias=bias).to(dtype)


def product(x, module):
    """In float64."""
    y = x.double() @ module.weight.double().T
    return y if module.bias is None else y + module.bias.double()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("with_bias", "with_residual"), [(True, True), (True, False), (False, True), (False, False)])
def test_linear_equals_the_product_in_double(dtype, with_bias, with_residual):
    x, _, _, residual = tensors(37, 24, 40, dtype)
    module = layer(24, 40, dtype, with_bias)
    expected = product(x, module) + (residual if with_residual else 0)
    with torch.no_grad():
        out = apply_linear(module, x.view(1, 37, 24), residual.view(1, 37, 40) if with_residual else None)
    assert out.dtype == dtype and out.shape == (1, 37, 40)
    torch.testing.assert_close(out[0].double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("transposed", [False, True])
def test_linear_takes_tokens_in_any_memory_order(transposed):
    x, weight, _, _ = tensors(24, 35, 8)
    tokens = x.view(1, 24, 5, 7).flatten(2).transpose(1, 2) if transposed else x.T.contiguous()[None]
    with torch.no_grad():
        torch.testing.assert_close(linear(tokens, weight[:, :24]), tokens @ weight[:, :24].T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 2048, 2 * 2048 + 5])
def test_feed_forward_equals_the_block_in_double(dtype, rows):
    """Also across the seams of the blocks of tokens."""
    first, second = layer(8, 24, dtype), layer(24, 8, dtype)
    x = torch.randn(1, rows, 8).to(dtype)
    with torch.no_grad():
        out = feed_forward(x, first, second)
    expected = x.double() + product(F.gelu(product(x, first)), second)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_gradients_autocast_and_other_types_take_the_plain_way():
    x, weight, bias, _ = tensors(6, 4, 4)
    weight.requires_grad_()
    assert not available(x, weight)
    linear(x, weight, bias).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(4, 4))
    with torch.no_grad():
        assert not available(x.double(), weight.double())
        assert not available(x.half(), weight.half())
        assert not available(x, weight.bfloat16())
        assert not available(x[:0], weight)
        with torch.autocast("cpu", torch.bfloat16):
            assert not available(x, weight)
            assert linear(x, weight, bias).dtype == torch.bfloat16
    first, second = layer(4, 8), layer(8, 4)
    feed_forward(x, first, second).square().sum().backward()
    apply_linear(second, torch.ones(3, 8), torch.ones(3, 4)).sum().backward()
    assert first.weight.grad.abs().sum() > 0 and second.weight.grad.abs().sum() > 0


class Doubled(nn.Linear):
    """Stands for an adapter around a layer."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_replaced_and_watched_layers_are_called():
    x = torch.randn(3, 4)
    adapted, plain = Doubled(4, 4), layer(4, 4)
    with torch.no_grad():
        assert torch.equal(apply_linear(adapted, x), adapted(x))
        assert torch.equal(feed_forward(x, adapted, adapted), x + adapted(F.gelu(adapted(x))))
        seen = []
        plain.register_forward_hook(lambda module, arguments, out: seen.append(out))
        apply_linear(plain, x)
        feed_forward(x, plain, layer(4, 4))
    assert len(seen) == 2


@needs_onednn
@pytest.mark.parametrize("has_bfloat16", [False, True])
def test_inference_in_single_and_brain_precision_takes_onednn_where_the_processor_has_it(monkeypatch, has_bfloat16):
    monkeypatch.setattr(fast_linear, "_HAS_BFLOAT16", has_bfloat16)
    x, weight, bias, residual = tensors(6, 4, 4)
    weight.requires_grad_()
    with torch.no_grad():
        assert available(x, weight, bias, residual)
        assert available(x.bfloat16(), weight.bfloat16(), None) == has_bfloat16
    assert available(x, weight.detach())


@needs_onednn
def test_a_step_of_the_decoder_multiplies_by_onednn():
    config = Noise2MapConfig(hidden_size=16, group_norm_groups=4, decoder_attention_heads=2, decoder_layers=2, decoder_ffn_dim=32)
    decoder = MapDecoder(config, 3).eval()
    with torch.inference_mode():
        context, modulations = decoder.prepare(torch.randn(1, 16, 4, 4)), decoder.modulations(torch.tensor([0.5]))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            decoder(context, torch.randn(1, 3, 4, 4), modulations)
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls["mkldnn::_linear_pointwise"] == 1 + 2 * 5  # the map; query, value, output and feed-forward of 2 layers
    assert not {"aten::addmm", "aten::linear"} & set(calls)


@needs_onednn
def test_the_operators_describe_themselves_rightly():
    x, weight, bias, residual = tensors(6, 4, 4)
    with torch.no_grad():
        with_all = torch.library.opcheck(fast_linear.onednn_linear, (x, weight, bias, residual))
        plain = torch.library.opcheck(fast_linear.onednn_linear, (x, weight, None, None))
        feed_forward = torch.library.opcheck(fast_linear.onednn_feed_forward, (x, weight, bias, weight, bias))
    assert {*with_all.values(), *plain.values(), *feed_forward.values()} == {"SUCCESS"}
