"""Every formulation equals transformers' reference and a loop over pixels; gradients equal finite differences."""

from types import SimpleNamespace

import pytest
import torch
import torch._dynamo.testing
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

from noise2map.models.kernels import embedding_bag as deformable_bags
from noise2map.models.kernels.deformable_attention import _choose, deformable_sample, pixel_grid

FORMULATIONS = ("gather", "embedding_bag", "grid_sample")
SHAPES = [(2, 5, 7, 4, 3, 2), (1, 1, 1, 2, 4, 4), (1, 1, 9, 1, 5, 1), (3, 8, 6, 2, 16, 4)]


def inputs(shape, dtype=torch.float32, spread=2.0, seed=0, grad=False):
    batch, height, width, heads, channels, points = shape
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    value = draw(batch, height, width, heads, channels)
    offsets = draw(batch, height * width, heads, points, 2) * spread
    weights = draw(batch, height * width, heads, points).softmax(-1)
    return [tensor.to(dtype).requires_grad_(grad) for tensor in (value, offsets, weights)]


def reference(value, offsets, weights):
    """transformers' module, given sampling locations as the official code computes them."""
    _, height, width, _, _ = value.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centres = torch.stack(((columns.flatten() + 0.5) / width, (rows.flatten() + 0.5) / height), -1).to(value)
    locations = centres[:, None, None, None] + offsets.unsqueeze(3) / torch.tensor([width, height]).to(value)
    shapes = torch.tensor([[height, width]])
    return MultiScaleDeformableAttention()(
        value.flatten(1, 2), shapes, [(height, width)], torch.tensor([0]), locations, weights.unsqueeze(3), 64
    )


