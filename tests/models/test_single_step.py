"""Decoders without diffusion, beside which the map decoder is measured."""

import pytest
import torch
from tiny_models import class_map, images, tiny_config, tiny_depth_model, tiny_segmenter
from tiny_training import tiny_processor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from noise2map.bench.model import build_model
from noise2map.models.single_step import SINGLE_STEP_DECODERS, KernelUpdateHead, PyramidPooling
from noise2map.models.single_step.kernel_update import KernelUpdate

KINDS = sorted(SINGLE_STEP_DECODERS)


def single_step(kind, **fields):
    return tiny_segmenter(diffusion=False, decoder_type=kind, **fields)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_a_gradient_for_every_parameter(kind):
    model = single_step(kind).train()
    model(images(2), labels=class_map(2)).loss.backward()
    without = [name for name, one in model.named_parameters() if one.requires_grad and (one.grad is None or not one.grad.any())]
    assert without == []
    out = model.eval()(images(2, 64, 96))
    assert out.logits.shape == (2, 5, 64, 96) and out.num_steps.tolist() == [1, 1]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_maps_do_not_depend_on_the_batch(kind):
    model = single_step(kind)
    together = model(images(3)).logits
    apart = torch.cat([model(one[None]).logits for one in images(3)])
    assert torch.allclose(together, apart, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_checkpoint_is_loaded_as_it_was_saved(kind, tmp_path):
    model = single_step(kind)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.allclose(loaded(images()).logits, model(images()).logits, atol=1e-6)


@torch.no_grad()
def test_pooling_shows_every_cell_the_mean_of_the_whole_map():
    """Far beyond the reach of its convolution, a cell changes with the features."""
    decoder = PyramidPooling(tiny_config()).eval()
    features = torch.randn(1, 16, 24, 24)
    moved = features.clone()
    moved[..., -1, -1] += 50
    assert not torch.allclose(decoder.refine(features)[..., :6, :6], decoder.refine(moved)[..., :6, :6], atol=1e-3)


@torch.no_grad()
def test_a_kernel_that_owns_a_region_gathers_its_mean():
    """With masks that are all but certain, the region of a class is the mean of its cells, brute force."""
    torch.manual_seed(0)
    stage = KernelUpdate(tiny_config())
    tokens, kernels = torch.randn(1, 12, 16), torch.randn(1, 3, 16)
    owner = torch.tensor([0, 1, 2] * 4)
    logits = functional.one_hot(owner, 3)[None].float() * 60
    means = torch.stack([tokens[0, owner == k].mean(0) for k in range(3)])[None]
    expected = stage._interact(stage._mix(kernels, means))
    assert torch.allclose(stage(kernels, logits, tokens)[0], expected, atol=1e-5)


def test_operations_of_pooling_are_those_of_its_convolutions():
    config = tiny_config()
    decoder, (height, width) = PyramidPooling(config), (16, 20)
    with FlopCounterMode(display=False) as counter:
        decoder.refine(torch.randn(1, 16, height, width))
    pooled = 2 * sum(bins * bins for bins in PyramidPooling.BINS) * 16 * 4
    assert counter.get_total_flops() == pooled + 2 * height * width * 9 * 32 * 16


def test_what_does_not_go_together_is_refused():
    with pytest.raises(
        ValueError, match="decoder_type is 'kernel_update', which makes its map in one step; expected diffusion=False"
    ):
        tiny_segmenter(decoder_type="kernel_update")
    with pytest.raises(ValueError, match="decoder_type is 'pyramid_pooling'; expected 'denoising' for depth"):
        tiny_depth_model(decoder_type="pyramid_pooling", diffusion=False)
    with pytest.raises(ValueError, match="decoder_type is 'unet'; expected one of 'denoising'"):
        tiny_config(decoder_type="unet")


def test_bench_says_that_there_are_no_steps_to_time(tmp_path):
    single_step("kernel_update").save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has decoder_type 'kernel_update'; expected a map decoder, whose steps are timed"):
        build_model(str(tmp_path), torch.device("cpu"), torch.float32, 0)


def test_temperature_divides_the_logits():
    torch.manual_seed(0)
    head = KernelUpdateHead(tiny_config())
    tokens = torch.randn(2, 12, 16)
    plain = head(tokens, (3, 4))
    head.config.temperature = 2.0
    assert torch.allclose(head(tokens, (3, 4)), plain / 2)


@torch.no_grad()
def test_regions_of_large_images_fit_into_half_precision():
    """131,072 cells of about one add up to more than 65,504."""
    torch.manual_seed(0)
    stage = KernelUpdate(tiny_config())
    tokens, kernels = torch.rand(1, 131_072, 16) + 0.5, torch.randn(1, 3, 16)
    logits = torch.randn(1, 131_072, 3)
    expected = stage(kernels, logits, tokens)[0]
    found = stage.half()(kernels.half(), logits.half(), tokens.half())[0].float()
    assert torch.isfinite(found).all() and torch.allclose(found, expected, atol=0.02)
