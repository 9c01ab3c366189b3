"""Generators for each image, and reductions over samples, against brute force."""

import math
import os
import subprocess
import sys

import pytest
import torch

from noise2map.diffusion import draw_noise, image_generator
from noise2map.diffusion.ensemble import check_noise, entropy, entropy_of_logits, fold, generator_list, unfold


def test_image_generator_is_the_same_in_every_process():
    code = "from noise2map.diffusion import image_generator; print(image_generator(7, 'rooms/é 1.png').initial_seed())"
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONUTF8": "1"}
    elsewhere = int(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout)
    # Written down: published results must stay reproducible.
    assert elsewhere == image_generator(7, "rooms/é 1.png").initial_seed() == 2283838182644594133


def test_image_generators_differ():
    seeds = [image_generator(seed, name).initial_seed() for seed in range(5) for name in ("a", "b", "0", "1", "")]
    assert len(set(seeds)) == 25
    assert image_generator(1, "1").initial_seed() != image_generator(11, "").initial_seed()
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_batch_of_three_draws_what_three_batches_of_one_draw():
    def generators():
        return [image_generator(0, name) for name in "abc"]

    together = draw_noise((2, 3, 4, 5), generators())
    assert together.shape == (3, 2, 3, 4, 5)
    assert together.dtype == torch.float32
    alone = [draw_noise((2, 3, 4, 5), [generator])[0] for generator in generators()]
    assert torch.equal(together, torch.stack(alone))
    backwards = draw_noise((2, 3, 4, 5), generators()[::-1])
    assert torch.equal(backwards.flip(0), together)
    assert abs(float(together.mean())) < 0.3
    assert float(together.std()) == pytest.approx(1, abs=0.2)


def test_fewer_samples_are_the_first_ones():
    assert torch.equal(draw_noise((4, 3), [image_generator(0, "a")])[:, :2], draw_noise((2, 3), [image_generator(0, "a")]))


def test_one_generator_is_used_in_turn():
    generator = torch.Generator().manual_seed(0)
    both = draw_noise((5,), generator_list(generator, 2))
    assert torch.equal(both.flatten(), torch.randn(10, generator=torch.Generator().manual_seed(0)))


def test_no_generator_means_the_global_one():
    torch.manual_seed(0)
    first = draw_noise((5,), generator_list(None, 2))
    torch.manual_seed(0)
    assert torch.equal(first, draw_noise((5,), generator_list(None, 2)))


def test_generator_list_keeps_order_and_counts():
    generators = [torch.Generator() for _ in range(3)]
    assert generator_list(generators, 3) == generators
    assert generator_list(tuple(generators), 3) == generators
    with pytest.raises(ValueError, match="got 3 generators; expected one for each of the 2 images"):
        generator_list(generators, 2)


@pytest.mark.parametrize("generator", [0, "cpu", [0, 1]])
def test_things_that_are_no_generators(generator):
    with pytest.raises(ValueError, match=r"generator.*expected"):
        generator_list(generator, 2)


def test_check_noise():
    shape = (2, 1, 3, 4, 4)
    noise = torch.randn(shape)
    assert check_noise(noise, shape) is noise
    assert check_noise(noise.half(), shape).dtype == torch.float16
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\).*\(B, R, C, h, w\) = \(2, 1, 3, 4, 4\)"):
        check_noise(noise[:, 0], shape)
    with pytest.raises(ValueError, match="int64"):
        check_noise(noise.long(), shape)
    for value in (math.nan, math.inf):
        bad = noise.clone()
        bad[0, 0, 0, 0, 0] = value
        with pytest.raises(ValueError, match="NaN or infinite"):
            check_noise(bad, shape)


def test_fold_and_unfold():
    x = torch.arange(2 * 3 * 4).view(2, 3, 4)
    assert fold(x).shape == (6, 4)
    assert torch.equal(fold(x)[3], x[1, 0])  # the samples of an image stay next to each other
    assert torch.equal(unfold(fold(x), 3), x)


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_entropy_by_brute_force(classes):
    p = torch.rand(3, classes, 2, 2, generator=torch.Generator().manual_seed(0)).softmax(1)
    value = entropy(p)
    assert value.shape == (3, 2, 2)
    for b in range(3):
        for y in range(2):
            for x in range(2):
                expected = -sum(float(q) * math.log(float(q)) for q in p[b, :, y, x])
                assert float(value[b, y, x]) == pytest.approx(expected / math.log(max(classes, 2)), abs=1e-6)


def test_entropy_of_certainty_and_of_ignorance():
    assert float(entropy(torch.tensor([[1.0, 0.0, 0.0]]))) == 0
    assert float(entropy(torch.full((1, 7), 1 / 7))) == pytest.approx(1)
    assert entropy(torch.full((2, 3, 7), 1 / 7), dim=2).shape == (2, 3)


@pytest.mark.parametrize("dim", [0, 1])
def test_entropy_of_logits_is_that_of_their_softmax(dim):
    logits = torch.randn(7, 7, 5, generator=torch.Generator().manual_seed(0)) * 20
    logits[:, :, 0], logits[0, 0, 1] = -300.0, -math.inf  # ignorance; a class that cannot be
    value, largest = entropy_of_logits(logits.clone(), dim)
    p = logits.double().softmax(dim)
    assert torch.allclose(value, entropy(p, dim).float(), atol=1e-6)
    assert torch.allclose(largest, p.amax(dim).float(), atol=1e-6)


def test_entropy_of_logits_has_the_gradient_of_that_of_probabilities():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: entropy_of_logits(z)[0], (logits,))