def brute_force(value, offsets, weights):
    """Bilinear interpolation written out for every number."""
    batch, height, width, heads, channels = value.shape
    out = torch.zeros(batch, height * width, heads, channels, dtype=value.dtype)
    for b, query, head, point in torch.cartesian_prod(*(torch.arange(size) for size in weights.shape)).tolist():
        x = query % width + offsets[b, query, head, point, 0].item()
        y = query // width + offsets[b, query, head, point, 1].item()
        for row in range(height):
            for column in range(width):
                share = max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
                out[b, query, head] += weights[b, query, head, point] * share * value[b, row, column, head]
    return out.flatten(2)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_gradient_equal_transformers(formulation, shape):
    tensors = inputs(shape, grad=True)
    ours, theirs = deformable_sample(*tensors, formulation), reference(*tensors)
    assert ours.shape == (shape[0], shape[1] * shape[2], shape[3] * shape[4])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    upstream = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    for mine, reference_gradient in zip(
        torch.autograd.grad(ours, tensors, upstream), torch.autograd.grad(theirs, tensors, upstream)
    ):
        torch.testing.assert_close(mine, reference_gradient, atol=1e-5, rtol=1e-5)
    with torch.no_grad():  # inference may take another path
        torch.testing.assert_close(deformable_sample(*tensors, formulation), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_every_sample_is_bilinear_with_zeros_outside(formulation):
    tensors = inputs((2, 3, 4, 2, 2, 3), torch.float64, spread=3.0)
    with torch.no_grad():
        tensors[1][0, 0] = torch.tensor([-1.0, -1.0])  # on the border of what is read
        tensors[1][0, 1] = torch.tensor([2.0, 1.0])  # exactly on pixels
        tensors[1][1, 2] = torch.tensor([-2.5, 0.0])  # half a pixel outside
        torch.testing.assert_close(deformable_sample(*tensors, formulation), brute_force(*tensors), atol=1e-12, rtol=0)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("shape", [(2, 3, 4, 2, 3, 2), (1, 1, 1, 1, 2, 2)])
def test_gradcheck(formulation, shape):
    value, offsets, weights = inputs(shape, torch.float64, spread=1.5, grad=True)
    # Interpolation has kinks at whole pixels; keep the finite differences away from them.
    offsets = (offsets.detach().floor() + 0.1 + 0.8 * torch.rand(offsets.shape, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda *t: deformable_sample(*t, formulation), (value, offsets, weights))


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("far", [1e4, 1e30, float("inf")])
def test_far_away_reads_zero_and_gets_no_gradient(formulation, far):
    if formulation == "grid_sample" and far == float("inf"):
        pytest.skip("grid_sample leaves infinite coordinates undefined")
    value, offsets, weights = inputs((1, 4, 4, 2, 3, 2))
    offsets[0, 3], offsets[0, 5], offsets[0, 6, :, :, 1] = far, -far, far
    tensors = [tensor.requires_grad_() for tensor in (value, offsets, weights)]
    out = deformable_sample(*tensors, formulation)
    assert out[0, [3, 5, 6]].abs().max() == 0
    assert out[0, 0].abs().max() > 0
    gradients = torch.autograd.grad(out.square().sum(), tensors)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[1][0, [3, 5, 6]].abs().max() == 0


@pytest.mark.parametrize("formulation", ("gather", "embedding_bag"))
def test_not_a_number_stays_where_it_is(formulation):
    value, offsets, weights = inputs((2, 4, 4, 2, 3, 2))
    offsets[1, 2, 1, 0, 0] = float("nan")
    tensors = [tensor.requires_grad_() for tensor in (value, offsets, weights)]
    out = deformable_sample(*tensors, formulation).unflatten(-1, (2, 3))
    assert out[1, 2, 1].isnan().all()
    out[1, 2, 1].detach().zero_()
    assert out.isfinite().sum() == out.numel()
    deformable_sample(*tensors, formulation).sum().backward()  # must not read outside the map


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_images_do_not_mix(formulation):
    tensors = inputs((3, 5, 4, 2, 8, 4), grad=True)
    together = deformable_sample(*tensors, formulation)
    upstream = torch.randn_like(together)
    gradients = torch.autograd.grad(together, tensors, upstream)
    for image in range(3):
        single = [tensor[image : image + 1].detach().requires_grad_() for tensor in tensors]
        alone = deformable_sample(*single, formulation)
        torch.testing.assert_close(alone, together[image : image + 1], atol=1e-6, rtol=1e-6)
        for mine, all_images in zip(torch.autograd.grad(alone, single, upstream[image : image + 1]), gradients):
            torch.testing.assert_close(mine, all_images[image : image + 1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("formulation", ("auto", *FORMULATIONS))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_half_precision_values_keep_exact_positions(formulation, dtype, tolerance):
    """On a map of 600 columns coordinates in bfloat16 would be off by pixels."""
    value, offsets, weights = inputs((1, 2, 600, 1, 8, 4), spread=1.0)
    value, offsets = value.to(dtype), offsets.to(dtype)
    expected = reference(value.float(), offsets.float(), weights)
    tensors = [tensor.requires_grad_() for tensor in (value, offsets, weights)]
    out = deformable_sample(*tensors, formulation)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, atol=tolerance, rtol=tolerance)
    gradients = torch.autograd.grad(out.float().sum(), tensors)
    assert [gradient.dtype for gradient in gradients] == [dtype, dtype, torch.float32]
    with torch.no_grad():
        torch.testing.assert_close(deformable_sample(*tensors, formulation).float(), expected, atol=tolerance, rtol=tolerance)


def test_backward_of_bags_does_not_depend_on_threads():
    tensors = inputs((4, 20, 20, 4, 16, 4), grad=True)
    threads = torch.get_num_threads()
    gradients = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            out = deformable_sample(*tensors, "embedding_bag")
            gradients.append(torch.autograd.grad(out.square().sum(), tensors))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*gradients):
        assert torch.equal(one, two)


def test_precomputed_grid_changes_nothing():
    tensors = inputs(SHAPES[0])
    grid = pixel_grid(5, 7)
    assert grid.tolist() == [[column, row] for row in range(5) for column in range(7)]
    for formulation in FORMULATIONS:
        assert torch.equal(deformable_sample(*tensors, formulation), deformable_sample(*tensors, formulation, base_grid=grid))


@pytest.mark.parametrize(("formulation", "needs_grad"), [("auto", False), ("auto", True), ("gather", False)])
def test_compiles_whole_with_dynamic_shapes(formulation, needs_grad):
    """One graph, no recompilation from the second size on, same numbers."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(deformable_sample, backend=counter, fullgraph=True, dynamic=True)
    for shape in [(3, 5, 7, 2, 8, 4), (6, 8, 9, 2, 8, 4)]:
        tensors = inputs(shape, grad=needs_grad)
        out = compiled(*tensors, formulation)
        torch.testing.assert_close(out, reference(*tensors), atol=1e-5, rtol=0)
        if needs_grad:
            ours = torch.autograd.grad(out.square().sum(), tensors)
            theirs = torch.autograd.grad(reference(*tensors).square().sum(), tensors)
            for mine, expected in zip(ours, theirs):
                torch.testing.assert_close(mine, expected, atol=2e-5, rtol=1e-5)
    assert counter.frame_count == 1


def test_operators_describe_themselves_rightly():
    value, offsets, weights = inputs((2, 3, 4, 2, 3, 2))
    saved = deformable_bags.bag_forward(value, offsets, weights, pixel_grid(3, 4))
    forward = torch.library.opcheck(deformable_bags.bag_forward, (value, offsets, weights, pixel_grid(3, 4)))
    backward = torch.library.opcheck(deformable_bags.bag_backward, (saved[0], weights, *saved[1:]))
    assert {*forward.values(), *backward.values()} == {"SUCCESS"}


@pytest.mark.parametrize(
    ("device", "needs_grad", "compiling", "expected"),
    [
        ("cpu", False, False, "embedding_bag"),
        ("cpu", True, True, "embedding_bag"),
        ("cuda", False, False, "embedding_bag"),
        ("cuda", False, True, "gather"),
        ("cuda", True, False, "grid_sample"),
        ("mps", False, False, "grid_sample"),
    ],
)
def test_auto_chooses_by_device_gradient_and_compilation(device, needs_grad, compiling, expected, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    tensor = SimpleNamespace(device=torch.device(device), requires_grad=needs_grad)
    assert _choose(tensor, tensor, tensor) == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"formulation": "magic"}, "gather, embedding_bag, grid_sample"),
        ({"value": torch.zeros(1, 35, 4, 3)}, r"value must be \(B, h, w, heads, d\)"),
        ({"weights": torch.zeros(2, 34, 4, 2)}, r"weights must be .* = \(2, 35, 4, points\)"),
        ({"offsets": torch.zeros(2, 35, 4, 2, 3)}, r"offsets must be \(2, 35, 4, 2, 2\)"),
    ],
)
def test_wrong_shapes_are_named(change, words):
    arguments = dict(zip(("value", "offsets", "weights"), inputs(SHAPES[0]))) | change
    with pytest.raises(ValueError, match=words):
        deformable_sample(**arguments)
