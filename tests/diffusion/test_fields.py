"""Smooth noise and maps drawn from marginals with it: the marginals stay what they are, neighbours share their luck."""

import math

import pytest
import torch

from noise2map.diffusion import draw_classes, draw_laplace, draw_layers, image_generator, multi_resolution_noise, smooth_field

WIDTHS = (0, 0.7, 2, 7, math.inf)


def generators(*names):
    return [image_generator(0, name) for name in names]


@pytest.mark.parametrize("smoothness", WIDTHS)
def test_fields_have_unit_variance_everywhere(smoothness):
    field = smooth_field((3000,), (9, 12), smoothness, generators("a"))[0]
    assert field.shape == (3000, 9, 12)
    assert field.mean(0).abs().max() < 0.1
    # The error of a variance of 3000 draws is sqrt(2 / 3000) = .026; 108 cells.
    assert (field.var(0) - 1).abs().max() < 0.12


def test_correlation_of_neighbours_follows_the_kernels():
    width, field = 2.0, smooth_field((4000,), (8, 8), 2.0, generators("a"))[0]
    expected = sum(math.exp(-1 / (4 * (width * 2**octave) ** 2)) for octave in range(3)) / 3
    across = (field[:, :, 1:] * field[:, :, :-1]).mean()
    down = (field[:, 1:] * field[:, :-1]).mean()
    assert across == pytest.approx(expected, abs=0.03) and down == pytest.approx(expected, abs=0.03)


def test_a_field_depends_on_its_own_generator_alone():
    both = smooth_field((2,), (6, 5), 1.5, generators("a", "b"))
    alone = smooth_field((2,), (6, 5), 1.5, generators("b"))
    assert torch.equal(both[1], alone[0]) and not torch.equal(both[0], both[1])


@pytest.mark.parametrize("smoothness", WIDTHS)
def test_classes_come_up_as_often_as_their_marginal_says(smoothness):
    probabilities = torch.tensor([0.6, 0.3, 0.1]).view(1, 3, 1, 1).expand(1, 3, 4, 5)
    ids = draw_classes(probabilities.log(), 6000, smoothness, generators("a"))
    assert ids.shape == (1, 6000, 4, 5)
    for k, expected in enumerate((0.6, 0.3, 0.1)):
        assert ((ids == k).float().mean((0, 1)) - expected).abs().max() < 0.03  # five standard errors


def test_smooth_luck_makes_neighbours_agree_and_leaves_the_certain_alone():
    probabilities = torch.full((1, 2, 6, 6), 0.5)
    probabilities[..., 0] = torch.tensor([1.0, 0.0]).view(2, 1)
    agree = []
    for smoothness in WIDTHS:
        ids = draw_classes(probabilities.clamp(min=1e-30).log(), 300, smoothness, generators("a"))
        assert bool((ids[..., 0] == 0).all())
        agree.append((ids[..., 1:-1] == ids[..., 2:]).float().mean().item())
    assert agree == sorted(agree) and agree[0] == pytest.approx(0.5, abs=0.03) and agree[-1] == 1


def test_layers_are_drawn_one_by_one():
    probabilities = torch.tensor([0.9, 0.2]).view(1, 2, 1, 1).expand(1, 2, 3, 4)
    drawn = draw_layers(probabilities, 5000, 1.0, generators("a"))
    assert drawn.shape == (1, 5000, 2, 3, 4) and drawn.dtype == torch.bool
    assert (drawn.float().mean((1, 3, 4)) - torch.tensor([[0.9, 0.2]])).abs().max() < 0.02
    together = (drawn[:, :, 0] & drawn[:, :, 1]).float().mean()
    assert together == pytest.approx(0.18, abs=0.03)  # layers are independent


@pytest.mark.parametrize("smoothness", (0, 3.0))
def test_depths_are_drawn_from_their_laplace_distribution(smoothness):
    median, scale = torch.full((1, 3, 4), 1.5), torch.full((1, 3, 4), 0.4)
    drawn = draw_laplace(median, scale, 8000, smoothness, generators("a"))
    truth = torch.distributions.Laplace(1.5, 0.4)
    for level in (0.05, 0.25, 0.5, 0.9):
        quantile = drawn.flatten(2).quantile(level, 1)
        assert truth.cdf(quantile).sub(level).abs().max() < 0.03


def test_multi_resolution_noise_is_constant_over_blocks():
    noise = multi_resolution_noise(3, 200, (9, 18), generators("a", "b"))
    assert noise.shape == (2, 200, 3, 9, 18)
    assert torch.equal(noise[:, :, 1, :4, :4], noise[:, :, 1, :1, :1].expand(-1, -1, 4, 4))
    assert torch.equal(noise[:, :, 2, :, :16], noise[:, :, 2, :1, :1].expand(-1, -1, 9, 16))
    assert not torch.equal(noise[:, :, 2, 0, 0], noise[:, :, 2, 0, 16])
    assert (noise.var((0, 1)) - 1).abs().max() < 0.35


def test_impossible_smoothness_is_refused():
    for value in (-1, math.nan):
        with pytest.raises(ValueError, match="smoothness is"):
            smooth_field((1,), (4, 4), value, generators("a"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_depth_drawn_in_half_precision_is_finite(dtype):
    flat = torch.ones(1, 64, 64, dtype=dtype)
    drawn = draw_laplace(flat, 0.1 * flat, 8, 0.0, [torch.Generator().manual_seed(0)])
    assert drawn.dtype == dtype and drawn.isfinite().all()


@pytest.mark.parametrize("smoothness", [50.0, 1e4, 1e6, 1e12])
def test_fields_much_wider_than_the_map_are_one_luck_for_all_of_it(smoothness):
    field = smooth_field((200,), (8, 12), smoothness, generators("a"))[0]
    assert field.shape == (200, 8, 12) and float(field.std()) == pytest.approx(1, abs=0.1)
    assert float(field.std((1, 2)).max()) < 0.5 * 8 / smoothness * 8
