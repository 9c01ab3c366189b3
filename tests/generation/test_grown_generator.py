"""A generator that begins with a smaller one: benchmarks/grow_generator.py."""

import grow_generator
import pytest
import torch
from diffusers import UNet2DModel

from noise2map.generation.loading import load_generator
from noise2map.training.generators.build import make_generator_model
from noise2map.training.generators.recipe import load_generator_recipe


@pytest.fixture
def small() -> UNet2DModel:
    torch.manual_seed(3)
    return UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
    )


def _inside(grown: UNet2DModel, x: torch.Tensor, timestep: torch.Tensor) -> list[torch.Tensor]:
    """What the shared part makes of an image: outputs of the encoder's last block and of the bottleneck."""
    found = []

    def keep(_module: torch.nn.Module, _inputs: object, output: object) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    hooks = [part.register_forward_hook(keep) for part in (grown.down_blocks[-1], grown.mid_block)]
    grown(x, timestep)
    for hook in hooks:
        hook.remove()
    return found


def test_the_inside_of_the_grown_network_computes_what_the_trained_one_does(small: UNet2DModel) -> None:
    grown, shared = grow_generator.grown_unet(small)
    # The new level is taken out: half the side goes through, and the rest must be the trained encoder and bottleneck.
    grown.down_blocks[0].forward = lambda hidden_states, temb=None: (hidden_states, ())  # type: ignore[method-assign]
    grown.up_blocks = torch.nn.ModuleList()
    grown.conv_norm_out, grown.conv_act, grown.conv_out = torch.nn.Identity(), torch.nn.Identity(), torch.nn.Identity()
    x, timestep = torch.randn(2, 3, 16, 16), torch.tensor([5, 700])
    with torch.no_grad():
        expected, found = _inside(small, x, timestep), _inside(grown, x, timestep)
    assert shared > len(small.state_dict()) // 2
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_grown_network_has_twice_the_side_and_takes_gradients_everywhere(small: UNet2DModel) -> None:
    grown, _ = grow_generator.grown_unet(small)
    out = grown(torch.randn(2, 3, 32, 32), torch.tensor([5, 700])).sample
    assert out.shape == (2, 3, 32, 32)
    out.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in grown.parameters())


def test_the_shipped_recipe_of_128_px_is_the_shipped_one_of_64_px_grown() -> None:
    recipe = load_generator_recipe("freedoom-generator-128")
    grown, shared = grow_generator.grown_unet(load_generator("freedoom-generator-64").unet.float())
    fresh = make_generator_model(recipe).unet
    assert {name: tensor.shape for name, tensor in grown.state_dict().items()} == {
        name: tensor.shape for name, tensor in fresh.state_dict().items()
    }
    assert shared > 200  # of 262
